from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bars import make_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import KRONOS_NAMES, Panel, Policy, build_panel, load_panel
from kronos.errors import InputError

N = 24
NAN, INF = float("nan"), float("inf")


def section(path, **changes) -> SimpleNamespace:
    windows = {"lookback_window": 3, "predict_window": 1}
    rules = {"timezone": "", "stamp": "auto", "missing": "error", "max_ffill": 5, "drop_suspended": False}
    return SimpleNamespace(**{"data_path": str(path), "symbol_column": "", "columns": {}, **rules, **windows, **changes})


def with_cells(cells: dict[tuple[int, str], object], n: int = N, seed: int = 0) -> pd.DataFrame:
    frame = make_frame(n, seed)
    for (row, column), value in cells.items():
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
    return frame


def load(tmp_path, frame: pd.DataFrame, **changes) -> tuple[Panel, str]:
    said = []
    frame.to_csv(tmp_path / "x.csv", index=False)
    return load_panel(section(tmp_path / "x.csv", **changes), say=said.append), "\n".join(said)


def kept(panel: Panel, n: int = N, seed: int = 0) -> list[int]:
    """Which rows of the frame are left, found by their times."""
    times = make_frame(n, seed)["timestamps"].to_numpy("datetime64[ns]").astype(np.int64)
    return np.flatnonzero(np.isin(times, panel.times)).tolist()


def without(*rows: int) -> list[int]:
    return [row for row in range(N) if row not in rows]


BAD = [
    ({(3, "open"): "abc"}, "row 5, column 'open': 'abc' is not a number"),
    ({(3, "open"): "1234,5"}, "row 5, column 'open': '1234,5' is not a number.*with a decimal point and without separators"),
    ({(3, "open"): "true"}, "row 5, column 'open': 'true' is not a number"),
    ({(3, "timestamps"): "yesterday"}, "row 5, column 'timestamps': 'yesterday' is not a time"),
    ({(3, "timestamps"): "2020-01-01 02:00:00"}, "row 5, .*2020-01-01 02:00:00 is there twice, first in row 4, with other values"),
]
DOUBTFUL = [
    ({(3, "close"): ""}, r"row 5, column 'close': the cell is empty \(NaN\); fill it, or set data.missing: drop or ffill", "value missing"),
    ({(3, "close"): INF}, "row 5, column 'close': inf is not a finite number", "value missing"),
    ({(3, "timestamps"): ""}, "row 5, column 'timestamps': the time is empty", "time missing"),
    ({(3, "low"): 0}, "row 5, column 'low': price 0.0 is not above 0", "price <= 0"),
    ({(3, "close"): -5}, "row 5, column 'close': price -5.0 is not above 0", "price <= 0"),
    ({(3, "high"): 5}, "row 5, column 'high': high 5.0 is below low", "high < low"),
    ({(3, "open"): 500}, "row 5, column 'open': open 500.0 is outside low .* to high", "open or close outside low to high"),
    ({(3, "close"): 1}, "row 5, column 'close': close 1.0 is outside low", "open or close outside low to high"),
    ({(3, "volume"): -1}, "row 5, column 'volume': -1.0 is negative", "negative volume or amount"),
    ({(3, "amount"): -1}, "row 5, column 'amount': -1.0 is negative", "negative volume or amount"),
    ({(3, "low"): 1e-50}, "row 5, column 'low': 1e-50 is beyond what float32 holds", "beyond float32"),  # it would become 0
    ({(3, "volume"): 1e39}, r"row 5, column 'volume': 1e\+39 is beyond what float32 holds", "beyond float32"),
]


@pytest.mark.parametrize(("cells", "message"), BAD)
@pytest.mark.parametrize("missing", ["error", "drop", "ffill"])
def test_what_nobody_can_repair_is_an_error_under_every_setting(tmp_path, cells, message, missing):
    with pytest.raises(InputError, match=f"x.csv, {message}"):
        load(tmp_path, with_cells(cells), missing=missing)


@pytest.mark.parametrize(("cells", "message", "kind"), DOUBTFUL)
def test_a_doubtful_bar_is_an_error_that_names_file_row_column_value_and_fix(tmp_path, cells, message, kind):
    with pytest.raises(InputError, match=f"x.csv, {message}"):
        load(tmp_path, with_cells(cells))


@pytest.mark.parametrize(("cells", "message", "kind"), DOUBTFUL)
def test_under_drop_a_doubtful_bar_goes_is_counted_and_leaves_a_break(tmp_path, cells, message, kind):
    panel, said = load(tmp_path, with_cells(cells), missing="drop")
    assert kept(panel) == without(3)
    assert panel.breaks.tolist() == [3]  # the row that now stands third from 0 begins a new stretch
    assert f"dropped, {kind}: 1 bars in 1 series (x 1)" in said


def test_all_problems_of_a_file_come_in_one_message_with_rows_and_counts(tmp_path):
    cells = {(row, "volume"): -1 for row in range(2, 12)} | {(4, "open"): "abc", (7, "close"): "", (15, "low"): -2}
    with pytest.raises(InputError) as error:
        load(tmp_path, with_cells(cells))
    text = str(error.value)
    assert "x.csv: 4 kinds of problem" in text and "row 6, column 'open': 'abc'" in text and "row 9, column 'close'" in text
    assert "row 4, column 'volume': -1.0 is negative (also row 5, 6, 7, 8, 9 and 4 more)" in text and "row 17, column 'low'" in text


def test_times_that_cannot_be_read_are_not_called_duplicates_as_well(tmp_path):
    with pytest.raises(InputError) as error:
        load(tmp_path, with_cells({(3, "timestamps"): "soon", (9, "timestamps"): "later"}))
    assert "row 5, column 'timestamps': 'soon' is not a time (also row 11)" in str(error.value) and "twice" not in str(error.value)


@pytest.mark.parametrize("missing", ["error", "drop", "ffill"])
def test_duplicate_times_are_an_error_even_if_the_rows_are_identical(tmp_path, missing):
    frame = make_frame(N)
    with pytest.raises(InputError, match=r"row 26, .* 2020-01-01 05:00:00 is there twice, first in row 7, with the same values; keep one"):
        load(tmp_path, pd.concat([frame, frame.iloc[[5]]]), missing=missing)


def test_one_time_for_two_symbols_is_no_duplicate_but_without_symbols_it_is(tmp_path):
    both = pd.concat([make_frame(N, 1).assign(symbol="A"), make_frame(N, 2).assign(symbol="B")])
    assert load(tmp_path, both)[0].n_series == 2
    relay = pd.concat([make_frame(N).assign(symbol="A"), make_frame(N, start="2020-01-01 23:00").assign(symbol="B")])
    assert load(tmp_path, relay)[0].n_series == 2  # B begins at the time that A ends
    with pytest.raises(InputError, match="or add a symbol column if these are several symbols"):
        load(tmp_path, both.drop(columns="symbol"))
    with pytest.raises(InputError, match="is there twice for 'B'"):
        load(tmp_path, pd.concat([both, both.tail(1)]))


def test_a_close_past_its_high_by_the_last_digit_is_rounding_and_not_an_error(tmp_path):
    frame = make_frame(N)
    frame.loc[5, "high"] = frame.loc[5, ["open", "close"]].max() * (1 - 5e-6)
    load(tmp_path, frame)
    frame.loc[5, "high"] = frame.loc[5, ["open", "close"]].max() * (1 - 5e-5)
    with pytest.raises(InputError, match="row 7"):
        load(tmp_path, frame)


def test_leading_empty_rows_are_never_filled_and_leave_no_break(tmp_path):
    cells = {(row, name): NAN for row in range(3) for name in KRONOS_NAMES}
    for missing, word in (("ffill", "nothing before to fill from"), ("drop", "value missing")):
        panel, said = load(tmp_path, with_cells(cells), missing=missing)
        assert kept(panel) == without(0, 1, 2) and len(panel.breaks) == 0
        assert np.isfinite(panel.features).all() and f"dropped, {word}: 3 bars in 1 series (x 3)" in said


def test_ffill_takes_the_value_of_the_bar_before_and_says_how_often(tmp_path):
    frame = make_frame(N)
    cells = {(8, name): NAN for name in KRONOS_NAMES} | {(9, name): NAN for name in KRONOS_NAMES} | {(15, "volume"): NAN}
    panel, said = load(tmp_path, with_cells(cells), missing="ffill")
    assert panel.n_rows == N and len(panel.breaks) == 0 and "filled forward: 3 bars in 1 series (x 3)" in said
    before = frame.loc[7, list(KRONOS_NAMES)].to_numpy(np.float32)
    np.testing.assert_array_equal(panel.features[8:10], [before, before])
    assert panel.features[15, 4] == np.float32(frame.loc[14, "volume"])
    assert panel.features[15, 3] == np.float32(frame.loc[15, "close"])


def test_filling_never_looks_ahead(tmp_path):
    cells = {(8, name): NAN for name in KRONOS_NAMES}
    one, _ = load(tmp_path, with_cells(cells), missing="ffill")
    other = with_cells(cells)
    other.loc[9:, list(KRONOS_NAMES)] = make_frame(N, 99).loc[9:, list(KRONOS_NAMES)]
    other, _ = load(tmp_path, other, missing="ffill")
    np.testing.assert_array_equal(one.features[:9], other.features[:9])


@pytest.mark.parametrize("max_ffill", [1, 2, 3])
def test_a_gap_longer_than_max_ffill_is_dropped_whole_and_becomes_a_break(tmp_path, max_ffill):
    cells = {(row, "close"): NAN for row in (8, 9, 10)} | {(15, "close"): NAN}
    frame = with_cells(cells)
    frame["high"], frame["low"] = 1000.0, 1.0  # so that a filled close always fits
    panel, said = load(tmp_path, frame, missing="ffill", max_ffill=max_ffill)
    if max_ffill == 3:
        assert panel.n_rows == N and len(panel.breaks) == 0
    else:
        assert kept(panel) == without(8, 9, 10) and panel.breaks.tolist() == [8]
        assert f"dropped, gap longer than max_ffill {max_ffill}: 3 bars" in said
    assert "filled forward" in said


def test_a_gap_behind_a_dropped_bar_is_not_filled_across_it(tmp_path):
    panel, said = load(tmp_path, with_cells({(8, "low"): -1, (9, "close"): NAN}), missing="ffill")
    assert kept(panel) == without(8, 9) and panel.breaks.tolist() == [8]
    assert "dropped, nothing before to fill from: 1 bars" in said


def test_a_filled_bar_that_contradicts_itself_is_dropped(tmp_path):
    frame = with_cells({(8, "high"): NAN})
    frame.loc[8, ["open", "low", "close"]] *= 3  # its high would be filled below its low
    panel, said = load(tmp_path, frame, missing="ffill")
    assert kept(panel) == without(8) and panel.breaks.tolist() == [8] and "filled bar contradicts itself: 1 bars" in said


def test_an_amount_that_is_not_given_follows_the_filled_values(tmp_path):
    frame = with_cells({(8, name): NAN for name in KRONOS_NAMES}).drop(columns="amount")
    panel, _ = load(tmp_path, frame, missing="ffill")
    prices, volume = panel.features[:, :4].astype(np.float64), panel.features[:, 4].astype(np.float64)
    np.testing.assert_allclose(panel.features[:, 5], volume * prices.mean(axis=1), rtol=1e-6)


def test_an_amount_that_would_pass_float32_is_an_error_of_its_file(tmp_path):
    frame = with_cells({(3, "volume"): 9e37}).drop(columns="amount")
    with pytest.raises(InputError, match=r"x.csv, row 5, column 'amount': .* is beyond what float32 holds"):
        load(tmp_path, frame)
    assert kept(load(tmp_path, frame, missing="drop")[0]) == without(3)


def test_no_value_is_ever_filled_from_another_series(tmp_path):
    first, second = make_frame(N, 1).assign(symbol="A"), with_cells({(0, "close"): NAN, (1, "close"): NAN}, seed=2).assign(symbol="B")
    panel, said = load(tmp_path, pd.concat([first, second]), missing="ffill")
    assert panel.offsets.tolist() == [0, N, 2 * N - 2] and "dropped, nothing before to fill from: 2 bars in 1 series (B 2)" in said
    assert len(panel.breaks) == 0


def test_a_dropped_bar_between_two_series_breaks_neither(tmp_path):
    first = with_cells({(N - 1, "close"): NAN}, seed=1).assign(symbol="A")
    second = with_cells({(0, "close"): NAN, (10, "close"): NAN}, seed=2).assign(symbol="B")
    panel, _ = load(tmp_path, pd.concat([first, second]), missing="drop")
    assert panel.offsets.tolist() == [0, N - 1, 2 * N - 3] and panel.breaks.tolist() == [N - 1 + 9]


def test_breaks_stay_with_their_rows_when_files_are_joined_and_series_left_out(tmp_path):
    short = make_frame(9, 1).assign(symbol="A", close=[-1.0 if row == 3 else 0 for row in range(9)])
    middle = with_cells({(7, "close"): NAN}, seed=2).assign(symbol="B")
    pd.concat([short, middle]).to_csv(tmp_path / "one.csv", index=False)
    with_cells({(11, "close"): NAN, (4, "volume"): NAN}, seed=3).to_csv(tmp_path / "two.csv", index=False)
    said = []
    panel = load_panel(section(tmp_path, missing="drop"), say=said.append)
    assert [info.symbol for info in panel.series] == ["B", "two"] and panel.offsets.tolist() == [0, N - 1, 2 * N - 3]
    assert panel.breaks.tolist() == [7, N - 1 + 4, N - 1 + 10]


def test_a_row_without_a_time_leaves_its_gap_where_it_stood(tmp_path):
    frame = with_cells({(5, "timestamps"): ""}).iloc[::-1]  # newest first: the row above the lost one is the later one
    panel, said = load(tmp_path, frame, missing="drop")
    assert panel.n_rows == N - 1 and panel.breaks.tolist() in ([5], [6]) and "dropped, time missing: 1 bars" in said


def test_counts_name_the_series_with_most_and_count_the_rest(tmp_path):
    frames = []
    for i in range(8):
        frame = make_frame(N, i).assign(symbol=f"S{i}")
        frame.loc[5 : 5 + i, "close"] = NAN
        frames.append(frame)
    _, said = load(tmp_path, pd.concat(frames), missing="drop")
    assert "dropped, value missing: 36 bars in 8 series (S7 8, S6 7, S5 6, S4 5, S3 4 and 3 more)" in said


def test_suspended_bars_are_kept_and_counted_or_dropped_with_a_break(tmp_path):
    frame = make_frame(N)
    frame.loc[[8, 9], ["volume", "amount"]] = 0
    panel, said = load(tmp_path, frame)
    assert panel.n_rows == N and "kept although volume is 0 (data.drop_suspended leaves them out): 2 bars in 1 series (x 2)" in said
    panel, said = load(tmp_path, frame, drop_suspended=True)
    assert kept(panel) == without(8, 9) and panel.breaks.tolist() == [8] and "dropped, suspended (volume 0): 2 bars" in said
    silent = frame.assign(volume=0.0, amount=0.0)  # a market without volume is not suspended for ever
    assert load(tmp_path, silent, drop_suspended=True)[0].n_rows == N


def test_a_series_that_loses_all_its_bars_is_counted_and_left_out(tmp_path):
    good, bad = make_frame(N, 1).assign(symbol="A"), make_frame(N, 2).assign(symbol="B", close=-1.0)
    panel, said = load(tmp_path, pd.concat([good, bad]), missing="drop")
    assert [info.symbol for info in panel.series] == ["A"] and "series without a usable bar: 24 bars in 1 series (B 24)" in said
    with pytest.raises(InputError, match="no series has the 5 rows"):
        load(tmp_path, bad, missing="drop")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"missing": "fill"}, "data.missing: 'fill' is not one of error, drop, ffill"),
        ({"max_ffill": 0}, "data.max_ffill: 0 is not at least 1"),
    ],
)
def test_an_unknown_policy_is_refused(policy, message):
    with pytest.raises(InputError, match=message):
        Policy(**policy)


def test_clean_files_are_loaded_without_a_word_about_cleaning(tmp_path):
    frame = make_frame(N, freq="1D")
    _, said = load(tmp_path, frame)
    assert said.count("\n") == 1 and said.startswith("stamp: open")


CELLS = st.one_of(
    st.sampled_from(["", "nan", "0", "-1", "abc", "inf", '"', "1e400", "2020-01-01", "1574732100", "\n", ",,", "20200101", "Z", "+5"]),
    st.floats().map(str),
    st.text(max_size=5),
)
MISSING = st.sampled_from(["error", "drop", "ffill"])


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7), CELLS), max_size=4), MISSING, st.sampled_from(["", "America/New_York"]))
@settings(max_examples=120, deadline=None)
def test_any_damage_to_a_csv_gives_a_valid_panel_or_an_input_error(tmp_path_factory, damage, missing, zone):
    rows = [line.split(",") for line in make_frame(12, freq="37min").assign(symbol="A").to_csv(index=False).splitlines()]
    for row, column, cell in damage:
        rows[row][column] = cell
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_text("\n".join(map(",".join, rows)), encoding="utf-8", errors="replace")
    try:
        panel = load_panel(section(path, missing=missing, timezone=zone), say=lambda text: None)
    except InputError as error:
        assert "damaged.csv" in str(error) or "no series has" in str(error)
    else:
        panel.verify()
        assert (panel.features[:, :4] > 0).all() and np.isfinite(panel.features).all()


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "noise.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"noise\.csv"):
        load_panel(section(path), say=lambda text: None)


def test_build_panel_follows_the_policy_it_is_given():
    frame = with_cells({(8, name): NAN for name in KRONOS_NAMES})
    with pytest.raises(InputError, match="series 'x'"):
        build_panel({"x": frame})
    assert build_panel({"x": frame}, policy=Policy("drop")).breaks.tolist() == [8]
    assert build_panel({"x": frame}, policy=Policy("ffill")).n_rows == N
