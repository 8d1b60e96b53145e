"""Backtests through the real pyqlib, against figures made by hand, and against pyqlib left as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from backtests import FREE, LAST, as_signal, flat, noise, rules, sizes, wide
from qlib_bars import CHANGING, small_store

from finetune.data.qlib_store import open_store
from finetune.data.qlib_writing import write_store
from finetune.evaluation.backtest import equal_weight, run_backtest, run_backtests
from finetune.evaluation.backtest_stats import verdict


@pytest.fixture(scope="module")
def store():
    return open_store(small_store())


@pytest.fixture(scope="module")
def opens(store):
    """Opening prices [days, symbols], the last known one where a symbol is suspended."""
    return wide(store, "$open").ffill()


def test_a_signal_that_knows_the_future_beats_every_baseline_by_far(store, opens):
    foresight = as_signal(opens.shift(-2) / opens.shift(-1) - 1)  # what is earned by trading on it
    beside = {"momentum": as_signal(opens.pct_change(20)), "reversal": as_signal(-opens.pct_change(5))}
    found = run_backtests(
        store, {"foresight": foresight}, sizes(n_symbol_drop=3, backtest_time_range=["2021-02-03", "2021-12-01"]), rules(), baselines=beside
    )
    ratio = found.signals["foresight"].figures["excess_with_cost"]["information_ratio"]
    assert ratio > 8
    assert all(one.figures["excess_with_cost"]["information_ratio"] < ratio / 3 for one in found.baselines.values())
    assert found.verdict.startswith("foresight is better than equal weight of all: information ratio +")


def test_a_random_signal_is_indistinguishable_from_the_market_where_trading_is_free(store):
    figures = run_backtest(store, noise(store), sizes(), rules(**FREE), equal_weight_of(store)).figures
    assert figures["interval"]["low"] < 0 < figures["interval"]["high"]
    assert verdict("noise", "equal", figures).startswith("noise is indistinguishable from equal: information ratio ")


def equal_weight_of(store):
    return equal_weight(store, "all", pd.DatetimeIndex(store.calendar))


def test_a_signal_that_is_right_about_its_own_day_earns_nothing_for_it_trades_at_the_next_open(store, opens):
    knows_today = as_signal(wide(store, "$close") / opens - 1)
    knows_tomorrow = as_signal((wide(store, "$close") / opens - 1).shift(-1))
    dates = ["2021-02-01", "2021-12-02"]
    today, tomorrow = (
        run_backtest(store, one, sizes(n_symbol_drop=3, backtest_time_range=dates), rules(**FREE), equal_weight_of(store)).figures
        for one in (knows_today, knows_tomorrow)
    )
    assert abs(today["excess_with_cost"]["information_ratio"]) < 2.5
    assert tomorrow["excess_with_cost"]["information_ratio"] > 10


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two symbols, four days: A opens at 10 10 12 12, B at 20 20 20 25."""
    days = pd.date_range("2024-01-01", periods=4)
    frames = {}
    for name, opened, closed in (("A", [10, 10, 12, 12], [10, 11, 12, 15]), ("B", [20, 20, 20, 25], [20, 20, 22, 25])):
        prices = {"open": opened, "high": np.maximum(opened, closed), "low": np.minimum(opened, closed), "close": closed}
        frames[name] = pd.DataFrame({**prices, "volume": 1000.0, "factor": 0.5}, days).astype(float)
    return write_store(tmp_path_factory.mktemp("two") / "store", frames)


def run_two(path, **changes):
    store = open_store(path)
    index = pd.MultiIndex.from_product([store.calendar, ["A", "B"]], names=["datetime", "instrument"])
    signal = pd.Series([2.0, 1.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0], index)  # A after the first day, B ever after
    section = sizes(backtest_time_range=["2024-01-02", "2024-01-04"], n_symbol_hold=1, n_symbol_drop=1)
    return run_backtest(store, signal, section, rules(account=1000.0, **{**FREE, "risk_degree": 0.9, **changes}), flat(store))


def test_two_symbols_without_costs_give_the_account_counted_by_hand(two):
    found = run_two(two, risk_degree=1.0)
    # 100 A at 10, worth 11; sold at 12, 60 B at 20, worth 22, then 25
    assert found.report["account"].to_list() == pytest.approx([1100, 1320, 1500], rel=1e-6)
    assert found.report["turnover"].to_list() == pytest.approx([1, 2400 / 1100, 0], rel=1e-6)
    held = found.positions
    assert held["symbol"].to_list() == ["A", "B", "B"] and held["price"].to_list() == [11, 22, 25]
    assert held["amount"].to_list() == pytest.approx([100, 60, 60], rel=1e-6)
    assert held["weight"].to_list() == pytest.approx([1, 1, 1]) and held["value"].to_list() == pytest.approx([1100, 1320, 1500])


def test_costs_lower_the_account_by_what_they_come_to(two):
    dear = run_two(two, open_cost=0.01, close_cost=0.02).report
    assert dear["total_cost"].to_list() == pytest.approx([9, 9 + 21.6 + 10.3446, 40.9446], rel=1e-6)
    assert dear["account"].to_list()[:2] == pytest.approx([1081, 1242.5014], rel=1e-6)
    assert run_two(two, open_cost=0.01, close_cost=0.02, min_cost=30.0).report["total_cost"].iloc[0] == pytest.approx(30)
    # 90 of 1,000 A are bought for 900: the impact's share of the value is (90 / 1000)²
    assert run_two(two, impact_cost=0.5).report["total_cost"].iloc[0] == pytest.approx(900 * 0.5 * 0.09**2, rel=1e-6)


def test_buying_for_the_least_cost_alone_with_all_the_cash_does_not_end_the_run(two):
    # pyqlib divides by the rate of the cost where cash is short
    assert run_two(two, risk_degree=1.0, min_cost=5.0).positions["amount"].iloc[0] == pytest.approx(99.5)


def test_an_order_takes_no_more_than_its_share_of_the_volume_and_whole_trade_units(two):
    assert run_two(two, volume_threshold=0.01).positions["amount"].iloc[0] == pytest.approx(10)
    # 90 adjusted units are 45 shares at factor .5: 40 in units of 10
    assert run_two(two, trade_unit=10).positions["amount"].iloc[0] == pytest.approx(80)
    assert run_two(two, trade_unit=100).notes[0].startswith("never traded")


@pytest.mark.parametrize("has_change", [True, False])
def test_a_symbol_at_its_limit_cannot_be_bought_even_if_the_store_has_no_change_field(two, tmp_path, has_change):
    path = tmp_path / "store"
    shutil.copytree(two, path)
    if not has_change:
        for file in path.rglob("change.day.bin"):
            file.unlink()
    # A rises by 10 % on the day it would be bought, B by 10 % and 13.6 %
    assert run_two(path, limit_threshold=0.095).positions.empty
    assert run_two(path, limit_threshold=0.105).positions["symbol"].to_list() == ["A", "B", "B"]
    assert run_two(path, limit_threshold=None).positions["symbol"].to_list() == ["A", "B", "B"]


def test_our_parts_change_nothing_in_what_pyqlib_itself_reports(store):
    from qlib.backtest import backtest
    from qlib.backtest.executor import SimulatorExecutor
    from qlib.contrib.strategy import TopkDropoutStrategy

    signal = noise(store)
    ours = run_backtest(store, signal, sizes(hold_thresh=2), rules(limit_threshold=0.015, trade_unit=100), flat(store)).report
    kwargs = dict(freq="day", deal_price="open", limit_threshold=0.015, open_cost=0.001, close_cost=0.0015, min_cost=5.0, trade_unit=100)
    with pytest.warns(RuntimeWarning):
        strategy = TopkDropoutStrategy(topk=3, n_drop=1, hold_thresh=2, signal=signal)
        executor = SimulatorExecutor(time_per_step="day", generate_portfolio_metrics=True)
        theirs, _ = backtest("2021-02-01", LAST, strategy, executor, flat(store), 1e6, kwargs)
    assert len(ours) == len(theirs["1day"][0]) == 220
    pd.testing.assert_frame_equal(ours, theirs["1day"][0], rtol=1e-9, atol=1e-9)


SCRIPT = """
import sys
from types import SimpleNamespace as Section
import numpy as np
import pandas as pd
from finetune.data.qlib_store import open_store
from finetune.evaluation.backtest import run_backtests
store = open_store(sys.argv[1])
signal = pd.read_csv(sys.argv[2], index_col=[0, 1], parse_dates=[0])["score"]
found = run_backtests(store, {"noise": signal}, Section(**eval(sys.argv[3])), Section(**eval(sys.argv[4])))
assert sys.excepthook is sys.__excepthook__
print(" ".join(float(value).hex() for value in found.signals["noise"].report["account"]))
"""


@pytest.fixture(scope="module")
def fresh_process(store, tmp_path_factory):
    """A backtest with many equal scores in a fresh interpreter of another hash seed: (its accounts, its errors, its folder), and ours."""
    signal, section, exchange = noise(store).round(0), sizes(hold_thresh=2), rules()
    table, folder = tmp_path_factory.mktemp("signal") / "signal.csv", tmp_path_factory.mktemp("cwd")
    signal.rename("score").to_csv(table)
    command = [sys.executable, "-c", SCRIPT, str(small_store()), str(table), str(vars(section)), str(vars(exchange))]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    ours = run_backtests(store, {"noise": signal}, section, exchange).signals["noise"].report["account"]
    return done, folder, " ".join(float(value).hex() for value in ours)


def test_a_backtest_prints_nothing_and_leaves_nothing_behind(fresh_process):
    done, folder, _ = fresh_process
    assert done.stderr == "" and done.returncode == 0
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith("0x1.")
    assert not list(folder.iterdir())


def test_two_processes_agree_to_the_last_digit_even_where_scores_tie(fresh_process):
    done, _, ours = fresh_process
    assert done.stdout.strip() == ours


def test_equal_scores_do_not_make_the_strategy_swap_symbols_and_are_told(store):
    signal = noise(store) * 0 + noise(store).groupby("datetime").transform("size")
    signal.loc[pd.IndexSlice[:, CHANGING]] = 20.0  # one differs, the rest are equal
    found = run_backtest(store, signal, sizes(backtest_time_range=["2021-06-01", "2021-09-30"]), rules(), flat(store))
    assert found.report["turnover"].iloc[3:].sum() == 0
    assert found.notes[0].startswith("92 % of its values equal another's")


def test_an_intraday_store_is_backtested_by_bars_and_counted_by_days(tmp_path):
    store = open_store(small_store("60min"), "60min")
    closes = wide(store, "$close")
    foresight = as_signal(wide(store, "$open").pipe(lambda opens: opens.shift(-2) / opens.shift(-1) - 1))
    section = sizes(backtest_time_range=["2021-01-05", "2021-01-14"], n_symbol_hold=1, hold_thresh=2)
    found = run_backtests(store, {"mean": foresight}, section, rules(annual_days=365, **FREE), benchmark="SH600001").signals["mean"]
    assert len(found.report) == 10 * 24 and found.figures["days"] == 10 and found.figures["interval"] is None
    assert found.report.index[-1] == pd.Timestamp("2021-01-14 23:00")
    bench = closes["SH600001"].pct_change().loc["2021-01-05":"2021-01-14"]
    np.testing.assert_allclose(found.report["bench"], bench, atol=1e-6)
    assert found.figures["benchmark"]["annual_return"] == pytest.approx(bench.sum() / 10 * 365, rel=1e-4)
    assert found.figures["excess_with_cost"]["annual_return"] > 2
    assert found.figures["compounded_return"] == pytest.approx(found.report["account"].iloc[-1] / 1e6 - 1)
    assert "too few for an interval" in verdict("mean", "SH600001", found.figures)


def test_a_store_without_a_future_calendar_is_backtested_to_its_last_bar_but_one_and_it_is_said(store, tmp_path):
    assert run_backtest(store, noise(store), sizes(), rules(), flat(store)).report.index[-1] == pd.Timestamp(LAST)
    path = tmp_path / "store"
    shutil.copytree(small_store(), path)
    (path / "calendars" / "day_future.txt").unlink()
    bare = open_store(path)
    found = run_backtest(bare, noise(bare), sizes(), rules(), flat(bare))
    assert found.report.index[-1] == pd.Timestamp("2021-12-02")
    assert "ended one bar early, at 2021-12-02" in found.notes[-1] and "day_future.txt" in found.notes[-1]


def test_every_signal_stands_beside_the_baselines_and_a_short_baseline_is_left_out(store):
    late = noise(store).loc["2021-06-01":]
    said = []
    signals = {"last": noise(store, 1), "mean": noise(store, 2)}
    found = run_backtests(store, signals, sizes(), rules(), pool="few", benchmark="BENCHMARK", baselines={"late": late}, say=said.append)
    assert list(found.signals) == ["last", "mean"] and not found.baselines and found.headline == "mean"
    assert list(found.lines) == ["BENCHMARK", "equal weight of few"] and found.verdict.startswith("mean is ")
    assert any(note.startswith("left out: signal 'late'") for note in found.notes)
    assert len(said) == 2 and said[0].startswith("backtest 1 of 2: last is ")
    one = run_backtests(store, signals, sizes(signal="last"), rules())
    assert list(one.signals) == ["last"] and one.headline == "last"
    pd.testing.assert_frame_equal(one.signals["last"].positions, found.signals["last"].positions)
