"""From a table as read to numbers, times and series, and everything that can be wrong with them row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.clocks import join_clock, text_of
from finetune.data.csv_bars import Table
from finetune.data.panel import KRONOS_NAMES
from finetune.data.problems import Problems, shown
from finetune.data.timestamps import EMPTY, FIX, Times, read_times

OPEN, HIGH, LOW, CLOSE, VOLUME, AMOUNT = range(6)
_TOLERANCE = 1e-5  # relative: adjusted prices are rounded one by one, so a close may pass its high by the last digit
_SMALLEST, _LARGEST = 1e-37, 1e38  # a price below is 0 in float32, a value above infinite
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?$|^[+-]?(?i:inf|infinity)$"

_THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$"


@dataclass
class Bars:
    """The bars of one source, in its order. codes [n]: number of the series in `names`; values [n, 6] float64, NaN where missing.

    unread [n, 6] bool: cells that hold text. given: which of KRONOS_NAMES the source has. columns: canonical name → the source's name.
    """

    codes: np.ndarray
    names: list[str]
    times: Times
    values: np.ndarray
    unread: np.ndarray
    given: frozenset[str]
    columns: dict[str, str]
    problems: Problems
    notes: list[str]


@dataclass(frozen=True)
class Finding:
    """A kind of impossible value: rows [n] bool, in which column (number), and what to say about the first row."""

    kind: str
    rows: np.ndarray
    place: int
    what: str


def bars_of_table(table: Table, name: str, *, timezone: str = "") -> Bars:
    """Read every cell; what cannot be read, and times that are there twice, is noted in `problems`. One series `name` without a symbol."""
    names, problems, n = table.chosen.names, table.problems, len(table.frame)
    moments = table.frame[names["timestamps"]]
    if clock := table.chosen.clock:
        moments = join_clock(moments, table.frame[clock], problems.source)
        names = {**names, "timestamps": f"{names['timestamps']} {clock}"}
    times = read_times(moments, timezone=timezone)
    problems.extend(times.faults, names["timestamps"])
    values, unread = np.zeros((n, 6)), np.zeros((n, 6), bool)
    given, notes = set(), list(table.notes)
    for place, key in enumerate(KRONOS_NAMES):
        if key in names:
            numbers, unread[:, place] = _numbers(table.frame[names[key]], problems, notes, price=place <= CLOSE)
            if key in KRONOS_NAMES[:4] or not np.isnan(numbers).all() or unread[:, place].any():
                values[:, place] = numbers
                given.add(key)
    if "amount" not in given:
        values[:, AMOUNT] = usual_amount(values)
    notes += _absent(given, table)
    codes, series = _series(table, name)
    bars = Bars(codes, series, times, values, unread, frozenset(given), names, problems, notes)
    _note_duplicates(bars, bool(table.chosen.symbol))
    return bars


def usual_amount(values: np.ndarray) -> np.ndarray:
    """[n] volume x mean of the four prices, of values [n, 6]: what an amount is where none is given."""
    opens, highs, lows, closes, volumes = values[:, : VOLUME + 1].T
    with np.errstate(invalid="ignore", over="ignore"):  # 0 x infinity: the price is told, not its product
        return volumes * ((opens + highs + lows + closes) / 4)


def _absent(given: set[str], table: Table) -> list[str]:
    """What is said of a volume or an amount that is not there, with columns that might be it under another name."""
    told = {"volume": "no volume: set to 0", "amount": "no amount: set to volume x mean of the four prices"}
    like = {"volume": ("vol", "成交量"), "amount": ("amount", "成交额")}
    absent = []
    for key, text in told.items():
        if key not in given:
            others = table.chosen.others if key not in table.chosen.names else ()
            near = [name for name in others if any(word in name.lower() for word in like[key])]
            absent.append(f"{text} (is it {' or '.join(map(shown, near))}? then set data.columns.{key})" if near else text)
    return [f"{table.problems.source}: {'; '.join(absent)}"] if absent else []


def _numbers(column: pd.Series, problems: Problems, notes: list[str], *, price: bool) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n], cells that hold something else [n] bool) of one column."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan), np.zeros(len(column), bool)
    text = pa.array([None if value is None else str(value) for value in column], type=pa.string())
    text = pc.utf8_trim_whitespace(text)
    empty = pc.or_(pc.is_null(text), pc.is_in(pc.utf8_lower(text), value_set=pa.array(EMPTY)))
    if _grouped(commas := text.filter(pc.fill_null(pc.match_substring(text, ","), False)), price):
        example = commas[0].as_py()
        notes.append(f"{problems.source}: column {column.name!r}: {shown(example)} is read as {example.replace(',', '')}")
        text = pc.replace_substring(text, ",", "")
    known = pc.fill_null(pc.match_substring_regex(text, _NUMBER), False)
    wrong = pc.invert(pc.or_(empty, known)).to_numpy(zero_copy_only=False)
    if wrong.any():
        value = text[int(np.argmax(wrong))].as_py()
        comma = "write 1234.5, with a decimal point and without separators"
        fix = comma if "," in value else "write a number, or leave the cell empty if it is unknown"
        problems.add(np.flatnonzero(wrong), f"{shown(value)} is not a number", fix, str(column.name))
    plain = pc.if_else(known, pc.replace_substring_regex(text, r"^\+", ""), None)
    return np.asarray(pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64), wrong


def _grouped(cells: pa.Array, price: bool) -> bool:
    """Whether the commas of a column separate thousands in all its `cells` that have one. A price 10,123 alone may be ten and a bit."""
    if not len(cells) or not pc.all(pc.match_substring_regex(cells, _THOUSANDS)).as_py():
        return False
    return not price or pc.any(pc.match_substring_regex(cells, r",.*[,.]")).as_py()


def _series(table: Table, name: str) -> tuple[np.ndarray, list[str]]:
    """(series number [n], series names, sorted)."""
    column = table.chosen.symbol
    if not column:
        return np.zeros(len(table.frame), np.int64), [name]
    symbols = table.frame[column]
    text = text_of(symbols)
    empty = (text == "").to_numpy(bool)
    table.problems.add(np.flatnonzero(empty), "the symbol is empty", "write the symbol of every bar", column)
    codes, found = pd.factorize(text, sort=True)
    for code in [code for code, symbol in enumerate(found) if not str(symbol).isprintable()]:
        what = f"the symbol {shown(str(found[code]))} holds characters that cannot be shown"
        table.problems.add(np.flatnonzero(codes == code), what, "rename it", column)
    return codes.astype(np.int64), [str(symbol) for symbol in found]


def _note_duplicates(bars: Bars, many: bool) -> None:
    """`many`: the source has a symbol column."""
    known = ~bars.times.missing
    for fault in bars.times.faults:
        known[fault.rows] = False
    rows = np.flatnonzero(known)
    order = rows[np.lexsort((rows, bars.times.times[rows], bars.codes[rows]))]
    times, codes = bars.times.times[order], bars.codes[order]
    again = np.flatnonzero((times[1:] == times[:-1]) & (codes[1:] == codes[:-1])) + 1
    if not len(again):
        return
    first = again[np.argmin(order[again])]
    row, before = order[first], order[first - 1]
    same = np.array_equal(bars.values[row], bars.values[before], equal_nan=True)
    whose = f" for {bars.names[bars.codes[row]]!r}" if many else ""
    twin = f"first in row {bars.problems.lines[before]}, with {'the same' if same else 'other'} values"
    fix = "keep one bar per time" if many else "keep one bar per time, or add a symbol column if these are several symbols"
    what = f"{moment(bars.times.wall[row])} is there twice{whose}, {twin}"
    bars.problems.add(np.sort(order[again]), what, fix, bars.columns["timestamps"])


def moment(wall: int) -> str:
    """A wall-clock time in ns, as text."""
    return str(np.datetime_as_string(np.datetime64(int(wall), "ns"), unit="s")).replace("T", " ")


def note_missing(bars: Bars) -> None:
    """Note every empty time and every cell that is empty or infinite."""
    bars.problems.add(np.flatnonzero(bars.times.missing), "the time is empty", FIX, bars.columns["timestamps"])
    for place, key in enumerate(KRONOS_NAMES):
        rows = np.flatnonzero(~np.isfinite(bars.values[:, place]) & ~bars.unread[:, place])
        if key in bars.given and len(rows):
            value = bars.values[rows[0], place]
            what = "the cell is empty (NaN)" if np.isnan(value) else f"{value} is not a finite number"
            bars.problems.add(rows, what, "fill it, or set data.missing: drop or ffill", bars.columns[key])


def note_impossible(bars: Bars) -> None:
    """Note every value that no bar can have."""
    for found in impossible(bars.values):
        column = bars.columns.get(KRONOS_NAMES[found.place], "amount")
        bars.problems.add(np.flatnonzero(found.rows), found.what, "correct it, or set data.missing: drop to leave such bars out", column)


def impossible(values: np.ndarray) -> Iterator[Finding]:
    """Values [n, 6] that no bar can have, NaN and infinity apart: prices <= 0, negative volumes, high < low, open or close outside them."""
    finite = np.where(np.isfinite(values), values, np.nan)

    def found(kind: str, rows: np.ndarray, place: int, what: str) -> Iterator[Finding]:
        if rows.any():
            bar = dict(zip(KRONOS_NAMES, map(float, finite[np.argmax(rows)]), strict=True))
            yield Finding(kind, rows, place, what.format(value=bar[KRONOS_NAMES[place]], **bar))

    for place in range(6):
        column = finite[:, place]
        if place <= CLOSE:
            yield from found("price <= 0", column <= 0, place, "price {value} is not above 0")
        else:
            yield from found("negative volume or amount", column < 0, place, "{value} is negative")
        beyond = (np.abs(column) > _LARGEST) | ((place <= CLOSE) & (column > 0) & (column < _SMALLEST))
        yield from found("beyond float32", beyond, place, "{value} is beyond what float32 holds")
    prices = finite[:, : CLOSE + 1]
    prices = np.where((prices >= _SMALLEST) & (prices <= _LARGEST), prices, np.nan)  # the others have been told already
    high, low = prices[:, HIGH], prices[:, LOW]
    slack = _TOLERANCE * np.abs(high)
    yield from found("high < low", high < low - slack, HIGH, "high {high} is below low {low}")
    for place in (OPEN, CLOSE):
        outside = (high >= low) & ((prices[:, place] > high + slack) | (prices[:, place] < low - slack))
        what = KRONOS_NAMES[place] + " {value} is outside low {low} to high {high}"
        yield from found("open or close outside low to high", outside, place, what)
