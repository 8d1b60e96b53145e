"""Preprocessing of the Kaggle competition's layout: rows per second and peak memory, and how both grow from a tenth of the rows.

Writes two generated files (ordered by date, tickers interleaved) into --folder, preprocesses each in a fresh process with the command that
users run, and removes everything again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from finetune.engine.command import run_command
from kronos.errors import InputError

from .common import ROOT, Report, Row, begin, end, parser_for
from .kaggle_bars import write_test, write_train

NAME = "kaggle_data"
REACH_PER_S, REACH_MB, REACH_TIME, REACH_MEMORY = 500_000, 3000, 11.0, 1.5
_EVERY_S = 0.1


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, generate, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--tickers", type=int, default=5000, help="tickers in both files (default: 5000)")
    parser.add_argument(
        "--rows", type=int, default=20_000_000, help="rows of the large file; the small one has a tenth (default: 20000000)"
    )
    parser.add_argument("--lookback", type=int, default=256, help="as for the command (default: 256)")
    parser.add_argument("--splits", choices=("adjusted", "raw"), default="adjusted", help="what the files do at splits (default: adjusted)")
    parser.add_argument("--rounds", type=int, default=1, help="times each file is preprocessed; the best counts (default: 1)")
    parser.add_argument(
        "--folder", type=Path, help="where files are written; 160 bytes per row are needed at most (default: a temporary folder)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the files and folders there")
    parser.set_defaults(threads=os.cpu_count())  # as users run it
    args, report = begin(NAME, parser, argv)
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="kaggle-", dir=args.folder))
    try:
        small, large = (_measure(folder, rows, args) for rows in (args.rows // 10, args.rows))
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    _judge(report, args, small, large)
    return end(report, args)


def _judge(report: Report, args: argparse.Namespace, small: dict[str, Any], large: dict[str, Any]) -> None:
    report.details |= {f"{args.rows // 10:,} rows": small, f"{args.rows:,} rows": large}
    millions = f"{args.rows / 1e6:.3g} million rows"
    per_s, time_ratio, memory_ratio = args.rows / large["s"], large["s"] / small["s"], large["peak MB"] / small["peak MB"]
    report.rows += [
        Row(f"preprocessing {millions}, rows/s", f">= {REACH_PER_S:,}", f"{per_s:,.0f}", per_s >= REACH_PER_S),
        Row(f"preprocessing {millions}, peak memory", f"< {REACH_MB:,} MB", f"{large['peak MB']:,.0f} MB", large["peak MB"] < REACH_MB),
        Row("ten times the rows, time", f"<= {REACH_TIME:.0f}x", f"{time_ratio:.2f}x", time_ratio <= REACH_TIME),
        Row("ten times the rows, memory", f"<= {REACH_MEMORY}x", f"{memory_ratio:.2f}x", memory_ratio <= REACH_MEMORY),
    ]


def _measure(folder: Path, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Generate a file, preprocess it in a fresh process, remove it."""
    train, test, out = folder / f"train-{rows}.csv", folder / "test.csv", folder / f"data-{rows}"
    begin_s = time.perf_counter()
    write_train(train, args.tickers, rows, adjusted=args.splits == "adjusted")
    write_test(test, args.tickers, rows)
    made_s = time.perf_counter() - begin_s
    command = ["finetune_csv/kaggle_data_preprocess.py", "--train", train, "--test", test, "--out", out, "--lookback", args.lookback]
    runs = [_run([sys.executable, *map(str, command), "--force"]) for _ in range(args.rounds)]
    report = json.loads((out / "report.json").read_text())
    facts = {
        "generated in s": round(made_s, 1),
        "CSV MB": round(train.stat().st_size / 1e6),
        "s": round(min(took for took, _ in runs), 2),
        "all rounds s": [round(took, 2) for took, _ in runs],
        "peak MB": round(max(*(peak for _, peak in runs), report["speed"]["peak MB"])),
        "rows kept": report["rows"]["kept"],
        "rows dropped": sum(report["rows"]["dropped"].values()),
        "splits": report["splits"]["verdict"],
        "panel MB": round(sum(file.stat().st_size for file in (out / "panel").iterdir()) / 1e6),
    }
    if not args.keep:
        train.unlink()
        shutil.rmtree(out)
    return facts


def _run(command: list[str]) -> tuple[float, float]:
    """(seconds, most resident memory in MB of the process and its children together, sampled)."""
    begin_s, most = time.perf_counter(), 0
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(child.pid)
    while child.poll() is None:
        most = max(most, sum(_resident(process) for process in _family(watched)))
        time.sleep(_EVERY_S)
    if child.returncode:
        raise InputError(f"preprocessing ended with exit code {child.returncode}: {child.stderr.read()}")
    return time.perf_counter() - begin_s, most / 1e6


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:  # it has just ended
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    run_command(lambda: main() and None)
