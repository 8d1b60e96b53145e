"""Bars made of finer ones, held against the bars that somebody else published for the same period."""

from __future__ import annotations

import numpy as np
import pandas as pd

from finetune.data.checks import CLOSE, HIGH, LOW, OPEN, VOLUME, moment
from finetune.data.frames import wall_clock
from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.data.resampling import Resampled
from finetune.data.resampling_grid import DAY, period_ns
from kronos.errors import InputError

VOLUME_TOLERANCE = 1e-6  # relative; prices must be equal
_COLUMNS = ("symbol", "time", "kind", "columns", "made", "given", "why")
_BOTH_WAYS = {True: "the given bar", False: "the bar made of finer ones"}


def compare(made: Resampled, given: Panel) -> pd.DataFrame:
    """Every bar on which made and given disagree, one row each, and why; `attrs["same"]` counts the bars that agree, per symbol.

    symbol, time (wall clock), kind ("differs", "only given", "only made"), columns (those that differ), made and given (their values as
    text), why. Open, high, low and close must be equal (float32), volume to 1e-6; amounts are not compared, because a file without them
    counts another mean price. Bars are matched by their edges, days by their date. Raises InputError if no symbol or period is common.
    """
    ours, theirs = ({info.symbol: number for number, info in enumerate(panel.series)} for panel in (made.panel, given))
    common = [symbol for symbol in ours if symbol in theirs]
    if not common:
        raise InputError(f"--check: has bars of {', '.join(list(theirs)[:5])}, and none of {', '.join(list(ours)[:5])}; give bars of these")
    rows: list[tuple] = []
    same = {}
    for symbol in common:
        period, other = made.panel.series[ours[symbol]].period, given.series[theirs[symbol]].period
        if other not in ("", period):
            raise InputError(f"--check: its bars of {symbol} are {other} long, those made {period}; give bars of {period}")
        found, same[symbol] = _compare_one(made, ours[symbol], given, theirs[symbol])
        rows += found
    result = pd.DataFrame(rows, columns=list(_COLUMNS))
    result.attrs["same"] = same
    return result


def _compare_one(made: Resampled, number: int, given: Panel, theirs: int) -> tuple[list[tuple], int]:
    panel, symbol = made.panel, made.panel.series[number].symbol
    mine = slice(int(panel.offsets[number]), int(panel.offsets[number + 1]))
    other = slice(int(given.offsets[theirs]), int(given.offsets[theirs + 1]))
    daily = period_ns(panel.series[number].period) >= DAY
    keys, given_keys = _keys(made, mine, given.stamp, daily), _dates(given, other) if daily else np.asarray(given.times[other])
    _, left, right = np.intersect1d(keys, given_keys, assume_unique=True, return_indices=True)
    values, given_values = panel.features[mine][left], given.features[other][right]
    differ = values != given_values
    largest = np.maximum(np.abs(values[:, VOLUME]), np.abs(given_values[:, VOLUME])).astype(np.float64)
    differ[:, VOLUME] = np.abs(values[:, VOLUME].astype(np.float64) - given_values[:, VOLUME]) > VOLUME_TOLERANCE * largest
    differ[:, VOLUME + 1 :] = False
    rows = []
    for at in np.flatnonzero(differ.any(axis=1)):
        names = [KRONOS_NAMES[place] for place in np.flatnonzero(differ[at])]
        texts = ["; ".join(f"{name} {bar[KRONOS_NAMES.index(name)]:.9g}" for name in names) for bar in (values[at], given_values[at])]
        row = mine.start + int(left[at])
        why = _why(values[at], given_values[at], differ[at], int(made.found[row]), int(made.expected[row]))
        rows.append((symbol, _time(panel, row), "differs", ", ".join(names), *texts, why))
    for at in np.setdiff1d(np.arange(len(given_keys)), right):
        rows.append(
            (
                symbol,
                _time(given, other.start + int(at)),
                "only given",
                "",
                "",
                "",
                _why_only_given(made, symbol, keys, given_keys[at], daily, given.stamp),
            )
        )
    for at in np.setdiff1d(np.arange(len(keys)), left):
        why = _place_of(keys[at], given_keys, "the given bars")
        rows.append((symbol, _time(panel, mine.start + int(at)), "only made", "", "", "", why))
    return sorted(rows, key=lambda row: row[1]), len(left) - int(differ.any(axis=1).sum())


def _keys(made: Resampled, mine: slice, stamp: str, daily: bool) -> np.ndarray:
    if daily:
        return _dates(made.panel, mine)
    return (made.opens if stamp == "open" else made.closes)[mine]


def _dates(panel: Panel, rows: slice) -> np.ndarray:
    """ns of the wall clock's midnight."""
    return wall_clock(panel, rows.start, rows.stop).as_unit("ns").to_numpy().astype(np.int64) // DAY * DAY


def _time(panel: Panel, row: int) -> str:
    return str(wall_clock(panel, row, row + 1)[0])


def _why(made: np.ndarray, given: np.ndarray, differ: np.ndarray, found: int, expected: int) -> str:
    if found < expected:
        return f"{expected - found} of {expected} finer bars are missing"
    share = min(made[VOLUME], given[VOLUME]) / max(made[VOLUME], given[VOLUME], 1e-30)
    less = bool(given[VOLUME] < made[VOLUME])
    if not differ[: CLOSE + 1].any():
        return f"prices agree, but {_BOTH_WAYS[less]} counts less volume ({share:.4%} of the other's): trades that one of the sources lacks"
    inner, outer = (given, made) if less else (made, given)
    within = inner[HIGH] <= outer[HIGH] and inner[LOW] >= outer[LOW]
    if not differ[OPEN] and within and share < 1 - VOLUME_TOLERANCE:
        return f"{_BOTH_WAYS[less]} looks stored before it ended: same open, inside the other's range, {share:.2%} of its volume"
    return "the sources disagree on prices"


def _why_only_given(made: Resampled, symbol: str, keys: np.ndarray, key: int, daily: bool, stamp: str) -> str:
    for bar in made.left:
        if bar.symbol == symbol and key == (bar.wall // DAY * DAY if daily else bar.open if stamp == "open" else bar.close):
            edge = "begin after it opens" if bar.which == "first" else "end before it closes"
            return f"left out as incomplete: the finer bars {edge} ({bar.found} of {bar.expected} there)"
    return _place_of(key, keys, "the finer bars")


def _place_of(key: int, keys: np.ndarray, whose: str) -> str:
    """Where a bar lies that is not among `keys`."""
    if key < keys[0]:
        return f"before {whose} begin ({moment(keys[0])})"
    return f"after {whose} end" if key > keys[-1] else f"missing in {whose}"
