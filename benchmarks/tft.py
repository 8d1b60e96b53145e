"""Training and inference of the Temporal Fusion Transformer against pytorch-forecasting: same rows, same sizes, interleaved.

--peer names the python of an environment that has pytorch-forecasting (`pip install pytorch-forecasting`; it needs nothing of ours). Both
sides train on batches that lie ready; the loader, and the way from a table to a data set, are measured by
themselves. Theirs: forward, loss, backward, clipping, Adam. Ours: the loop's Stepper.
"Shared rows": the same number of windows, in blocks of consecutive ones, each distinct row selected once (exact).
--real compares, instead of speeds, the validation losses that both come to on real bars: see `tft_quality`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.engine.batches import Micro
from finetune.engine.command import run_command
from finetune.engine.distributed import World
from finetune.engine.optimisation import Stepper
from finetune.engine.settings import FitSettings
from kronos.errors import MissingFileError
from tft.task import TftTask

from .common import ROOT, Report, Row, begin, clock_argument, end, interleaved, parser_for, spread, timed
from .peer import Peer
from .tft_quality import measure_quality, quality_arguments
from .tft_rows import measure_rows

NAME = "tft"
HEADS, TARGETS, KNOWN, SERIES, ENCODER = 4, 11, 4, 4, 96
REACH = {16: {"training": 2.0, "training, shared rows": 8.0, "inference, shared rows": 15.0}}
REACH[64] = {"training": 1.3, "training, shared rows": 6.0, "inference, shared rows": 10.0}


class PeerPython(Peer):
    """A child under another environment's python, answering as `Peer` does."""

    def __init__(self, python: Path, module: str):
        if not python.is_file():
            raise MissingFileError(f"--peer {python}: there is no such file; give the python of an environment with pytorch-forecasting")
        self.module = module
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        arguments = [str(python), str(ROOT / "benchmarks" / f"{module}.py")]
        self.process = subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure each hidden size, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument(
        "--hidden", type=int, nargs="*", default=[16, 64], help="hidden sizes; none: loader and build alone (default: 16 64)"
    )
    parser.add_argument(
        "--continuous", type=int, default=8, help="width of a real variable's vector on both sides, 0 = hidden (default: 8, the peer's)"
    )
    parser.add_argument("--features", type=int, default=40, help="real variables, four of them known ahead (default: 40)")
    parser.add_argument("--batch", type=int, default=128, help="windows per step (default: 128)")
    parser.add_argument("--blocks", type=int, default=4, help="blocks that a batch with shared rows has (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the interleaved timing (default: 5)")
    parser.add_argument("--steps", type=int, default=3, help="steps per side and round (default: 3)")
    parser.add_argument("--dropout", type=float, default=0.1, help="of both sides (default: 0.1)")
    parser.add_argument(
        "--rows", type=int, default=300_000, help="rows of the table that is built and loaded, 0 = leave out (default: 300000)"
    )
    parser.add_argument("--row-features", type=int, default=100, help="its features (default: 100)")
    clock_argument(parser)
    quality_arguments(parser)
    args, report = begin(NAME, parser, argv)
    peer = args.peer and (lambda: PeerPython(args.peer, "peer_tft"))
    with tempfile.TemporaryDirectory() as folder:
        if args.real:
            measure_quality(args, report, Path(folder), peer, {"heads": HEADS, "encoder": ENCODER})
            return end(report, args)
        rows = _rows(args)
        np.savez(Path(folder) / "rows.npz", **rows)
        for hidden in args.hidden:
            _measure(args, report, rows, hidden, Path(folder) / "rows.npz")
        if args.rows:
            measure_rows(args, report, Path(folder), peer, ENCODER)
    return end(report, args)


def _rows(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Rows of four series, as both sides see them."""
    rng = np.random.default_rng(0)
    count = SERIES * (ENCODER + 2 * args.batch)
    widths = {"past": args.features - KNOWN, "known": KNOWN, "targets": TARGETS}
    return {k: rng.normal(size=(count, width)).astype(np.float32) for k, width in widths.items()} | {
        "series": np.repeat(np.arange(SERIES), count // SERIES)
    }


def _batch(args: argparse.Namespace, rows: dict[str, np.ndarray], blocks: int) -> dict[str, torch.Tensor]:
    """`batch` windows in blocks of consecutive ones, block b in series b modulo their number."""
    each = args.batch // blocks
    per_series = len(rows["series"]) // SERIES
    firsts = np.concatenate([per_series * (b % SERIES) + (b // SERIES) * 3 + np.arange(each) for b in range(blocks)])
    at = torch.from_numpy(firsts)[:, None] + torch.arange(ENCODER + 1)
    past, known, targets = (torch.from_numpy(rows[key]) for key in ("past", "known", "targets"))
    series = torch.from_numpy(rows["series"])[firsts]
    batch = {"past": past[at[:, :-1]], "known": known[at], "targets": targets[at[:, -2]]}
    batch["static"] = torch.stack((series + 1, torch.ones_like(series)), 1)
    return {**batch, "blocks": torch.empty(blocks, each)} if blocks < args.batch else batch


class _Ours:
    """Our task and the loop's Stepper on one batch."""

    def __init__(self, args: argparse.Namespace, hidden: int, batch: dict[str, torch.Tensor], amp: str = "off"):
        torch.manual_seed(0)
        sizes = dict(past=args.features - KNOWN, known=KNOWN, statics=(SERIES + 1, 2), hidden=hidden, heads=HEADS, dropout=args.dropout)
        sizes["hidden_continuous"] = args.continuous
        self.task = TftTask(sizes, {f"target_{k}": "SmoothL1" for k in range(TARGETS)})
        self.args, self.batch, self.number = args, batch, 0
        self.stepper = Stepper(self.task, FitSettings(batch_size=args.batch, clip_norm=1.0, amp=amp), World())

    def train(self) -> float:
        self.task.train()
        return timed(lambda: [self._step() for _ in range(self.args.steps)], self.args.steps, self.args.clock)

    def _step(self) -> None:
        micro = Micro(np.arange(self.args.batch), 0, True)
        self.stepper.step([(micro, self.batch)], self.number, 1e-3, stop=False).sums.tolist()
        self.number += 1

    @torch.no_grad()
    def infer(self) -> float:
        self.task.eval()
        return timed(lambda: [self.task.model(self.batch) for _ in range(self.args.steps)], self.args.steps, self.args.clock)


def _measure(args: argparse.Namespace, report: Report, rows: dict[str, np.ndarray], hidden: int, path: Path) -> None:
    plain, shared = _batch(args, rows, args.batch), _batch(args, rows, args.blocks)
    each, blocks = _Ours(args, hidden, plain), _Ours(args, hidden, shared)
    half = _Ours(args, hidden, plain, "bf16")
    sides: dict[str, Callable[[], float]] = {
        "training": each.train,
        "training, shared rows": blocks.train,
        "training, bf16": half.train,
        "inference": each.infer,
        "inference, shared rows": blocks.infer,
    }
    if args.peer:
        with PeerPython(args.peer, "peer_tft") as peer:
            size = dict(
                hidden=hidden,
                continuous=args.continuous or hidden,
                heads=HEADS,
                encoder=ENCODER,
                batch=args.batch,
                count=args.steps,
                dropout=args.dropout,
            )
            theirs = peer("load", path=str(path), threads=args.threads, **size)
            report.details[f"hidden {hidden}, parameters"] = f"ours {sum(p.numel() for p in each.task.parameters()):,}, peer {theirs:,}"
            sides |= {f"peer's {what}": _asked(peer, do, args) for what, do in (("training", "train"), ("inference", "infer"))}
            seen = interleaved(sides, args.rounds)
    else:
        seen = interleaved(sides, args.rounds)
    report.details |= {f"hidden {hidden}, {name}, ms per {args.batch} windows": spread(values, 1e3) for name, values in seen.items()}
    _compare(args, report, hidden, {name: statistics.median(values) for name, values in seen.items()})


def _asked(peer: Any, do: str, args: argparse.Namespace) -> Callable[[], float]:
    return lambda: peer(do, n=args.steps, clock=args.clock)


def _compare(args: argparse.Namespace, report: Report, hidden: int, seen: dict[str, float]) -> None:
    """A row per measure of ours; seen: seconds per batch."""
    for name in [name for name in seen if not name.startswith("peer's")]:
        theirs = seen.get(f"peer's {name.split(',')[0]}")
        ratio = theirs / seen[name] if theirs else None
        reach = REACH.get(hidden, {}).get(name)
        passed = reach is None or ratio is None or ratio >= reach
        told = f"{args.batch / seen[name]:,.0f} windows/s" + (f", {ratio:.1f}x" if ratio else "")
        measure = f"{name}, {args.features} features, hidden {hidden}, {TARGETS} targets, batch {args.batch}, encoder {ENCODER}"
        peer = f"{args.batch / theirs:,.0f} windows/s" if theirs else ""
        report.rows.append(Row(measure, f">= {reach:g}x" if reach else "-", told, passed, peer, ratio))


if __name__ == "__main__":
    run_command(lambda: main() and None)
