"""Reading a large CSV in pieces: what is wrong with it is one message with the row, found by a second look only when it is needed."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv

from finetune.data.problems import shown
from finetune.data.timestamps import EMPTY
from kronos.errors import InputError, MissingFileError

BLOCK_BYTES = 4 << 20  # read and parsed together: a few blocks are in memory at once
_HEAD_BYTES = 1 << 16
_SEPARATORS = (",", ";", "\t", "|")
_INSTEAD = {"Stock Splits": ", or, if its prices are not to be adjusted for splits, read it without that column: --splits keep"}
NULLS = sorted({spelling for word in EMPTY for spelling in (word, word.upper(), word.capitalize())} | {"NaN", "NaT"})


@dataclass(frozen=True)
class CsvFile:
    """A CSV whose header was read. columns: wanted name → the file's own name (those found). skip: lines up to and with the header.

    last_line: text of a last line that was cut short and is to be dropped, else "". notes: what a user should hear.
    """

    path: Path
    size: int
    packed: bool
    separator: str
    names: tuple[str, ...]
    columns: dict[str, str]
    skip: int
    last_line: str
    notes: tuple[str, ...]


def open_csv(path: Path, wanted: Sequence[str], optional: Sequence[str] = (), *, skip_truncated: bool = False) -> CsvFile:
    """Look at head and tail of a CSV or gzipped CSV with a header.

    Raises MissingFileError if it is not there; InputError if it is empty, has no rows, lacks one of the `wanted` columns, is not UTF-8
    text, or ends in a line with too few fields (which `skip_truncated` drops with a note).
    """
    head, size, packed = _head(path)
    lines = _header_text(head, path).split("\n")
    at = next(number for number, line in enumerate(lines) if line.strip())
    header = lines[at].rstrip("\r")
    if not any(line.strip() for line in lines[at + 1 :]):
        raise InputError(f"{path}: holds a header but no rows; give the whole file")
    separator = max(_SEPARATORS, key=header.count)
    names = _names(header, separator, path)
    columns = _columns(names, wanted, optional, path)
    notes = [] if separator == "," else [f"{path}: columns are separated by {separator!r}"]
    last_line = ""
    if not packed:
        last_line = _last_line(path, size, separator, len(names), skip_truncated, notes)
    return CsvFile(path, size, packed, separator, tuple(names), columns, at + 1, last_line, tuple(notes))


def batches(file: CsvFile, types: Mapping[str, pa.DataType], *, rows_from: Any = None) -> Iterator[pa.RecordBatch]:
    """The rows in order, in record batches with the columns `types` (wanted name → type), under these names.

    rows_from: an open pyarrow file of this path, for a caller who watches how far it is read. Raises InputError naming row, column and
    value where a line has too few or too many fields, a number cannot be read, or text is not UTF-8.
    """
    try:
        yield from _read(file, types, rows_from, threads=True)
    except pa.ArrowInvalid as error:
        _explain(file, types, str(error))
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read to its end ({error}); the file is damaged or cut short: fetch it again") from error


def _read(file: CsvFile, types: Mapping[str, pa.DataType], rows_from: Any, threads: bool) -> Iterator[pa.RecordBatch]:
    own = {file.columns[name]: kind for name, kind in types.items()}

    def broken(row: Any) -> str:
        return "skip" if file.last_line and row.text == file.last_line else "error"

    source = rows_from or pa.OSFile(str(file.path))
    reader = pyarrow.csv.open_csv(
        pa.CompressedInputStream(source, "gzip") if file.packed else source,
        pyarrow.csv.ReadOptions(use_threads=threads, block_size=BLOCK_BYTES, column_names=list(file.names), skip_rows=file.skip),
        pyarrow.csv.ParseOptions(delimiter=file.separator, invalid_row_handler=broken),
        pyarrow.csv.ConvertOptions(column_types=own, include_columns=list(own), null_values=NULLS),
    )
    with reader:
        for batch in reader:
            yield batch.rename_columns(list(types))


def _explain(file: CsvFile, types: Mapping[str, pa.DataType], told: str) -> NoReturn:
    """Read again on one thread: only then does Arrow know the row of what is wrong. Raises InputError with it."""
    try:
        for _ in _read(file, types, None, threads=False):
            pass
    except pa.ArrowInvalid as error:
        told = str(error)
    row, column = re.search(r"Row #(\d+)", told), re.search(r"In CSV column #(\d+)", told)
    where = f"{file.path}, row {int(row[1]):,}" if row else str(file.path)
    where += f", column {file.names[int(column[1])]!r}" if column else ""
    if value := re.search(r"invalid value '(.*)'", told, re.DOTALL):
        fix = "with a decimal point and without separators" if "," in value[1] else "or leave the cell empty"
        raise InputError(f"{where}: {shown(value[1])} is not a number; write a number such as 1234.5, {fix}")
    if "UTF8" in told:
        raise InputError(f"{where}: {_not_utf8(file.path)}")
    if fields := re.search(r"Expected (\d+) columns, got (\d+): (.*)", told, re.DOTALL):
        raise InputError(
            f"{where}: has {fields[2]} fields where the header names {fields[1]}: {shown(fields[3])}; complete the line, or put quotes "
            "around a field that holds the separator"
        )
    raise InputError(f"{where}: cannot be read as a table ({told}); check its quotes and separators")


def _not_utf8(path: Path, encoding: str = "GB18030") -> str:
    name = path.name
    return f"is not UTF-8 text; convert the file, e.g. iconv -f {encoding} -t UTF-8 {name} > utf8-{name}"


def _head(path: Path) -> tuple[bytes, int, bool]:
    """(first bytes, size on the disk, whether it is gzipped)."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give a file you may read") from error
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        try:
            head = pa.CompressedInputStream(pa.OSFile(str(path)), "gzip").read(_HEAD_BYTES)
        except OSError as error:
            raise InputError(f"{path}: the gzip archive is damaged ({error}); fetch the file again") from error
    if not head.strip():
        raise InputError(f"{path}: the file is empty; give a CSV with a header line and rows")
    return head, size, packed


def _header_text(head: bytes, path: Path) -> str:
    """The first bytes as text, without a line that they cut in two."""
    if head[:4] == b"PK\x03\x04":
        raise InputError(f"{path}: is a zip archive; unpack it first: unzip {path.name}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise InputError(f"{path}: {_not_utf8(path, 'UTF-16')}")
    if len(head) == _HEAD_BYTES:
        head = head[: head.rfind(b"\n") + 1] or head
    if head.count(b"\r") > head.count(b"\n") == 0:
        head = head.replace(b"\r", b"\n")
    line, _, rest = head.lstrip().partition(b"\n")
    try:
        line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}, row 1: {_not_utf8(path)}") from None
    if not rest and len(head) == _HEAD_BYTES:
        raise InputError(f"{path}: its first line is longer than {_HEAD_BYTES:,} bytes; write a header line and one row per line")
    return head.decode("utf-8-sig", errors="replace")  # rows are read, and refused by number, later


def _names(header: str, separator: str, path: Path) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
    except csv.Error as error:
        raise InputError(f"{path}: the header {shown(header)} cannot be read ({error}); write column names separated by commas") from error
    twice = next((name for name in names if name and names.count(name) > 1), "")
    if twice:
        raise InputError(f"{path}: column {twice!r} is there {names.count(twice)} times; remove or rename one")
    return [name or f"unnamed_{place}" for place, name in enumerate(names, 1)]


def _columns(names: Sequence[str], wanted: Sequence[str], optional: Sequence[str], path: Path) -> dict[str, str]:
    """Wanted name → the file's name, which may differ in case, spaces, dashes and underscores."""
    plain = {_plain(name): name for name in reversed(names)}
    columns = {name: plain[_plain(name)] for name in (*wanted, *optional) if _plain(name) in plain}
    lacking = [name for name in wanted if name not in columns]
    if lacking:
        free = [name for name in names if name not in columns.values()]
        near = {name: difflib.get_close_matches(name.lower(), [other.lower() for other in free], 1) for name in lacking}
        hints = [f"{next(other for other in free if other.lower() == found[0])!r} may be {name}" for name, found in near.items() if found]
        told = f" ({'; '.join(hints)})" if hints else ""
        raise InputError(
            f"{path}: no column {', '.join(map(repr, lacking))} among those found: {', '.join(map(repr, names))}{told}; "
            f"rename the columns in the first line of the file{''.join(_INSTEAD.get(name, '') for name in lacking)}"
        )
    return columns


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _last_line(path: Path, size: int, separator: str, fields: int, skip: bool, notes: list[str]) -> str:
    """Text of a last line with too few fields, if it is to be dropped; notes what is strange about the end of the file."""
    with open(path, "rb") as file:
        file.seek(max(0, size - _HEAD_BYTES))
        tail = file.read()
    text = tail.rstrip(b"\r\n").rpartition(b"\n")[2].decode("utf-8", errors="replace")
    whole = tail[-1:] in (b"\n", b"\r")
    try:
        found = len(next(csv.reader([text], delimiter=separator)))
    except csv.Error:
        found = 0
    if found < fields and text.count('"') % 2 == 0:
        where = f"{path}, row {_lines(path) + (not whole):,} (the last)"
        cut = f"{where}: is cut short, {found} of {fields} fields: {shown(text)}"
        if not skip:
            raise InputError(f"{cut}; fetch the file again, or drop this line with --skip-truncated")
        notes.append(f"{cut}; dropped, as --skip-truncated says")
        return text
    if not whole:
        notes.append(f"{path}: its last line has no line end; check that the file is whole")
    return ""


def _lines(path: Path) -> int:
    """Number of line ends in the file."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 22), b""))
