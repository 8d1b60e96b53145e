"""Rows of a panel on the market's calendar: when each was, whether enough unbroken bars lie before it, and which bars come next."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from finetune.data.frames import wall_clock
from finetune.data.panel import Panel

_WEEK = np.timedelta64(7 * 86_400 * 10**9, "ns")
_MONDAY = np.datetime64("1970-01-05", "ns")
_WEEKS = 8  # of the calendar's end that show its rhythm


def clock_of(panel: Panel, rows: np.ndarray) -> np.ndarray:
    """Wall-clock times, datetime64[ns], of rows in ascending order."""
    ends = np.searchsorted(rows, panel.offsets)
    parts = [rows[a:b] for a, b in pairwise(ends) if b > a]
    walls = [wall_clock(panel, part[0], part[-1] + 1).to_numpy("datetime64[ns]")[part - part[0]] for part in parts]
    return np.concatenate(walls) if walls else np.empty(0, "datetime64[ns]")


def series_of(panel: Panel, rows: np.ndarray) -> np.ndarray:
    """Number of the series that each row belongs to."""
    return np.searchsorted(panel.offsets, rows, side="right") - 1


def has_before(panel: Panel, rows: np.ndarray, count: int) -> np.ndarray:
    """[len(rows)] bool: `count` bars of the same series end with the row, and no break lies between them."""
    first = rows + 1 - count
    unbroken = np.searchsorted(panel.breaks, first, side="right") == np.searchsorted(panel.breaks, rows, side="right")
    return (first >= panel.offsets[series_of(panel, rows)]) & unbroken


def stamps_of(times: np.ndarray) -> np.ndarray:
    """[n, 5] uint8 of wall-clock times: minute, hour, weekday (Monday 0), day, month."""
    clock = pd.DatetimeIndex(times)
    return np.stack([clock.minute, clock.hour, clock.day_of_week, clock.day, clock.month], axis=1).astype(np.uint8)


def continued(calendar: np.ndarray, count: int) -> np.ndarray:
    """`count` times after the calendar's last one, by its rhythm: the times of the week that at least half of its last 8 weeks had.

    So weekends, sessions and lunch breaks are kept, a single holiday is not repeated, and holidays to come are not known. A calendar of
    less than a week, or of weeks that have nothing in common (monthly bars), goes on by the commonest step between its last times.
    calendar: increasing datetime64[ns], two or more.
    """
    last = calendar[-1]
    weeks = min(_WEEKS, int((last - calendar[0]) // _WEEK))
    recent = calendar[calendar > last - max(weeks, 1) * _WEEK]
    slots, seen = np.unique((recent - _MONDAY) % _WEEK, return_counts=True)
    slots = slots[2 * seen >= weeks]
    if not weeks or not len(slots):
        steps, counts = np.unique(np.diff(calendar[-100:]), return_counts=True)
        return last + steps[counts.argmax()] * np.arange(1, count + 1)
    monday = last - (last - _MONDAY) % _WEEK
    ahead = (monday + _WEEK * np.arange(count // len(slots) + 2)[:, None] + slots).ravel()
    return ahead[ahead > last][:count]


def stamps_ahead(calendar: np.ndarray, days: np.ndarray, horizon: int) -> np.ndarray:
    """[len(days), horizon, 5] uint8: stamps of the `horizon` bars that follow each day on the calendar, which must hold them all."""
    place = np.searchsorted(calendar, days)
    beyond = max(0, int(place.max(initial=0)) + horizon + 1 - len(calendar))
    known = np.concatenate([calendar, continued(calendar, beyond)]) if beyond else calendar
    return stamps_of(known)[place[:, None] + np.arange(1, horizon + 1)]
