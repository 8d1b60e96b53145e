"""The competition's test.csv: which ticker and which day each ID asks about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from finetune.data.kaggle_csv import CsvFile, batches, open_csv
from finetune.data.kaggle_reading import Dates
from finetune.data.problems import shown
from finetune.data.timestamps import EMPTY
from kronos.errors import InputError
from kronos.files import atomic_path

_WITH_DATE = re.compile(r"(?P<ticker>.+)_(?P<date>\d{4}-?\d{2}-?\d{2}.*)")
_WITH_NUMBER = re.compile(r"(?P<ticker>.+)_\d+")
_NO_DAY = np.iinfo(np.int32).min


@dataclass
class TestRows:
    """The rows of a test.csv in its order: ids (text as written), symbols, days [n] int32 since 1970 on the wall clock."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    ids: list[str]
    symbols: list[str]
    days: np.ndarray

    def facts(self, found: Collection[str], kept: Collection[str]) -> dict[str, Any]:
        """Counts for the report. found: tickers of train.csv; kept: those that are in the panel."""
        numbers = Counter(self.symbols)
        unknown = {name: count for name, count in numbers.items() if name not in found}
        short = {name: count for name, count in numbers.items() if name in found and name not in kept}
        first, last = (str(np.datetime64(int(day), "D")) for day in (self.days.min(), self.days.max()))
        return {
            "rows": len(self.ids),
            "tickers": len(numbers),
            "first date": first,
            "last date": last,
            "rows of tickers not in train.csv": sum(unknown.values()),
            "tickers not in train.csv": sorted(unknown),
            "rows of tickers left out of the panel": sum(short.values()),
            "tickers left out of the panel": sorted(short),
        }

    def save(self, path: Path) -> None:
        """Parquet with ID (text), symbol (text) and date (timestamp, wall clock), one row per row of test.csv."""
        date = pa.array(self.days.astype("datetime64[D]").astype("datetime64[ns]"))
        with atomic_path(path) as temporary:
            pa.parquet.write_table(pa.table({"ID": pa.array(self.ids), "symbol": pa.array(self.symbols), "date": date}), temporary)


def load_test_rows(path: Path) -> TestRows:
    """What `TestRows.save` wrote. Raises InputError if it is damaged or something else."""
    try:
        table = pa.parquet.read_table(path, columns=["ID", "symbol", "date"])
        days = table["date"].to_numpy().astype("datetime64[D]").astype(np.int32)
        return TestRows(table["ID"].to_pylist(), table["symbol"].to_pylist(), days)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it again with finetune_csv/kaggle_data_preprocess.py") from error


@dataclass
class TestFile:
    """A test.csv as read: texts of its ID and Date columns. No date column, and every ID must end in its date."""

    __test__ = False

    file: CsvFile
    ids: list[str]
    dates: list[str]

    def rows(self, tickers: Collection[str]) -> TestRows:
        """Tell ticker and date of every ID. An ID is a ticker, or a ticker, an underscore and a date or a number; the Date column wins.

        Raises InputError, naming the row, where there is no date, or dates are written in several ways.
        """
        symbols, from_id = [], []
        for text in self.ids:
            name, date = _parted(text.strip(), tickers)
            symbols.append(name)
            from_id.append(date)
        texts = self.dates or from_id
        column = self.file.columns["Date"] if self.dates else self.file.columns["ID"]
        first = self.file.skip + 1
        empty = next((place for place, text in enumerate(texts) if text.strip().lower() in EMPTY), None)
        if empty is not None:
            what = "the date is empty" if self.dates else f"there is no Date column, and {shown(self.ids[empty])} does not end in a date"
            raise InputError(f"{self.file.path}, row {empty + first:,}, column {column!r}: {what}; write the date each row asks about")
        days = Dates(self.file.path, column=column).days(texts, lambda place: place + first)
        assert (days > _NO_DAY).all()
        return TestRows(self.ids, symbols, days)


def read_test_file(path: Path, *, skip_truncated: bool = False) -> TestFile:
    """Read a test.csv. Raises as `open_csv` and `batches` do."""
    file = open_csv(path, ("ID",), ("Date",), skip_truncated=skip_truncated)
    ids: list[str] = []
    dates: list[str] = []
    for batch in batches(file, dict.fromkeys(file.columns, pa.string())):
        ids += batch.column("ID").to_pylist()
        dates += batch.column("Date").to_pylist() if "Date" in file.columns else []
    empty = next((place for place, text in enumerate(ids) if not text.strip()), None)
    if empty is not None:
        raise InputError(f"{path}, row {empty + file.skip + 1:,}, column {file.columns['ID']!r}: the ID is empty; write it")
    twice = next((text for text, count in Counter(zip(ids, dates or ids, strict=True)).items() if count > 1), None)
    if twice:
        raise InputError(f"{path}: ID {shown(twice[0])} is there more than once for the same date; keep one row")
    return TestFile(file, ids, dates)


def _parted(text: str, tickers: Collection[str]) -> tuple[str, str]:
    """(ticker, date or "") of an ID. A name that train.csv has is never taken apart."""
    if text in tickers:
        return text, ""
    if dated := _WITH_DATE.fullmatch(text):
        return dated["ticker"], dated["date"]
    if numbered := _WITH_NUMBER.fullmatch(text):
        return (numbered["ticker"], "") if numbered["ticker"] in tickers else (text, "")
    return text, ""
