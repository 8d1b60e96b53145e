"""What stands beside a strategy, and the bars it trades on: benchmarks, members, suspensions, prices that are none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from backtests import FREE, as_signal, rules, sizes, wide
from qlib_bars import CHANGING, SUSPENDED, market, small_store

from finetune.data.qlib_store import open_store
from finetune.data.qlib_writing import write_store
from finetune.evaluation.backtest import equal_weight, index_returns, run_backtests


@pytest.fixture(scope="module")
def store():
    return open_store(small_store())


def test_equal_weight_is_the_mean_of_those_who_were_members_the_day_before(store):
    bars = pd.DatetimeIndex(store.calendar)
    line, whole = equal_weight(store, "few", bars), equal_weight(store, "all", bars)
    returns = wide(store, "$close").ffill().pct_change(fill_method=None)
    few = [f"SH60000{i}" for i in range(6)]
    assert line["2021-03-31"] == pytest.approx(returns.loc["2021-03-31", few].mean())
    assert line["2021-04-01"] == pytest.approx(returns.loc["2021-04-01", few].mean())  # a member until the evening before
    others = [symbol for symbol in few if symbol != CHANGING]
    assert line["2021-04-02"] == pytest.approx(returns.loc["2021-04-02", others].mean())
    assert line["2021-08-02"] == pytest.approx(returns.loc["2021-08-02", others].mean())
    assert line["2021-08-03"] == pytest.approx(returns.loc["2021-08-03", few].mean())
    suspended = bars[105]
    assert returns.loc[suspended, SUSPENDED] == 0
    assert whole[suspended] == pytest.approx(returns.loc[suspended].mean())


def test_a_benchmark_without_some_closes_returns_nothing_there_and_it_is_said(store):
    notes = []
    line = index_returns(store, SUSPENDED, pd.DatetimeIndex(store.calendar[90:120]), notes)
    assert not line.isna().any() and (line.iloc[10:20] == 0).all() and line.iloc[20] != 0
    assert notes == [f"{SUSPENDED} lacks 10 of 30 closes: its return is 0 there"]


@pytest.mark.parametrize("nothing", [0.0, -5.0])
def test_a_close_that_is_no_price_is_a_suspension_and_neither_a_loss_nor_a_gain(tmp_path, nothing):
    found = []
    for name, value in (("missing", np.nan), ("worthless", nothing)):
        frames = market(5, 40)
        frames["SH600001"].iloc[20, :6] = value
        store = open_store(write_store(tmp_path / name, frames))
        best = wide(store, "$open") * 0 + np.arange(5) % 2  # SH600001 or SH600003, and it is held
        section = sizes(backtest_time_range=["2021-01-12", "2021-02-25"], n_symbol_hold=2)
        found.append(run_backtests(store, {"mean": as_signal(best.fillna(1))}, section, rules(**FREE), benchmark="SH600001"))
    missing, worthless = found
    for line in missing.lines:
        np.testing.assert_allclose(worthless.lines[line], missing.lines[line], rtol=0, atol=1e-12)
    columns = ["account", "return", "bench"]
    pd.testing.assert_frame_equal(worthless.signals["mean"].report[columns], missing.signals["mean"].report[columns])
    assert "1 bars have a close of 0 or below: the symbol is taken for suspended there" in worthless.notes


def test_bars_without_a_deal_price_are_dealt_at_the_close_and_counted_whether_it_is_missing_or_zero(tmp_path):
    for name, value in (("missing", np.nan), ("zero", 0.0)):
        frames = market(5, 40)
        frames["SH600001"].loc[frames["SH600001"].index[20:23], "open"] = value
        store = open_store(write_store(tmp_path / name, frames))
        signal = as_signal(wide(store, "$close") * 0 + np.arange(5))
        section = sizes(backtest_time_range=["2021-01-12", "2021-02-25"], n_symbol_hold=2)
        found = run_backtests(store, {"mean": signal}, section, rules(**FREE))
        assert found.notes[-1].startswith("3 bars have a close but no open: whatever is dealt there is dealt at the close")


def test_bars_without_volume_are_traded_on_and_counted_unless_orders_are_bound_to_volume(tmp_path):
    frames = market(5, 40)
    frames["SZ000004"] = frames.pop("SH600004").assign(volume=lambda frame: frame["volume"].where(np.arange(40) % 10 > 0, 0.0))
    store = open_store(write_store(tmp_path / "store", frames))
    signal = as_signal(wide(store, "$close") * 0 + np.arange(5))
    section = sizes(backtest_time_range=["2021-01-18", "2021-02-25"], n_symbol_hold=1)
    free, bound = (
        run_backtests(store, {"mean": signal}, section, rules(**FREE, volume_threshold=share), benchmark="SH600001")
        for share in (None, 0.1)
    )
    told = "3 bars have a close but a volume of 0: orders are dealt there too (exchange.volume_threshold forbids it)"
    assert told in free.notes and not any("volume of 0" in note for note in bound.notes)
    assert free.signals["mean"].positions["datetime"].min() == pd.Timestamp("2021-01-18")  # the tenth bar is one of them
    assert bound.signals["mean"].positions["datetime"].min() == pd.Timestamp("2021-01-19")


@pytest.mark.parametrize(("freq", "last", "days"), [("B", "2021-04-23", 263), ("D", "2021-03-14", 365)])
def test_a_year_of_other_days_than_the_ratios_are_annualised_by_is_told(tmp_path, freq, last, days):
    store = open_store(write_store(tmp_path / "store", market(3, 90, freq=freq)))
    signal = as_signal(wide(store, "$close") * 0 + np.arange(3))
    for annual in (252, 365):
        section = sizes(backtest_time_range=["2021-01-06", last], n_symbol_hold=1)
        notes = run_backtests(store, {"mean": signal}, section, rules(annual_days=annual)).notes
        told = f"bars lie on {days} days a year, and ratios are annualised by {annual} (exchange.annual_days)"
        assert (told in notes) == (abs(days - annual) > 30), notes
