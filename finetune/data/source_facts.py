"""What can be told of files of bars without reading them: their content's digest, whether they changed, about how many bars they hold.

Needs no pandas: plans ask it.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetune.data.sources import Source, find_sources
from kronos.errors import InputError

_HEAD_BYTES = 1 << 16
_DAY_S = 86_400


def named_sources(paths: Sequence[str], key: str) -> list[Source]:
    """As `find_sources`, with the key that holds the paths in its messages."""
    try:
        return find_sources(list(paths))
    except InputError as error:
        raise type(error)(str(error).replace("data.data_path", key)) from error


def digests(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Name and digest of the content of each. Raises OSError for a file that cannot be read."""
    return [{"name": source.name, "digest": _digest(source.path)} for source in sources]


def seen(sources: Sequence[Source]) -> list[list[Any]]:
    """Name, size and time of the last change of each: while these stay, so does the content. Raises OSError."""
    return [[source.name, *_size_and_time(source.path)] for source in sources]


def what_changed(sources: Sequence[Source], manifest: Mapping[str, Any]) -> str:
    """How files differ from those that a manifest's "files" and "seen" are about, as "new (a), changed (b)"; empty where they do not.

    Raises OSError for a file that cannot be read.
    """
    known = {file["name"]: file["digest"] for file in manifest.get("files") or []}
    if not known or manifest.get("seen") == seen(sources):
        return ""
    now = {file["name"]: file["digest"] for file in digests(sources)}
    told = [
        (sorted(set(now) - set(known)), "new"),
        (sorted(set(known) - set(now)), "gone"),
        (sorted(name for name in set(known) & set(now) if known[name] != now[name]), "changed"),
    ]
    return ", ".join(f"{how} ({_some(names)})" for names, how in told if names)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _size_and_time(path: Path | str) -> tuple[int, int]:
    if isinstance(path, str):  # bundled bars
        return 0, 0
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _digest(path: Path | str) -> str:
    return path if isinstance(path, str) else _digest_of(path, *_size_and_time(path))


@lru_cache(maxsize=1024)  # twenty models may read one file
def _digest_of(path: Path, size: int, time_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# ---------------------------------------------------------------------- about how many bars


def about_bars(sources: Sequence[Source], period_s: int) -> list[int] | None:
    """About how many bars of `period_s` seconds each CSV file gives: its size over that of its lines, by how far apart those are.

    None where a file is no CSV of one series, or its times are not such as 2024-06-18 11:15:00 within what its first 64 KiB show.
    """
    try:
        found = [_rows_and_period(source.path, *_size_and_time(source.path)) for source in sources]
    except OSError:  # a link to nothing, say: reading it will say so
        return None
    if not found or any(one is None for one in found):
        return None
    return [int(rows * apart_s // period_s) for rows, apart_s in found]  # type: ignore[misc]


@lru_cache(maxsize=1024)
def _rows_and_period(path: Path | str, size: int, time_ns: int) -> tuple[float, int] | None:
    if isinstance(path, str) or not path.name.lower().endswith((".csv", ".csv.gz")):
        return None
    try:
        head, size = _head(path, size)
        lines = head.decode("utf-8").splitlines()[: -1 if len(head) < size else None]
        rows = [line.split(",") for line in lines[1:]]
        column = next(at for at, cell in enumerate(rows[0]) if _seconds(cell) is not None)
        times = [second for row in rows if (second := _seconds(row[column])) is not None]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, IndexError, StopIteration):  # reading them will say what is wrong
        return None
    steps = [after - before for before, after in pairwise(times)]
    if not steps or min(steps) <= 0:  # several series one after the other, or the newest first
        return None
    return (size - len(lines[0])) / (sum(map(len, lines[1:])) / len(rows) + 1), min(steps)


def _head(path: Path, size: int) -> tuple[bytes, int]:
    """The file's first bytes and how many there are in all, both uncompressed."""
    with open(path, "rb") as file:
        if not path.name.lower().endswith(".gz"):
            return file.read(_HEAD_BYTES), size
        file.seek(-4, 2)
        whole = int.from_bytes(file.read(4), "little")  # gzip's last word; right below 4 GiB
    with gzip.open(path) as file:
        return file.read(_HEAD_BYTES), whole


def _seconds(cell: str) -> int | None:
    text = cell.strip().strip('"')
    if len(text) < 10 or not text[:4].isdecimal() or text[4:5] != "-":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.toordinal() * _DAY_S + moment.hour * 3600 + moment.minute * 60 + moment.second
