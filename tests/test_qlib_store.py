"""Writing a Qlib store and reading it with the real pyqlib."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bars import make_frame, make_panel
from qlib_bars import CHANGING, LATE, SUSPENDED, market, small_store

from finetune.data.qlib_store import open_store
from finetune.data.qlib_writing import BENCHMARK, read_pool, write_store
from kronos.errors import InputError, MissingFileError

FIELDS = ["open", "high", "low", "close", "volume", "amount", "factor"]


def values_of(store, symbol, names):
    frame = store.features([symbol], [f"${name}" for name in names])
    return frame.droplevel("instrument")


def one(n=30, freq="D", **changes):
    """A frame for a store of one symbol."""
    frame = make_frame(n, 3, freq).set_index("timestamps")
    return frame.assign(**changes)


def test_every_value_comes_back_from_pyqlib_to_a_millionth():
    store, frames = open_store(small_store()), market()
    for symbol in ("SH600000", LATE, SUSPENDED):
        read, written = values_of(store, symbol, FIELDS), frames[symbol][FIELDS]
        assert list(read.index) == list(written.index)
        np.testing.assert_allclose(read.to_numpy(), written.to_numpy(), rtol=1e-6)


def test_a_bar_that_was_not_traded_is_nan_and_a_field_that_was_not_given_is_nan_throughout():
    read = values_of(open_store(small_store()), SUSPENDED, ["close", "vwap"])
    assert read["$close"].isna().sum() == 10 and read["$vwap"].isna().all()


def test_change_and_factor_are_there_for_the_exchange_although_nobody_gave_them(tmp_path):
    store = open_store(write_store(tmp_path / "s", {"A1": one().assign(close=lambda bars: bars["close"].where(bars.index.day != 5))}))
    read = values_of(store, "A1", ["close", "change", "factor"])
    traded = read["$close"].dropna()
    assert (read["$factor"] == 1).all() and len(traded) == 29
    np.testing.assert_allclose(read["$change"].dropna(), traded.pct_change().dropna(), rtol=1e-4, atol=1e-6)


def test_a_symbol_without_files_is_absent_from_features_and_named_by_closes():
    store = open_store(small_store())
    assert set(store.features(["SH600000", "SH999999"], ["$close"]).index.get_level_values(0)) == {"SH600000"}
    with pytest.raises(InputError, match=r"backtest.benchmark: .* no day bars of 'SH60000X'; the nearest are SH60000"):
        store.closes("SH60000X", "backtest.benchmark")
    assert not store.has("../all") and not store.has("")


def test_closes_are_on_the_calendar_with_nan_before_a_listing():
    closes = open_store(small_store()).closes(LATE)
    assert len(closes) == 240 and closes.isna().sum() == 60 and closes.notna().iloc[60]


def test_opening_a_store_prints_nothing_and_leaves_nothing_behind(tmp_path):
    program = (
        "import logging, sys\n"
        "from finetune.data.qlib_store import open_store, quietly\n"
        "hook = sys.excepthook\n"
        "store = open_store(sys.argv[1]); store.features(['SH600000'], ['$close'])\n"
        "with quietly():\n    from qlib.backtest import executor\n"
        "assert sys.excepthook is hook and not logging.getLogger('qlib').handlers\n"
        "assert 'gym' in sys.modules, 'the banner to keep away was not even there'\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(small_store())], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_pools_are_read_with_their_membership_over_time():
    store = open_store(small_store())
    assert store.pools() == ["all", "few"] and len(store.members("all")) == 12
    spans = store.members("few")[CHANGING]
    assert [(str(first.date()), str(last)) for first, last in spans] == [
        ("2021-01-04", "2021-03-31 23:59:59"),
        ("2021-08-02", "2021-12-03 23:59:59"),
    ]


@pytest.mark.parametrize("pool", ["csi300", "../instruments/all", ""])
def test_an_unknown_pool_is_named_with_those_that_exist(pool):
    with pytest.raises(InputError, match=r"data.instrument: .* has no pool .*; it has all, few"):
        open_store(small_store()).members(pool)


def test_pyqlib_sees_the_same_pool(tmp_path):
    store = open_store(small_store())
    from qlib.data import D

    ours = {symbol: [(a.normalize(), b.normalize()) for a, b in spans] for symbol, spans in store.members("few").items()}
    assert D.list_instruments(D.instruments("few")) == ours


def test_a_store_from_elsewhere_may_hold_a_symbol_named_na_and_intraday_dates(tmp_path):
    folder = write_store(tmp_path / "s", {"A1": one(48, "60min")}, freq="60min")
    (folder / "instruments" / "odd.txt").write_text("NA\t2020-01-01\t2020-01-02\n")
    first, last = open_store(folder, "60min").members("odd")["NA"][0]
    assert (first, last) == (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-02 23:59:59"))
    (folder / "instruments" / "odd.txt").write_text("A1\t2020-01-01\t2020-01-02\nA1\t2020-01-01\n")
    with pytest.raises(InputError, match=r"odd.txt, line 2: 'A1.t2020-01-01' is not symbol"):
        open_store(folder, "60min").members("odd")


def test_the_calendar_goes_on_after_the_last_bar_on_the_weekdays_of_late():
    store = open_store(small_store())
    ahead = pd.DatetimeIndex(store.future[len(store.calendar) :])
    assert len(ahead) == 30 and ahead[0] == pd.Timestamp("2021-12-06") and ahead.day_of_week.max() == 4
    from qlib.data import D

    assert len(D.calendar(future=True)) == 270 and len(D.calendar()) == 240


def test_a_market_that_never_closes_goes_on_around_the_clock():
    store = open_store(small_store("60min"), "60min")
    ahead = pd.DatetimeIndex(store.future[len(store.calendar) :])
    assert set(np.diff(store.future).astype("timedelta64[m]").astype(int)) == {60} and len(ahead) == 30 * 24


def test_intraday_bars_of_the_last_day_are_read_back():
    store, frames = open_store(small_store("60min"), "60min"), market(4, 24 * 12, freq="60min")
    read = values_of(store, "SH600002", FIELDS)
    np.testing.assert_allclose(read.to_numpy(), frames["SH600002"][FIELDS].to_numpy(), rtol=1e-6)
    from qlib.data import D

    assert len(D.features(D.instruments("all"), ["$close"], freq="60min")) == 4 * 24 * 12  # the spans cut nothing off


def test_the_equal_benchmark_earns_the_mean_return_and_is_not_in_the_pool():
    store, frames = open_store(small_store()), market()
    returns = pd.DataFrame({symbol: frame["close"].dropna().pct_change() for symbol, frame in frames.items()}).mean(axis=1)
    np.testing.assert_allclose(store.closes(BENCHMARK).pct_change().iloc[1:], returns.iloc[1:], atol=2e-6)
    assert BENCHMARK not in store.members("all")


def test_two_stores_in_one_process_do_not_answer_for_each_other(tmp_path):
    first = open_store(small_store())
    second = open_store(write_store(tmp_path / "s", {"SH600000": one()}))
    assert len(first.closes("SH600000").dropna()) == 240 and len(second.closes("SH600000").dropna()) == 30


@pytest.mark.parametrize(
    "name, told",
    [
        ("NA", "reads this name as a missing value"),
        ("null", "reads this name as a missing value"),
        ("BTC/USDT", "holds '/'"),
        ("..", "begins with '.'"),
        ("../up", "holds '/'"),
        ("A B", "holds ' '"),
        ("", "is not a name"),
        (7, "is not a name"),
        ("A" * 101, "is too long"),
        (BENCHMARK, "as the equal-weight benchmark would be"),
    ],
)
def test_names_that_a_store_cannot_hold_are_refused(tmp_path, name, told):
    with pytest.raises(InputError, match=told):
        write_store(tmp_path / "s", {"A1": one(), name: one()}, benchmark="equal")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first, second", [("BTC", "btc"), ("btc", "BTC")])
def test_names_that_differ_only_by_case_are_refused(tmp_path, first, second):
    with pytest.raises(InputError, match=f"'{second}' and '{first}' differ only by case"):
        write_store(tmp_path / "s", {first: one(), second: one()})


def test_a_symbol_named_like_a_device_of_windows_is_read_back(tmp_path):
    assert open_store(write_store(tmp_path / "s", {"CON": one()})).closes("CON").notna().all()


@pytest.mark.parametrize(
    "frame, freq, told",
    [
        (one().iloc[::-1], "day", "times that do not increase"),
        (one().tz_localize("UTC"), "day", "without a zone"),
        (one(freq="6h"), "day", "two bars of one day"),
        (one(close=np.inf), "day", "close is inf"),
        (one(volume=1e300), "day", r"2020-01-01 00:00:00: volume is 1e\+300, beyond what float32 holds"),
        (one(close=np.nan), "day", "no bar with a close"),
        (one().drop(columns="volume"), "day", "lacks the columns volume"),
        (one(freq="15min"), "60min", "bars are 15 minutes apart, but freq is 60min"),
        (one(freq="4h"), "60min", "bars are 240 minutes apart"),
        (one(), "1h", "write day, 60min .*, as 60min"),
    ],
)
def test_frames_that_a_store_cannot_hold_are_refused_and_nothing_is_left(tmp_path, frame, freq, told):
    with pytest.raises(InputError, match=told):
        write_store(tmp_path / "s", {"A1": frame}, freq=freq)
    assert list(tmp_path.iterdir()) == []


def test_a_lunch_break_is_no_reason_to_refuse_hourly_or_two_hourly_bars(tmp_path):
    for freq, hours in (("60min", ["10:30", "11:30", "14:00", "15:00"]), ("120min", ["11:30", "15:00"]), ("240min", ["15:00"])):
        index = pd.DatetimeIndex([f"2021-01-{day:02d} {hour}" for day in range(4, 9) for hour in hours])
        store = open_store(write_store(tmp_path / freq, {"A1": one(len(index)).set_axis(index)}, freq=freq), freq)
        assert list(store.future[len(index) :][: len(hours)]) == list(np.array([f"2021-01-11T{hour}" for hour in hours], "M8[ns]"))


@pytest.mark.parametrize(
    "pools, benchmark, told",
    [
        ({"all": ["A1"]}, None, "pool 'all' is made of every symbol"),
        ({"mine": ["B2"]}, None, r"pool 'mine': none of its symbols \(B2\) has bars"),
        ({"../mine": ["A1"]}, None, "pool '../mine' holds '/'"),
        ({"mine": {"A1": [("2020-01-09", "2020-01-02")]}}, None, "pool 'mine', A1: 2020-01-09 to 2020-01-02 is not a first and a last day"),
        ({}, "SH000300", "benchmark: 'SH000300' is neither 'equal' nor one of the symbols A1"),
    ],
)
def test_wrong_pools_and_benchmarks_are_refused_and_nothing_is_left(tmp_path, pools, benchmark, told):
    with pytest.raises(InputError, match=told):
        write_store(tmp_path / "s", {"A1": one()}, pools=pools, benchmark=benchmark)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_folder_is_not_overwritten_but_an_empty_folder_is_used(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "empty").mkdir()
    open_store(write_store(tmp_path / "empty", {"A1": one()}))
    (tmp_path / "s" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists, and is not overwritten"):
        write_store(tmp_path / "s", {"A1": one()})
    assert (tmp_path / "s" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("freq, told", [("1h", "it has day"), ("1d", "Qlib's name for '1d' is 'day'"), ("60min", "it has day")])
def test_a_frequency_that_is_not_there_is_told_with_those_that_are(freq, told):
    with pytest.raises(InputError, match=told):
        open_store(small_store(), freq)


def test_a_folder_that_is_no_store_is_told_what_a_store_holds(tmp_path):
    with pytest.raises(
        MissingFileError, match=r"data.qlib_data_path: there is no folder .*features/SYMBOL/close.day.bin.*make_qlib_store.py"
    ):
        open_store(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a Qlib store but a folder without calendars, instruments, features"):
        open_store(tmp_path)
    file = tmp_path / "bars.csv"
    file.write_text("x")
    with pytest.raises(InputError, match="but a file"):
        open_store(file)


def test_damaged_files_of_a_store_are_named(tmp_path):
    folder = write_store(tmp_path / "s", {"A1": one(), "B2": one()})
    bars = folder / "features" / "b2" / "close.day.bin"
    bars.write_bytes(bars.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"b2/close.day.bin: damaged"):
        open_store(folder).features(["A1", "B2"], ["$open", "$close"])
    calendar = folder / "calendars" / "day.txt"
    calendar.write_text(calendar.read_text().replace("2020-01-05", "yesterday"))
    with pytest.raises(InputError, match=r"day.txt, line 5: 'yesterday' is not a time"):
        open_store(folder)


def test_a_pool_file_may_hold_symbols_alone_or_with_dates_in_several_hands(tmp_path):
    file = tmp_path / "pool.txt"
    file.write_text("A1\n# two stretches\nB2\t2020-01-02\t2020-01-05 23:59:59\nB2, 2020-02-01, 2020-02-03\n\n")
    assert read_pool(file) == {"A1": [], "B2": [("2020-01-02", "2020-01-05"), ("2020-02-01", "2020-02-03")]}
    file.write_text("A1\nB2 2020-01-02\n")
    with pytest.raises(InputError, match=r"pool\.txt, line 2"):
        read_pool(file)


def command(monkeypatch, *arguments):
    path = Path(__file__).resolve().parents[1] / "examples" / "make_qlib_store.py"
    spec = importlib.util.spec_from_file_location("make_qlib_store", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["make_qlib_store.py", *map(str, arguments)])
    module.main()


def test_the_example_makes_a_store_of_one_file_with_many_symbols(tmp_path, monkeypatch, capsys):
    frames = {symbol: make_frame(20, seed, "D") for seed, symbol in enumerate(("AAVE", "ADA", "XRP"))}
    pd.concat([frame.assign(symbol=symbol) for symbol, frame in frames.items()]).to_csv(tmp_path / "long.csv", index=False)
    (tmp_path / "two.txt").write_text("ADA\nXRP 2020-01-05 2020-01-09\nGONE\n")
    pool = f"two={tmp_path / 'two.txt'}"
    command(monkeypatch, "--from", tmp_path / "long.csv", "--out", tmp_path / "s", "--pool", pool, "--benchmark", "equal")
    shown = capsys.readouterr().out
    assert (
        "3 symbols, 60 day bars; pools: all, two" in shown
        and "1 of them without bars: GONE" in shown
        and "backtest.benchmark=BENCHMARK" in shown
    )
    store = open_store(tmp_path / "s")
    assert store.members("two")["ADA"] == [(pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-20 23:59:59"))]
    np.testing.assert_allclose(store.closes("XRP"), frames["XRP"]["close"], rtol=1e-6)


def test_the_example_makes_an_hourly_store_of_a_folder_of_files_and_of_a_saved_panel(tmp_path, monkeypatch):
    panel = make_panel(2, 48)
    panel.save(tmp_path / "panel")
    command(monkeypatch, "--from", tmp_path / "panel", "--freq", "60min", "--out", tmp_path / "one")
    (tmp_path / "bars").mkdir()
    for name in ("A1", "B2"):
        make_frame(48).to_csv(tmp_path / "bars" / f"{name}.csv", index=False)
    command(monkeypatch, "--from", tmp_path / "bars", "--freq", "60min", "--out", tmp_path / "two", "--benchmark", "A1")
    assert sorted(open_store(tmp_path / "two", "60min").members("all")) == ["A1", "B2"]
    store = open_store(tmp_path / "one", "60min")
    np.testing.assert_array_equal(store.closes("S01").to_numpy(), panel.features[48:, 3])


def test_the_example_refuses_a_pool_without_a_file(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--pool: 'majors' is not NAME=FILE"):
        command(monkeypatch, "--from", tmp_path, "--out", tmp_path / "s", "--pool", "majors")
    with pytest.raises(MissingFileError, match="there is no such file"):
        command(monkeypatch, "--from", tmp_path, "--out", tmp_path / "s", "--pool", "a=nowhere.txt")
