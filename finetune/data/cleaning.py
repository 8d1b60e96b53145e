"""From a table as read to bars that can be trusted: what is wrong is an error, or (`missing: drop | ffill`) is dropped and counted.

Nothing here looks ahead: a gap is filled from the bar before it or not at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.csv_bars import Table
from finetune.data.panel import KRONOS_NAMES
from finetune.data.problems import Problems, shown
from finetune.data.timestamps import EMPTY, FIX, Times, read_times
from kronos.errors import InputError

MISSING = ("error", "drop", "ffill")
_OPEN, _HIGH, _LOW, _CLOSE, _VOLUME, _AMOUNT = range(6)
_TOLERANCE = 1e-5  # relative: adjusted prices are rounded one by one, so a close may pass its high by the last digit
_TOO_LARGE = 1e38  # float32 ends here
_DROP_FIX = "correct it, or set data.missing: drop to leave such bars out"


@dataclass(frozen=True)
class Policy:
    """What to do with bars that cannot be used. missing: one of MISSING. max_ffill: a longer run of incomplete bars is not filled."""

    missing: str = "error"
    max_ffill: int = 5
    drop_suspended: bool = False

    def __post_init__(self) -> None:
        if self.missing not in MISSING:
            raise InputError(f"data.missing: {self.missing!r} is not one of {', '.join(MISSING)}")
        if self.max_ffill < 1:
            raise InputError(f"data.max_ffill: {self.max_ffill} must be at least 1; set data.missing: drop to fill nothing")


@dataclass
class CleanBars:
    """Usable bars of one source, sorted by series, then time.

    names [S]: the series; offsets [S + 1] int64; features [N, 6] float32; times, wall [N] int64 ns; breaks [G]: rows after an excluded gap.
    counts: what was done → series → number of bars. notes: the rest of what a user should hear.
    """

    names: list[str]
    offsets: np.ndarray
    features: np.ndarray
    times: np.ndarray
    wall: np.ndarray
    breaks: np.ndarray
    zone: str
    counts: Mapping[str, Counter[str]]
    notes: list[str]


@dataclass
class _Rows:
    """The working table: one row per bar, in order of series and time. position: where the row was in the source."""

    codes: np.ndarray  # [n] series number
    times: Times
    values: np.ndarray  # [n, 6] float64, NaN where missing
    position: np.ndarray
    lost: np.ndarray  # [n] bool: will not be kept
    names: list[str]
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def count(self, what: str, rows: np.ndarray) -> None:
        """Add rows [n] bool to the account of `what`."""
        numbers = np.bincount(self.codes[rows], minlength=len(self.names))
        self.counts[what].update({self.names[code]: int(numbers[code]) for code in np.flatnonzero(numbers)})

    def lose(self, what: str, rows: np.ndarray) -> None:
        rows = rows & ~self.lost
        if rows.any():
            self.count(f"dropped: {what}", rows)
            self.lost |= rows


def clean(table: Table, name: str, *, policy: Policy, timezone: str = "") -> CleanBars:
    """Check and clean one source; without a symbol column its one series is called `name`.

    Text that is not a number or a time, and duplicate times, are always an InputError; empty or infinite cells, prices <= 0, high < low,
    open or close outside them and negative volumes are one under `missing: error` and dropped otherwise (empty cells filled under `ffill`).
    All problems of the source come in one message.
    """
    problems, notes = table.problems, list(table.notes)
    names = table.chosen.names
    times = read_times(table.frame[names["timestamps"]], timezone=timezone)
    problems.extend(times.faults, names["timestamps"])
    values = _values(table, notes)
    codes, series = _series(table, name)
    rows = _sorted(codes, series, times, values, problems, notes)
    _no_duplicates(rows, table)
    _judge(rows, policy, names, problems)
    problems.raise_if_any()
    _complete(rows, policy)
    _suspended(rows, policy)
    if "amount" not in names:
        rows.values[:, _AMOUNT] = rows.values[:, _VOLUME] * rows.values[:, : _CLOSE + 1].mean(axis=1)
    return _kept(rows, times.zone, notes)


def _values(table: Table, notes: list[str]) -> np.ndarray:
    """[n, 6] float64 in the order of KRONOS_NAMES, NaN where missing; a volume or amount that is not there at all is zero for now."""
    values = np.zeros((len(table.frame), 6))
    names = table.chosen.names
    for place, key in enumerate(KRONOS_NAMES):
        if key in names:
            values[:, place] = _numbers(table.frame[names[key]], table.problems)
            if key in ("volume", "amount") and np.isnan(values[:, place]).all():
                del names[key]
                values[:, place] = 0
    absent = [key for key in ("volume", "amount") if key not in names]
    if absent:
        told = {"volume": "no volume, so it is 0", "amount": "no amount, so it is volume x mean of the four prices"}
        notes.append(f"{table.problems.source}: {'; '.join(told[key] for key in absent)}")
    return values


def _numbers(column: pd.Series, problems: Problems) -> np.ndarray:
    """float64 of one column; text that is not a number is a problem and counts as missing after that."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    text = pa.array([None if value is None else str(value) for value in column], type=pa.string())
    text = pc.utf8_trim_whitespace(text)
    empty = pc.or_kleene(pc.is_null(text), pc.is_in(pc.utf8_lower(text), value_set=pa.array(EMPTY)))
    known = pc.fill_null(pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?$|^[+-]?(?i:inf|infinity)$"), False)
    wrong = np.flatnonzero(pc.and_(pc.invert(empty), pc.invert(known)).to_numpy(zero_copy_only=False))
    if len(wrong):
        value = text[int(wrong[0])].as_py()
        fix = "write numbers as 1234.5, with a decimal point and without separators" if "," in value else "write a number or leave the cell empty"
        problems.add(wrong, f"{shown(value)} is not a number", fix, str(column.name))
    plain = pc.if_else(known, pc.replace_substring_regex(text, r"^\+", ""), None)
    return np.asarray(pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _series(table: Table, name: str) -> tuple[np.ndarray, list[str]]:
    """(series number [n], series names sorted). An empty symbol is a problem."""
    n, column = len(table.frame), table.chosen.symbol
    if not column:
        return np.zeros(n, np.int64), [name]
    symbols = table.frame[column]
    text = symbols.astype(str).str.strip()
    empty = symbols.isna().to_numpy() | (text == "").to_numpy(bool)
    table.problems.add(np.flatnonzero(empty), "the symbol is empty", "write the symbol of every bar", column)
    codes, found = pd.factorize(text.mask(empty, ""), sort=True)
    return codes.astype(np.int64), [str(symbol) for symbol in found]


def _sorted(
    codes: np.ndarray, series: list[str], times: Times, values: np.ndarray, problems: Problems, notes: list[str]
) -> _Rows:
    """Rows in order of series and time. A row without a time stays behind the row it follows in the source, so that it makes a gap there."""
    n = len(codes)
    known = ~times.missing
    known[[row for fault in times.faults for row in fault.rows]] = False
    by_series = np.argsort(codes, kind="stable")
    clock, grouped = times.times[by_series], codes[by_series]
    last_known = np.maximum.accumulate(np.where(known[by_series], np.arange(n), 0))
    same = grouped[last_known] == grouped
    clock = np.where(known[by_series], clock, np.where(same & known[by_series][last_known], clock[last_known], np.iinfo(np.int64).min))
    late = by_series[1:][(clock[1:] < clock[:-1]) & (grouped[1:] == grouped[:-1]) & known[by_series][1:]]
    if len(late):
        first = problems.lines[late.min()]
        notes.append(f"{problems.source}: {len(late):,} rows are earlier than the row before them (first: row {first}); sorted by time")
    order = by_series[np.lexsort((clock, grouped))] if len(late) else by_series
    kept = Times(times.times[order], times.wall[order], times.zone, ~known[order], ())
    return _Rows(codes[order], kept, values[order], order, np.zeros(n, bool), series)


def _no_duplicates(rows: _Rows, table: Table) -> None:
    known = np.flatnonzero(~rows.times.missing)
    times, codes = rows.times.times[known], rows.codes[known]
    second = np.flatnonzero((times[1:] == times[:-1]) & (codes[1:] == codes[:-1])) + 1
    if not len(second):
        return
    second = second[np.argsort(rows.position[known[second]], kind="stable")]
    row, before = known[second[0]], known[second[0] - 1]
    same = np.array_equal(rows.values[row], rows.values[before], equal_nan=True)
    time = np.datetime_as_string(np.datetime64(int(rows.times.wall[row]), "ns"), unit="s").replace("T", " ")
    whose = f" for {rows.names[rows.codes[row]]!r}" if table.chosen.symbol else ""
    what = f"{time} is there twice{whose}, first in row {table.problems.lines[rows.position[before]]} with {'the same' if same else 'other'} values"
    fix = "keep one bar per time" if table.chosen.symbol else "keep one bar per time (bars of several symbols need a symbol column)"
    table.problems.add(rows.position[known[second]], what, fix, table.chosen.names["timestamps"])


def _judge(rows: _Rows, policy: Policy, names: Mapping[str, str], problems: Problems) -> None:
    """Missing cells and impossible bars: a problem each under `error`, else lost (cells are looked at again by `_complete`)."""
    strict = policy.missing == "error"
    own = {place: names.get(key, key) for place, key in enumerate(KRONOS_NAMES)}
    if strict:
        gone = np.flatnonzero(rows.times.missing)
        positions = np.sort(rows.position[gone])
        faulty = {int(line) for line in positions}
        del faulty
        problems.add(positions, "the time is empty", FIX, names["timestamps"])
    rows.lose("time missing", rows.times.missing)
    for what, place, bad in _impossible(rows.values):
        if strict:
            _tell(rows, problems, bad, place, what, own[place], _DROP_FIX)
        else:
            rows.lose(what, bad)
    rows.values[~np.isfinite(rows.values)] = np.nan


def _tell(rows: _Rows, problems: Problems, bad: np.ndarray, place: int, what: str, column: str, fix: str) -> None:
    pass


def _impossible(values: np.ndarray) -> list[tuple[str, int, np.ndarray]]:
    return []
