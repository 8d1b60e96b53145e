"""Windows per second made ready for training: 90 + 10 + 1 rows (and 256 + 1 + 1), 6 features and 5 stamps, 50 symbols x 2,500 bars.

Ours: the order, the cut, normalisation by the lookback and clipping, through `step_micros` and `Windows.gather`, as the loop calls them.
The peer: __getitem__ and collation under its DataLoader with no worker processes, on the same bars.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from finetune.engine.batches import step_micros
from finetune.engine.command import run_command
from finetune.engine.distributed import World
from finetune.engine.settings import FitSettings
from finetune.engine.splits import make_splits
from finetune.engine.windows import Source

from .common import (
    HORIZON,
    LOOKBACK,
    Report,
    Row,
    begin,
    clock_argument,
    end,
    interleaved,
    make_bars,
    make_panel,
    parser_for,
    spread,
    timed,
)
from .peer import Peer

NAME = "loader"
REACH = 250_000  # windows/s
LONG, LONG_REACH = (256, 1), 100_000  # lookback and horizon of the Kaggle configuration, series drawn by the root of their length
PEER_BATCHES = 640  # windows of the peer per side and round


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--symbols", type=int, default=50, help="series (default: 50)")
    parser.add_argument("--bars", type=int, default=2500, help="bars per series (default: 2500)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the interleaved timing (default: 15)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    panel = make_panel(args.symbols, args.bars)
    sources = {
        "ours": make_splits(panel, LOOKBACK, HORIZON, (0.8, 0.2, 0.0)).train,
        "ours, 256 + 1 bars": make_splits(panel, *LONG, (0.8, 0.2, 0.0), sampling="sqrt").train,
    }
    sides = {f"{name}, batch {size}": _epoch_of(source, size, args.clock) for name, source in sources.items() for size in (32, 512)}
    with tempfile.TemporaryDirectory() as folder:
        seen = _beside_peer(args, sides, Path(folder)) if args.peer else interleaved(sides, args.rounds)
    _report(report, seen)
    return end(report, args)


def _epoch_of(source: Source, size: int, clock: str) -> Callable[[], float]:
    """A side of the timing: one whole epoch, as `_train_epoch` walks it. Seconds per window."""
    settings, world = FitSettings(batch_size=size), World()

    def epoch() -> None:
        for first in range(0, len(source), size):
            for micro in step_micros(source, settings, world, 0, first, min(first + size, len(source))):
                source.gather(micro.index)

    return lambda: timed(epoch, len(source), clock)


def _beside_peer(args: argparse.Namespace, ours: dict[str, Callable[[], float]], folder: Path) -> dict[str, list[float]]:
    bars = make_bars(args.symbols, args.bars)
    np.savez(folder / "bars.npz", features=bars["features"], times=bars["times"])
    with Peer(args.peer, "peer_loader", "finetune_csv", "finetune") as peer:
        peer("load", folder=str(folder), threads=args.threads, kinds=["csv", "qlib"], per_epoch=100_000)
        sides = dict(ours)
        for kind in ("csv", "qlib"):
            for size in (32, 512):
                n = max(1, PEER_BATCHES // size)
                sides[f"peer {kind}, batch {size}"] = lambda kind=kind, size=size, n=n: peer(
                    "batches", kind=kind, size=size, n=n, clock=args.clock
                )
        return interleaved(sides, args.rounds)


def _report(report: Report, seen: dict[str, list[float]]) -> None:
    """Rates; the row is the slower of our two batch sizes against the faster of the peer's."""
    rates = {name: 1 / statistics.median(values) for name, values in seen.items()}
    report.details |= {f"{name}, windows/s": spread(values, inverse=True) for name, values in seen.items()}
    peer = max((rate for name, rate in rates.items() if name.startswith("peer")), default=None)
    for name in [name for name in rates if name.startswith("ours")]:
        long = "256" in name  # the peer is measured at the shorter length only
        beside = None if long else peer
        reach = LONG_REACH if long else REACH
        report.rows.append(
            Row(
                f"windows/s made ready for training, {name.removeprefix('ours, ')}",
                f">= {reach:,}",
                f"{rates[name]:,.0f}",
                rates[name] >= reach,
                f"{beside:,.0f}" if beside else "",
                rates[name] / beside if beside else None,
            )
        )


if __name__ == "__main__":
    run_command(lambda: main() and None)
