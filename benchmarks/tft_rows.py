"""From a table to windows, and from windows to batches: our half and pytorch-forecasting's, same rows. Called by `benchmarks.tft`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .common import ROOT, Report, Row, interleaved, spread
from .peer import Peer

REACH_RATE, REACH_BUILD_S, REACH_PEAK = 150_000, 0.5, 2.0
SERIES, TARGETS, KNOWN = 10, 11, 4
_BATCHES, _PEER_BATCHES = 100, 4  # per side and round


class _Ours(Peer):
    """Our half in a process of its own."""

    def __init__(self) -> None:
        self.module = "tft_side"
        command = [sys.executable, "-m", f"benchmarks.{self.module}"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure_rows(args: argparse.Namespace, report: Report, folder: Path, peer: Callable[[], Peer] | None, encoder: int) -> None:
    """Add the rows of loader, build and peak memory to `report`. peer: starts the other half."""
    path = folder / "table.npz"
    np.savez(path, **_table(args.rows, args.row_features))
    with ExitStack() as children:
        halves: dict[str, Any] = {"ours": children.enter_context(_Ours())}
        if peer:
            halves["peer's"] = children.enter_context(peer())
        load = {"ours": "load", "peer's": "load_table"}
        told = dict(path=str(path), threads=args.threads, encoder=encoder)
        sizes = {name: half(load[name], **told) for name, half in halves.items()}
        peaks: dict[str, list[float]] = {}
        seen = interleaved(_sides(args, halves, peaks), args.rounds)
    _report(args, report, seen, {name: max(found) for name, found in peaks.items()}, sizes)


def _table(count: int, features: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    widths = {"past": features - KNOWN, "known": KNOWN, "targets": TARGETS}
    series = np.arange(count) * SERIES // count
    return {k: rng.standard_normal((count, width), np.float32) for k, width in widths.items()} | {"series": series}


def _sides(args: argparse.Namespace, halves: dict[str, Any], peaks: dict[str, list[float]]) -> dict[str, Callable[[], float]]:
    """Everything timed, builds before the batches that need them."""

    def built(name: str, of: str, **how: Any) -> Callable[[], float]:
        def work() -> float:
            seconds, peak = halves[of]("build", clock=args.clock, **how)
            peaks.setdefault(name, []).append(peak)
            return seconds

        return work

    def gathered(of: str, n: int, **how: Any) -> Callable[[], float]:
        return lambda: halves[of]("batches", n=n, clock=args.clock, **how)

    sides = {"ours, build with lagged targets": built("ours, build with lagged targets", "ours", lagged=True)}
    sides["ours, build"] = built("ours, build", "ours")
    sides |= {f"ours, batch {size}": gathered("ours", _BATCHES, size=size) for size in (128, 512)}
    sides["ours, batch 128, shared rows"] = gathered("ours", _BATCHES, size=128, shared=True)
    if "peer's" in halves:
        sides["peer's, build"] = built("peer's, build", "peer's")
        sides |= {f"peer's, batch {size}": gathered("peer's", max(1, _PEER_BATCHES * 128 // size), size=size) for size in (128, 512)}
    return sides


def _report(args: argparse.Namespace, report: Report, seen: dict[str, list[float]], peaks: dict[str, float], sizes: dict[str, int]) -> None:
    """Medians; our slowest batch size against the peer's fastest."""
    middle = {name: statistics.median(values) for name, values in seen.items()}
    of = f"{args.rows:,} rows x {args.row_features} features"
    for name, values in seen.items():
        told = spread(values, 1e3, " ms") if "build" in name else spread(values, inverse=True) + " windows/s"
        report.details[f"{of}, {name}"] = told
    frame = {name: bytes_ / 1e6 for name, bytes_ in sizes.items()}
    report.details[f"{of}, frame, MB"] = {name: round(size) for name, size in frame.items()}
    times = {name: peak / sizes[name.split(",")[0]] for name, peak in peaks.items()}
    report.details[f"{of}, peak beside the frame, times the frame"] = {name: round(ratio, 2) for name, ratio in times.items()}
    rate = min(1 / value for name, value in middle.items() if name.startswith("ours, batch"))
    theirs = max((1 / value for name, value in middle.items() if name.startswith("peer's, batch")), default=None)
    beside = f"{theirs:,.0f}" if theirs else ""
    seen_rate = f"{rate:,.0f}"
    measure = f"loader, windows/s, {args.row_features} features"
    report.rows.append(Row(measure, f">= {REACH_RATE:,}", seen_rate, rate >= REACH_RATE, beside, theirs and rate / theirs))
    ours, other = middle["ours, build"], middle.get("peer's, build")
    beside = f"{other:.2f} s" if other else ""
    measure = f"build, {of}"
    report.rows.append(Row(measure, f"<= {REACH_BUILD_S} s", f"{ours:.2f} s", ours <= REACH_BUILD_S, beside, other and other / ours))
    ours, other = times["ours, build"], times.get("peer's, build")
    beside, told = (f"{other:.2f}x" if other else ""), f"{ours:.2f}x the frame"
    report.rows.append(
        Row(f"peak beside the frame, {of}", f"<= {REACH_PEAK:g}x", told, ours <= REACH_PEAK, beside, other and ours and other / ours)
    )
