"""Seconds of a whole backtest once forecasts exist: 300 symbols x 240 days, seven signals and two baselines through pyqlib, and the report.

Ours: one exchange read once, quotes in arrays, every signal in turn, then all files. Beside it, in the same process and in turn: pyqlib as
it is (its own loop, quotes and signal, prices read for every signal, as the public code does), for one signal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from finetune.data.qlib_store import Store, open_store, quietly
from finetune.data.qlib_writing import write_store
from finetune.engine.command import run_command
from finetune.evaluation.backtest import run_backtests
from finetune.evaluation.backtest_report import write_reports
from finetune.evaluation.signals import NAMES

from .common import Report, Row, begin, clock_argument, end, interleaved, make_bars, parser_for, spread, timed

NAME = "backtest"
REACH_S = 15.0
_BEFORE = 21  # days before the first one traded on: the momentum's
_BASELINES = {"momentum_20": 20, "reversal_5": -5}
RULES = SimpleNamespace(
    account=1e8,
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


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--symbols", type=int, default=300, help="symbols of the store (default: 300)")
    parser.add_argument("--days", type=int, default=240, help="days traded on (default: 240)")
    parser.add_argument("--hold", type=int, default=50, help="symbols held (default: 50)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the interleaved timing (default: 5)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder) / "store", args)
        seen = interleaved(_sides(store, Path(folder) / "results", args), args.rounds)
    _report(report, seen)
    return end(report, args)


def _store(path: Path, args: argparse.Namespace) -> Store:
    """Random walks of 2 % a day, as a store."""
    days = pd.bdate_range("2023-01-02", periods=args.days + _BEFORE, name="datetime")
    bars = make_bars(args.symbols, len(days))["features"].astype(np.float64)
    bars[..., :4] = 100 * (bars[..., :4] / 100) ** 10  # 5-minute bars of .2 %
    bars[..., 4] *= 1e3
    columns = ["open", "high", "low", "close", "volume", "amount"]
    return open_store(write_store(path, {f"SH{600000 + i}": pd.DataFrame(one, days, columns) for i, one in enumerate(bars)}))


def _sides(store: Store, results: Path, args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    closes = store.features(sorted(store.members("all")), ["$close"])["$close"].unstack("instrument")
    rng = np.random.default_rng(0)

    def score(values: np.ndarray | pd.DataFrame) -> pd.Series:
        return pd.DataFrame(values, closes.index, closes.columns).stack().dropna().rename_axis(["datetime", "instrument"])

    signals = {name: score(rng.normal(size=closes.shape)) for name in NAMES}
    baselines = {name: score(np.sign(n) * closes.pct_change(abs(n))) for name, n in _BASELINES.items()}
    bars = closes.index[_BEFORE:]
    sizes = SimpleNamespace(n_symbol_hold=args.hold, n_symbol_drop=5, hold_thresh=5, benchmark="equal", interval_draws=2000)
    sizes.backtest_time_range = [f"{bars[0]:%Y-%m-%d}", f"{bars[-1]:%Y-%m-%d}"]

    def run(signal: str, baselines: dict[str, pd.Series], write: bool) -> None:
        found = run_backtests(store, signals, SimpleNamespace(**vars(sizes), signal=signal), RULES, baselines=baselines)
        if write:
            write_reports(found, results)

    sides = {"ours, whole": lambda: run("all", baselines, True), "ours, one signal": lambda: run("mean", {}, False)}
    sides["pyqlib as it is, one signal"] = lambda: _unchanged(store, signals["mean"], bars, sizes)
    return {name: lambda side=side: timed(side, 1, args.clock) for name, side in sides.items()}


def _unchanged(store: Store, signal: pd.Series, bars: pd.DatetimeIndex, sizes: SimpleNamespace) -> None:
    store.activate()
    with quietly():
        from qlib.backtest import backtest
        from qlib.backtest.executor import SimulatorExecutor
        from qlib.contrib.strategy import TopkDropoutStrategy
    names = ("deal_price", "limit_threshold", "open_cost", "close_cost", "min_cost", "trade_unit")
    exchange = {"freq": store.freq} | {name: getattr(RULES, name) for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar
        warnings.simplefilter("ignore")
        strategy = TopkDropoutStrategy(topk=sizes.n_symbol_hold, n_drop=sizes.n_symbol_drop, hold_thresh=sizes.hold_thresh, signal=signal)
        executor = SimulatorExecutor(time_per_step=store.freq, generate_portfolio_metrics=True)
        backtest(bars[0], bars[-1], strategy, executor, pd.Series(0.0, bars), RULES.account, exchange)


def _report(report: Report, seen: dict[str, list[float]]) -> None:
    report.details |= {f"{name}, s": spread(values) for name, values in seen.items()}
    middle = {name: statistics.median(values) for name, values in seen.items()}
    whole, one, plain = (middle[name] for name in ("ours, whole", "ours, one signal", "pyqlib as it is, one signal"))
    strategies = len(NAMES) + len(_BASELINES)
    report.rows.append(
        Row(
            f"seconds of {strategies} backtests with intervals, report, picture and positions",
            f"<= {REACH_S:g}",
            f"{whole:.2f}",
            whole <= REACH_S,
            f"{strategies * plain:.2f} ({strategies} x one signal, without a report)",
            strategies * plain / whole,
        )
    )
    report.rows.append(
        Row("seconds of one signal, prices read", f"<= {REACH_S:g}", f"{one:.2f}", one <= REACH_S, f"{plain:.2f}", plain / one)
    )


if __name__ == "__main__":
    run_command(lambda: main() and None)
