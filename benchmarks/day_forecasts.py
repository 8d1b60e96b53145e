"""Forecasts of a backtest: ours against the inference loop of upstream's finetune/qlib_test.py, with the same weights and windows.

Both sides go from bars to signals by symbol and day: mini size, 90 bars before, 10 ahead, 5 samples; ours saves them to disk as well.
Weights are random: times do not depend on that. Then the likeliest token at every step, as a check that both forecast the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from finetune.data.frames import bars_frame, wall_clock
from finetune.data.panel import Panel, SeriesInfo
from finetune.engine.command import run_command
from finetune.evaluation.day_forecasts import DayForecasts, forecast_days
from finetune.evaluation.days import stamps_of
from finetune.evaluation.signals import signals
from kronos import Kronos, KronosPredictor, KronosTokenizer, presets, save_module
from kronos.bars import normalise

from .common import HORIZON, LOOKBACK, Report, Row, begin, clock_argument, end, interleaved, make_bars, parser_for, spread, timed
from .peer import Peer

NAME = "day_forecasts"
REACH = 25.0  # times upstream's speed
EQUAL = 0.95  # of forecasts
SAMPLES = 5
_CLOSE = 3
_REPEATS = 3


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--size", choices=presets.PREDICTORS, default="mini", help="size of the model (default: mini)")
    parser.add_argument("--symbols", type=int, default=10, help="symbols (default: 10; upstream takes a minute for 70 forecasts)")
    parser.add_argument("--days", type=int, default=6, help="days each is forecast on (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the interleaved timing (default: 3)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    panel, calendar = _panel(args.symbols, args.days)
    torch.manual_seed(0)
    model = Kronos(**presets.predictor_arguments(args.size)).eval()
    tokenizer = KronosTokenizer(**presets.tokenizer_arguments(presets.TOKENIZER_OF[args.size])).eval()
    forecaster = KronosPredictor(model, tokenizer, "cpu", max_context=512)
    count = int(panel.origin.sum())
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        sides = {
            "ours": _repeated(lambda: signals(_ours(forecaster, panel, calendar)), count, args.clock),
            "ours, through DataFrames": _repeated(lambda: _through_frames(forecaster, panel), count, args.clock),
        }
        peer = stack.enter_context(Peer(args.peer, "peer_day_forecasts", "finetune")) if args.peer else None
        if peer:
            save_module(model, folder / "predictor")
            save_module(tokenizer, folder / "tokenizer")
            np.savez(folder / "bars.npz", features=panel.features.reshape(args.symbols, -1, 6), times=calendar[: -HORIZON * 2])
            peer("load", folder=name, threads=args.threads)
            sides["peer"] = _Warmed(peer, args.clock, count)
        seen = interleaved(sides, args.rounds)
        report.details |= {"forecasts": f"{count} ({args.symbols} symbols x {args.days} days)"}
        report.details |= {f"{side}, forecasts/s": spread(values, inverse=True) for side, values in seen.items()}
        _rate(report, {side: statistics.median(values) for side, values in seen.items()}, args)
        if peer:
            _greedy(report, forecaster, panel, calendar, peer)
    return end(report, args)


def _repeated(work: Callable[[], object], count: int, clock: str) -> Callable[[], float]:
    """Seconds per forecast of several calls: one takes but a second."""
    return lambda: timed(lambda: [work() for _ in range(_REPEATS)], count * _REPEATS, clock)


def _rate(report: Report, medians: dict[str, float], args: argparse.Namespace) -> None:
    ratio = medians["peer"] / medians["ours"] if "peer" in medians else None
    told = f"{1 / medians['ours']:.3g}/s" + (f", {ratio:.3g}x" if ratio else "")
    against = f"{1 / medians['peer']:.3g}/s" if ratio else ""
    name = f"forecasts of a backtest, {args.size}, {LOOKBACK} -> {HORIZON}, {SAMPLES} samples"
    report.rows.append(Row(name, f">= {REACH:g}x", told, ratio is None or ratio >= REACH, against, ratio))


def _panel(symbols: int, days: int) -> tuple[Panel, np.ndarray]:
    """Daily bars in which each symbol is forecast on `days` days, as many as upstream's windows; and the market's calendar."""
    rows = LOOKBACK + HORIZON + days - 1
    made = make_bars(symbols, rows)
    calendar = pd.bdate_range("2024-01-01", periods=rows + HORIZON * 2).as_unit("ns")
    times = calendar[:rows]
    place = np.arange(rows)
    panel = Panel.build(
        features=made["features"].reshape(-1, 6),
        stamps=np.tile(stamps_of(times), (symbols, 1)),
        times=np.tile(times.asi8, symbols),
        origin=np.tile((place >= LOOKBACK - 1) & (place < rows - HORIZON), symbols),
        offsets=np.arange(symbols + 1) * rows,
        series=[SeriesInfo(f"S{i:04d}", "1d") for i in range(symbols)],
    )
    return panel, calendar.to_numpy()


def _ours(forecaster: KronosPredictor, panel: Panel, calendar: np.ndarray, **changes: float) -> DayForecasts:
    """All forecasts, into a folder of their own."""
    settings = SimpleNamespace(**{**dict(T=0.6, top_k=0, top_p=0.9, sample_count=SAMPLES, seed=100, series_at_once=1000), **changes})
    how = dict(lookback=LOOKBACK, horizon=HORIZON, settings=settings, say=lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        return forecast_days(forecaster, panel, calendar=calendar, folder=folder, **how)


def _through_frames(forecaster: KronosPredictor, panel: Panel) -> list[np.ndarray]:
    """The same forecasts by `predict_batch`: what a DataFrame per forecast, and larger batches, cost."""
    rows = np.flatnonzero(panel.origin).tolist()
    past = [bars_frame(panel, row + 1 - LOOKBACK, row + 1) for row in rows]
    ahead = [pd.Series(wall_clock(panel, row + 1, row + 1 + HORIZON)) for row in rows]
    how = dict(T=0.6, top_p=0.9, sample_count=SAMPLES, seed=100, verbose=False, return_samples=True)
    return forecaster.predict_batch(past, [pd.Series(frame.index) for frame in past], ahead, HORIZON, **how)


class _Warmed:
    """The peer's side: its first call, which is not measured, forecasts one day of each symbol only."""

    def __init__(self, peer: Peer, clock: str, count: int):
        self.peer, self.clock, self.count, self.warm = peer, clock, count, True

    def __call__(self) -> float:
        warm, self.warm = self.warm, False
        return self.peer("seconds", samples=SAMPLES, clock=self.clock, warm=warm) / self.count


def _greedy(report: Report, forecaster: KronosPredictor, panel: Panel, calendar: np.ndarray, peer: Peer) -> None:
    """Upstream's four signals from both sides. Its are z-scores: ours are brought there by each window's mean and deviation.

    Upstream computes the z-scores themselves in float32, ours are rounded to it: now and then that turns a bit of the quantiser that is
    near 0, and with it a forecast. From the same z-scores both make the same forecasts.
    """
    found = _ours(forecaster, panel, calendar, sample_count=1, top_k=1, top_p=1.0)
    given = panel.features[found.rows[:, None] + np.arange(1 - LOOKBACK, 1)].astype(np.float64)
    windows = [normalise(values, np.zeros((LOOKBACK, 5), np.int64), forecaster.clip) for values in given]
    facts = [(one.mean[_CLOSE], one.scale[_CLOSE], one.values[-1, _CLOSE]) for one in windows]
    mean, scale, last = (np.array(part) for part in zip(*facts, strict=True))
    path = (found.closes[:, 0] - mean[:, None]) / scale[:, None] - last[:, None]  # [O, horizon]
    reads: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "last": lambda p: p[:, -1],
        "mean": lambda p: p.mean(1),
        "max": lambda p: p.max(1),
        "min": lambda p: p.min(1),
    }
    theirs = peer("greedy")
    away = np.array([np.abs(read(path) - np.array(theirs[name]).ravel()) for name, read in reads.items()]).max(0)
    equal = float((away < 1e-3).mean())
    told = f"{equal:.1%} of forecasts within 0.001 of a deviation (largest difference {away.max():.1e})"
    report.rows.append(Row("signals of greedy forecasts equal to the peer's", f">= {EQUAL:.0%}", told, equal >= EQUAL))


if __name__ == "__main__":
    run_command(lambda: main() and None)
