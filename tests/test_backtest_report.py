"""What a backtest writes: numbers a program can read, a report and a picture a person can, positions that add up."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from qlib_bars import small_store

from finetune.data.qlib_store import open_store
from finetune.evaluation.backtest import Backtest, Backtests, run_backtests
from finetune.evaluation.backtest_plots import _apart, draw_performance
from finetune.evaluation.backtest_report import as_text, write_reports
from finetune.evaluation.backtest_stats import statistics
from kronos.errors import InputError

SIZES = SimpleNamespace(
    backtest_time_range=["2021-06-01", "2021-12-03"],
    n_symbol_hold=3,
    n_symbol_drop=1,
    hold_thresh=2,
    benchmark="BENCHMARK",
    signal="all",
    interval_draws=200,
)
RULES = SimpleNamespace(
    account=1e6,
    deal_price="open",
    limit_threshold=0.095,
    open_cost=0.001,
    close_cost=0.0015,
    min_cost=5.0,
    trade_unit=100,
    impact_cost=0.0,
    volume_threshold=None,
    risk_degree=0.95,
    annual_days=252,
)


NOT = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
RANKS = {"value": 0.0123, "low": -0.05, "high": 0.06}
SCORE = dict(ic=NOT, rank_ic=RANKS, icir=NOT, rank_icir=RANKS, hit_rate=RANKS, groups=[-0.0025, 0.001], spread=NOT, turnover=0.25, days=45)


@pytest.fixture(scope="module")
def found():
    store = open_store(small_store())
    closes = store.features(sorted(store.members("all")), ["$close"], store.calendar[0], store.calendar[-1])["$close"].unstack("instrument")
    rng = np.random.default_rng(0)

    def noise():
        return pd.DataFrame(rng.normal(size=closes.shape), closes.index, closes.columns).where(closes.notna()).stack().dropna()

    signals = {name: noise() for name in ("last", "mean", "prob_up")}
    signals["prob_up"] = signals["prob_up"].round(0)
    return run_backtests(store, signals, SIZES, RULES, baselines={"reversal_5": noise()})


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = write_reports(found, folder, scores={"mean": {1: SCORE}}, settings={"data": {"freq": "day"}}, title="tiny")
    assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
    return folder


def refuse(text):
    raise AssertionError(f"{text} is not JSON")


def test_the_results_are_json_without_nan_and_hold_every_number(found, folder):
    numbers = json.loads((folder / "backtest_results.json").read_text(), parse_constant=refuse)
    assert numbers["verdict"] == found.verdict and numbers["headline"] == "mean"
    assert numbers["scores"]["mean"]["1"]["spread"]["value"] is None
    assert list(numbers["signals"]) == ["last", "mean", "prob_up"] and list(numbers["baselines"]) == ["reversal_5"]
    assert list(numbers["held"]) == ["BENCHMARK", "equal weight of all"]
    assert numbers["exchange"]["trade_unit"] == 100 and numbers["backtest"]["n_symbol_hold"] == 3 and numbers["title"] == "tiny"
    assert {"pyqlib", "arch", "pandas", "torch"} <= set(numbers["versions"])
    one, figures = numbers["signals"]["mean"], found.signals["mean"].figures
    assert one["excess_with_cost"] == figures["excess_with_cost"] and one["yearly"][0]["year"] == 2021
    assert one["verdict"].startswith("mean is ") and numbers["signals"]["prob_up"]["notes"]


def test_the_report_says_verdict_settings_tables_and_caveats(found, folder):
    text = (folder / "analysis_report.txt").read_text()
    lines = text.splitlines()
    assert lines[0] == "Backtest of tiny: 2021-06-01 to 2021-12-03, 134 days, pool all" and lines[2] == found.verdict
    assert "holds 3, replaces up to 1 a bar" in text and "moves by 9.5 % or more" in text.replace("move by", "moves by")
    excess = found.signals["mean"].figures["excess_with_cost"]
    row = next(line for line in lines if line.startswith("mean *"))
    assert f"{100 * excess['annual_return']:+.1f} %" in row and f"{excess['information_ratio']:+.2f}" in row
    for name in ("last", "prob_up", "reversal_5", "BENCHMARK", "equal weight of all", "2021"):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert "3 signals were run. The deciding one (mean) was named beforehand" in text
    assert "- prob_up: " in text and "nan" not in text.lower().replace("finance", "")
    assert max(map(len, lines)) <= 150


def test_the_positions_add_up_to_the_accounts_of_the_days(found, folder):
    held = pd.read_csv(folder / "positions" / "mean.csv", parse_dates=["datetime"])
    assert list(held.columns) == ["datetime", "symbol", "amount", "price", "value", "weight"]
    np.testing.assert_allclose(held["amount"] * held["price"], held["value"], rtol=1e-8)
    days = pd.read_csv(folder / "daily.csv", parse_dates=["datetime"]).query("signal == 'mean'").set_index("datetime")
    np.testing.assert_allclose(held.groupby("datetime")["value"].sum() + days["cash"], days["account"], rtol=1e-8)
    np.testing.assert_allclose(held.groupby("datetime")["weight"].sum(), days["value"] / days["account"], rtol=1e-8)
    most = held.groupby("datetime").size().max()
    assert found.signals["mean"].figures["held"]["most"] == most == 4
    assert "last, mean, prob_up, reversal_5: held up to 4 symbols, not 3: pyqlib buys" in (folder / "analysis_report.txt").read_text()
    # one day's account is the day before's, and what was earned after cost
    np.testing.assert_allclose(days["account"].iloc[1:], days["account"].to_numpy()[:-1] * (1 + days["net"].iloc[1:]), rtol=1e-8)


def test_the_picture_is_a_large_png(folder):
    data = (folder / "performance_plot.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width >= 1600 and height >= 1600


def made_up(days, returns=0.001, turnover=0.1):
    """A result without pyqlib: one signal over so many days."""
    index = pd.bdate_range("2023-12-20", periods=days, name="datetime")
    report = pd.DataFrame(
        {"return": returns, "cost": 0.0, "bench": 0.0, "turnover": turnover, "account": 1e6, "value": 9e5, "cash": 1e5}, index
    )
    figures = statistics(report, annual_days=252, draws=50)
    positions = pd.DataFrame([], columns=["datetime", "symbol", "amount", "price", "value", "weight"])
    store = SimpleNamespace(path="store", freq="day")
    one = Backtest("median", report, positions, figures)
    lines = {"SH000300": pd.Series(0.0, index)}
    return Backtests({"median": one}, {}, lines, "SH000300", "median", "csi300", store, SIZES, RULES, [])


@pytest.mark.parametrize("days", [1, 40])
def test_a_backtest_without_any_deviation_or_of_one_day_is_written_too(days, tmp_path):
    with np.errstate(all="raise"):
        write_reports(made_up(days), tmp_path)
    numbers = json.loads((tmp_path / "backtest_results.json").read_text(), parse_constant=refuse)
    assert numbers["signals"]["median"]["excess_with_cost"]["information_ratio"] is None
    assert numbers["signals"]["median"]["interval"] is None
    text = (tmp_path / "analysis_report.txt").read_text()
    assert "no information ratio, its excess return never changes" in text and "signals were run" not in text


def test_years_stand_in_rows_of_their_own():
    text = as_text(made_up(300, np.random.default_rng(0).normal(0, 0.01, 300)))
    rows = [line.split()[:2] for line in text.splitlines() if line[:4] in ("2023", "2024", "2025")]
    assert rows == [["2023", "8"], ["2024", "262"], ["2025", "30"]]


def test_a_report_of_bars_within_a_day_says_that_nothing_is_held_overnight():
    days, bars = made_up(40), made_up(40)
    bars.store.freq = "60min"
    told = "A symbol may be sold on the day it was bought: hold_thresh counts bars."
    assert told in as_text(bars) and told not in as_text(days)


def test_names_at_the_ends_of_lines_keep_their_order_and_do_not_overlap():
    places = _apart(np.array([0.1, 0.11, 0.115, 0.5, 0.9]), 0.05)
    assert (np.diff(places) >= 0.05 - 1e-12).all()
    assert places == pytest.approx([0.1083 - 0.05, 0.1083, 0.1083 + 0.05, 0.5, 0.9], abs=1e-4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        draw_performance(made_up(40), tmp_path / "results" / "plot.png")


def test_a_file_in_the_folders_place_is_told(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="a file stands where a folder is needed"):
        write_reports(made_up(40), tmp_path / "results")


def test_the_report_shows_how_each_signal_ranks_symbols(found):
    text = as_text(found, scores={"mean": {1: SCORE, 4: SCORE}})
    assert "returns from the next open, 1 bar ahead" in text and "4 bars ahead" in text
    (line,) = [line for line in text.split("1 bar ahead")[1].split("\n\n")[0].splitlines() if line.startswith("mean")]
    assert " ".join(line.split()) == "mean – +0.012 -0.050 to +0.060 +0.01 1.2 % -0.25 % +0.10 % 25.0 % 45"
