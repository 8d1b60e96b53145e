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
from copy import deepcopy
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
from kronos.bars import Lookback, normalise
from kronos.layers import run_blocks

from .common import HORIZON, LOOKBACK, Report, Row, begin, clock_argument, end, interleaved, make_bars, parser_for, spread, timed
from .peer import Peer

NAME = "day_forecasts"
REACH = 25.0  # times upstream's speed
EQUAL = 0.95  # of forecasts
_NEAR = 1e-3  # deviations
_COMPARED = {"its own": ("", EQUAL), "exact z-scores": (" where its z-scores are exact", 1.0), "float64": (", both in float64", 1.0)}
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
    """Upstream's four signals from both sides, and why some differ.

    Upstream takes each window's mean and deviation in float32, ours in float64. Where a component of the tokenizer's vector lies nearer to
    0 than that rounding moves it, its sign turns: another token of the window, and so another forecast. So it is asked three times: as it
    is; with means and deviations in float64 and nothing else changed; and with both sides in float64 throughout.
    """
    wide = KronosPredictor(deepcopy(forecaster.model).double(), deepcopy(forecaster.tokenizer).double(), "cpu", max_context=512)
    rows = np.flatnonzero(panel.origin)
    given = panel.features[rows[:, None] + np.arange(1 - LOOKBACK, 1)].astype(np.float64)
    windows = [normalise(values, np.zeros((LOOKBACK, 5), np.int64), forecaster.clip) for values in given]
    narrow, exact = (_zscored(side, panel, calendar, windows) for side in (forecaster, wide))
    away = {
        how: _away(path, {name: np.array(values).T.ravel() for name, values in peer("greedy", arithmetic=how).items()})
        for how, path in {"its own": narrow, "exact z-scores": narrow, "float64": exact}.items()
    }
    for how, (told, reach) in _COMPARED.items():
        equal = float((away[how] < _NEAR).mean())
        seen = f"{equal:.1%} of forecasts within {_NEAR:g} of a deviation (largest difference {away[how].max():.1e})"
        report.rows.append(Row(f"signals of greedy forecasts equal to the peer's{told}", f">= {reach:.0%}", seen, equal >= reach))
    ours, theirs = np.stack([one.values for one in windows]), np.array(peer("zscores"), np.float32)
    report.details["why greedy signals differ"] = _turned(wide.tokenizer, ours, theirs, away["its own"] >= _NEAR)


def _zscored(forecaster: KronosPredictor, panel: Panel, calendar: np.ndarray, windows: Sequence[Lookback]) -> np.ndarray:
    """Closes [O, horizon] of the likeliest tokens less the last close, in deviations of the window; by row of the panel."""
    found = _ours(forecaster, panel, calendar, sample_count=1, top_k=1, top_p=1.0)
    closes = found.closes[np.argsort(found.rows), 0]
    mean, scale, last = np.array([(one.mean[_CLOSE], one.scale[_CLOSE], one.values[-1, _CLOSE]) for one in windows]).T[:, :, None]
    return (closes - mean) / scale - last


def _away(path: np.ndarray, theirs: dict[str, np.ndarray]) -> np.ndarray:
    """[O] largest difference of the four signals."""
    ours = {"last": path[:, -1], "mean": path.mean(1), "max": path.max(1), "min": path.min(1)}
    return np.array([np.abs(ours[name] - theirs[name]) for name in ours]).max(0)


def _turned(tokenizer: KronosTokenizer, ours: np.ndarray, theirs: np.ndarray, differs: np.ndarray) -> str:
    """What the two z-scores [O, lookback, 6] of each window do to its bits, all else in float64. differs [O]: whose signals do."""
    with torch.inference_mode():
        embedded = [tokenizer.embed(torch.from_numpy(z).double()) for z in (ours, theirs)]
        pair = [tokenizer.quant_embed(run_blocks(tokenizer.encoder, x, recompute=False)) for x in embedded]
    mine, other = (vectors.numpy() for vectors in pair)  # [O, lookback, bits]
    turned = (mine > 0) != (other > 0)
    windows = turned.any((1, 2))
    size, moved = np.abs(mine), np.abs(other - mine)
    nearest = f", which lie within {size[turned].max():.1e} of 0" if turned.any() else ""
    both = int((differs & windows).sum())
    return (
        f"{int(differs.sum())} of {len(differs)} forecasts differ, {both} of them with a turned bit in the window; z-scores differ by up "
        f"to {np.abs(ours - theirs).max():.1e}, which moves components by {np.median(moved):.1e} (median, at most {moved.max():.1e}) and "
        f"turns {int(turned.sum())} of {turned.size:,} bits, in {int(windows.sum())} windows{nearest}; a component's median size is "
        f"{np.median(size):.1e}"
    )


if __name__ == "__main__":
    run_command(lambda: main() and None)
