"""Which windows train, which validate, which test: by time, so that nothing in training is later than anything in validation."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from kronos.errors import InputError

from .balance import Sampling, balanced
from .windows import Splits, Store, Windows

NAMES = ("train", "val", "test")
_CHUNK = 1 << 20  # rows looked at together, so that a panel of any size costs little private memory


def make_splits(
    panel: Any,
    lookback: int,
    horizon: int,
    ratios: tuple[float, float, float],
    *,
    split: str = "date",
    extra_rows: int = 1,
    stride: int = 1,
    normalise: str = "lookback",
    clip: float = 5.0,
    sampling: Sampling = "rows",
    say: Callable[[str], None] = print,
) -> Splits:
    """Cut a panel into training, validation and test windows.

    split "date": one cut date for all series, chosen so that `ratios` hold over rows; validation lookahead starts after
    the last training bar, its lookback may reach back into training. "per_symbol": each series is cut at its own ratios
    (training then holds bars later than another series' validation, and `say` warns of it).
    stride: bars between the starts of two training windows; validation and test use every window. sampling: see `balance.balanced`.
    Raises InputError if a split with a ratio above 0 has no window.
    """
    if split == "per_symbol":
        say(
            "warning: data.split is per_symbol: training bars of one series may be later than validation bars of another, "
            "so validation can look better than the future will be; data.split: date has no such leak"
        )
        bounds = _bounds_per_symbol(panel, ratios)
    else:
        bounds = _bounds_by_date(panel, ratios)
    store, length = Store(panel), lookback + horizon + extra_rows
    cut = _Cutter(store, lookback, horizon, extra_rows, normalise, clip)
    made = []
    for k, name in enumerate(NAMES):
        first_target = bounds[:, k] if k else panel.offsets[:-1]  # training lookahead may begin anywhere
        windows = cut(name, first_target, bounds[:, k + 1], stride if name == "train" else 1)
        if ratios[k] > 0 and len(windows) == 0:
            raise InputError(_empty_split(panel, name, ratios[k], lookback, horizon, length, bounds[:, k : k + 2]))
        made.append(windows)
    _let_go(panel.times, panel.origin)
    return Splits(balanced(made[0], sampling), *made[1:])


def windows_of(
    panel: Any,
    name: str,
    lookback: int,
    horizon: int,
    *,
    extra_rows: int = 1,
    stride: int = 1,
    normalise: str = "lookback",
    clip: float = 5.0,
) -> Windows:
    """All windows of a panel that is one split already, as its `origin` allows them. May be empty."""
    windows = _Cutter(Store(panel), lookback, horizon, extra_rows, normalise, clip)(name, panel.offsets[:-1], panel.offsets[1:], stride)
    _let_go(panel.times, panel.origin)
    return windows


class _Cutter:
    """Makes windows of one store where its `origin` allows a forecast."""

    def __init__(self, store: Store, lookback: int, horizon: int, extra_rows: int, normalise: str, clip: float):
        self.store, self.lookback, self.length = store, lookback, lookback + horizon + extra_rows
        self.how = dict(lookback=lookback, horizon=horizon, extra_rows=extra_rows, normalise=normalise, clip=clip)
        self.origins = None if _all_true(store.panel.origin) else _true_runs(store.panel.origin)

    def __call__(self, name: str, first_target: np.ndarray, end: np.ndarray, stride: int) -> Windows:
        """Windows whose first bar to forecast is at row first_target [S] of its series or later, and which end before row end [S]."""
        lo, hi = _start_ranges(self.store.panel, first_target, end, self.lookback, self.length)
        if self.origins is not None:
            lo, hi = _intersect(lo + self.lookback - 1, hi + self.lookback - 1, *self.origins)  # origin: the last row of the lookback
            lo, hi = lo - (self.lookback - 1), hi - (self.lookback - 1)
        return Windows(self.store, name, lo, -(-(hi - lo) // stride), stride=stride, **self.how)


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
