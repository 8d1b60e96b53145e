"""Private memory (USS) that opening a 20-million-row panel and starting to train on it adds in fresh processes, and what two of them share.

The panel is made once in --folder (0.8 GB on disk) and kept there if the folder was named. The baseline of a child is taken after its
imports, so torch itself is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from finetune.data.panel import Panel, SeriesInfo
from finetune.engine.command import run_command
from kronos.errors import InputError

from .common import ROOT, AtFirstBatch, Report, Row, begin, end, make_bars, parser_for

NAME = "panel_memory"
REACH_MB = 100.0
_BLOCK = 100  # series made together


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--series", type=int, default=5000, help="series in the panel (default: 5000)")
    parser.add_argument("--bars", type=int, default=4000, help="bars per series (default: 4000)")
    parser.add_argument("--folder", type=Path, help="make or reuse the panel there (default: a temporary folder, removed at the end)")
    parser.add_argument("--steps", type=int, default=20, help="batches trained on after the first measurement (default: 20)")
    parser.add_argument("--batch", type=int, default=512, help="windows per batch (default: 512)")
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)) / f"panel-{args.series}x{args.bars}"
        if not folder.exists():
            report.details["built"] = _in_child("build", folder, args, 1)[0]
        _measure(args, report, folder)
    return end(report, args)


def _measure(args: argparse.Namespace, report: Report, folder: Path) -> None:
    alone = _in_child("train", folder, args, 1)[0]
    both = _in_child("train", folder, args, 2)
    report.details |= {"one process": alone, "two at once, first": both[0], "two at once, second": both[1]}
    rows = args.series * args.bars
    worst = max(child["before the first batch"]["USS MB"] for child in (alone, *both))
    report.rows.append(
        Row(
            f"memory to open a panel of {rows / 1e6:.3g} million rows, USS added before the first batch",
            f"< {REACH_MB:.0f} MB",
            f"{worst:.1f} MB",
            worst < REACH_MB,
        )
    )
    after = both[0][f"after {args.steps} steps"]
    shared = after["panel RSS MB"] - after["panel PSS MB"]
    told = f"of {after['panel RSS MB']:.0f} MB of the panel in memory each of two ranks is charged {after['panel PSS MB']:.0f} MB"
    report.rows.append(Row("pages of the panel shared by ranks", "PSS about half of RSS", told, shared > 0.4 * after["panel RSS MB"]))


def _in_child(what: str, folder: Path, args: argparse.Namespace, count: int) -> list[dict]:
    """Run this module as fresh processes, at once; each measures itself when all are at the same point. Returns their answers."""
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{NAME}",
        "--child",
        what,
        str(folder),
        str(args.series),
        str(args.bars),
        str(args.steps),
        str(args.batch),
    ]
    children = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    answers: list[dict] = [{} for _ in children]
    while not all(child.poll() is not None for child in children):
        for i, child in enumerate(children):
            line = child.stdout.readline()
            if not line:
                child.wait()
                continue
            answers[i] |= json.loads(line)
        for child in children:  # go on, together
            if child.poll() is None:
                child.stdin.write("\n")
                child.stdin.flush()
    if any(child.returncode for child in children):
        raise InputError("a child of the memory benchmark broke down; its own error stands above")
    return answers


# ---------------------------------------------------------------------- in the child


def _child(what: str, folder: str, series: str, bars: str, steps: str, batch: str) -> None:
    if what == "build":
        _build(Path(folder), int(series), int(bars))
    else:
        _train(Path(folder), int(steps), int(batch))


def _tell(**facts: object) -> None:
    """One line to the parent, then wait for it, so that two children are measured side by side."""
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()


def _build(folder: Path, series: int, bars: int) -> None:
    """Fill memory-mapped arrays block by block, so that the bars are never in private memory all at once, and save them as a panel."""
    begin_s, peak = time.perf_counter(), _Peak()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as raw, peak:
        shapes = {"features": ("<f4", (series * bars, 6)), "stamps": ("u1", (series * bars, 5)), "times": ("<i8", (series * bars,))}
        arrays = {name: np.lib.format.open_memmap(Path(raw) / f"{name}.npy", "w+", dtype, shape) for name, (dtype, shape) in shapes.items()}
        for first in range(0, series, _BLOCK):
            n = min(_BLOCK, series - first)
            block, rows = make_bars(n, bars, seed=first), slice(first * bars, (first + n) * bars)
            arrays["features"][rows] = block["features"].reshape(-1, 6)
            arrays["stamps"][rows], arrays["times"][rows] = np.tile(block["stamps"], (n, 1)), np.tile(block["times"], n)
        filled_s = time.perf_counter() - begin_s
        panel = Panel.build(**arrays, offsets=np.arange(series + 1) * bars, series=[SeriesInfo(f"S{i:05d}", "5min") for i in range(series)])
        checked_s = time.perf_counter() - begin_s
        panel.save(folder)
    total_s = time.perf_counter() - begin_s
    size_gb = sum(p.stat().st_size for p in folder.iterdir()) / 1e9
    _tell(
        **{
            "bars made s": round(filled_s, 1),
            "Panel.build s": round(checked_s - filled_s, 1),
            "save s": round(total_s - checked_s, 1),
            "largest anonymous memory MB": round(peak.added_mb),
            "on disk GB": round(size_gb, 2),
        }
    )


class _Peak:
    """Samples this process's anonymous memory in a thread; `added_mb` is the largest over that at the start. Linux only, else 0."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.start = self.most = _anonymous_bytes()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def added_mb(self) -> float:
        return (self.most - self.start) / 1e6

    def _watch(self) -> None:
        while not self.ended.wait(0.05):
            self.most = max(self.most, _anonymous_bytes())

    def __enter__(self) -> _Peak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def _anonymous_bytes() -> int:
    """Memory that is not a file's: what would need swap."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _train(folder: Path, steps: int, batch: int) -> None:
    """Open, split, fit; measure after the imports, at each stage up to the first batch, and after `steps` steps."""
    import torch

    from finetune.engine.kronos_tasks import PredictorTask
    from finetune.engine.settings import FitSettings
    from finetune.engine.splits import make_splits
    from finetune.engine.trainer import fit
    from kronos import Kronos, KronosTokenizer

    torch.set_num_threads(1)
    small = dict(d_model=32, n_heads=2, ff_dim=64, s1_bits=6, s2_bits=6)
    none = dict.fromkeys(("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p"), 0.0)
    tokenizer = KronosTokenizer(
        d_in=6, n_enc_layers=2, n_dec_layers=2, beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05, group_size=4, **small, **none
    )
    task = PredictorTask(Kronos(n_layers=1, token_dropout_p=0.0, learn_te=True, **small, **none), tokenizer, 90)
    here = _Memory(folder)
    panel = Panel.open(folder)
    opened = here.added()
    splits = make_splits(panel, 90, 10, (0.8, 0.2, 0.0), say=lambda _: None)
    split = here.added()
    before: dict = {}
    watch = AtFirstBatch(splits.train, lambda: before.update(here.added()))
    settings = FitSettings(epochs=1, batch_size=batch, n_train_iter=batch * steps, n_val_iter=batch, num_workers=0)
    fit(task, splits._replace(train=watch), settings)
    after = here.added()
    _tell(
        **{
            "windows": len(splits.train),
            "Panel.open": opened,
            "make_splits": split,
            "before the first batch": before,
            f"after {steps} steps": after,
        }
    )


class _Memory:
    """What this process has more than when the record was made: USS, seconds, and how much of the panel's files is mapped in."""

    def __init__(self, folder: Path):
        self.folder, self.process = str(folder.resolve()), psutil.Process()
        self.uss, self.begin_s = self.process.memory_full_info().uss, time.perf_counter()

    def added(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.begin_s
        maps = [m for m in self.process.memory_maps() if m.path.startswith(self.folder)]
        return {
            "USS MB": round((self.process.memory_full_info().uss - self.uss) / 1e6, 1),
            "s": round(seconds, 2),
            "panel RSS MB": round(sum(m.rss for m in maps) / 1e6, 1),
            "panel PSS MB": round(sum(m.pss for m in maps) / 1e6, 1),
        }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        run_command(lambda: main() and None)
