"""The times of bars to come: from an exchange's calendar, or from the bars' own rhythm where the market never closes."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from kronos.bars import as_times
from kronos.errors import InputError

_DAY = pd.Timedelta(days=1)
_MISSING = 0.01  # share of bars that may be missing from a rhythm (outages)
_ON_GRID = 0.9  # share of bars that must lie on the calendar's grid
_GIVE = "give y_timestamp, or calendar= the exchange's name (XSHG, XHKG, XNYS, ...)"


def future_times(x_timestamp: Sequence, horizon: int, calendar: str | None, where: str = "") -> pd.DatetimeIndex:
    """The `horizon` times after x_timestamp, in its zone, stamped as it is (at the open or the close of a bar).

    calendar: a name of the exchange_calendars library: sessions, breaks, half days and holidays are its own. Intraday and daily bars.
    None (or "24/7"): the step between the bars given, or the month's, is continued without pause.
    `where` begins every message. Raises InputError where the bars have no such rhythm or do not lie on the calendar's grid.
    """
    times = as_times(x_timestamp, "x_timestamp", where)
    if len(times) < 2:
        raise InputError(f"{where}x_timestamp has {len(times)} entries: the step between bars cannot be told; give y_timestamp")
    steps = np.diff(times.asi8)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise InputError(f"{where}x_timestamp goes from {times[at]} to {times[at + 1]} at entry {at + 1}: oldest first, each once")
    if calendar is None or calendar == "24/7":
        return _in_rhythm(times, horizon, where)
    values, counts = np.unique(steps, return_counts=True)
    step = pd.Timedelta(int(values[counts.argmax()]), unit=times.unit)
    exchange = exchange_named(calendar, times[0].year - 1, where)
    if step < _DAY:
        return _in_sessions(times, step, horizon, exchange, where)
    if pd.Timedelta(int(values[0]), unit=times.unit) != _DAY:
        raise InputError(f"{where}bars are {step} apart: {calendar} gives intraday and daily bars; give y_timestamp")
    return _daily(times, horizon, exchange, where)


def _in_rhythm(times: pd.DatetimeIndex, horizon: int, where: str) -> pd.DatetimeIndex:
    """The same step for ever."""
    months = np.diff(times.year * 12 + times.month)
    if (months == months[0]).all() and months[0] > 0 and times.day.nunique() == 1 and times[0].time() == times[-1].time():
        return pd.DatetimeIndex([times[-1] + pd.DateOffset(months=int(months[0]) * i) for i in range(1, horizon + 1)])
    steps = np.diff(times.asi8)
    step = int(np.median(steps))
    odd = steps != step
    if odd.mean() > _MISSING or (steps % step != 0).any():
        at = int(np.argmax(odd))
        raise InputError(
            f"{where}bars are {pd.Timedelta(step, unit=times.unit)} apart, but {times[at]} is followed by {times[at + 1]} "
            f"({int(odd.sum())} such pauses): this market closes; {_GIVE}"
        )
    if times[-1] - times[0] >= 7 * _DAY and pd.Timedelta(step, unit=times.unit) <= _DAY and not (times.day_of_week >= 5).any():
        raise InputError(f"{where}there are no bars on weekends from {times[0]} to {times[-1]}: this market closes; {_GIVE}")
    return times[-1] + pd.TimedeltaIndex((step * np.arange(1, horizon + 1)).astype(f"timedelta64[{times.unit}]"))


@lru_cache(maxsize=16)
def exchange_named(name: str, first_year: int, where: str) -> Any:
    """The calendar from the start of a year to as far as it is known. Raises InputError."""
    try:
        import exchange_calendars
    except ModuleNotFoundError as error:
        raise InputError(f"calendar={name!r} needs a library: pip install exchange-calendars") from error
    names = exchange_calendars.get_calendar_names()
    if name not in names:
        near = get_close_matches(str(name).upper(), names, 3)
        raise InputError(f"{where}there is no calendar {name!r}" + (f": did you mean {', '.join(near)}?" if near else f"; {_GIVE}"))
    try:
        return exchange_calendars.get_calendar(name, start=f"{first_year}-01-01")
    except ValueError as error:
        raise InputError(f"{where}calendar {name} does not reach back to {first_year}: {error}") from error


def _sessions_after(exchange: Any, date: pd.Timestamp, count: int, where: str) -> pd.DatetimeIndex:
    """`count` sessions, the first on or after `date`."""
    sessions = exchange.sessions
    first = int(sessions.searchsorted(date))
    if first + count > len(sessions):
        raise InputError(f"{where}calendar {exchange.name} is known up to {sessions[-1].date()}, which is too short: give y_timestamp")
    return sessions[first : first + count]


def _daily(times: pd.DatetimeIndex, horizon: int, exchange: Any, where: str) -> pd.DatetimeIndex:
    """The next sessions, at the time of day that the bars show."""
    last = times[-1].tz_localize(None)
    sessions = _sessions_after(exchange, last.normalize() + _DAY, horizon, where)
    return (sessions + (last - last.normalize())).tz_localize(times.tz)


def _in_sessions(times: pd.DatetimeIndex, step: pd.Timedelta, horizon: int, exchange: Any, where: str) -> pd.DatetimeIndex:
    """The next bars on the grid of the sessions, which begins anew at each open and after each break."""
    wall = times.tz is None
    given = (times.tz_localize(exchange.tz) if wall else times).tz_convert("UTC")
    side = _stamped(given, step, exchange, where)
    per_session = max(1, len(_grid(exchange, *_sessions_after(exchange, _date(given[-1], exchange), 1, where)[[0, 0]], step)))
    count = 2 + horizon // per_session
    while True:  # a half day has fewer bars than the session counted
        sessions = _sessions_after(exchange, _date(given[-1], exchange), count, where)
        found = getattr(_grid(exchange, sessions[0], sessions[-1], step), side)
        found = found[found > given[-1]][:horizon]
        if len(found) == horizon:
            break
        count *= 2
    found = found.tz_convert(exchange.tz if wall else times.tz)
    return found.tz_localize(None) if wall else found


def _date(moment: pd.Timestamp, exchange: Any) -> pd.Timestamp:
    """The day before, by the exchange's clock: no session that is still open began earlier."""
    return moment.tz_convert(exchange.tz).tz_localize(None).normalize() - _DAY


def _grid(exchange: Any, first: pd.Timestamp, last: pd.Timestamp, step: pd.Timedelta) -> pd.IntervalIndex:
    """Open and close of every bar of the sessions, UTC."""
    return exchange.trading_index(first, last, step, intervals=True, force=True, parse=False)


def _stamped(given: pd.DatetimeIndex, step: pd.Timedelta, exchange: Any, where: str) -> str:
    """Whether bars are stamped at their open ("left") or close ("right"): the side on which more of them lie (a tie: open)."""
    sample = given[-500:]
    sessions = exchange.sessions
    first, last = sessions.searchsorted([_date(sample[0], exchange), _date(sample[-1], exchange) + 2 * _DAY])
    if first >= last:
        raise InputError(f"{where}calendar {exchange.name} has no session from {sample[0]} to {sample[-1]}: is it the right exchange?")
    grid = _grid(exchange, sessions[first], sessions[last - 1], step)
    shares = {side: sample.isin(getattr(grid, side)).mean() for side in ("left", "right")}
    side = "left" if shares["left"] >= shares["right"] else "right"
    if shares[side] < _ON_GRID:
        odd = sample[~sample.isin(getattr(grid, side))][0]
        raise InputError(
            f"{where}{1 - shares[side]:.0%} of the bars, e.g. {odd}, do not lie on the {step} grid of {exchange.name}: "
            "is it the right exchange and time zone? Else give y_timestamp"
        )
    return side
