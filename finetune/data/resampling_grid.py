"""When bars of a period open and close: around the clock from midnight, or inside an exchange's sessions from each open.

The same grid as `kronos.calendar` continues forecasts on: bars begin anew at each open and after each break, the last one may be cut short.
"""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kronos.calendar import exchange_named
from kronos.errors import InputError

DAY = 86_400 * 10**9
ALWAYS_OPEN = "24/7"
_UNITS = {"s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": DAY, "w": 7 * DAY, "mo": 30 * DAY}
_RECENT = 1_577_836_800 * 10**9  # 2020-01-01: every calendar knows it
_MONTH_NS = 31 * DAY  # the range of a calendar that is asked for reaches so far beyond the rows


@dataclass(frozen=True)
class Grid:
    """Every bar that a stretch of time can hold. ns UTC, int64; pieces are sorted and do not overlap.

    lefts, rights, bars [P]: a bar's pieces (one, or more where a break lies inside a day) and the number of the bar each belongs to.
    before [P]: finer bars that all earlier pieces hold, so that before[piece] + place inside it numbers all finer bars.
    opens, closes, labels, first, expected [B]: where each bar begins and ends, the time it carries when stamped at its open (the date of a
    day), the number of its first finer bar, and how many it has.
    """

    lefts: np.ndarray
    rights: np.ndarray
    bars: np.ndarray
    before: np.ndarray
    opens: np.ndarray
    closes: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    expected: np.ndarray


def period_ns(text: str) -> int:
    """ns of "15min", "4h", "1d", "1w" ("1mo": 30 days); 0 for any other text."""
    found = re.fullmatch(r"([1-9]\d{0,4})(s|min|h|d|w|mo)", text)
    return int(found[1]) * _UNITS[found[2]] if found else 0


def exchange_of(calendar: str, first: int = _RECENT) -> Any:
    """The exchange_calendars calendar that covers `first` (ns UTC); None for "" and "24/7". Raises InputError for an unknown name."""
    if calendar in ("", ALWAYS_OPEN):
        return None
    year = min(pd.Timestamp(first).year, pd.Timestamp.now().year)
    return exchange_named(calendar, year - 1, "timeframe.calendar: ")


def make_grid(first: int, last: int, period: int, finer: int, *, calendar: str = "", zone: str = "") -> Grid:
    """Bars of `period` over all moments from `first` to `last`, made of bars of `finer` (all ns; finer divides period, period a day).

    calendar: an exchange: its sessions; a day is one session, dated at midnight of `zone`. "24/7": UTC throughout. "": around the clock,
    where days begin at midnight of `zone` (they have 23 or 25 hours when its clock changes) and shorter bars lie on UTC's grid.
    Raises InputError for an unknown calendar, or one that does not reach `last`.
    """
    exchange = exchange_of(calendar, first)
    if exchange is not None:
        return _in_sessions(exchange, first, last, period, finer, zone)
    if period < DAY or not zone or calendar == ALWAYS_OPEN:
        edges = np.arange(first // period * period, last + 2 * period, period)
    else:
        start, end = (pd.Timestamp(moment, tz="UTC").tz_convert(zone).tz_localize(None).normalize() for moment in (first, last))
        edges = midnights(pd.date_range(start, end + pd.Timedelta(days=2)), zone)
    return _grid(edges[:-1], edges[1:], np.arange(len(edges) - 1), finer, edges[:-1])


def midnights(dates: pd.DatetimeIndex, zone: str) -> np.ndarray:
    """ns UTC of the first moment of each date by the clock of a zone."""
    local = dates.tz_localize(zone, ambiguous=np.ones(len(dates), bool), nonexistent="shift_forward")
    return _ns(local.tz_convert("UTC"))


def is_zone(name: str) -> bool:
    """Whether a panel's timezone is a zone's name, and not offsets as a file wrote them ("+08:00", "-05:00/-04:00")."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _in_sessions(exchange: Any, first: int, last: int, period: int, finer: int, zone: str) -> Grid:
    schedule = exchange.schedule
    opens, closes = (_ns(pd.DatetimeIndex(schedule[name].array)) for name in ("open", "close"))
    if last >= closes[-1] + DAY:
        until, latest = (str(np.datetime64(int(moment), "ns"))[:10] for moment in (closes[-1], last))
        raise InputError(
            f"timeframe.calendar: {exchange.name} is known up to {until}, and there are bars of {latest}; leave out the later ones"
        )
    kept = schedule[(closes > first - _MONTH_NS) & (opens < last + _MONTH_NS)]
    starts, ends, session = _stretches(kept)
    if period < DAY:
        pieces = -(-(ends - starts) // period)
        stretch = np.repeat(np.arange(len(starts)), pieces)
        place = np.arange(len(stretch)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        lefts = starts[stretch] + place * period
        return _grid(lefts, np.minimum(lefts + period, ends[stretch]), np.arange(len(lefts)), finer, lefts)
    return _grid(starts, ends, session, finer, midnights(pd.DatetimeIndex(kept.index), zone or exchange.tz.key))


def _stretches(schedule: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, end, number of the session) of every stretch without a break."""
    columns = [pd.DatetimeIndex(schedule[name].array) for name in ("open", "break_start", "break_end", "close")]
    opens, rest, back, closes = (_ns(column) for column in columns)
    number = np.arange(len(opens))
    paused = ~columns[1].isna()
    starts = np.concatenate([opens, back[paused]])
    ends = np.concatenate([np.where(paused, rest, closes), closes[paused]])
    order = np.argsort(starts)
    return starts[order], ends[order], np.concatenate([number, number[paused]])[order]


def _grid(lefts: np.ndarray, rights: np.ndarray, bars: np.ndarray, finer: int, labels: np.ndarray) -> Grid:
    counts = -(-(rights - lefts) // finer)
    before = np.cumsum(counts) - counts
    begins = np.flatnonzero(np.diff(bars, prepend=-1))
    ends = np.append(begins[1:], len(bars)) - 1
    expected = np.add.reduceat(counts, begins)
    return Grid(lefts, rights, bars, before, lefts[begins], rights[ends], labels, before[begins], expected)


def _ns(index: pd.DatetimeIndex) -> np.ndarray:
    if index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return index.as_unit("ns").to_numpy().astype(np.int64)
