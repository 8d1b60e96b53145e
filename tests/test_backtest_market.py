"""What stands beside a strategy, and the bars it trades on: benchmarks, members, suspensions, prices that are none."""

from __future__ import annotations

import pandas as pd
import pytest
from backtests import wide
from qlib_bars import CHANGING, SUSPENDED, small_store

from finetune.data.qlib_store import open_store
from finetune.evaluation.backtest import equal_weight, index_returns


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
