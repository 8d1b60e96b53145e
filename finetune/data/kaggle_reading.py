"""The competition's train.csv as a stream of numbers: ticker numbers, days and values, a few hundred thousand rows at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.data.kaggle_csv import CsvFile, batches
from finetune.data.problems import shown
from finetune.data.timestamps import FIX, read_times
from kronos.errors import InputError

NUMBERS = ("Open", "High", "Low", "Close", "Volume")
WANTED = ("Ticker", "Date", *NUMBERS)
SPLITS = "Stock Splits"
# One bar as it is spilled. day: days since 1970 on the exchange's wall clock. split: new shares for one old, 0 or NaN without a split.
BAR = np.dtype([("code", "<i4"), ("day", "<i4"), ("values", "<f8", len(NUMBERS)), ("split", "<f8")])
_NO_DAY, _NO_CODE = np.iinfo(np.int32).min, -1
_DAY_NS = 86_400 * 10**9
_TEXT = pa.dictionary(pa.int32(), pa.string())


def take(bars: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """bars[rows] of an array of BAR; numpy copies records field by field unless it is told that they are only bytes."""
    return bars.view(f"V{BAR.itemsize}").take(rows).view(BAR)


@dataclass
class Dates:
    """Reads dates, each text once. A second way of writing them is an InputError: it may mean another day or another zone."""

    path: Path
    column: str = "Date"
    known: dict[str, int] = field(default_factory=dict)
    ways: dict[str, tuple[str, int]] = field(default_factory=dict)  # way of writing → its first text and that text's row

    def days(self, texts: list[str], row_of: Callable[[int], int]) -> np.ndarray:
        """[n] int32 days of the wall clock as written; the smallest int32 for an empty text. row_of: position → row of the file."""
        fresh = [place for place, text in enumerate(texts) if text not in self.known]
        if fresh:
            self._learn([texts[place] for place in fresh], lambda place: row_of(fresh[place]))
        return np.array([self.known[text] for text in texts], np.int32)

    def _learn(self, texts: list[str], row_of: Callable[[int], int]) -> None:
        times = read_times(pa.array(texts))
        for place, text in enumerate(texts):
            way = _way(text)
            if not times.missing[place] and way not in self.ways:
                self.ways[way] = (text, row_of(place))
        if len(self.ways) > 1:
            ways = sorted(self.ways.values(), key=lambda first: first[1])
            told = ", ".join(f"{shown(text)} (first in row {row:,})" for text, row in ways)
            raise InputError(f"{self.path}: dates are written in {len(ways)} ways: {told}; write all in one way")
        for fault in times.faults:
            row = row_of(int(fault.rows[0]))
            raise InputError(f"{self.path}, row {row:,}, column {self.column!r}: {fault.what}; {FIX}")
        days = np.where(times.missing, _NO_DAY, times.wall // _DAY_NS)
        self.known.update(zip(texts, days.tolist(), strict=True))


def _way(text: str) -> str:
    """How a date is written, whatever the date: 9-9-9 9:9:9-9:9 of 2001-01-02 00:00:00+02:00. The offset's sign does not matter."""
    digits = re.sub(r"\d+", "9", text.strip())
    return digits.replace("+", "-") if ":" in digits else digits


@dataclass
class BarReader:
    """Reads a train.csv once, in order.

    tickers: names in order of first appearance; the place is the number. rows: read so far. dropped: rows that name no bar, by reason.
    """

    file: CsvFile
    tickers: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._dates = Dates(self.file.path, self.file.columns["Date"])
        self._known: dict[str, int] = {}  # text of a ticker's cell → number
        self._source = pa.OSFile(str(self.file.path))

    @property
    def share(self) -> float:
        """How much of the file has been read, 0 to 1."""
        return min(1.0, self._source.tell() / max(1, self.file.size))

    @property
    def way_of_dates(self) -> str:
        """An example of how dates are written; "" before the first."""
        return next(iter(self._dates.ways.values()), ("", 0))[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Arrays of BAR, in the file's order, without rows that have no ticker or date. Raises InputError as `batches` does, or for a
        date that cannot be read, or dates written in several ways.
        """
        types = {"Ticker": _TEXT, "Date": _TEXT, **{name: pa.float64() for name in NUMBERS}}
        if SPLITS in self.file.columns:
            types[SPLITS] = pa.float64()
        for batch in batches(self.file, types, rows_from=self._source):
            yield self._bars(batch)
        if not self.rows:
            raise InputError(f"{self.file.path}: holds a header but no rows; give the whole file")

    def _bars(self, batch: pa.RecordBatch) -> np.ndarray:
        bars = np.empty(batch.num_rows, BAR)
        date = batch.column("Date")
        place = date.indices.to_numpy()

        def row_of(number: int) -> int:
            return self.rows + int(np.argmax(place == number)) + self.file.skip + 1

        bars["day"] = self._dates.days(date.dictionary.to_pylist(), row_of)[place]
        ticker = batch.column("Ticker")
        bars["code"] = self._codes(ticker.dictionary.to_pylist())[ticker.indices.to_numpy()]
        for number, name in enumerate(NUMBERS):
            bars["values"][:, number] = batch.column(name).to_numpy(zero_copy_only=False)
        bars["split"] = batch.column(SPLITS).to_numpy(zero_copy_only=False) if SPLITS in self.file.columns else 0.0
        self.rows += len(bars)
        for why, column, missing in (("ticker missing", "code", _NO_CODE), ("date missing", "day", _NO_DAY)):
            lost = bars[column] == missing
            if lost.any():
                self.dropped[why] += int(lost.sum())
                bars = bars[~lost]
        return bars

    def _codes(self, texts: list[str]) -> np.ndarray:
        known = self._known
        for text in texts:
            if text not in known:
                name = text.strip()
                known[text] = self.tickers.setdefault(name, len(self.tickers)) if name else _NO_CODE
        return np.array([known[text] for text in texts], np.int32)
