"""Coarser bars from finer ones: what a trader would check by hand, on small files."""

import sys
import time

import numpy as np
import pandas as pd
import pytest
from bars import make_frame

from finetune import prepare_kronos_data
from finetune.config_manager import ConfigManager
from finetune.data import build_panel
from finetune.data.panel import Panel, SeriesInfo
from finetune.data.resampling import resample
from finetune.data.resampling_check import compare
from finetune.data.resampling_source import prepare
from finetune.data.timestamps import stamp_features
from finetune.engine.command import run_command
from finetune.engine.files import read_json
from kronos.errors import InputError, MissingFileError

BY_HAND = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
MODEL = """\
timeframe:
  period: 4h
  source: [{source}]
  calendar: "24/7"
data: {{lookback_window: 5, predict_window: 2}}
model_paths: {{base_path: {folder}/out}}
"""


def shanghai(days, stamp="close", minutes=5):
    """Bars of XSHG's two stretches on each date, stamped as asked (09:35 is the first close-stamped five-minute bar)."""
    stretches = [("09:30", "11:30"), ("13:00", "15:00")]
    side = "left" if stamp == "open" else "right"
    times = [
        moment
        for day in days
        for first, last in stretches
        for moment in pd.date_range(f"{day} {first}", f"{day} {last}", freq=f"{minutes}min", inclusive=side)
    ]
    return make_frame(len(times), seed=3).assign(timestamps=times)


def clocks(panel, series=0):
    rows = slice(panel.offsets[series], panel.offsets[series + 1])
    return [f"{month:02d}-{day:02d} {hour:02d}:{minute:02d}" for minute, hour, _, day, month in panel.stamps[rows].tolist()]


def model(folder, text="", **changes):
    """A configuration file in `folder` on BTC_1h.csv, loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(MODEL.format(source=folder / "BTC_1h.csv", folder=folder) + text)
    return ConfigManager(folder, {}).load_config(path, [f"{key}={value}" for key, value in changes.items()])


def hourly(folder, n=100, **options):
    folder.mkdir(parents=True, exist_ok=True)
    frame = make_frame(n, **options)
    frame.to_csv(folder / "BTC_1h.csv", index=False)
    return frame


def test_a_bar_opens_with_the_first_closes_with_the_last_and_sums_what_was_traded():
    frame = make_frame(48, seed=1)
    made = resample({"A": frame}, "4h").panel
    for number in (0, 5, 11):
        part = frame.iloc[4 * number : 4 * number + 4]
        wanted = [part.open.iloc[0], part.high.max(), part.low.min(), part.close.iloc[-1], part.volume.sum(), part.amount.sum()]
        np.testing.assert_allclose(made.features[number], wanted, rtol=1e-6)
        assert np.array_equal(made.features[number, :4], np.float32(wanted[:4]))


def test_amounts_are_summed_over_the_finer_bars_where_the_file_gave_none():
    frame = make_frame(24, seed=2).drop(columns="amount")
    made = resample({"A": frame}, "1d").panel
    wanted = (frame.volume * frame[["open", "high", "low", "close"]].mean(axis=1)).sum()
    np.testing.assert_allclose(made.features[0, 5], wanted, rtol=1e-6)


def test_crypto_bars_of_four_hours_begin_at_0_4_8_utc_whatever_the_wall_clock():
    frame = make_frame(100, start="2024-03-09 02:00").assign(timestamps=lambda bars: bars.timestamps.dt.tz_localize("UTC"))
    made = resample({"A": frame}, "4h", timezone="America/New_York")
    hours = made.panel.times // (3600 * 10**9) % 24
    assert set(hours) == {0, 4, 8, 12, 16, 20}
    assert clocks(made.panel)[:2] == ["03-08 23:00", "03-09 03:00"]
    assert made.series[0].incomplete[0] == "2024-03-08 19:00:00: first, 2 of 4"


def test_each_series_is_made_of_its_own_bars():
    frames = {name: make_frame(n, seed=seed) for name, n, seed in (("A", 30, 1), ("B", 50, 2), ("C", 9, 3))}
    together = resample(frames, "4h").panel
    for number, (name, frame) in enumerate(frames.items()):
        alone = resample({name: frame}, "4h").panel
        rows = slice(together.offsets[number], together.offsets[number + 1])
        assert np.array_equal(together.features[rows], alone.features)
        assert np.array_equal(together.times[rows], alone.times)
    same_bar = {name: make_frame(4, seed=seed) for seed, name in enumerate("AB")}
    assert resample(same_bar, "4h").panel.features[:, 0].tolist() == [np.float32(100.0)] * 2


def test_a_close_stamped_bar_at_0935_belongs_to_the_bar_that_begins_at_0930():
    days = ["2024-06-19", "2024-06-20"]
    close = resample({"A": shanghai(days, "close")}, "15min", timezone="Asia/Shanghai", calendar="XSHG")
    opened = resample({"A": shanghai(days, "open")}, "15min", timezone="Asia/Shanghai", calendar="XSHG")
    assert (close.panel.stamp, opened.panel.stamp) == ("close", "open")
    assert clocks(close.panel)[:2] == ["06-19 09:45", "06-19 10:00"]
    assert clocks(opened.panel)[:2] == ["06-19 09:30", "06-19 09:45"]
    assert np.array_equal(close.panel.features, opened.panel.features)
    assert np.array_equal(close.opens, opened.opens)
    assert (close.found == 3).all()


def test_a_four_hour_bar_begins_at_the_sessions_open_and_anew_after_lunch():
    made = resample({"A": shanghai(["2024-06-19", "2024-06-20"], "open")}, "4h", timezone="Asia/Shanghai", calendar="XSHG").panel
    assert clocks(made) == ["06-19 09:30", "06-19 13:00", "06-20 09:30", "06-20 13:00"]


def test_a_day_of_an_exchange_is_its_session_dated_at_midnight():
    days = ["2024-06-19", "2024-06-20", "2024-06-21"]
    frame = shanghai(days, "close")
    made = resample({"A": frame}, "1d", timezone="Asia/Shanghai", calendar="XSHG")
    assert clocks(made.panel) == ["06-19 00:00", "06-20 00:00", "06-21 00:00"]
    assert made.panel.stamp == "open"
    np.testing.assert_allclose(made.panel.features[:, 4], frame.volume.to_numpy().reshape(3, 48).sum(axis=1), rtol=1e-6)


def test_a_half_day_is_whole_with_the_bars_it_has():
    times = pd.DatetimeIndex([*pd.date_range("2024-07-03 09:30", "2024-07-03 12:59", freq="30min")])  # New York closed at 13:00
    full = pd.date_range("2024-07-05 09:30", "2024-07-05 15:59", freq="30min")
    frame = make_frame(20).assign(timestamps=times.append(full))
    made = resample({"A": frame}, "1d", timezone="America/New_York", calendar="XNYS")
    assert made.expected.tolist() == [7, 13]
    assert clocks(made.panel) == ["07-03 00:00", "07-05 00:00"]
    assert made.panel.breaks.tolist() == []  # 4 July is a holiday, nothing is missing


@pytest.mark.parametrize(("date", "hours"), [("2024-03-10", 23), ("2024-11-03", 25)])
def test_a_day_with_a_clock_change_has_23_or_25_hours(date, hours):
    begin = pd.Timestamp(date, tz="America/New_York") - pd.Timedelta(days=1)
    times = pd.date_range(begin, begin + pd.DateOffset(days=3), freq="1h", inclusive="left")
    frame = make_frame(len(times)).assign(timestamps=times)
    made = resample({"A": frame}, "1d", timezone="America/New_York")
    assert made.expected.tolist() == [24, hours, 24]
    assert made.found.tolist() == made.expected.tolist()
    assert [clock[6:] for clock in clocks(made.panel)] == ["00:00"] * 3


def test_first_and_last_bars_without_all_of_their_finer_bars_are_left_out_and_told():
    made = resample({"A": make_frame(40, start="2020-01-01 08:00")}, "1d")
    assert clocks(made.panel) == ["01-02 00:00"]
    assert made.series[0].incomplete == ("2020-01-01 00:00:00: first, 16 of 24",)
    made = resample({"A": make_frame(30)}, "1d")
    assert made.series[0].incomplete == ("2020-01-02 00:00:00: last, 6 of 24",)


def test_a_bar_inside_that_lacks_finer_bars_is_kept_and_counted_and_nothing_is_filled():
    frame = make_frame(24, seed=5).drop(index=[5, 6])
    made = resample({"A": frame}, "4h")
    assert made.found.tolist() == [4, 2, 4, 4, 4, 4]
    assert made.panel.features[1, 0] == np.float32(frame.loc[4, "open"])
    np.testing.assert_allclose(made.panel.features[1, 4], frame.loc[[4, 7], "volume"].sum(), rtol=1e-6)
    report = made.series[0]
    assert (report.partial, report.gaps, report.missing, report.missing_bars) == (1, 1, 2, 0)
    assert made.panel.breaks.tolist() == []


def test_a_gap_that_swallows_bars_ends_the_stretch_and_its_times_are_told():
    frame = make_frame(48).drop(index=[2, *range(9, 21)])
    made = resample({"A": frame}, "4h")
    assert clocks(made.panel)[:4] == ["01-01 00:00", "01-01 04:00", "01-01 08:00", "01-01 20:00"]
    report = made.series[0]
    assert (report.gaps, report.missing, report.missing_bars) == (2, 13, 2)
    assert report.largest_gap == ("2020-01-01 08:00:00", "2020-01-01 21:00:00")
    assert made.panel.breaks.tolist() == [3]


def test_a_night_or_a_lunch_break_is_no_gap():
    made = resample({"A": shanghai(["2024-06-19", "2024-06-20", "2024-06-24"])}, "1h", timezone="Asia/Shanghai", calendar="XSHG")
    report = made.series[0]
    assert (report.gaps, report.missing_bars) == (1, 4)  # Friday 21 June alone
    assert made.panel.breaks.tolist() == [8]


def test_rows_outside_the_sessions_are_left_out_and_counted():
    times = pd.date_range("2024-06-20 08:00", "2024-06-20 17:00", freq="30min")
    made = resample({"A": make_frame(19).assign(timestamps=times)}, "1d", timezone="America/New_York", stamp="open", calendar="XNYS")
    assert made.series[0].outside == 6
    assert made.found.tolist() == [13]


def test_a_shorter_last_bar_stamped_at_its_close_stays_in_its_own_bar():
    closes = ["10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:00"]
    frame = make_frame(14).assign(timestamps=[f"2024-06-{day} {clock}" for day in (20, 21) for clock in closes])
    made = resample({"A": frame}, "2h", timezone="America/New_York", stamp="close", calendar="XNYS")
    assert made.found.tolist() == [2, 2, 2, 1] * 2
    assert clocks(made.panel)[3] == "06-20 16:00"
    assert made.panel.features[3, 0] == np.float32(frame.open[6])


def test_closes_written_as_59_seconds_count_as_the_full_minute():
    frame = make_frame(24)
    ends = frame.assign(timestamps=frame.timestamps + pd.Timedelta("59min59s"))
    assert np.array_equal(resample({"A": ends}, "4h").panel.features, resample({"A": frame}, "4h").panel.features)


@pytest.mark.parametrize(
    ("frame", "period", "options", "told"),
    [
        (make_frame(48), "7h", {}, "does not divide a day; choose"),
        (make_frame(48), "1w", {}, "does not divide a day"),
        (make_frame(48, freq="4h"), "1h", {}, "bars of 4h, which are coarser than timeframe.period 1h"),
        (make_frame(48, freq="90min"), "4h", {}, "bars of 90min, of which 4h is no multiple"),
        (make_frame(48), "4h", {"calendar": "XSGH"}, "did you mean XSHG"),
        (make_frame(3), "1d", {}, "not one whole bar of 1d"),
        (make_frame(48, start="2020-01-01 00:30"), "4h", {"calendar": "24/7"}, "reaches across the edge"),
        (shanghai(["2024-06-19", "2024-06-20"]), "1h", {"calendar": "XNYS"}, r"outside the sessions of XNYS, and so do 81% of all"),
        (shanghai(pd.bdate_range("2024-06-03", "2024-06-28").strftime("%Y-%m-%d")), "1h", {}, "this market closes; name its calendar"),
        (make_frame(48, start="2031-01-01"), "4h", {"calendar": "XSHG"}, "XSHG is known up to"),
    ],
)
def test_what_cannot_be_resampled_is_refused_with_the_fix(frame, period, options, told):
    with pytest.raises(InputError, match=told):
        resample({"A": frame}, period, **options)


def test_two_periods_in_one_series_are_refused():
    half = pd.concat([make_frame(60), make_frame(200, start="2020-01-03 12:00", freq="30min")[:50]])
    with pytest.raises(InputError, match=r"A, 2020-01-03 12:30:00: lies in the same 1h as the bar before it"):
        resample({"A": half}, "4h")
    coarse = pd.concat([make_frame(60), make_frame(40, start="2020-01-03 12:00", freq="4h")])
    with pytest.raises(InputError, match=r"from here on bars are 4 x 1h apart, 3\d times"):
        resample({"A": coarse}, "1d")


def test_series_of_two_periods_are_refused():
    with pytest.raises(InputError, match=r"mixes periods: 1h \(A\), 30min \(B\)"):
        resample({"A": make_frame(48), "B": make_frame(48, freq="30min")}, "4h")


def test_a_million_minutes_take_about_a_second():
    n = 1_000_000
    times = pd.date_range("2020-01-01", periods=n, freq="1min").as_unit("ns").to_numpy().astype(np.int64)
    features = np.tile(np.array([1, 2, 0.5, 1, 3, 3], np.float32), (n, 1))
    panel = Panel.build(features=features, stamps=stamp_features(times), times=times, offsets=[0, n], series=[SeriesInfo("A", "1min")])
    begin = time.process_time()
    made = resample(panel, "4h", calendar="24/7")
    assert time.process_time() - begin < 2
    assert made.panel.n_rows == n // 240


def test_bars_that_agree_with_published_ones_are_counted_and_no_row_is_listed():
    frame = make_frame(96, seed=7)
    made = resample({"A": frame}, "4h")
    published = frame.groupby(frame.timestamps.dt.floor("4h")).agg(BY_HAND)
    found = compare(made, build_panel({"A": published}))
    assert found.empty
    assert found.attrs["same"] == {"A": 24}


def test_bars_that_differ_from_published_ones_are_listed_with_the_reason():
    frame = make_frame(102, seed=7, start="2020-01-01 02:00").drop(index=[31])
    made = resample({"A": frame}, "4h")
    published = frame.groupby(frame.timestamps.dt.floor("4h")).agg(BY_HAND)
    published.iloc[3, 4] *= 1.01
    published.iloc[5, 3:5] = published.iloc[5, 2], published.iloc[5, 4] * 0.8
    published.iloc[8, 1] *= 1.5
    published.iloc[9, 0] = published.iloc[9, 2]
    published.iloc[14, 1] *= 1.5
    published.iloc[14, 4] *= 0.9
    published.loc[pd.Timestamp("2020-01-09")] = published.iloc[-1]
    found = compare(made, build_panel({"A": published.drop(index=published.index[11])}))
    told = {row.time[5:16]: (row.kind, row.columns, row.why) for row in found.itertuples()}
    assert told.pop("01-01 00:00")[::2] == ("only given", "left out as incomplete: the finer bars begin after it opens (2 of 4 there)")
    assert told.pop("01-09 00:00")[::2] == ("only given", "after the finer bars end")
    assert told.pop("01-02 20:00")[::2] == ("only made", "missing in the given bars")
    kind, columns, why = told.pop("01-01 12:00")
    assert (kind, columns) == ("differs", "volume") and "bar made of finer ones counts less volume" in why
    assert told.pop("01-01 20:00")[1:] == (
        "close, volume",
        "the given bar looks stored before it ended: same open, inside the other's range, 80.00% of its volume",
    )
    assert told.pop("01-02 08:00")[1:] == ("high", "1 of 4 finer bars are missing")
    assert told.pop("01-02 12:00")[1:] == ("open", "the sources disagree on prices")
    assert told.pop("01-03 08:00")[1:] == ("high, volume", "the sources disagree on prices")
    assert not told


def test_published_days_are_matched_by_their_date_and_intraday_bars_by_their_edges():
    days = ["2024-06-19", "2024-06-20"]
    frame = shanghai(days, "close")
    made = resample({"A": frame}, "1d", timezone="Asia/Shanghai", calendar="XSHG")
    daily = frame.groupby(frame.timestamps.dt.date).agg(BY_HAND)
    daily.index = pd.DatetimeIndex(daily.index)  # dates without a zone
    assert compare(made, build_panel({"A": daily})).attrs["same"] == {"A": 2}
    by_close = resample({"A": frame}, "1h", timezone="Asia/Shanghai", calendar="XSHG")
    by_open = resample({"A": shanghai(days, "open")}, "1h", timezone="Asia/Shanghai", calendar="XSHG")
    assert compare(by_close, by_open.panel).attrs["same"] == {"A": 8}
    assert compare(by_open, by_close.panel).attrs["same"] == {"A": 8}
    with pytest.raises(InputError, match="none of A"):
        compare(made, build_panel({"B": daily}))
    with pytest.raises(InputError, match="those made 1d; give bars of 1d"):
        compare(made, by_open.panel)


def test_the_panel_of_a_configuration_has_symbols_without_the_period_and_a_manifest(tmp_path):
    hourly(tmp_path)
    config, said = model(tmp_path), []
    panel = prepare(config, say=said.append)
    assert (panel.series[0].symbol, panel.series[0].period, panel.n_rows) == ("BTC", "4h", 25)
    assert Panel.open(config.panel_folder).fingerprint == panel.fingerprint
    manifest = read_json(config.panel_folder / "manifest.json")
    assert manifest["totals"] | {"rows": 100, "bars": 25, "incomplete": 0, "gaps": 0} == manifest["totals"]
    config.check_data()


def test_a_second_run_says_the_panel_is_there_until_the_file_or_the_settings_change(tmp_path):
    frame = hourly(tmp_path)
    config = model(tmp_path)
    first = prepare(config, say=str)
    written = (config.panel_folder / "panel.json").stat().st_mtime_ns

    def again(config, **options):
        said = []
        panel = prepare(config, say=said.append, **options)
        return "is there already" in said[-1], panel, (config.panel_folder / "panel.json").stat().st_mtime_ns

    assert again(config)[::2] == (True, written)
    assert again(config, force=True)[2] > written
    there, panel, _ = again(model(tmp_path, **{"timeframe.period": "2h"}))
    assert not there and panel.n_rows == 50
    frame.assign(volume=frame.volume + 1).to_csv(tmp_path / "BTC_1h.csv", index=False)
    there, panel, _ = again(config)
    assert not there and panel.fingerprint != first.fingerprint


def test_bars_of_the_period_itself_are_taken_as_they_are(tmp_path):
    frame = hourly(tmp_path)
    panel = prepare(model(tmp_path, **{"timeframe.period": "1h"}), say=str)
    assert (panel.n_rows, panel.series[0].symbol) == (100, "BTC")
    assert np.array_equal(panel.features[:, 0], frame.open.to_numpy(np.float32))


def test_two_files_of_one_symbol_keep_their_whole_names(tmp_path):
    frame = hourly(tmp_path)
    frame.to_csv(tmp_path / "BTC-1h.csv", index=False)
    panel = prepare(model(tmp_path, **{"timeframe.source": f"[{tmp_path}/BTC_1h.csv, {tmp_path}/BTC-1h.csv]"}), say=str)
    assert [info.symbol for info in panel.series] == ["BTC_1h", "BTC-1h"]
    frame.to_csv(tmp_path / "BTC_5min.csv", index=False)  # of hours, whatever its name says
    panel = prepare(model(tmp_path, **{"timeframe.source": f"{tmp_path}/BTC_5min.csv"}), say=str)
    assert panel.series[0].symbol == "BTC_5min"


def test_times_without_a_zone_are_the_exchanges_wall_clock(tmp_path):
    shanghai(["2024-06-19", "2024-06-20", "2024-06-21"]).to_csv(tmp_path / "BTC_1h.csv", index=False)
    config = model(tmp_path, **{"timeframe.period": "1d", "timeframe.calendar": "XSHG"})
    panel = prepare(config, say=str)
    assert (panel.timezone, panel.n_rows, panel.series[0].calendar) == ("Asia/Shanghai", 3, "XSHG")


def test_a_source_that_is_not_there_is_named_with_its_key(tmp_path):
    config = model(tmp_path)
    with pytest.raises(MissingFileError, match=r"BTC_1h\.csv: there is no such file.*timeframe\.source"):
        prepare(config, say=str)


def test_windows_that_no_stretch_can_hold_are_told(tmp_path):
    hourly(tmp_path, n=24)
    said = []
    prepare(model(tmp_path), say=said.append)
    assert any("the longest unbroken stretch has 6 bars, and training needs 8" in line for line in said)


def test_the_command_makes_checks_and_refuses(tmp_path, monkeypatch, capsys):
    frame = hourly(tmp_path)
    model(tmp_path)
    published = frame.groupby(frame.timestamps.dt.floor("4h")).agg(BY_HAND)
    published.iloc[4, 3] *= 1.0001
    published.to_csv(tmp_path / "BTC_4h.csv")

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["prepare_kronos_data.py", "--config", str(tmp_path / "small.yaml"), *more])
        with pytest.raises(SystemExit) as end:
            run_command(prepare_kronos_data.main)
        return end.value.code, *capsys.readouterr()

    code, said, wrong = run("--check", str(tmp_path / "BTC_4h.csv"))
    assert code == 0, wrong
    assert "24 bars of BTC are equal" in said and "1 differ" in said and "BTC 2020-01-01 16:00:00: close" in said
    assert "done: 25 bars of 4h" in said
    code, _, wrong = run("--set", "timeframe.period=30min")
    assert code == 2
    assert "coarser than timeframe.period 30min" in wrong and "Traceback" not in wrong
