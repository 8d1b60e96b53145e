"""What became of every series when its bars were made of finer ones: counts, what was left out, gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.checks import moment
from finetune.data.frames import wall_clock
from finetune.data.panel import Panel


@dataclass(frozen=True)
class SeriesReport:
    """What became of one series. Times are the exchange's wall clock, as text.

    rows: finer bars. outside: those outside all sessions, left out. bars: bars made. incomplete: first and last bars left out, each as
    "2020-02-10 00:00:00: first, 16 of 24". partial: bars kept that lack finer bars. gaps: stretches of missing finer bars; missing: how
    many bars those are. missing_bars: bars that had none at all. largest_gap: (the finer bar before, the one after) or ("", "").
    """

    symbol: str
    rows: int
    outside: int
    bars: int
    incomplete: tuple[str, ...]
    partial: int
    gaps: int
    missing: int
    missing_bars: int
    largest_gap: tuple[str, str]
    first: str
    last: str

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Left:
    """A bar that was not made, because it is a series' first or last and incomplete: which (first, last), the time it would
    carry, the same on the wall clock, its edges (ns), and the finer bars it has and would have whole."""

    symbol: str
    which: str
    label: int
    wall: int
    open: int
    close: int
    found: int
    expected: int


@dataclass(frozen=True)
class Placed:
    """Where finer bars belong. rows [n]: those inside the grid; series, bars, slots [n]: their series, bar, and own number in the grid."""

    rows: np.ndarray
    series: np.ndarray
    bars: np.ndarray
    slots: np.ndarray


def series_reports(
    fine: Panel,
    placed: Placed,
    series: np.ndarray,
    bars: np.ndarray,
    found: np.ndarray,
    expected: np.ndarray,
    walls: np.ndarray,
    left: Sequence[Left],
) -> tuple[SeriesReport, ...]:
    """One per series of the finer panel, of bars [N] (number of the series, number in the grid, finer bars, wall clock ns)."""
    reports = []
    for number, info in enumerate(fine.series):
        inside = slice(*np.searchsorted(placed.series, [number, number + 1]))
        mine = slice(*np.searchsorted(series, [number, number + 1]))
        rows, slots = placed.rows[inside], placed.slots[inside]
        holes = np.diff(slots) - 1
        total = int(fine.offsets[number + 1] - fine.offsets[number])
        reports.append(
            SeriesReport(
                symbol=info.symbol,
                rows=total,
                outside=total - len(rows),
                bars=len(bars[mine]),
                incomplete=tuple(
                    f"{moment(bar.wall)}: {bar.which}, {bar.found} of {bar.expected}" for bar in left if bar.symbol == info.symbol
                ),
                partial=int((found[mine] < expected[mine]).sum()),
                gaps=int((holes > 0).sum()),
                missing=int(holes.sum()),
                missing_bars=int((np.diff(bars[mine]) - 1).sum()),
                largest_gap=_largest(fine, rows, holes),
                first=moment(walls[mine][0]) if len(walls[mine]) else "",
                last=moment(walls[mine][-1]) if len(walls[mine]) else "",
            )
        )
    return tuple(reports)


def whole_reports(panel: Panel) -> tuple[SeriesReport, ...]:
    """The same of bars taken as they are."""
    reports = []
    for info, first, end in zip(panel.series, panel.offsets[:-1], panel.offsets[1:], strict=True):
        edges = [str(wall_clock(panel, int(row), int(row) + 1)[0]) for row in (first, end - 1)]
        rows = int(end - first)
        reports.append(SeriesReport(info.symbol, rows, 0, rows, (), 0, 0, 0, 0, ("", ""), *edges))
    return tuple(reports)


def _largest(fine: Panel, rows: np.ndarray, holes: np.ndarray) -> tuple[str, str]:
    """Times of the finer bars on both sides of the largest hole; ("", "") without one."""
    if not (holes > 0).any():
        return "", ""
    at = int(np.argmax(holes))
    before, after = (str(wall_clock(fine, row, row + 1)[0]) for row in map(int, rows[[at, at + 1]]))
    return before, after


def table(reports: Sequence[SeriesReport], most: int = 20) -> str:
    """The reports as lines of text: one per series, the longest `most` of them."""
    shown = sorted(reports, key=lambda report: -report.rows)[:most]
    names = {
        "symbol": [report.symbol for report in shown],
        "rows in": [f"{report.rows:,}" for report in shown],
        "bars out": [f"{report.bars:,}" for report in shown],
        "incomplete": [len(report.incomplete) for report in shown],
        "partial": [report.partial for report in shown],
        "gaps": [report.gaps for report in shown],
        "outside": [report.outside for report in shown],
        "first": [report.first[:16] for report in shown],
        "last": [report.last[:16] for report in shown],
    }
    text = pd.DataFrame(names).to_string(index=False)
    more = len(reports) - len(shown)
    return text + (f"\n... and {more:,} more series (manifest.json has all)" if more else "")
