"""Reading one CSV, gzipped CSV or parquet file into a table of bars, with the line number each row has in the file."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from finetune.data.columns import Chosen, choose_columns
from finetune.data.problems import Problems, shown
from finetune.data.timestamps import EMPTY
from kronos.errors import InputError, MissingFileError

_SEPARATORS = (",", ";", "\t", "|")
_NULLS = sorted({spelling for word in EMPTY for spelling in (word, word.upper(), word.capitalize())} | {"NaN", "NaT"})
_EMPTY_LINES = re.compile(r"(?:[^\S\r\n]*+(?:\r\n|\n|\r))*+")  # possessive: what is remembered of millions of lines fills memories
_LINE_END = re.compile(r"\r\n|\n|\r")
_FOOTER = re.compile(r"#|[^\d#][^:：]*[:：]")  # 数据来源:通达信, but no line of bars that was cut short
_PACKED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
_BLOCK_BYTES = 1 << 26  # a row longer than this is not a row of bars
_EXPANSION, _SMALL_BYTES = 40, 1 << 26  # bars pack three to ten times smaller, and their times differ even where nothing moves
_NUMBERS = ("open", "high", "low", "close", "volume", "amount")


@dataclass
class Table:
    """A file as read: columns under the file's own names (numbers float64 where they could be read, else text).

    problems.lines [n]: the row number a user sees (header line 1 in a CSV; the first bar is row 1 in parquet). notes: what to say.
    """

    frame: pd.DataFrame
    chosen: Chosen
    problems: Problems
    notes: list[str] = field(default_factory=list)


def read_table(file: Path, *, mapping: Mapping[str, str] | None = None, symbol_column: str = "") -> Table:
    """Read one file. Raises MissingFileError if it is not there; InputError if it is empty, not a table, in an unknown encoding or with
    other columns. Rows with too few or too many fields are noted in `problems`, beside everything that later checks find.
    """
    mapping = mapping or {}
    data = _bytes_of(file)
    if data[:4] == b"PAR1":
        return _read_parquet(file, data, mapping, symbol_column)
    text, notes = _decode(data, file)
    header = _header(text, file, notes)
    chosen = choose_columns(header.names, str(file), mapping=mapping, symbol_column=symbol_column)
    table, problems = _read_rows(text, file, header, chosen, notes)
    filled = np.flatnonzero(~_blank(table))
    if len(filled) and (last := _footer(table, int(filled[-1]))):
        notes.append(_left_out(file, int(problems.lines[filled[-1]]), last))
        filled = filled[:-1]
    if not len(filled) and not problems.told:
        raise InputError(f"{file}: holds a header but no bars; give a file with at least one row")
    inner = int(filled[-1]) + 1 - len(filled) if len(filled) else 0  # empty lines at the end are no news
    if inner:
        notes.append(f"{file}: {inner} empty rows ignored")
    if len(filled) < table.num_rows:
        table, problems.lines = table.take(pa.array(filled)), problems.lines[filled]
    return Table(table.to_pandas(), chosen, problems, notes)


def _bytes_of(file: Path) -> bytes:
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{file}: is a folder, a device or a pipe; give a file")  # reading might never end
        data = file.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = _unpacked(data, file)
    except FileNotFoundError:
        raise MissingFileError(f"{file}: there is no such file; check data.data_path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file}: the gzip archive is damaged or cut short ({error}); fetch the file again") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); check that it is a file you may read") from error
    if not data.strip():
        raise _empty(file)
    return data


def _empty(file: Path) -> InputError:
    return InputError(f"{file}: the file is empty; give a CSV with a header line and bars")


def _unpacked(data: bytes, file: Path) -> bytes:
    """What a gzip archive holds, unless it grows as no bars do: a few kilobytes can claim many gigabytes."""
    allowed, unpacked = max(_SMALL_BYTES, _EXPANSION * len(data)), bytearray()
    with gzip.open(io.BytesIO(data)) as archive:
        while piece := archive.read(1 << 22):
            unpacked += piece
            if len(unpacked) > allowed:
                raise InputError(
                    f"{file}: its {len(data):,} bytes unpack to more than {allowed:,}, as no archive of bars does; if these are bars, "
                    "unpack it yourself (gunzip)"
                )
    return bytes(unpacked)


def _decode(data: bytes, file: Path) -> tuple[str, list[str]]:
    """Text of the file, and a note unless it is UTF-8."""
    if data[:4] == b"PK\x03\x04":
        if b"xl/" in data or b"[Content_Types]" in data:
            raise InputError(f"{file}: is an Excel workbook, not a CSV; save it as CSV (UTF-8)")
        raise InputError(f"{file}: is a zip archive; unpack it (unzip), and give the CSV in it")
    if packed := next((name for start, name in _PACKED.items() if data.startswith(start)), ""):
        raise InputError(f"{file}: is a {packed} archive; unpack it, and give the CSV in it (.csv.gz is read as it is)")
    if data.lstrip(b"\xef\xbb\xbf \r\n\t")[:2].lower() in (b"[{", b"[[", b'{"', b"<!", b"<h"):
        raise InputError(
            f"{file}: is JSON or a web page ({shown(data[:40].decode('utf-8', 'replace'))}), not a CSV; fetch or save it as CSV"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ("utf-16",)
    elif b"\0" in data:
        raise InputError(f"{file}: is not text (byte {data.index(0):,} is zero); give a CSV, gzipped CSV or parquet file")
    else:
        encodings = ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not text.strip():  # a byte order mark and nothing else
            raise _empty(file)
        name = "GBK" if encoding == "gb18030" else encoding.upper()
        return text, [] if encoding == "utf-8-sig" else [f"{file}: read as {name}"]
    raise InputError(f"{file}: is neither UTF-8 nor GBK text; save it as UTF-8")


@dataclass(frozen=True)
class _Header:
    line: int  # its number in the file, from 1
    names: list[str]
    separator: str


def _header(text: str, file: Path, notes: list[str]) -> _Header:
    """The first line that is not empty, or, below a title of one field, the second; the title is noted.

    A column without a name is called unnamed_1, unnamed_2, ... by its place.
    """
    start, line = _line(text, 0)
    below, following = _line(text, start + len(line))
    if not _separated(line) and _separated(following) and not following[:1].isdigit():
        notes.append(f"{file}: the title {shown(line)} above the header is left out")
        start, line = below, following
    separator = max(_SEPARATORS, key=line.count)
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator))]
    except csv.Error as error:
        raise InputError(f"{file}: the header {shown(line)} cannot be read ({error}); write column names separated by commas") from error
    if names[0] == "Price" and (tickers := _line(text, start + len(line))[1]).startswith(f"Ticker{separator}"):
        return _yfinance_header(text, file, names, separator, tickers)
    if len(names) < 2:
        raise InputError(f"{file}: the first line {shown(line)} holds one field; separate columns by commas, semicolons or tabs")
    if all(name[:1].isdigit() for name in names if name):
        raise InputError(f"{file}: the first line {shown(line)} has no names; write a header: timestamps,open,high,low,close,volume,amount")
    counts = Counter(names)
    twice = next((name for name in names if name and counts[name] > 1), "")
    if twice:
        raise InputError(f"{file}: column {twice!r} is there {counts[twice]} times; remove or rename one")
    names = [name or f"unnamed_{place}" for place, name in enumerate(names, 1)]
    return _Header(1 + len(_LINE_END.findall(text[:start])), names, separator)


def _yfinance_header(text: str, file: Path, names: list[str], separator: str, tickers: str) -> _Header:
    """The three lines that pandas writes above bars of yfinance: Price,Close,... Ticker,AAPL,... and Date,,..."""
    many = dict.fromkeys(tickers.strip().split(separator)[1:])
    if len(many) > 1:
        raise InputError(f"{file}: holds {len(many)} tickers side by side ({shown(', '.join(many))}); write one file per ticker")
    below, times = _line(text, text.index(tickers) + len(tickers))
    return _Header(1 + len(_LINE_END.findall(text[:below])), [times.split(separator)[0].strip() or "Date", *names[1:]], separator)


def _line(text: str, start: int) -> tuple[int, str]:
    """Where the first line from `start` that is not empty begins, and the line."""
    start = _EMPTY_LINES.match(text, start).end()
    end = _LINE_END.search(text, start)
    return start, text[start : end.start() if end else None]


def _separated(line: str) -> bool:
    return sum(map(line.count, _SEPARATORS)) > 1


def _footer(table: pa.Table, row: int) -> str:
    """The text of a row that is no bar: nothing but a remark such as 数据来源:通达信 in one column. Else ""."""
    cells = [text for column in table.columns if (text := column[row].as_py()) not in (None, "")]
    return cells[0] if len(cells) == 1 and isinstance(cells[0], str) and _FOOTER.match(cells[0]) else ""


def _left_out(file: Path, line: int, text: str) -> str:
    return f"{file}: the last row, {line}, {shown(text)}, is no bar and is left out"


def _read_rows(text: str, file: Path, header: _Header, chosen: Chosen, notes: list[str]) -> tuple[pa.Table, Problems]:
    """(chosen columns, problems so far); numbers are floats, or text throughout if a single cell is not a number."""
    data = f"{text}\n".encode()
    broken: list[Any] = []

    def skip(row: Any) -> str:
        broken.append(row)
        return "skip"

    def read(number: pa.DataType) -> pa.Table:
        broken.clear()
        types = {name: pa.string() for name in chosen.all} | {chosen.names[key]: number for key in _NUMBERS if key in chosen.names}
        return pyarrow.csv.read_csv(
            io.BytesIO(data),
            # one thread: only then does Arrow know the numbers of broken rows
            pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=header.names, skip_rows=header.line),
            pyarrow.csv.ParseOptions(delimiter=header.separator, ignore_empty_lines=False, invalid_row_handler=skip),
            pyarrow.csv.ConvertOptions(column_types=types, include_columns=chosen.all, null_values=_NULLS),
        )

    try:
        try:
            table = read(pa.float64())
        except pa.ArrowInvalid:
            table = read(pa.string())  # some cell is not a number: as text, so that the later check finds and names them all
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: cannot be read as a table ({error}); check its quotes and separators") from error
    numbers = np.array([row.number for row in broken], np.int64)
    lines = np.arange(table.num_rows + len(broken)) + header.line + 1
    problems = Problems(str(file), np.setdiff1d(lines, numbers, assume_unique=True))
    if broken and broken[-1].actual_columns == 1 and _FOOTER.match(broken[-1].text) and text.rstrip().endswith(broken[-1].text.strip()):
        notes.append(_left_out(file, int(numbers[-1]), broken[-1].text.strip()))
        broken, numbers = broken[:-1], numbers[:-1]
    if broken:
        what = f"has {broken[0].actual_columns} fields where the header names {len(header.names)}: {shown(broken[0].text)}"
        problems.add_lines(numbers, what, "complete the line, or put quotes around a field that holds the separator")
    return table, problems


def _blank(table: pa.Table) -> np.ndarray:
    """[n] bool: rows in which every column is null or empty text."""
    blank = np.ones(table.num_rows, bool)
    for column in table.columns:
        empty = column.is_null()
        if pa.types.is_string(column.type):
            empty = pa.compute.or_kleene(empty, pa.compute.equal(column, ""))
        blank &= empty.to_numpy()
    return blank


def _read_parquet(file: Path, data: bytes, mapping: Mapping[str, str], symbol_column: str) -> Table:
    try:
        stored = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        claimed = stored.metadata.num_rows * stored.metadata.num_columns * 8
        if claimed <= max(_SMALL_BYTES, _EXPANSION * len(data)):
            frame = stored.read().to_pandas()
    except Exception as error:  # pandas' own notes inside it may be anything, and fail in any way
        raise InputError(f"{file}: the parquet file is damaged ({str(error).strip():.300}); write it again") from error
    if claimed > max(_SMALL_BYTES, _EXPANSION * len(data)):
        raise InputError(
            f"{file}: {len(data):,} bytes claim to hold {stored.metadata.num_rows:,} rows, as no bars do; write it again as CSV"
        )
    return table_of_frame(frame, str(file), mapping=mapping, symbol_column=symbol_column)


def table_of_frame(frame: pd.DataFrame, source: str, *, mapping: Mapping[str, str] | None = None, symbol_column: str = "") -> Table:
    """A DataFrame as a Table; a named or datetime index counts as a column. Rows are numbered from 1."""
    if not isinstance(frame.index, pd.RangeIndex):
        unnamed = isinstance(frame.index, pd.DatetimeIndex) and frame.index.name is None
        named = [name for name in frame.index.names if name is not None and name not in frame.columns]
        frame = frame.rename_axis("timestamps").reset_index() if unnamed else frame.reset_index(level=named) if named else frame
    if frame.columns.nlevels > 1:  # as yfinance gives them: (Close, AAPL)
        frame = _one_level(frame, source)
    frame = frame.rename(columns=str)
    if not len(frame):
        raise InputError(f"{source}: holds no bars; give at least one row")
    chosen = choose_columns(list(frame.columns), source, mapping=mapping or {}, symbol_column=symbol_column)
    return Table(frame[chosen.all], chosen, Problems(source, np.arange(1, len(frame) + 1)))


def _one_level(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Columns of several levels under the first one's names, where the others only repeat one symbol."""
    names = frame.columns.get_level_values(0)
    if names.has_duplicates:
        example = ", ".join(shown(name) for name in frame.columns[:2])
        raise InputError(f"{source}: holds several symbols side by side (columns {example} ...); give one frame or file per symbol")
    return frame.set_axis(names, axis=1)
