"""A Qlib store made into panels: which bars are in, where forecasts may start, what is left out and said, and what is refused."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from qlib_bars import CHANGING, CHANGING_SPANS, HORIZON, LATE, LOOKBACK, SUSPENDED, data_section, market, small_store

from benchmarks import qlib_data
from finetune.data.frames import bars_frame, wall_clock
from finetune.data.panel import Panel
from finetune.data.qlib_panels import build_panels, open_panels, save_panels
from finetune.data.qlib_ranges import ranges_of
from finetune.data.qlib_writing import write_store
from finetune.engine.splits import windows_of
from kronos.errors import InputError, MissingFileError

NAMES = ("train", "val", "test")


def quiet(_):
    return None


def built(folder=None, frames=None, **changes):
    """Panels of frames written to a store in `folder`, or of the small store."""
    if frames is not None:
        changes["qlib_data_path"] = str(write_store(folder / "store", frames))
    return build_panels(data_section(**changes), quiet)


@pytest.fixture(scope="module")
def made():
    return build_panels(data_section(), quiet)


def rows_of(panel, symbol):
    number = [info.symbol for info in panel.series].index(symbol)
    return int(panel.offsets[number]), int(panel.offsets[number + 1])


def frame_of(panel, symbol):
    return bars_frame(panel, *rows_of(panel, symbol))


def origins_of(panel, symbol):
    low, high = rows_of(panel, symbol)
    return list(wall_clock(panel, low, high)[panel.origin[low:high]])


def test_every_bar_of_a_panel_is_the_one_written_to_a_millionth(made):
    frames = market()
    for name in NAMES:
        panel = getattr(made, name)
        for info in panel.series:
            found = frame_of(panel, info.symbol)
            written = frames[info.symbol].dropna().loc[found.index[0] : found.index[-1], list(found.columns)]
            assert list(found.index) == list(written.index)
            np.testing.assert_allclose(found.to_numpy(), written.to_numpy(), rtol=1e-6)


def expected_origins(symbol, name, spans=None):
    """The rules of `Preprocessed`, bar by bar."""
    section, days = data_section(), market()["SH600000"].index
    own = list(market()[symbol].dropna().index)
    first, last = (pd.Timestamp(text) for text in getattr(section, f"{name}_time_range"))
    ahead = {"val": section.train_time_range[1], "test": section.val_time_range[1]}.get(name)
    found = []
    for number, day in enumerate(own):
        after = days.get_loc(day) + 1
        if after == len(days) or not first <= days[after] <= last or (ahead and days[after] <= pd.Timestamp(ahead)):
            continue
        outcome = own[number + 1 : number + HORIZON + 2]
        inside = len(outcome) == HORIZON + 1 and outcome[-1] <= last
        member = spans is None or any(pd.Timestamp(begin) <= day <= pd.Timestamp(end) for begin, end in spans)
        if number + 1 >= LOOKBACK and member and (inside or name == "test"):
            found.append(day)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symbol", ["SH600000", SUSPENDED, LATE])
def test_forecasts_start_exactly_where_the_rules_say(made, name, symbol):
    expected = expected_origins(symbol, name)
    assert expected and origins_of(getattr(made, name), symbol) == expected


def test_membership_limits_origins_and_not_rows():
    few = built(instrument="few")
    for name in NAMES:
        assert origins_of(getattr(few, name), CHANGING) == expected_origins(CHANGING, name, CHANGING_SPANS)
    assert len(frame_of(few.train, CHANGING)) == len(frame_of(few.train, "SH600000")), "its rows between the memberships are there"
    assert {info.symbol for info in few.test.series} == {f"SH60000{i}" for i in range(6)}
    assert {info.market for info in few.test.series} == {"few"}


def test_rows_reach_back_a_lookback_and_only_the_test_goes_on(made):
    days = market()["SH600000"].index
    for name, after in (("train", 0), ("val", 0), ("test", HORIZON)):
        first, last = (pd.Timestamp(text) for text in getattr(data_section(), f"{name}_time_range"))
        index = frame_of(getattr(made, name), "SH600000").index
        assert index[0] == days[max(0, days.get_loc(first) - LOOKBACK)] and index[-1] == days[days.get_loc(last) + after]


def test_every_origin_is_a_window_that_stays_in_its_range(made):
    section = data_section()
    for name in ("train", "val"):
        panel = getattr(made, name)
        windows = windows_of(panel, name, LOOKBACK, HORIZON)
        assert len(windows) == panel.origin.sum()
        first_target = panel.times[windows.start_rows(np.arange(len(windows))) + LOOKBACK].astype("M8[ns]")
        ahead = section.train_time_range[1] if name == "val" else "2021-01-01"
        assert (first_target + np.timedelta64(8, "h") > np.datetime64(ahead)).all()  # Shanghai


def test_noise_after_a_range_changes_nothing_in_it(tmp_path, made):
    frames = {symbol: frame.copy() for symbol, frame in market().items()}
    for frame in frames.values():
        frame.loc["2021-09-16":] *= 7.0
    noisy = built(tmp_path, frames)
    assert noisy.train.fingerprint == made.train.fingerprint and noisy.val.fingerprint == made.val.fingerprint
    assert noisy.test.fingerprint != made.test.fingerprint


def test_times_are_utc_and_stamps_are_the_wall_clock(made):
    panel = made.train
    assert panel.times[0] == pd.Timestamp("2021-01-04", tz="Asia/Shanghai").value and panel.timezone == "Asia/Shanghai"
    assert panel.stamps[0].tolist() == [0, 0, 0, 4, 1] and panel.stamp == "open" and panel.series[0].period == "1d"


def test_an_hourly_store_gives_panels_with_hours(tmp_path):
    edges = ("2021-01-04", "2021-01-10"), ("2021-01-11", "2021-01-12"), ("2021-01-13", "2021-01-15")
    ranges = {f"{name}_time_range": list(pair) for name, pair in zip(NAMES, edges, strict=True)}
    hourly = built(
        qlib_data_path=str(small_store("60min")), freq="60min", timezone="UTC", stamp="close", dataset_end_time="2021-01-15", **ranges
    )
    last = wall_clock(hourly.test, hourly.test.n_rows - 1, hourly.test.n_rows)[0]
    assert last == pd.Timestamp("2021-01-15 23:00") and hourly.test.stamps[-1].tolist() == [0, 23, 4, 15, 1]
    assert hourly.val.series[0].period == "60min" and hourly.val.stamp == "close"
    assert hourly.train.origin.sum() == 4 * (7 * 24 - LOOKBACK - HORIZON)


def test_amount_is_volume_times_the_mean_price_where_the_store_has_none(tmp_path):
    frames = {symbol: frame.assign(amount=2 * frame["amount"]) for symbol, frame in market(3).items()}
    frames["SH600001"] = frames["SH600001"].drop(columns="amount")
    frames["SH600002"].iloc[50, list(frames["SH600002"].columns).index("amount")] = np.nan
    built_ = built(tmp_path, frames)
    for symbol, whole in (("SH600000", 2.0), ("SH600001", 1.0), ("SH600002", 2.0)):
        found = frame_of(built_.train, symbol)
        ratio = found["amount"] / (found["volume"] * found[["open", "high", "low", "close"]].mean(axis=1))
        assert np.allclose(ratio.drop(ratio.index[50]), whole, rtol=1e-5)
        assert np.isclose(ratio.iloc[50], 2.0 if symbol == "SH600000" else 1.0, rtol=1e-5)
    assert built_.manifest["kept_bars"]["amount is volume x mean price, as the store has none"] == {"SH600001": 240, "SH600002": 1}


def test_raw_prices_are_those_without_the_adjustment(made):
    raw, stored = built(raw=True).val, made.val
    for symbol, factor in (("SH600000", 0.5), ("SH600003", 0.8)):
        ours, theirs = frame_of(raw, symbol), frame_of(stored, symbol)
        np.testing.assert_allclose(ours["close"] * factor, theirs["close"], rtol=1e-6)
        np.testing.assert_allclose(ours["volume"] / factor, theirs["volume"], rtol=1e-6)
        np.testing.assert_allclose(ours["amount"], theirs["amount"], rtol=1e-6)


def odd_market():
    """One symbol of each kind that is left out in whole or in part."""
    frames = market(6)
    frames["SH600001"] = frames["SH600001"].iloc[:10]
    frames["SH600002"]["volume"] = np.nan
    frames["SH600003"].iloc[30:33, :4] = -1.0
    frames["SH600004"].iloc[40, 1] = np.nan
    frames["SH600005"].iloc[50:52] = np.nan
    return frames


def test_what_is_left_out_is_said_with_the_reason_and_listed_in_the_manifest(tmp_path):
    store = write_store(tmp_path / "store", odd_market(), pools={"mine": [*odd_market(), "SH601999"]})
    lines = []
    odd = build_panels(data_section(qlib_data_path=str(store), instrument="mine"), lines.append)
    assert odd.manifest["dropped_symbols"] == {
        "SH601999": "not in the store",
        "SH600001": "too short: 10 usable bars",
        "SH600002": "all of $volume is NaN",
    }
    assert odd.manifest["dropped_bars"] == {
        "price <= 0": {"SH600003": 3},
        "NaN in some field": {"SH600004": 1},
        "suspended (no price)": {"SH600005": 2},
    }
    said = "\n".join(lines)
    assert "symbols left out, too short: 1 (SH600001 10 bars)" in said and "symbols left out, not in the store: 1 (SH601999)" in said
    assert "bars left out, price <= 0: 3 (SH600003 3)" in said and len(lines) <= 12
    assert odd.manifest["pool"]["symbols"] == 7 and odd.manifest["pool"]["used"] == 4
    assert odd.manifest["fields"]["close"] == 6 and odd.manifest["fields"]["volume"] == 5


def test_a_symbol_that_was_listed_after_the_dataset_ends_is_left_out_and_said(tmp_path):
    early = dict(train_time_range=["2021-01-04", "2021-02-10"], val_time_range=["2021-02-11", "2021-02-24"])
    early |= dict(test_time_range=["2021-02-25", "2021-03-10"], dataset_end_time="2021-03-10", lookback_window=5, predict_window=2)
    assert built(tmp_path, market(8), **early).manifest["dropped_symbols"] == {LATE: "no bar between the dataset's first and last day"}
    with pytest.raises(InputError, match="0 symbols can be used, and 1 are needed; left out: SZ000007"):
        built(qlib_data_path=str(write_store(tmp_path / "late", market(8), pools={"late": [LATE]})), instrument="late", **early)


def test_a_field_that_no_symbol_has_is_an_error_that_names_it(tmp_path):
    frames = {symbol: frame.assign(open=np.nan) for symbol, frame in market(2).items()}
    with pytest.raises(InputError, match=r"\$open is NaN for all 2 symbols"):
        built(tmp_path, frames)
    for file in small_copy(tmp_path / "other").glob("features/*/factor.day.bin"):
        file.unlink()
    with pytest.raises(InputError, match=r"\$factor is NaN for all 2 symbols .*set data.raw=false"):
        built(qlib_data_path=str(tmp_path / "other"), raw=True)


def small_copy(folder):
    return write_store(folder, market(2))


def test_too_few_symbols_are_an_error_with_the_reasons(tmp_path):
    store = write_store(tmp_path / "store", odd_market())
    with pytest.raises(InputError, match=r"4 symbols can be used, and 50 are needed; left out: SH600001 \(too short: 10 usable bars\)"):
        build_panels(data_section(qlib_data_path=str(store)), quiet, min_symbols=50)


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(instrument="csi300"), r"data.instrument: .* has no pool 'csi300'; it has all, few"),
        (dict(qlib_data_path="/nowhere"), "data.qlib_data_path: there is no folder"),
        (dict(freq="60min"), "data.freq: .* has no '60min' bars, it has day"),
        (
            dict(test_time_range=["2021-09-08", "2025-06-05"], dataset_end_time="2025-06-05"),
            r"data.test_time_range .* reaches outside the store's calendar, which runs from 2021-01-04 to 2021-12-03",
        ),
        (dict(train_time_range=["2010-01-01", "2021-06-30"]), r"train_time_range .* outside data.dataset_begin_time 2021-01-04 to"),
        (dict(val_time_range=["2021-07-03", "2021-07-04"]), "data.val_time_range .* holds no bar"),
        (dict(val_time_range=["2021-09-15", "2021-07-15"]), "ends before it begins"),
        (dict(val_time_range=["2021-06-01", "2021-06-29"]), "ends at 2021-06-29, not after data.train_time_range"),
        (
            dict(val_time_range=["2021-06-14", "2021-09-15"]),
            r"begins at 2021-06-14, .* is 2021-06-30, which lies in data.train_time_range .* begin data.val_time_range at 2021-06-15 or la",
        ),
        (dict(test_time_range=["2021-08-20", "2021-11-19"]), "data.test_time_range begins .* lies in data.val_time_range"),
        (dict(val_time_range=["2021-06-21", "2021-07-05"]), r"no forecast can start there .* 11 bars, 3 of them after the range ahead"),
        (dict(train_time_range=["yesterday", "2021-06-30"]), "data.train_time_range: .* is not two days"),
        (dict(dataset_end_time=""), "data.dataset_end_time: '' is not a day"),
    ],
)
def test_settings_that_do_not_fit_the_store_are_one_message(changes, told):
    with pytest.raises(InputError, match=told) as caught:
        built(**changes)
    assert "\n" not in str(caught.value)


def test_the_earliest_range_that_only_lends_lookback_passes():
    assert built(val_time_range=["2021-06-15", "2021-09-15"]).val.origin.any()


def test_the_documented_ranges_pass_and_lend_only_lookback():
    documented = data_section(
        dataset_begin_time="2011-01-01",
        dataset_end_time="2025-06-05",
        train_time_range=["2011-01-01", "2022-12-31"],
        val_time_range=["2022-09-01", "2024-06-30"],
        test_time_range=["2024-04-01", "2025-06-05"],
        lookback_window=90,
        predict_window=10,
    )
    calendar = pd.bdate_range("2010-01-01", "2025-06-20").to_numpy("M8[ns]")
    ranges, first, last = ranges_of(documented, calendar)
    assert calendar[ranges["val"].after] == np.datetime64("2022-12-30") and calendar[ranges["test"].after] == np.datetime64("2024-06-28")
    assert calendar[first + 90] == np.datetime64("2011-01-03") and calendar[last - 10] == np.datetime64("2025-06-05")


def test_saved_panels_open_memory_mapped_and_equal(tmp_path, made):
    opened = open_panels(save_panels(tmp_path / "new" / "panels", made), data_section())
    for name in NAMES:
        ours, theirs = getattr(opened, name), getattr(made, name)
        ours.verify()
        assert ours.fingerprint == theirs.fingerprint and np.array_equal(ours.origin, theirs.origin)
        assert isinstance(ours.features.base, np.memmap) or isinstance(ours.features, np.memmap)
    assert opened.manifest == json.loads(json.dumps(made.manifest))
    assert {"store", "pool", "ranges", "versions", "panels", "settings"} <= set(opened.manifest)
    assert opened.manifest["versions"]["pyqlib"] and opened.manifest["panels"]["val"]["fingerprint"] == made.val.fingerprint


def test_panels_of_other_settings_are_refused_with_the_command(tmp_path, made):
    save_panels(tmp_path, made)
    with pytest.raises(InputError, match=r"data.lookback_window was 12 and is 20.*python finetune/qlib_data_preprocess.py"):
        open_panels(tmp_path, data_section(lookback_window=20))
    open_panels(tmp_path, data_section(clip=3.0, max_context=8, dataset_path="elsewhere"))  # these change no panel


def test_missing_damaged_or_exchanged_panels_are_refused(tmp_path, made):
    with pytest.raises(MissingFileError, match=r"data.dataset_path: .* make them first: python finetune/qlib_data_preprocess.py"):
        open_panels(tmp_path, data_section())
    save_panels(tmp_path, made)
    made.train.save(tmp_path / "val")
    with pytest.raises(InputError, match=r"val: is not the panel that manifest.json lists"):
        open_panels(tmp_path, data_section())
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="no manifest of this version"):
        open_panels(tmp_path, data_section())


def test_panels_that_were_not_saved_to_the_end_do_not_count(tmp_path, made, monkeypatch):
    save_panels(tmp_path, made)
    save = Panel.save

    def breaks_down(panel, folder):
        if folder.name == "test":
            raise KeyboardInterrupt
        return save(panel, folder)

    monkeypatch.setattr(Panel, "save", breaks_down)
    with pytest.raises(KeyboardInterrupt):
        save_panels(tmp_path, made)
    with pytest.raises(MissingFileError):
        open_panels(tmp_path, data_section())


def test_the_benchmark_finds_the_values_again(capsys):
    report = qlib_data.main(["--symbols", "3", "--bars", "600"])
    assert [row.passed for row in report.rows] == [True] * 3
    assert re.search(r"PASS  largest relative difference from the bars written: [1-9]", capsys.readouterr().out)
