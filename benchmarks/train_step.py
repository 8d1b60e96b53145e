"""Predictor training step, mini size, 32 x 101 tokens on the CPU: ours through the real Stepper and sources, against the peer's step.

Ours: fp32 with tokens encoded each step; fp32 with cached tokens; bf16 with cached tokens, where each window also pays a tenth
of its encoding (the cache is filled once for 10 epochs). Gathering and order are counted for ours; the peer's batches lie ready.
And the loss curves of both in fp32, dropout off, the coarse token given: same weights, same windows, same order.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from finetune.engine.batches import step_micros, to_device
from finetune.engine.command import run_command
from finetune.engine.distributed import World
from finetune.engine.kronos_tasks import PredictorTask
from finetune.engine.optimisation import Stepper
from finetune.engine.settings import FitSettings
from finetune.engine.signals import StopRequest
from finetune.engine.splits import make_splits
from finetune.engine.tokens import with_cached_tokens
from finetune.engine.windows import Source, Splits, sample_subset
from kronos import Kronos, KronosTokenizer, save_module
from kronos.presets import predictor_arguments, tokenizer_arguments

from .common import HORIZON, LENGTH, LOOKBACK, Report, Row, begin, clock_argument, end, interleaved, make_panel, parser_for, spread, timed
from .peer import Peer

NAME = "train_step"
REACH = 2.5
EPOCHS = 10  # the filling of the cache is counted over so many
RATE = 1e-3
DROPOUTS = ("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "token_dropout_p")


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--size", default="mini", help="preset of the predictor (default: mini)")
    parser.add_argument("--batch", type=int, default=32, help="windows per step (default: 32)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the interleaved timing (default: 9)")
    parser.add_argument("--steps", type=int, default=4, help="steps per side and round (default: 4)")
    parser.add_argument("--encoded", type=int, default=512, help="windows encoded per round (default: 512)")
    parser.add_argument("--curve-steps", type=int, default=30, help="steps of the compared loss curves (default: 30)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        windows = _windows(args, Path(folder))
        _time_steps(args, report, windows, Path(folder))
        if args.peer:
            _compare_curves(args, report, windows.train, Path(folder))
    return end(report, args)


def _windows(args: argparse.Namespace, folder: Path) -> Splits:
    """Enough windows for every step, and the models and batches that the peer reads."""
    torch.manual_seed(0)
    steps = max(args.curve_steps, args.steps, 8)
    bars = (LENGTH + args.batch * steps // 8 + 2) * 5 // 4 + 8  # of 8 symbols, 4 in 5 bars to train on
    windows = make_splits(make_panel(8, bars), LOOKBACK, HORIZON, (0.8, 0.2, 0.0))
    save_module(Kronos(**predictor_arguments(args.size)), folder / "predictor")
    save_module(KronosTokenizer(**tokenizer_arguments("base")), folder / "tokenizer")
    batches = [windows.train.gather(_indices(windows.train, args, step)) for step in range(args.curve_steps)]
    np.savez(folder / "batches.npz", x=np.stack([b["x"].numpy() for b in batches]), stamps=np.stack([b["stamps"].numpy() for b in batches]))
    return windows


def _settings(args: argparse.Namespace, **changes: object) -> FitSettings:
    return replace(FitSettings(epochs=EPOCHS, batch_size=args.batch, learning_rate=RATE, schedule="constant", n_val_iter=32), **changes)


def _indices(source: Source, args: argparse.Namespace, step: int) -> np.ndarray:
    (micro,) = step_micros(source, _settings(args), World(), 0, step * args.batch, (step + 1) * args.batch)
    return micro.index


def _task(folder: Path, dropout: bool = True, teacher_forcing: bool = False) -> PredictorTask:
    changes = {} if dropout else dict.fromkeys(DROPOUTS, 0.0)
    predictor, tokenizer = Kronos.from_pretrained(folder / "predictor", **changes), KronosTokenizer.from_pretrained(folder / "tokenizer")
    return PredictorTask(predictor, tokenizer, LOOKBACK, teacher_forcing)


class _Ours:
    """Our loop's own parts, one step at a time: order, gather, Stepper."""

    def __init__(self, task: PredictorTask, source: Source, settings: FitSettings):
        self.source, self.settings, self.world = source, settings, World()
        self.stepper, self.number = Stepper(task.train(), settings, self.world), 0

    def step(self) -> float:
        size = self.settings.batch_size
        first = self.number * size % (len(self.source) - size)
        micros = step_micros(self.source, self.settings, self.world, 0, first, first + size)
        batches = [(micro, to_device(self.source.gather(micro.index), self.world.device)) for micro in micros]
        result = self.stepper.step(batches, self.number, RATE, stop=False)
        sums = result.sums.tolist()  # read at each step, as the peer does and our loop on a CPU
        self.number += 1
        return sums[0] / sums[-2]

    def timed(self, args: argparse.Namespace) -> Callable[[], float]:
        """A side of the timing: seconds per step over `--steps` steps."""
        return lambda: timed(lambda: [self.step() for _ in range(args.steps)], args.steps, args.clock)


def _time_steps(args: argparse.Namespace, report: Report, windows: Splits, folder: Path) -> None:
    """Seconds per step of every variant, in turns with the peer's."""
    task = _task(folder)
    cached = with_cached_tokens(
        windows, task.tokenizer, folder / "cache", _settings(args), World(), StopRequest(), mode="on", say=lambda _: None
    )
    sides = {
        "ours fp32": _Ours(task, windows.train, _settings(args)).timed(args),
        "ours fp32, cached tokens": _Ours(_task(folder), cached.train, _settings(args)).timed(args),
        "ours bf16, cached tokens": _Ours(_task(folder), cached.train, _settings(args, amp="bf16")).timed(args),
        "encode": _filling(args, windows, task, folder),
    }
    if args.peer:
        with Peer(args.peer, "peer_step") as peer:
            peer("load", folder=str(folder), threads=args.threads, learning_rate=RATE, dropout=True)
            seen = interleaved({"peer": lambda: peer("steps", n=args.steps, clock=args.clock), **sides}, args.rounds)
    else:
        seen = interleaved(sides, args.rounds)
    report.details |= {f"{name}, ms per {args.batch} windows": spread(values, 1e3) for name, values in seen.items()}
    _rows(args, report, {name: statistics.median(values) for name, values in seen.items()})


def _filling(args: argparse.Namespace, windows: Splits, task: PredictorTask, folder: Path) -> Callable[[], float]:
    """A side of the timing: a cache for `--encoded` windows made from nothing. Seconds per `batch` windows."""
    some = Splits(sample_subset(windows.train, args.encoded, seed=0), sample_subset(windows.val, args.batch, seed=0), windows.test)
    count = (len(some.train) + len(some.val)) / args.batch
    made = itertools.count()

    def fill() -> None:
        place = folder / f"filled-{next(made)}"
        with_cached_tokens(some, task.tokenizer, place, _settings(args), World(), StopRequest(), mode="on", say=lambda _: None)

    return lambda: timed(fill, count, args.clock)


def _rows(args: argparse.Namespace, report: Report, seen: dict[str, float]) -> None:
    """One row per variant of ours; those with cached tokens also pay a tenth of the encoding. seen: seconds per step."""
    fill = seen["encode"] / EPOCHS
    report.details["filling the cache, counted per step"] = f"{fill * 1e3:.3g} ms (a tenth of encoding)"
    for name, extra, reach in (("fp32", 0.0, None), ("fp32, cached tokens", fill, None), ("bf16, cached tokens", fill, REACH)):
        ours = seen[f"ours {name}"] + extra
        ratio = seen["peer"] / ours if "peer" in seen else None
        told = f"{ratio:.2f}x" if ratio else f"{args.batch / ours:.0f} windows/s"
        passed = not reach or ratio is None or ratio >= reach
        measure = f"predictor training step, {args.size}, {args.batch} x {LENGTH} tokens, {name}"
        peer = f"{args.batch / seen['peer']:.0f} windows/s" if ratio else ""
        report.rows.append(Row(measure, f">= {reach}x" if reach else "-", told, passed, peer, ratio))


def _compare_curves(args: argparse.Namespace, report: Report, source: Source, folder: Path) -> None:
    """Both sides train from the same weights on the same windows, with dropout off and the true coarse token given."""
    ours = _Ours(_task(folder, dropout=False, teacher_forcing=True), source, _settings(args))
    mine = [ours.step() for _ in range(args.curve_steps)]
    with Peer(args.peer, "peer_step") as peer:
        peer("load", folder=str(folder), threads=args.threads, learning_rate=RATE, dropout=False)
        theirs = peer("curve")
    difference = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    report.details["loss curve"] = f"ours {mine[0]:.6f} -> {mine[-1]:.6f}, peer {theirs[0]:.6f} -> {theirs[-1]:.6f}"
    report.rows.append(
        Row(f"fp32 loss curve, {args.curve_steps} steps, largest difference", "<= 1e-4", f"{difference:.1e}", difference <= 1e-4)
    )


if __name__ == "__main__":
    run_command(lambda: main() and None)
