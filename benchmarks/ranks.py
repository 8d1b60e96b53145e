"""Two gloo ranks against one process with accumulation 2: the same micro-batches, dropout on, 20 steps; largest difference of any weight.

The predictor in fp32, the tokenizer in float64 (its codebook entropy is a batch statistic; in fp32 a bit may flip).
The peer: how far its two ranks are apart after 5 steps of what its CSV trainer does (it calls `model.module` under DDP).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from finetune.engine.command import run_command
from finetune.engine.distributed import world
from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.settings import FitSettings
from finetune.engine.splits import make_splits
from finetune.engine.task import Task
from finetune.engine.trainer import fit
from kronos import Kronos, KronosTokenizer
from kronos.presets import predictor_arguments, tokenizer_arguments

from .children import run_ranks
from .common import HORIZON, LOOKBACK, Report, Row, begin, end, make_panel, parser_for
from .peer import peer_environment

NAME = "ranks"
RATE = 1e-3
REACH = {"predictor": 1e-6, "tokenizer": 1e-9}
SMALL = dict(d_model=32, n_heads=2, ff_dim=64, s1_bits=5, s2_bits=5)


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, train, compare."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--size", default="mini", help="preset of the predictor, or small32 for a tiny one (default: mini)")
    parser.add_argument("--batch", type=int, default=8, help="windows per micro-batch (default: 8)")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps (default: 20)")
    parser.add_argument("--peer-steps", type=int, default=5, help="steps of the peer (default: 5)")
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drift = _peer_drift(args, folder) if args.peer else None
        for kind in REACH:
            _compare(args, report, kind, folder, drift if kind == "predictor" else None)
    return end(report, args)


def _compare(args: argparse.Namespace, report: Report, kind: str, folder: Path, drift: float | None) -> None:
    for size in (1, 2):
        run_ranks(NAME, ["--child", kind, args.size, str(args.batch), str(args.steps), str(args.threads), str(folder)], size)
    one, first, second = (load_file(folder / f"{kind}-{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    between, against = apart(first, second), apart(first, one)
    report.details[f"{kind}, the two ranks from each other"] = f"{between:.1e}"
    report.details[f"{kind}, largest change in training"] = f"{apart(one, load_file(folder / f'{kind}-start.safetensors')):.2g}"
    precision = "fp32" if kind == "predictor" else "float64"
    report.rows.append(
        Row(
            f"2 gloo ranks against 1 process with accumulation 2, {args.steps} steps, {kind} {precision}",
            f"<= {REACH[kind]:g}",
            f"{against:.1e}",
            max(against, between) <= REACH[kind],
            f"ranks {drift:.2g} apart in {args.peer_steps} steps" if drift is not None else "",
        )
    )


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest |difference| of any weight."""
    return max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point())


def _peer_drift(args: argparse.Namespace, folder: Path) -> float:
    run_ranks(
        "peer_ranks", [str(folder), str(args.peer_steps), str(args.batch), str(RATE), str(args.threads)], 2, peer_environment(args.peer)
    )
    return apart(*(load_file(folder / f"peer-{rank}.safetensors") for rank in (0, 1)))


# ---------------------------------------------------------------------- in the child


def _child(kind: str, size: str, batch: str, steps: str, threads: str, folder: str) -> None:
    """One rank: train and save the weights as <kind>-<world>-<rank>."""
    torch.set_num_threads(int(threads))
    task = make_task(kind, size)
    with world(timeout_s=300) as here:
        if here.is_main:
            save_file({k: v.clone() for k, v in task.trained().state_dict().items()}, f"{folder}/{kind}-start.safetensors")
        splits = make_splits(make_panel(4, 200 + 8 * int(batch) * int(steps) // 4), LOOKBACK, HORIZON, (0.8, 0.2, 0.0))
        settings = FitSettings(
            epochs=1, batch_size=int(batch), accumulation_steps=2 // here.size, learning_rate=RATE, n_val_iter=int(batch), num_workers=0
        )
        fit(task, splits, settings, world=here, max_steps=int(steps))
        save_file({k: v.clone() for k, v in task.trained().state_dict().items()}, f"{folder}/{kind}-{here.size}-{here.rank}.safetensors")


def make_task(kind: str, size: str) -> Task:
    """The "tokenizer" or "predictor" of a preset size, or small32, with the same random weights at each call."""
    torch.manual_seed(0)
    small = SMALL if size == "small32" else {}
    tokenizer = {**tokenizer_arguments("base"), **small, **({"group_size": 5} if small else {})}
    if kind == "tokenizer":  # the preset has no dropout: here it is on
        return TokenizerTask(
            KronosTokenizer(**{**tokenizer, "ffn_dropout_p": 0.1, "attn_dropout_p": 0.1, "resid_dropout_p": 0.1}), LOOKBACK
        ).double()
    predictor = {**predictor_arguments("mini" if small else size), **small}
    return PredictorTask(Kronos(**predictor), KronosTokenizer(**tokenizer), LOOKBACK)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        run_command(lambda: main() and None)
