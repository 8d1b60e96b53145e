"""Which forecasts a rule is chosen on and which it is scored on; and from which bar each row of a test is forecast."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from finetune.data.frames import wall_clock
from finetune.data.panel import Panel
from finetune.engine.randomness import numpy_generator
from finetune.engine.windows import Splits, Windows
from finetune.evaluation.days import clock_of, has_before
from finetune.evaluation.origins import CLOSE, FEWEST_CHOOSING, FEWEST_SCORED, Origins, known_at

_CHUNK = 1 << 20
_DRAW = 23  # so that the draw of symbols does not share other random numbers
_DAY_NS = 86_400_000_000_000
_AFTER = 2 * _DAY_NS  # no wall clock is further from UTC
_STEP = 16  # rows looked at together before that; more than two days of bars are looked at in steps


def held_out(splits: Splits, *, moments: int, per_moment: int, seed: int) -> Origins | None:
    """Origins to choose a rule on (`scored` False) and, later in time, to score it on; None if there are too few of either.

    Scored is the test split, chosen on is validation; without a test split the later and the earlier half of validation, on all of which
    the best weights were chosen as well. At each of `moments` moments (0: all) that are spread evenly, `per_moment` series (0: all) are
    drawn anew. No outcome of the first part is known later than the first moment of the second.
    """
    if len(splits.test):
        before, after = (_drawn(part, moments, per_moment, seed) for part in (splits.val, splits.test))
    else:
        both = _drawn(splits.val, 2 * moments, per_moment, seed)
        later = both.moment >= len(both.moments) // 2
        before, after = both.chosen(~later), both.chosen(later)
    if len(after.moments) < FEWEST_SCORED:
        return None
    before = before.chosen((before.realised <= after.now.min()).all(axis=1)) if len(before) else before
    if len(before.moments) < FEWEST_CHOOSING:
        return None
    return dataclasses.replace(
        after,
        rows=np.concatenate([before.rows, after.rows]),
        series=np.concatenate([before.series, after.series]),
        moment=np.concatenate([before.moment, after.moment + len(before.moments)]),
        moments=np.concatenate([before.moments, after.moments]),
        scored=np.arange(len(before) + len(after)) >= len(before),
    )


def _drawn(windows: Windows, moments: int, per_moment: int, seed: int) -> Origins:
    panel = windows.panel
    rows = windows.start_rows(np.arange(len(windows))) + windows.lookback - 1
    now = known_at(panel, rows)
    grid = np.unique(now)
    if 0 < moments < len(grid):
        grid = grid[np.linspace(0, len(grid) - 1, moments).round().astype(np.int64)]
        kept = np.isin(now, grid)
        rows, now = rows[kept], now[kept]
    moment = np.searchsorted(grid, now)
    if per_moment:
        order = np.lexsort((numpy_generator(seed, _DRAW).random(len(rows)), moment))
        place = np.arange(len(order)) - np.searchsorted(moment[order], moment[order])  # within its moment
        kept = np.sort(order[place < per_moment])
        rows, moment = rows[kept], moment[kept]
    series = np.searchsorted(panel.offsets, rows, side="right") - 1
    order = np.lexsort((series, moment))
    found = Origins(
        panel, windows.lookback, windows.horizon, rows[order], series[order], moment[order], np.ones(len(order), bool), grid, windows.name
    )
    return found.chosen((found.closes > 0).all(axis=1))


def rows_to_forecast(panel: Panel, symbols: np.ndarray, dates: np.ndarray, lookback: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [T] int64, reasons [T] str): the bar each row of a test is forecast from, and why there is none where it is -1.

    It is the symbol's last bar on or before the date (datetime64[ns], wall clock; NaT: the last bar of all), if `lookback` unbroken bars
    end with it and its close is above 0. reasons: "" or why not.
    """
    number = {info.symbol: place for place, info in enumerate(panel.series)}
    series = np.array([number.get(symbol, -1) for symbol in symbols], np.int64)
    rows, reasons = np.full(len(series), -1, np.int64), np.full(len(series), "", object)
    reasons[series < 0] = "not in the panel"
    known = np.flatnonzero(series >= 0)
    known = known[np.argsort(series[known], kind="stable")]
    for of_one in np.split(known, np.flatnonzero(np.diff(series[known])) + 1) if len(known) else []:
        rows[of_one] = _last_rows(panel, int(series[of_one[0]]), dates[of_one])
    reasons[(series >= 0) & (rows < 0)] = "no bar on or before the date"
    there = np.flatnonzero(rows >= 0)
    short = there[~has_before(panel, rows[there], lookback)]
    reasons[short] = f"fewer than {lookback} unbroken bars"
    there = np.setdiff1d(there, short, assume_unique=True)
    worthless = there[~(panel.features[rows[there], CLOSE] > 0)]
    reasons[worthless] = "close of 0"
    rows[reasons != ""] = -1
    return rows, reasons


def _last_rows(panel: Panel, series: int, dates: np.ndarray) -> np.ndarray:
    """[len(dates)] row of the last bar whose wall-clock day is not after each date; -1 if there is none."""
    first, end = int(panel.offsets[series]), int(panel.offsets[series + 1])
    found = np.empty(len(dates), np.int64)
    for place, date in enumerate(dates):
        if np.isnat(date):
            found[place] = end - 1
            continue
        bound = date.astype("datetime64[D]") + np.timedelta64(1, "D")
        high = first + int(np.searchsorted(panel.times[first:end], bound.astype("datetime64[ns]").astype(np.int64) + _AFTER))
        row = -1
        while high > first and row < 0:
            low = max(first, high - _STEP)
            before = np.flatnonzero(wall_clock(panel, low, high).to_numpy("datetime64[ns]") < bound)
            row = low + int(before[-1]) if len(before) else -1
            high = low
        found[place] = row
    return found


def market_calendar(panel: Panel) -> np.ndarray:
    """Every wall-clock time at which any series has a bar, increasing datetime64[ns]."""
    parts = []
    for first in range(0, panel.n_rows, _CHUNK):
        times, place = np.unique(panel.times[first : first + _CHUNK], return_index=True)
        parts.append((times, place + first))
    times, place = np.unique(np.concatenate([part[0] for part in parts]), return_index=True)
    rows = np.concatenate([part[1] for part in parts])[place]
    return np.unique(clock_of(panel, np.sort(rows)))


def only_from(panel: Panel, rows: np.ndarray) -> Panel:
    """The panel with these rows as its only origins, and a fingerprint of its own: forecasts are kept by it."""
    origin = np.zeros(panel.n_rows, bool)
    origin[rows] = True
    digest = hashlib.blake2b(panel.fingerprint.encode() + np.flatnonzero(origin).tobytes(), digest_size=16).hexdigest()
    return dataclasses.replace(panel, origin=origin, fingerprint=digest)
