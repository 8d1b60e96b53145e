"""Distinct windows among those of an epoch of sampled rows, on 1, 2 and 8 ranks.

Ours through the loop's own order, the peer through its Qlib data set and loader.
Ours is also counted over a whole pass: every window once, none left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.engine.batches import plan_epoch, step_micros
from finetune.engine.command import run_command
from finetune.engine.distributed import World
from finetune.engine.settings import FitSettings
from finetune.engine.splits import make_splits
from finetune.engine.windows import Source

from .common import HORIZON, LOOKBACK, Report, Row, begin, end, make_bars, make_panel, parser_for
from .peer import Peer

NAME = "coverage"
WORLDS = (1, 2, 8)
BATCH = 50  # the peer's


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, count, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--symbols", type=int, default=50, help="series (default: 50)")
    parser.add_argument("--bars", type=int, default=2500, help="bars per series (default: 2500)")
    parser.add_argument("--per-epoch", type=int, default=4000, help="windows sampled for an epoch, n_train_iter (default: 4000)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the peer's loader (default: 2, as its trainer has)")
    args, report = begin(NAME, parser, argv)
    source = make_splits(make_panel(args.symbols, args.bars), LOOKBACK, HORIZON, (0.8, 0.2, 0.0)).train
    theirs = {}
    if args.peer:
        with tempfile.TemporaryDirectory() as folder, Peer(args.peer, "peer_loader", "finetune") as peer:
            bars = make_bars(args.symbols, args.bars)
            np.savez(Path(folder) / "bars.npz", features=bars["features"], times=bars["times"])
            peer("load", folder=folder, threads=args.threads, kinds=["qlib"], per_epoch=args.per_epoch)
            theirs = {size: peer("epoch", world=size, workers=args.workers, size=BATCH) for size in WORLDS}
    for size in WORLDS:
        drawn, distinct = count(source, size, args.per_epoch)
        whole, whole_distinct = count(source, size, 0)
        share, peer_share = distinct / drawn, theirs[size]["distinct"] / theirs[size]["drawn"] if theirs else None
        report.details[f"world {size}, whole pass"] = f"{whole_distinct} distinct of {whole} taken of {len(source)}"
        report.rows.append(
            Row(
                f"distinct windows in an epoch of {args.per_epoch}, world size {size}",
                "100 %",
                f"{share:.1%}",
                share == 1 and drawn == min(args.per_epoch, len(source)) and whole == whole_distinct == len(source),
                f"{peer_share:.1%} with {args.workers} workers" if theirs else "",
                share / peer_share if theirs else None,
            )
        )
    return end(report, args)


def count(source: Source, size: int, per_epoch: int) -> tuple[int, int]:
    """Windows that all ranks of a world of `size` take in epoch 0, and how many of them differ. per_epoch 0: a whole pass."""
    settings, taken = FitSettings(batch_size=BATCH, n_train_iter=per_epoch), []
    for rank in range(size):
        world = World(rank, size)
        plan = plan_epoch(source, settings, world)
        for first in range(0, plan.per_epoch, plan.effective_batch):
            micros = step_micros(source, settings, world, 0, first, min(first + plan.effective_batch, plan.per_epoch))
            taken += [micro.index for micro in micros if micro.real]
    index = np.concatenate(taken)
    return len(index), len(np.unique(index))


if __name__ == "__main__":
    run_command(lambda: main() and None)
