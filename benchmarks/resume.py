"""Training killed with `kill -9` at random moments and resumed each time, against training never stopped: are the weights the same bits?

A real process with run folders trains a predictor, then a tokenizer, and saves after every step, so that many kills fall
into a save. The moments are drawn (seeded) over the whole run; after each kill every checkpoint found is read in full.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file

from finetune.engine import checkpoint
from finetune.engine.command import run_command
from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.settings import FitSettings
from finetune.engine.splits import make_splits
from finetune.engine.task import Task
from finetune.engine.tracking import Run
from finetune.engine.trainer import fit
from kronos import Kronos, KronosTokenizer
from kronos.errors import InputError

from .common import ROOT, AtFirstBatch, Report, Row, begin, end, make_panel, parser_for, spread

NAME = "resume"
READY = "first batch"
STAGES = ("predictor", "tokenizer")
SMALL = dict(d_model=32, n_heads=2, ff_dim=64, s1_bits=5, s2_bits=5, ffn_dropout_p=0.1, attn_dropout_p=0.1, resid_dropout_p=0.1)


@dataclass
class _Tally:
    """What was found after the kills."""

    kills: int = 0
    unreadable: list[str] = field(default_factory=list)
    while_saving: int = 0  # kills that left something half-written behind
    before_any: int = 0  # kills before the first checkpoint
    in_stage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    lost_s: list[float] = field(default_factory=list)  # training since the last complete checkpoint, at each kill
    start_s: list[float] = field(default_factory=list)  # from starting the process until its first batch
    began: float = 0.0  # time of the last attempt's first batch


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, train, kill, resume, compare."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--rounds", type=int, default=10, help="kills (default: 10)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each stage (default: 4)")
    parser.add_argument("--bars", type=int, default=200, help="bars of each of the 4 symbols (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        begin_s, tally, runs, same = time.perf_counter(), _Tally(), 0, True
        assert _attempt(folder / "undisturbed", args, None, tally)
        undisturbed_s = time.perf_counter() - begin_s - tally.start_s[0]
        chance = random.Random(args.seed)
        moments = sorted(chance.uniform(0, undisturbed_s) for _ in range(args.rounds))
        delays = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]
        while tally.kills < args.rounds:  # one run usually takes all the kills, since each costs it time
            runs += 1
            _disturbed(folder / f"run-{runs}", args, delays, tally)
            same &= all(_same(folder / "undisturbed" / stage, folder / f"run-{runs}" / stage) for stage in STAGES)
    report.details |= {
        "undisturbed": f"{undisturbed_s:.1f} s for both stages",
        "runs that took the kills": runs,
        "killed in stage": tally.in_stage,
        "killed while something was half-written": tally.while_saving,
        "killed before the first checkpoint": tally.before_any,
        "unreadable": tally.unreadable or "none",
        "work lost per kill, s": spread(tally.lost_s),
        "starting again until the first batch (imports, reading the checkpoint), s": spread(tally.start_s),
    }
    report.rows.append(
        Row(
            f"resumed after kill -9 at {tally.kills} random moments against never stopped: final weights",
            "bit-identical",
            "bit-identical" if same else "they differ",
            same,
        )
    )
    report.rows.append(Row("checkpoints unreadable after a kill", "0", str(len(tally.unreadable)), not tally.unreadable))
    return end(report, args)


def _disturbed(folder: Path, args: argparse.Namespace, delays: list[float], tally: _Tally) -> None:
    """One run, killed after each of the `delays` that are left (they are used up), resumed each time until it is done."""
    while not _attempt(folder, args, delays[0] if delays else None, tally):
        delays.pop(0)
        tally.kills += 1
        _examine(folder, tally)


def _attempt(folder: Path, args: argparse.Namespace, kill_after_s: float | None, tally: _Tally) -> bool:
    """Start (or resume) the training process; kill it so many seconds after its first batch. Returns whether it ended by itself."""
    begin_s = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{NAME}", "--child", str(folder), str(args.epochs), str(args.bars), str(args.threads)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    while (line := child.stdout.readline()) and line.strip() != READY:  # until training begins, or the process ends
        pass
    tally.start_s.append(time.perf_counter() - begin_s)
    tally.began = time.time()
    try:
        _, error = child.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.communicate()
        return False
    if child.returncode:
        raise InputError(f"the training process failed, which a resumed run never should:\n{error}")
    return True


def _examine(folder: Path, tally: _Tally) -> None:
    """Read what a kill left: every complete checkpoint must load."""
    killed_at, newest_s, stage_at = time.time(), 0.0, STAGES[0]
    for stage in STAGES:
        place = folder / stage / "checkpoints"
        folders = list(place.glob("*last-*")) if place.is_dir() else []
        found = [path for path in folders if (path / checkpoint.MARKER).is_file()]
        stage_at = stage if (folder / stage).is_dir() else stage_at
        tally.while_saving += len(folders) > 1  # a temporary folder, one without its marker, or the former one half removed
        for path in found:
            newest_s = max(newest_s, (path / checkpoint.MARKER).stat().st_mtime)
            try:
                checkpoint.load_last(path)
            except InputError as error:
                tally.unreadable.append(str(error))
    tally.in_stage[stage_at] += 1
    tally.before_any += not newest_s
    tally.lost_s.append(killed_at - max(newest_s, tally.began))


def _same(one: Path, other: Path) -> bool:
    """Whether the weights of the last checkpoint and of the best model are the same bits."""

    def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
        last = checkpoint.newest_last(folder / "checkpoints")
        assert last is not None
        return [checkpoint.load_last(last)[0], load_file(folder / "best_model" / checkpoint.WEIGHTS)]

    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(weights(one), weights(other), strict=True))


# ---------------------------------------------------------------------- in the child


def _child(folder: str, epochs: str, bars: str, threads: str) -> None:
    """Both stages, from wherever their checkpoints say."""
    torch.set_num_threads(int(threads))
    import_module("tensorboard.summary.writer.record_writer")  # a second that every attempt would otherwise spend in its training
    splits = make_splits(make_panel(4, int(bars)), 24, 8, (0.8, 0.2, 0.0), say=lambda _: None)
    splits = splits._replace(train=AtFirstBatch(splits.train, lambda: print(READY, flush=True)))
    for stage in STAGES:
        settings = FitSettings(
            epochs=int(epochs), batch_size=8, learning_rate=1e-3, checkpoint_every_steps=1, log_interval=5, num_workers=1
        )
        with Run.create(Path(folder) / stage, config={}, is_main=True, resume=True, name=stage) as run:
            fit(_task(stage), splits, settings, run, resume=True)


def _task(stage: str) -> Task:
    torch.manual_seed(0)
    tokenizer = KronosTokenizer(d_in=6, n_enc_layers=2, n_dec_layers=2, beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05, group_size=5, **SMALL)
    if stage == "tokenizer":
        return TokenizerTask(tokenizer, 24)
    return PredictorTask(Kronos(n_layers=2, token_dropout_p=0.1, learn_te=True, **SMALL), tokenizer, 24)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        run_command(lambda: main() and None)
