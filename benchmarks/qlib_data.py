"""A Qlib store of 300 symbols x 2,500 days made into panels by a fresh process: seconds, peak memory, and the store's values found again.

The bars are made and the store is written beforehand (their time is told); the child imports, opens the store through pyqlib, reads, cuts
and saves, as python finetune/qlib_data_preprocess.py does. The peak is the largest resident memory of that whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from finetune.data.frames import bars_frame
from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.data.qlib_writing import write_store
from finetune.engine.command import run_command
from finetune.engine.progress import peak_gib
from kronos.errors import InputError

from .common import HORIZON, LOOKBACK, ROOT, Report, Row, begin, end, make_bars, parser_for

NAME = "qlib_data"
REACH_S, REACH_GB, REACH_ERROR = 30.0, 2.0, 1e-6


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--symbols", type=int, default=300, help="symbols of the store (default: 300)")
    parser.add_argument("--bars", type=int, default=2500, help="days of the store (default: 2500)")
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        _measure(args, report, Path(folder))
    return end(report, args)


def _measure(args: argparse.Namespace, report: Report, folder: Path) -> None:
    frames = _frames(args.symbols, args.bars)
    begin_s = time.perf_counter()
    write_store(folder / "store", frames)
    report.details["store written s"] = round(time.perf_counter() - begin_s, 1)
    section = _section(folder, next(iter(frames.values())).index)
    begin_s = time.perf_counter()
    told = _in_child(section)
    whole_s = time.perf_counter() - begin_s
    report.details |= told
    largest = max(_error(Panel.open(folder / "panels" / name), frames) for name in ("train", "val", "test"))
    size = f"{args.symbols:,} symbols x {args.bars:,} days"
    peak = told["peak GB"]
    report.rows += [
        Row(f"{size} preprocessed, whole process", f"<= {REACH_S:.0f} s", f"{whole_s:.1f} s", whole_s <= REACH_S),
        Row(f"{size} preprocessed, peak memory", f"< {REACH_GB:.0f} GB", f"{peak:.2f} GB", peak < REACH_GB),
        Row("largest relative difference from the bars written", f"<= {REACH_ERROR:g}", f"{largest:.1e}", largest <= REACH_ERROR),
    ]


def _frames(symbols: int, bars: int) -> dict[str, pd.DataFrame]:
    """Bars in float64, of values that float32 rounds."""
    days = pd.bdate_range("2012-01-02", periods=bars)
    features = make_bars(symbols, bars)["features"]
    return {f"SH{600000 + i}": pd.DataFrame(features[i] / np.float64(3), days, KRONOS_NAMES) for i in range(symbols)}


def _section(folder: Path, days: pd.DatetimeIndex) -> dict:
    """Ranges in the proportions of the documented ones: 80, 12 and 8 in 100, with overlaps shorter than the lookback."""
    bounds = [str(days[int(share * (len(days) - 1))].date()) for share in (0, 0.80, 0.92, 1)]
    overlap = min(LOOKBACK // 2, len(days) // 20)
    starts = [bounds[0], *(str(days[days.get_loc(bound) - overlap].date()) for bound in bounds[1:3])]
    edges = zip(("train", "val", "test"), starts, bounds[1:], strict=True)
    ranges = {f"{name}_time_range": [first, last] for name, first, last in edges}
    return dict(
        qlib_data_path=str(folder / "store"),
        dataset_path=str(folder / "panels"),
        freq="day",
        instrument="all",
        dataset_begin_time=bounds[0],
        dataset_end_time=bounds[-1],
        lookback_window=LOOKBACK,
        predict_window=HORIZON,
        raw=False,
        timezone="Asia/Shanghai",
        stamp="open",
        **ranges,
    )


def _in_child(section: dict) -> dict[str, float]:
    command = [sys.executable, "-m", f"benchmarks.{NAME}", "--child", json.dumps(section)]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise InputError(f"the preprocessing broke down; its own error stands above\n{child.stdout}")
    return json.loads(child.stdout.splitlines()[-1])


def _child(settings: str) -> None:
    from finetune.data.qlib_panels import build_panels, save_panels

    section = SimpleNamespace(**json.loads(settings))
    imported, begin_s = _peak_gb(), time.perf_counter()
    made = build_panels(section)
    built_s = time.perf_counter() - begin_s
    save_panels(section.dataset_path, made)
    saved_s = time.perf_counter() - begin_s - built_s
    facts = {"build_panels s": built_s, "save_panels s": saved_s, "peak GB after imports": imported, "peak GB": _peak_gb()}
    print(json.dumps({name: round(value, 3) for name, value in facts.items()}))


def _peak_gb() -> float:
    return peak_gib() * 2**30 / 1e9


def _error(panel: Panel, frames: dict[str, pd.DataFrame]) -> float:
    """Largest relative difference of the panel's bars from those that were written, of the same days."""
    worst = 0.0
    for info, low, high in zip(panel.series, panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True):
        found = bars_frame(panel, low, high)
        written = frames[info.symbol].loc[found.index]
        worst = max(worst, float((np.abs(found - written) / np.abs(written)).to_numpy().max()))
    return worst


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        run_command(lambda: main() and None)
