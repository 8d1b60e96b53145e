"""Final validation loss of our Temporal Fusion Transformer and of pytorch-forecasting's after equal budgets. Called by `benchmarks.tft`.

Both sides get the same standardised numbers, the same windows in the same order, targets, losses, sizes, AdamW, clipping, seeds and
learning rate of every step. Both write down what they predict for the same validation windows, and one function here scores it.
Equal budget: the same number of windows, then the CPU seconds that the peer needed for them (its loader not counted, ours counted).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.engine.batches import step_micros
from finetune.engine.distributed import World
from finetune.engine.schedule import learning_rate
from finetune.engine.settings import FitSettings
from finetune.engine.trainer import fit
from kronos.errors import InputError
from tft.long_tables import open_dataset
from tft.losses import read_targets
from tft.task import TftTask
from tft.window_rows import series_of
from tft.windows import SplitRule, TftWindows, make_windows

from .common import Report, Row
from .peer import Peer

PLAIN = {"name": "WeightedBCE", "pos_weight": 1.0}  # the peer has no weight of positives
TARGETS = {"target_binarytrend": PLAIN, "target_drawdown_prob": PLAIN, "target_logreturn": "SmoothL1", "target_max_drawdown": "SmoothL1"}
LOSSES = read_targets(TARGETS)
_SCORED = 500  # windows predicted together
_TOLERANCE = 1e-3  # between sums over a window's inputs, which the two sides add up in different orders


def quality_arguments(parser: argparse.ArgumentParser) -> None:
    """What `--real` takes besides."""
    parser.add_argument(
        "--real", metavar="PATH", type=Path, help="compare final validation losses on this fused panel of real bars, and nothing else"
    )
    parser.add_argument("--seeds", type=int, default=3, help="real: runs of each side (default: 3)")
    parser.add_argument("--windows", type=int, default=12_800, help="real: training windows of a run (default: 12800)")
    parser.add_argument("--val-windows", type=int, default=3_000, help="real: validation windows, evenly spread (default: 3000)")
    parser.add_argument("--lr", type=float, default=2e-3, help="real: peak of the learning rate, onecycle (default: 2e-3)")


def measure_quality(args: argparse.Namespace, report: Report, folder: Path, peer: Callable[[], Peer] | None, shape: dict[str, int]) -> None:
    """Add the rows of equal windows and, with a peer, of equal CPU seconds. shape: heads and encoder of both sides."""
    if args.seeds < 1 or args.windows < args.batch:
        raise InputError(f"--seeds {args.seeds} --windows {args.windows}: give at least one seed and a batch of {args.batch} windows")
    data = _windows(args, shape["encoder"])
    chosen = np.linspace(0, len(data.val) - 1, min(args.val_windows, len(data.val))).astype(np.int64)
    seen: dict[str, list[tuple[float, float]]] = {}
    with peer() if peer else nullcontext() as other, ThreadPoolExecutor(1) as beside:
        if other:
            np.savez(folder / "real.npz", **_table(data))
            other("open_real", path=str(folder / "real.npz"), threads=args.threads, encoder=shape["encoder"])
            _theirs(args, data, chosen[:1], 0, args.batch, other, folder, shape)
        _ours(args, data, chosen[:1], 0, args.batch, shape)  # what happens once, such as imports, is in neither side's seconds
        for seed in range(1, args.seeds + 1):
            asked = beside.submit(_theirs, args, data, chosen, seed, args.windows, other, folder, shape) if other else None
            ours = _ours(args, data, chosen, seed, args.windows, shape)
            seen.setdefault("ours, equal windows", []).append(ours)
            if asked:
                theirs = asked.result()
                windows = args.batch * round(args.windows * theirs[1] / ours[1] / args.batch)
                seen.setdefault("peer's", []).append(theirs)
                seen.setdefault("ours, equal CPU", []).append(_ours(args, data, chosen, seed, windows, shape))
            print(
                f"seed {seed}: " + ", ".join(f"{name} {runs[-1][0]:.4f} ({runs[-1][1]:.1f} CPU s)" for name, runs in seen.items()),
                flush=True,
            )
    _report(args, report, data, chosen, seen)


def _windows(args: argparse.Namespace, encoder: int) -> TftWindows:
    """The panel's windows with `features` columns, all that are known ahead and past ones evenly spread, standardised."""
    panel, manifest = open_dataset(args.real)
    known, past = ([column.name for column in panel.columns if column.kind == kind] for kind in ("known", "past"))
    count = max(1, min(args.features - len(known), len(past)))
    reals = [*(past[k] for k in np.linspace(0, len(past) - 1, count).astype(int)), *known]
    real = [name for name, loss in LOSSES.items() if not loss.classification]
    how = dict(targets=list(TARGETS), real_targets=real, encoder=encoder, reals=reals, categoricals=[], scale_inputs=True)
    data = make_windows(panel, manifest, rule=SplitRule(test_ratio=0.0), say=lambda _: None, **how)
    missing = sum(int(np.isnan(source.targets()).any(axis=1).sum()) for source in (data.train, data.val))
    if missing:
        raise InputError(f"--real: {missing:,} windows of {args.real} lack a label, which the peer cannot leave out; give other bars")
    return data


def _table(data: TftWindows) -> dict[str, np.ndarray]:
    """Rows as the peer reads them; label r + 1 there is ours of r, because its decoder row is the one after the last it sees."""
    table, past = data.table, len(data.columns.past)
    reals = table.reals.numpy()[:, table.first : table.first + past + len(data.columns.known)]
    every = np.arange(len(reals))
    labels = np.zeros((len(reals), len(TARGETS)), np.float32)
    labels[1:] = np.nan_to_num(table.labels.numpy()[:-1])
    breaks = np.union1d(data.panel.offsets[:-1], data.panel.breaks)
    stretch = np.searchsorted(breaks, every, side="right")
    static = table.static.numpy()[series_of(data.panel, every)]
    return {"past": reals[:, :past], "known": reals[:, past:], "labels": labels, "stretch": stretch, "static": static}


def _settings(args: argparse.Namespace, seed: int, windows: int) -> FitSettings:
    rates = dict(learning_rate=args.lr, schedule="onecycle", warmup_ratio=0.1, div_factor=10.0, final_div_factor=1000.0)
    how = dict(betas=(0.9, 0.99), weight_decay=0.01, clip_norm=1.0, num_workers=0, monitor="val_loss")
    return FitSettings(batch_size=args.batch, seed=seed, n_train_iter=windows, n_val_iter=args.batch, **rates, **how)


def _ours(
    args: argparse.Namespace, data: TftWindows, chosen: np.ndarray, seed: int, windows: int, shape: dict[str, int]
) -> tuple[float, float, int, int]:
    """(validation loss, CPU seconds of training, windows, parameters) of one run of the loop."""
    torch.manual_seed(seed)
    sizes = {**data.sizes, "hidden": _hidden(args), "heads": shape["heads"], "dropout": args.dropout, "hidden_continuous": args.continuous}
    task = TftTask(sizes, TARGETS)
    begin = time.process_time()
    fit(task, data.splits, _settings(args, seed, windows))
    seconds = time.process_time() - begin
    task.eval()
    with torch.no_grad():
        parts = [task.model(data.val.gather(index))["logits"] for index in np.array_split(chosen, -(-len(chosen) // _SCORED))]
    outputs = torch.cat([torch.cat([part[name] for name in TARGETS], 1) for part in parts])
    return score(outputs, data.val.targets()[chosen]), seconds, windows, sum(p.numel() for p in task.parameters())


def _theirs(
    args: argparse.Namespace, data: TftWindows, chosen: np.ndarray, seed: int, windows: int, other: Any, folder: Path, shape: dict[str, int]
) -> tuple[float, float, int, int]:
    """The same of the peer, whose loader must have given it the same windows. Raises InputError if it did not."""
    settings = _settings(args, seed, windows)
    firsts = range(0, windows, args.batch)
    order = [micro.index for k in firsts for micro in step_micros(data.train, settings, World(), 0, k, min(k + args.batch, windows))]
    answers = folder / f"answers-{seed}.npz"
    seconds, parameters = other(
        "fit_real",
        seed=seed,
        train=data.train.rows(np.concatenate(order)).tolist(),
        val=data.val.rows(chosen).tolist(),
        rates=[learning_rate(step, len(order), settings) for step in range(len(order))],
        classes=[loss.classification for loss in LOSSES.values()],
        sizes={**shape, "hidden": _hidden(args), "continuous": args.continuous or _hidden(args), "dropout": args.dropout},
        optimiser={"betas": settings.betas, "weight_decay": settings.weight_decay},
        clip=settings.clip_norm,
        batch=args.batch,
        answers=str(answers),
    )
    labels = data.val.targets()[chosen]
    with np.load(answers) as saved:
        _same_windows(data, chosen, labels, saved["labels"], saved["sums"])
        return score(torch.from_numpy(saved["outputs"]), labels), seconds, windows, parameters


def _same_windows(data: TftWindows, chosen: np.ndarray, labels: np.ndarray, theirs: np.ndarray, sums: np.ndarray) -> None:
    batch = data.val.gather(chosen)
    own = batch["past"].double().sum((1, 2)) + batch["known"].double().sum((1, 2))
    if not np.array_equal(labels, theirs) or not np.allclose(own.numpy(), sums, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise InputError("--peer: its loader gave it other validation windows than ours, so the losses cannot be compared")


def _hidden(args: argparse.Namespace) -> int:
    return (args.hidden or [16])[0]


def score(outputs: torch.Tensor, labels: np.ndarray) -> float:
    """Sum over targets of the mean loss, float64. outputs [n, K] logits of classes and values, labels [n, K] in the order of TARGETS."""
    wanted = torch.from_numpy(labels).double()
    return sum(float(loss(outputs[:, [k]].double(), wanted[:, k]).mean()) for k, loss in enumerate(LOSSES.values()))


def _constant(data: TftWindows, chosen: np.ndarray) -> float:
    """The loss of always saying the training windows' mean: what a model must beat to have learned anything."""
    mean = torch.from_numpy(data.train.targets()).double().mean(0)
    outputs = [torch.logit(m) if loss.classification else m for m, loss in zip(mean, LOSSES.values(), strict=True)]
    return score(torch.stack(outputs).expand(len(chosen), -1), data.val.targets()[chosen])


def _report(args: argparse.Namespace, report: Report, data: TftWindows, chosen: np.ndarray, seen: dict[str, list[Any]]) -> None:
    of = f"{len(data.columns.past) + len(data.columns.known)} features, hidden {_hidden(args)}, {len(TARGETS)} targets"
    report.details["windows"] = f"{len(data.train):,} for training, {len(chosen):,} of {len(data.val):,} validation windows scored"
    report.details["validation loss of the training mean"] = f"{_constant(data, chosen):.4f}"
    for name, runs in seen.items():
        losses, seconds, windows, parameters = zip(*runs, strict=True)
        told = {"loss by seed": ", ".join(f"{value:.4f}" for value in losses), "CPU s": ", ".join(f"{value:.1f}" for value in seconds)}
        report.details[name] = told | {"windows": ", ".join(f"{n:,}" for n in windows), "parameters": f"{parameters[0]:,}"}
    theirs = [run[0] for run in seen.get("peer's", [])]
    for name, budget in (("ours, equal windows", "windows"), ("ours, equal CPU", "CPU seconds")):
        if name in seen:
            measure = f"final validation loss, equal {budget}, {args.seeds} seeds, real bars, {of}"
            report.rows.append(compared(measure, [run[0] for run in seen[name]], theirs))


def compared(measure: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Passed if our mean is above theirs by no more than the larger standard deviation over seeds; without a peer always."""
    told = [f"{statistics.mean(side):.4f} ± {_deviation(side):.4f}" if side else "" for side in (ours, theirs)]
    if not theirs:
        return Row(measure, "not worse", told[0], True)
    worse = statistics.mean(ours) - statistics.mean(theirs)
    passed = worse <= max(_deviation(ours), _deviation(theirs))
    return Row(measure, "not worse within seed spread", told[0], passed, told[1], statistics.mean(theirs) / statistics.mean(ours))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
