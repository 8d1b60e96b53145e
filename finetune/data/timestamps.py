"""Reading times as people write them: text with or without a zone, dates, compact digits, epoch numbers. Vectorised throughout.

Two clocks come out of it: UTC, which orders the bars, and the exchange's wall clock, from which stamp features are taken.
"""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.problems import Fault, Problems, shown
from kronos.errors import InputError

EMPTY = ("", "nan", "nat", "na", "n/a", "null", "none", "<na>", "#n/a", "-", "--", "---", "—", "——")  # "unknown", in lower case
FIX = "write times as 2019-11-26 09:35:00 (a zone such as +08:00 may follow), as a date, or as epoch s, ms, us or ns"
_SECOND, _MINUTE, _DAY = 10**9, 60 * 10**9, 86_400 * 10**9
_FIRST_YEAR, _LAST_YEAR = 1900, 2199
_START_S, _END_S = -2_208_988_800, 7_258_118_400  # 1900-01-01 and 2200-01-01 as epoch seconds
_TEXT = (
    r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})"
    r"(?:[T ]\s*(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"\s*(?P<zone>[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?$"
)
_COMPACT = r"^(\d{4})(\d{2})(\d{2})[T ](\d{1,2}):?(\d{2})(?::?(\d{2}))?"  # 20191126 093500, 20191126T0935, 20191126 09:35
_CHINESE = r"^(\d{4})年(\d{1,2})月(\d{1,2})日\s*"
_DIGITS = r"^(?P<whole>\d{1,18}|[1-8]\d{18})(?:\.(?P<fraction>\d*))?$"
# Digits are told apart by size, and the ranges do not overlap: an epoch in [1973-03-03, 2200) per unit, or a date of 1900 to 2199.
_EPOCHS = ((10**8, 1), (10**11, 10**3), (10**14, 10**6), (10**17, 10**9))  # (smallest, ticks per second)
_DATES = (1, 10**4, 10**6, 10**9)  # divisors that leave YYYYMMDD: 20191126, 201911260935, 20191126093500, 20191126093500000


@dataclass(frozen=True)
class Times:
    """times [n] int64: ns UTC. wall [n] int64: ns of the exchange's wall clock. zone: IANA name, "UTC", "+08:00" or "-05:00/-04:00".

    missing [n] bool: the cell is empty. faults: cells that could not be read. Both clocks are 0 where missing or at fault.
    assumed: no zone was written and none was given, so UTC was assumed.
    """

    times: np.ndarray
    wall: np.ndarray
    zone: str
    missing: np.ndarray
    faults: tuple[Fault, ...]
    assumed: bool


@dataclass
class _Cells:
    """What the cells say, before any zone rule. written [n]: ns as written; offset [n]: ns east of UTC; aware [n]: it fixes an instant."""

    written: np.ndarray
    offset: np.ndarray
    aware: np.ndarray
    missing: np.ndarray
    good: np.ndarray
    zone: str = ""  # label of an aware column whose zone has a name

    @classmethod
    def empty(cls, n: int) -> _Cells:
        return cls(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool))


def parse_times(values: Any, *, timezone: str = "", source: str = "timestamps", lines: Sequence[int] | None = None) -> Times:
    """`read_times`, but empty or unreadable cells raise one InputError naming `source`, the row (`lines`, else from 1), value and fix."""
    result = read_times(values, timezone=timezone)
    problems = Problems(source, np.arange(1, len(result.times) + 1) if lines is None else np.asarray(lines))
    problems.add(np.flatnonzero(result.missing), "the time is empty", FIX)
    problems.extend(result.faults)
    problems.raise_if_any()
    return result


def read_times(values: Any, *, timezone: str = "") -> Times:
    """Read a column of times: text, integers, floats, dates or datetimes (pandas, numpy or Arrow), row by row in any of the known layouts.

    Naive times are wall clock of `timezone` (IANA; default UTC). Times with a zone keep their wall clock as written, or are moved to the
    wall clock of `timezone` if it is given; so are epoch numbers (default UTC). A naive time that its zone's clock change makes ambiguous
    or skips is a fault: it is not guessed. Raises InputError for an unknown `timezone`; everything else is returned as `faults`.
    """
    zone = _zone(timezone)
    array = _as_arrow(values)
    if pa.types.is_timestamp(array.type):
        cells = _from_datetimes(array)
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        cells = _from_numbers(array)
    else:
        cells = _from_text(array)
    return _place(cells, zone, array)


def stamp_features(wall: np.ndarray) -> np.ndarray:
    """[n, 5] uint8 from wall-clock ns [n] int64 (or datetime64): minute, hour, weekday (Monday 0), day, month."""
    if wall.dtype.kind == "M":
        wall = wall.astype("datetime64[ns]").astype(np.int64)
    minutes = wall // _MINUTE
    days = wall // _DAY
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    stamps = np.empty((len(wall), 5), np.uint8)
    stamps[:, 0] = minutes % 60
    stamps[:, 1] = minutes // 60 % 24
    stamps[:, 2] = (days + 3) % 7  # 1970-01-01 was a Thursday
    stamps[:, 3] = (dates - months).astype(np.int64) + 1
    stamps[:, 4] = months.astype(np.int64) % 12 + 1
    return stamps


def _zone(name: str) -> zoneinfo.ZoneInfo | None:
    if not name:
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = difflib.get_close_matches(name, zoneinfo.available_timezones(), 3, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; write it as Asia/Shanghai or America/New_York"
        raise InputError(f"data.timezone: {name!r} is not an IANA time zone{hint}") from error


def _as_arrow(values: Any) -> pa.Array:
    """One Arrow array of timestamps, integers, floats or strings."""
    if isinstance(values, pd.Index):
        values = values.to_series()
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if pa.types.is_date(array.type):
            array = pc.cast(array, pa.timestamp("s"))
        known = (pa.types.is_timestamp, pa.types.is_integer, pa.types.is_floating)
        return array if any(test(array.type) for test in known) else pc.cast(array, pa.string())
    except (pa.ArrowException, OverflowError):  # objects of several kinds, or one Arrow has no text for: read them as Python prints them
        return pa.array([None if value is None or value is pd.NaT else str(value) for value in list(values)], type=pa.string())


def _from_datetimes(array: pa.Array) -> _Cells:
    cells = _Cells.empty(len(array))
    cells.missing = array.is_null().to_numpy(zero_copy_only=False)
    unit = {"s": _SECOND, "ms": 10**6, "us": 10**3, "ns": 1}[array.type.unit]
    ticks = pc.fill_null(pc.cast(array, pa.int64()), 0).to_numpy(zero_copy_only=False)
    cells.good = (ticks >= _START_S * (_SECOND // unit)) & (ticks < _END_S * (_SECOND // unit)) & ~cells.missing
    cells.written = np.where(cells.good, ticks, 0) * unit
    if array.type.tz is not None:
        instants = pd.DatetimeIndex(cells.written, tz="UTC")
        cells.offset = _ns(instants.tz_convert(array.type.tz).tz_localize(None)) - cells.written
        cells.written = cells.written + cells.offset
        cells.aware = cells.good.copy()
        cells.zone = array.type.tz
    return cells


def _from_numbers(array: pa.Array) -> _Cells:
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(array.type):
        numbers = pc.cast(pc.fill_null(array, 0.0), pa.float64()).to_numpy(zero_copy_only=False)
        missing = missing | np.isnan(numbers)
        numbers = np.where(np.isfinite(numbers) & (np.abs(numbers) < 9e18), numbers, 0.0)
        whole = np.floor(numbers).astype(np.int64)
        fraction = np.round(numbers - whole, 6)  # a float64 of epoch seconds holds microseconds, no more
    else:
        whole = pc.cast(pc.fill_null(array, 0), pa.int64(), safe=False).to_numpy(zero_copy_only=False)
        fraction = np.zeros(len(whole))
    cells = _from_digits(whole, fraction)
    cells.missing = missing
    cells.good &= ~missing
    return cells


def _from_digits(whole: np.ndarray, fraction: np.ndarray) -> _Cells:
    """Epoch numbers and compact dates, told apart by size alone (see _EPOCHS and _DATES)."""
    cells = _Cells.empty(len(whole))
    for smallest, per_second in _EPOCHS:
        here = (whole >= smallest) & (whole < _END_S * per_second)
        tick = _SECOND // per_second
        cells.written[here] = whole[here] * tick + np.round(fraction[here] * tick).astype(np.int64)
        cells.good |= here
        cells.aware |= here
    for divisor in _DATES:
        date = whole // divisor
        here = (date >= _FIRST_YEAR * 10**4) & (date < (_LAST_YEAR + 1) * 10**4) & (fraction == 0)
        clock = whole % divisor * 10**6 // divisor  # HHMMSS
        parts = (date // 10**4, date // 100 % 100, date % 100, clock // 10**4, clock // 100 % 100, clock % 100)
        written, good = _from_parts(*(part[here] for part in parts))
        cells.written[here], cells.good[here], cells.aware[here] = written, good, False
        if divisor == 10**9:  # the last three digits are milliseconds
            cells.written[here] += whole[here] % 1000 * 10**6
    return cells


def _from_text(array: pa.Array) -> _Cells:
    text = pc.utf8_trim_whitespace(array)
    cells = _Cells.empty(len(text))
    empty = pc.or_(pc.is_null(text), pc.is_in(pc.utf8_lower(text), value_set=pa.array(EMPTY)))
    cells.missing = empty.to_numpy(zero_copy_only=False)
    fields = pc.extract_regex(text, _TEXT)
    known = fields.is_valid().to_numpy(zero_copy_only=False)
    if known.all():
        _fill_calendar(cells, fields, np.arange(len(text)))
        return cells
    _fill_calendar(cells, fields.filter(pa.array(known)), np.flatnonzero(known))
    rest = np.flatnonzero(~known & ~cells.missing)
    text = pc.replace_substring_regex(text.take(pa.array(rest)), _COMPACT, r"\1-\2-\3 \4:\5:\6")
    text = pc.replace_substring_regex(text, _CHINESE, r"\1-\2-\3 ")
    text = pc.replace_substring_regex(text, r":($|[^\d])", r"\1")  # there were no seconds
    fields = pc.extract_regex(text, _TEXT)
    known = fields.is_valid().to_numpy(zero_copy_only=False)
    _fill_calendar(cells, fields.filter(pa.array(known)), rest[known])
    _fill_digits(cells, text.filter(pa.array(~known)), rest[~known])
    return cells


def _fill_calendar(cells: _Cells, fields: pa.StructArray, rows: np.ndarray) -> None:
    """Put matches of _TEXT into `cells` at `rows`."""
    parts = [_number(fields, name) for name in ("year", "month", "day", "hour", "minute", "second")]
    written, good = _from_parts(*parts)
    fraction = pc.struct_field(fields, "fraction")
    if pc.any(pc.not_equal(fraction, "")).as_py():
        written = written + _to_int(pc.utf8_rpad(fraction, 9, "0"))
    zone = pc.struct_field(fields, "zone")
    aware = pc.not_equal(zone, "").to_numpy(zero_copy_only=False)
    cells.aware[rows] = aware
    if aware.any():
        offset, legal = _offsets(zone)
        cells.offset[rows] = offset
        good = good & legal
    cells.written[rows], cells.good[rows] = np.where(good, written, 0), good


def _offsets(zone: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """ns east of UTC for each "Z", "+08", "-0500" or "" and whether it is a possible one (there are few different ones)."""
    encoded = zone.dictionary_encode()
    offsets, legal = [], []
    for name in encoded.dictionary.to_pylist():
        digits = name[1:].replace(":", "") if name[:1] in ("+", "-") else "0"
        hours, minutes = int(digits[:2]), int(digits[2:] or 0)
        east = (-1 if name[:1] == "-" else 1) * (hours * 60 + minutes)
        offsets.append(east * _MINUTE)
        legal.append(-12 * 60 <= east <= 14 * 60 and minutes < 60)  # no clock on earth stands further from UTC
    codes = encoded.indices.to_numpy()
    return np.array(offsets, np.int64)[codes], np.array(legal, bool)[codes]


def _fill_digits(cells: _Cells, text: pa.Array, rows: np.ndarray) -> None:
    fields = pc.extract_regex(text, _DIGITS)
    known = fields.is_valid().to_numpy(zero_copy_only=False)
    if not known.any():
        return
    fields = fields.filter(pa.array(known))
    fraction = pc.binary_join_element_wise("0.", pc.struct_field(fields, "fraction"), "0", "")
    found = _from_digits(_number(fields, "whole"), pc.cast(fraction, pa.float64()).to_numpy(zero_copy_only=False))
    rows = rows[known]
    cells.written[rows], cells.good[rows], cells.aware[rows] = found.written, found.good, found.aware


def _number(fields: pa.StructArray, name: str) -> np.ndarray:
    text = pc.struct_field(fields, name)
    return _to_int(pc.if_else(pc.equal(text, ""), "0", text))


def _to_int(text: pa.Array) -> np.ndarray:
    return pc.cast(text, pa.int64()).to_numpy(zero_copy_only=False)


def _from_parts(
    year: np.ndarray, month: np.ndarray, day: np.ndarray, hour: np.ndarray, minute: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(ns, whether there is such a moment) of calendar fields, each [n] int64."""
    good = (year >= _FIRST_YEAR) & (year <= _LAST_YEAR) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    good &= (hour < 24) & (minute < 60) & (second < 60)
    months = (np.where(good, year, 1970) - 1970) * 12 + np.where(good, month, 1) - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + np.where(good, day, 1) - 1
    good &= days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) == months  # 31 April would have run into May
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * _SECOND, good


def _place(cells: _Cells, zone: zoneinfo.ZoneInfo | None, array: pa.Array) -> Times:
    """Give every cell its UTC time and its wall clock, by the rules of `read_times`."""
    faults = []
    unread = np.flatnonzero(~cells.good & ~cells.missing)
    if len(unread):
        faults.append(Fault(unread, f"{_shown(array, unread)} is not a time", FIX))
    aware, naive = cells.good & cells.aware, cells.good & ~cells.aware
    if aware.any() and naive.any():
        few, word = (naive, "no") if naive.sum() <= aware.sum() else (aware, "a")
        rows = np.flatnonzero(few)
        faults.append(Fault(rows, f"{_shown(array, rows)} has {word} zone, unlike most rows", "write all with a zone or all without"))
    times = np.where(cells.good, cells.written - cells.offset, 0)
    wall, label = np.where(cells.good, cells.written, 0), _label(cells, aware)
    if zone is not None:
        label = zone.key
        if naive.any():
            local = pd.DatetimeIndex(wall[naive]).tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
            lost = np.flatnonzero(naive)[local.isna()]
            if len(lost):
                what = f"{_shown(array, lost)} falls into a clock change of {zone.key}: that hour is skipped or comes twice"
                faults.append(Fault(lost, what, "write times with their offset (such as -05:00), or in UTC with data.timezone empty"))
            times[naive] = np.where(local.isna(), 0, _ns(local.tz_convert("UTC").tz_localize(None)))
        if aware.any():
            wall[aware] = _ns(pd.DatetimeIndex(times[aware], tz="UTC").tz_convert(zone).tz_localize(None))
    return Times(times, wall, label, cells.missing, tuple(faults), zone is None and bool(naive.any()))


def _ns(index: pd.DatetimeIndex) -> np.ndarray:
    return index.as_unit("ns").to_numpy().astype(np.int64)


def _label(cells: _Cells, aware: np.ndarray) -> str:
    """Name of the wall clock when `timezone` is not given."""
    if cells.zone or not aware.any():
        return cells.zone or "UTC"
    names = []
    for offset in np.unique(cells.offset[aware] // _MINUTE):
        sign = "-" if offset < 0 else "+"
        names.append(f"{sign}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}" if offset else "UTC")
    return "/".join(names)


def _shown(array: pa.Array, rows: np.ndarray) -> str:
    value = array[int(rows[0])]
    return shown(value.as_py() if pa.types.is_string(array.type) or pa.types.is_integer(array.type) else str(value))
