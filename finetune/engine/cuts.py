"""Where the windows of each split begin: by time, so that nothing in training is later than anything in validation. Numpy alone.

`splits` makes windows of these, which takes torch; a plan only counts them.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np

from kronos.errors import InputError

from .settings import Sampling

NAMES = ("train", "val", "test")
_CHUNK = 1 << 20  # rows looked at together, so that a panel of any size costs little private memory


class Starts(NamedTuple):
    """Windows as runs: run i begins at row first[i] and holds counts[i] windows, `stride` rows apart. int64 [R] both."""

    first: np.ndarray
    counts: np.ndarray


def cut_panel(
    panel: Any,
    lookback: int,
    horizon: int,
    ratios: tuple[float, float, float],
    *,
    split: str = "date",
    extra_rows: int = 1,
    stride: int = 1,
) -> list[Starts]:
    """The windows of training, validation and test, as `splits.make_splits` tells. Raises InputError for a split without any."""
    bounds = _bounds_per_symbol(panel, ratios) if split == "per_symbol" else _bounds_by_date(panel, ratios)
    cut, made = _Cutter(panel, lookback, lookback + horizon + extra_rows), []
    for k, name in enumerate(NAMES):
        first_target = bounds[:, k] if k else panel.offsets[:-1]  # training lookahead may begin anywhere
        found = cut(first_target, bounds[:, k + 1], stride if name == "train" else 1)
        if ratios[k] > 0 and not found.counts.sum():
            raise InputError(_empty_split(panel, name, ratios[k], lookback, horizon, cut.length, bounds[:, k : k + 2]))
        made.append(found)
    _let_go(panel.times, panel.origin)
    return made


def cut_whole(panel: Any, lookback: int, horizon: int, *, extra_rows: int = 1, stride: int = 1) -> Starts:
    """All windows of a panel that is one split already, as its `origin` allows them. May be empty."""
    found = _Cutter(panel, lookback, lookback + horizon + extra_rows)(panel.offsets[:-1], panel.offsets[1:], stride)
    _let_go(panel.times, panel.origin)
    return found


def series_counts(offsets: np.ndarray, starts: Starts) -> np.ndarray:
    """Windows of each series that has any, int64, in the order of the windows, which is that of the series."""
    series = np.searchsorted(offsets, starts.first, side="right") - 1
    counts = np.bincount(series, starts.counts, minlength=len(offsets) - 1).astype(np.int64)
    return counts[counts > 0]


def places(counts: np.ndarray, how: Sampling) -> np.ndarray:
    """How many places each series with so many windows gets in an epoch, int64 [S]: see `balance`."""
    if how == "rows":
        return counts
    most = int(counts.max())
    return np.full(len(counts), most) if how == "symbols" else np.ceil(np.sqrt(counts * float(most))).astype(np.int64)


class _Cutter:
    """Finds windows of one panel where its `origin` allows a forecast."""

    def __init__(self, panel: Any, lookback: int, length: int):
        self.panel, self.lookback, self.length = panel, lookback, length
        self.origins = None if _all_true(panel.origin) else _true_runs(panel.origin)

    def __call__(self, first_target: np.ndarray, end: np.ndarray, stride: int) -> Starts:
        """Windows whose first bar to forecast is at row first_target [S] of its series or later, and which end before row end [S]."""
        lo, hi = _start_ranges(self.panel, first_target, end, self.lookback, self.length)
        if self.origins is not None:
            lo, hi = _intersect(lo + self.lookback - 1, hi + self.lookback - 1, *self.origins)  # origin: the last row of the lookback
            lo, hi = lo - (self.lookback - 1), hi - (self.lookback - 1)
        return Starts(lo, -(-(hi - lo) // stride))


def _let_go(*arrays: np.ndarray) -> None:
    """Unmap the pages of memory-mapped arrays that were read from end to end: they stay in the system's page cache, shared by
    all ranks, but no longer count as this process's own (180 MB for 20 million rows)."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and not array.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def _bounds_per_symbol(panel: Any, ratios: tuple[float, float, float]) -> np.ndarray:
    """Row bounds [S, 4] of train, val and test for each series: begin, end of train, end of val, end of test."""
    begin, sizes = panel.offsets[:-1], np.diff(panel.offsets)
    shares = np.minimum(1.0, np.concatenate([[0.0], np.cumsum(ratios)]))
    return begin[:, None] + np.floor(sizes[:, None] * shares + 1e-9).astype(np.int64)


def _bounds_by_date(panel: Any, ratios: tuple[float, float, float]) -> np.ndarray:
    """Like `_bounds_per_symbol`, with the same cut times for every series."""
    shares = np.cumsum(ratios)
    cuts = [time_at_share(panel.times, min(1.0, share)) for share in shares]
    bounds = np.empty((len(panel.offsets) - 1, 4), np.int64)
    for s, (begin, end) in enumerate(zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True)):
        bounds[s, 0] = begin
        bounds[s, 1:] = begin + np.searchsorted(panel.times[begin:end], cuts)
    return bounds


def time_at_share(times: np.ndarray, share: float) -> int:
    """The smallest time T (int64 ns) such that at least `share` of all rows are earlier than T.

    Found by narrowing a histogram, chunk by chunk: no sorted copy of 20 million times is ever held.
    """
    wanted = int(np.floor(len(times) * share + 1e-9))
    low, high = int(times.min()), int(times.max()) + 1  # the answer lies in low..high
    if wanted <= 0:
        return low
    bins = 1 << 12
    while high - low > 1:
        width = -(-(high - low) // bins)
        counts, below = np.zeros(bins, np.int64), 0
        for begin in range(0, len(times), _CHUNK):
            chunk = np.asarray(times[begin : begin + _CHUNK])
            below += int((chunk < low).sum())
            inside = chunk[(chunk >= low) & (chunk < high)]
            counts += np.bincount((inside - low) // width, minlength=bins)
        bin_of_answer = int(np.searchsorted(below + np.cumsum(counts), wanted))
        low, high = low + bin_of_answer * width, min(high, low + (bin_of_answer + 1) * width)
        if width == 1:
            break
    return high


def _start_ranges(panel: Any, first_target: np.ndarray, end: np.ndarray, lookback: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Allowed first rows [lo, hi) of windows, per unbroken stretch; empty ranges are left out."""
    stretch = np.union1d(panel.offsets[:-1], panel.breaks).astype(np.int64)
    series = np.searchsorted(panel.offsets, stretch, side="right") - 1
    stretch_end = np.append(stretch[1:], panel.offsets[-1])
    lo = np.maximum(stretch, first_target[series] - lookback)
    hi = np.minimum(stretch_end, end[series]) - length + 1
    keep = hi > lo
    return lo[keep], hi[keep]


def _all_true(mask: np.ndarray) -> bool:
    return all(bool(mask[i : i + _CHUNK].all()) for i in range(0, len(mask), _CHUNK))


def _true_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs [begin, end) of True in a boolean array, found chunk by chunk."""
    flips, previous = [], False
    for i in range(0, len(mask), _CHUNK):
        chunk = np.asarray(mask[i : i + _CHUNK])
        flips.append(i + np.flatnonzero(np.diff(chunk, prepend=previous)))
        previous = bool(chunk[-1])
    edges = np.concatenate([*flips, [len(mask)] if previous else []]).astype(np.int64)
    return edges[0::2], edges[1::2]


def _intersect(lo: np.ndarray, hi: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersections of two lists of sorted, disjoint ranges."""
    first = np.searchsorted(end, lo, side="right")  # first run that ends after lo
    beyond = np.searchsorted(begin, hi, side="left")  # first run that begins at or after hi
    counts = np.maximum(0, beyond - first)
    which = np.repeat(np.arange(len(lo)), counts)
    run = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
    return np.maximum(lo[which], begin[run]), np.minimum(hi[which], end[run])


def _empty_split(panel: Any, name: str, ratio: float, lookback: int, horizon: int, length: int, rows: np.ndarray) -> str:
    longest = int((rows[:, 1] - rows[:, 0]).max()) if len(rows) else 0
    need = f"{length} rows in a row to train" if name == "train" else f"{length - lookback} rows in a row after {lookback} of lookback"
    return (
        f"the {name} split has no window: {name}_ratio {ratio:g} of {panel.offsets[-1]} rows in {len(panel.series)} series gives at most "
        f"{longest} rows per series, and lookback_window {lookback} + predict_window {horizon} needs {need}; "
        f"raise {name}_ratio, lower the windows, or give more bars"
    )
