"""A backtest's figures: those of pyqlib's own risk analysis, of days whatever the bars, and how sure the ratio is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from finetune.evaluation.backtest_stats import drawdown, interval, risk, statistics, to_days, verdict


def report_of(returns, bench=0.0, cost=0.0, start="2020-12-01", freq="B"):
    index = pd.date_range(start, periods=len(returns), freq=freq, name="datetime")
    table = pd.DataFrame({"return": returns, "cost": cost, "bench": bench, "turnover": 0.1}, index)
    account = 1e6 * (1 + table["return"] - table["cost"]).cumprod()
    return table.assign(account=account, value=0.9 * account, cash=0.1 * account)


def test_figures_are_those_of_qlibs_risk_analysis():
    from qlib.contrib.evaluate import risk_analysis

    rng = np.random.default_rng(0)
    report = report_of(rng.normal(0.001, 0.01, 300), rng.normal(0, 0.01, 300), 0.0005)
    figures = statistics(report, annual_days=240, draws=200)
    excess = report["return"] - report["bench"] - report["cost"]
    theirs = risk_analysis(pd.concat([pd.Series([0.0]), excess]), N=240, freq=None)["risk"]  # its running sum begins at its first value
    assert figures["excess_with_cost"]["max_drawdown"] == pytest.approx(theirs["max_drawdown"])
    theirs = risk_analysis(excess, N=240, freq=None)["risk"]
    assert figures["excess_with_cost"]["annual_return"] == pytest.approx(theirs["annualized_return"])
    assert figures["excess_with_cost"]["information_ratio"] == pytest.approx(theirs["information_ratio"])
    assert figures["excess_with_cost"]["volatility"] == pytest.approx(theirs["std"] * np.sqrt(240))
    before = risk_analysis(report["return"] - report["bench"], N=240, freq=None)["risk"]
    assert figures["excess_without_cost"]["information_ratio"] == pytest.approx(before["information_ratio"])
    net = risk_analysis(report["return"] - report["cost"], N=240, freq=None)["risk"]
    assert figures["with_cost"]["sharpe"] == pytest.approx(net["information_ratio"])
    assert figures["win_rate"] == (excess > 0).mean() and figures["turnover"]["per_year"] == pytest.approx(24)
    years = figures["yearly"]
    assert [row["year"] for row in years] == [2020, 2021, 2022] and sum(row["days"] for row in years) == 300
    assert sum(row["excess_with_cost"] for row in years) == pytest.approx(excess.sum())
    assert years[1]["information_ratio"] == pytest.approx(risk_analysis(excess.loc["2021"], N=240, freq=None)["risk"]["information_ratio"])


def test_a_loss_on_the_first_day_is_a_drawdown_and_no_deviation_is_no_ratio():
    np.testing.assert_allclose(drawdown(np.array([-0.1, 0.05, 0.1, -0.02])), [-0.1, -0.05, 0, -0.02], atol=1e-12)
    assert np.isnan(risk(pd.Series([0.01, 0.01, 0.01]), 252, "sharpe")["sharpe"])
    figures = statistics(report_of(np.full(40, 0.01)), annual_days=252, draws=100)
    assert figures["interval"] is None and "no information ratio" in verdict("x", "y", figures)
    assert statistics(report_of([0.01]), annual_days=252, draws=100)["days"] == 1


def test_bars_are_summed_to_days():
    days = to_days(report_of(np.tile([0.01, -0.02, 0.03], 4), 0.001, 0.002, "2021-01-04", "8h"))
    assert len(days) == 4
    assert days["return"].to_list() == pytest.approx([0.02] * 4) and days["excess"].to_list() == pytest.approx([0.02 - 0.003 - 0.006] * 4)


def test_the_interval_is_the_same_for_the_same_seed_wider_for_fewer_days_and_contains_the_ratio():
    excess = pd.Series(np.random.default_rng(1).normal(0.001, 0.01, 400))
    settings = dict(annual_days=252, draws=500, block=5)
    long, short = interval(excess, seed=1, **settings), interval(excess.iloc[:100], seed=1, **settings)
    assert long == interval(excess, seed=1, **settings) != interval(excess, seed=2, **settings)
    assert long["low"] < risk(excess, 252, "ratio")["ratio"] < long["high"]
    assert short["high"] - short["low"] > 1.5 * (long["high"] - long["low"])
    assert interval(excess.iloc[:19], seed=1, **settings) is None
