"""How time and memory grow with the work: ten times the symbols, ten times the bars, four times the context or horizon.

Every size is prepared in a process of its own; all sizes of a piece of work are timed in turns, and the first call of each measures its
peak memory. A power law is fitted through the logarithms of all rounds, with Student's 95 % interval of its exponent: "time grows as
n^1.02" says that ten times the work takes 10.5 times as long. A law fails if its exponent is above what is allowed, however wide its
interval. Memory is fitted over the sizes whose peak is large enough to be told from what the allocator happens to hold.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from finetune.engine.command import run_command

from .common import Report, Row, begin, clock_argument, end, interleaved, parser_for
from .laws import LAWS, Law, Piece

NAME = "cost_laws"
LITTLE = 8e6  # bytes: below, memory is not fitted, since it is what the allocator happens to hold


class Fit(NamedTuple):
    """n^exponent, give or take `half` (half of the 95 % interval; infinite with two points or fewer)."""

    exponent: float
    half: float

    def __str__(self) -> str:
        return f"n^{self.exponent:.2f} ± {self.half:.2f}"


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure every law, fit, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS), metavar="LAW", help=f"these alone ({', '.join(LAWS)})")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the interleaved timing (default: 5)")
    parser.add_argument("--shrink", type=int, default=1, help="divide every size by this, for a quick look (default: 1)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    for name in args.laws:
        _measure(args, report, name)
    return end(report, args)


def _measure(args: argparse.Namespace, report: Report, name: str) -> None:
    law = LAWS[name]
    sizes = [n // args.shrink for n in law.sizes]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pieces = {str(n): stack.enter_context(Piece(name, n, Path(folder) / str(n), args.threads, args.clock)) for n in sizes}
        seen = interleaved(pieces, args.rounds)
        peaks = [pieces[str(n)].peak for n in sizes]
    report.details[f"{name}: seconds (peak MB)"] = ", ".join(
        f"{n}: {statistics.median(seen[str(n)]):.3g} ({peak / 1e6:.0f})" for n, peak in zip(sizes, peaks, strict=True)
    )
    time = power_law([n for n in sizes for _ in range(args.rounds)], [s for n in sizes for s in seen[str(n)]])
    report.rows.append(_row(f"time of {law.what}, {_range(law, sizes)}", sizes, law.time, time))
    if law.memory is not None:
        measure = f"peak memory of {law.what}, {_range(law, sizes)}"
        report.rows.append(_memory_row(measure, sizes, law.memory, peaks))


def _range(law: Law, sizes: list[int]) -> str:
    return f"n = {sizes[0]:,} to {sizes[-1]:,} {law.grows}"


def _memory_row(measure: str, sizes: list[int], reach: float, peaks: Sequence[float]) -> Row:
    """By the sizes that take LITTLE or more. peaks: bytes, one for each size."""
    fitted = [(n, peak) for n, peak in zip(sizes, peaks, strict=True) if peak >= LITTLE]
    told = f"at most {max(peaks) / 1e6:.0f} MB"
    if not fitted:
        return Row(measure, f"n^{reach:g} or less", f"{told}: too little to fit", True)
    if len(fitted) < 3:  # two points make a line through any noise: the law is held against the next smaller size, below LITTLE
        largest, peak = fitted[-1]
        last = max((n for n in sizes[: sizes.index(largest)] if n not in dict(fitted)), default=0)
        most = LITTLE * (largest / last) ** reach if last else math.inf
        told += f", {len(fitted)} of {len(sizes)} sizes at {LITTLE / 1e6:.0f} MB or more: too few to fit, "
        return Row(measure, f"n^{reach:g} or less", f"{told}at most {most / 1e6:.0f} MB by the law", peak <= most)
    return _row(measure, [n for n, _ in fitted], reach, power_law(*zip(*fitted, strict=True)))


def _row(measure: str, sizes: list[int], reach: float, fit: Fit) -> Row:
    """The law in words."""
    times = sizes[-1] / sizes[0]
    told = f"grows as {fit}: {times:.3g} times the work costs {times**fit.exponent:.3g} times as much"
    return Row(measure, f"n^{reach:g} or less", told, fit.exponent <= reach)


def power_law(n: Sequence[float], cost: Sequence[float]) -> Fit:
    """Least squares of log cost over log n. n, cost: above 0, the same length, at least two different n."""
    x, y = np.log(np.asarray(n, float)), np.log(np.asarray(cost, float))
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    freedom = len(x) - 2
    if freedom < 1:
        return Fit(exponent, math.inf)
    left = y - y.mean() - exponent * centred
    error = math.sqrt(float(left @ left) / freedom / float(centred @ centred))
    return Fit(exponent, error * float(stats.t.ppf(0.975, freedom)))


if __name__ == "__main__":
    run_command(lambda: main() and None)
