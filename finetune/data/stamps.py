"""How far apart bars are, and whether their time names the moment they open or the moment they close.

A-share 5-minute bars run 09:35 to 15:00: stamped at their close. Crypto bars run around the clock from 00:00: stamped at their open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kronos.errors import InputError

CHOICES = ("auto", "open", "close")
_MINUTE, _DAY = 60 * 10**9, 86_400 * 10**9
_GRID = 30  # minutes: sessions begin and end on the half hour nearly everywhere
_LOOKED_AT = 64  # series; more would not change the answer
# (opening, closing) in minutes of the wall clock. A last bar may be cut short by the closing.
_SESSIONS = {
    (570, 900): "Shanghai and Shenzhen",
    (570, 960): "New York and Hong Kong",
    (540, 900): "Tokyo until 2024",
    (540, 930): "Tokyo and Seoul",
    (555, 930): "Mumbai",
    (480, 990): "London",
    (540, 1050): "Frankfurt and Paris",
    (600, 960): "Sydney",
    (540, 810): "Taipei",
}


@dataclass(frozen=True)
class Guess:
    """stamp: "open" or "close". reason: why, for the user. sure: seen at session edges, rather than a convention."""

    stamp: str
    reason: str
    sure: bool = True


def period_of(times: np.ndarray) -> int:
    """The commonest distance between bars in ns (0 with fewer than two); times [n] int64 increasing."""
    if len(times) < 2:
        return 0
    steps, counts = np.unique(np.diff(times), return_counts=True)
    return int(steps[np.argmax(counts)])


def period_name(period: int) -> str:
    """ "5min", "4h", "1d", "1w", "1mo", "15s" of a distance in ns; "" for 0 and for what has no such name."""
    if 28 * _DAY <= period <= 31 * _DAY:
        return "1mo"
    for unit, name in ((7 * _DAY, "w"), (_DAY, "d"), (60 * _MINUTE, "h"), (_MINUTE, "min"), (10**9, "s")):
        if period and period % unit == 0:
            return f"{period // unit}{name}"
    return ""


def missing_bars(wall: np.ndarray) -> tuple[int, int]:
    """(bars missing, row after the first gap) of a market that never closes; (0, 0) of any other. wall [n] int64 ns, increasing.

    It never closes if there are bars on every day of the week. Of other markets it cannot be told which pauses are faults.
    """
    period = period_of(wall)
    if not period or period > _DAY or len(np.unique(wall // _DAY % 7)) < 7:
        return 0, 0
    steps = np.diff(wall)
    gaps = np.flatnonzero(steps > period)
    return (int((steps[gaps] // period - 1).sum()), int(gaps[0]) + 1) if len(gaps) else (0, 0)


def choose_stamp(wanted: str, walls: Sequence[np.ndarray]) -> Guess:
    """The setting if it is "open" or "close"; under "auto" what the session edges of the series say. walls: per series [n] int64 ns.

    Raises InputError for another setting, or if some series are surely stamped at their open and others at their close.
    """
    if wanted not in CHOICES:
        raise InputError(f"data.stamp: {wanted!r} is not one of {', '.join(CHOICES)}")
    if wanted != "auto":
        return Guess(wanted, "as data.stamp says")
    step = max(1, len(walls) // _LOOKED_AT)
    guesses = [_guess(np.asarray(wall)) for wall in walls[::step]]
    sure = [guess for guess in guesses if guess.sure]
    if {guess.stamp for guess in sure} == {"open", "close"}:
        first = next(guess for guess in sure if guess.stamp == "open")
        other = next(guess for guess in sure if guess.stamp == "close")
        raise InputError(
            f"data.stamp: some series look stamped at their open ({first.reason}) and some at their close ({other.reason}); "
            "train them apart, or set data.stamp: open or close"
        )
    return (sure or guesses)[0]


def _guess(wall: np.ndarray) -> Guess:
    period = period_of(wall)
    if period == 0 or period >= _DAY:
        return Guess("open", "daily or longer bars: the date they begin, by convention", sure=False)
    minutes = wall // _MINUTE
    if period >= _MINUTE and (wall // 10**9 % 60 == 59).mean() > 0.9:
        return Guess("close", "times end in :59")
    length = period // _MINUTE
    if length == 0:
        return Guess("open", "bars shorter than a minute: by convention; set data.stamp if they are stamped at their close", sure=False)
    slots = np.unique(minutes % 1440)
    if len(slots) * length >= 0.9 * 1440:
        return Guess("open", "bars around the clock, stamped at their open by convention", sure=False)
    day = minutes // 1440
    new_day = np.flatnonzero(np.diff(day)) + 1
    whole = len(new_day) > 0  # the first day may begin late and the last end early
    starts = minutes[new_day if whole else [0]] % 1440
    ends = minutes[new_day - 1 if whole else [-1]] % 1440
    return _by_session(_commonest(starts), _commonest(ends), length) or _by_grid(minutes, length)


def _commonest(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[np.argmax(counts)])


def _by_session(first: int, last: int, length: int) -> Guess | None:
    """From the first and last bar of a usual day, where they fit a known session in one way only."""
    edges = f"bars run {_clock(first)} to {_clock(last)}"
    fits = {}
    for (opening, closing), place in _SESSIONS.items():
        if first == opening and last < closing <= last + length:
            fits["open"] = f"{edges}, the session of {place} opens at {_clock(opening)}"
        if first - length == opening and last == closing:
            fits["close"] = f"{edges}, the session of {place} closes at {_clock(closing)}"
    return Guess(*fits.popitem()) if len(fits) == 1 else None


def _by_grid(minutes: np.ndarray, length: int) -> Guess:
    """Short bars: do stretches of bars begin on the half hour (open), or one bar after it (close)?"""
    gaps = np.flatnonzero(np.diff(minutes) > length)
    starts, ends = minutes[np.concatenate([[0], gaps + 1])], minutes[np.concatenate([gaps, [len(minutes) - 1]])]
    as_open = ((starts % _GRID == 0).mean() + ((ends + length) % _GRID == 0).mean()) / 2
    as_close = (((starts - length) % _GRID == 0).mean() + (ends % _GRID == 0).mean()) / 2
    for stamp, score, other in (("open", as_open, as_close), ("close", as_close, as_open)):
        if score >= 0.5 and score >= 1.5 * other:
            word = "begin on" if stamp == "open" else "begin one bar after"
            return Guess(stamp, f"sessions {word} the half hour (first bar {_clock(_commonest(starts % 1440))})")
    return Guess("open", "no session edge was recognised; set data.stamp: close if times name the end of a bar", sure=False)


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
