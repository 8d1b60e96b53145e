"""Atomic writers for text and JSON, readers that survive a torn last line, folders proven writable. The atom itself is `kronos.files`."""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kronos.errors import InputError
from kronos.files import atomic_path, explained


def write_with(path: str | os.PathLike[str], writer: Callable[[Path], object]) -> None:
    """Calls `writer(temporary path)` and renames the result over `path`: `atomic_path` as one expression."""
    with atomic_path(path) as temporary:
        writer(temporary)


def write_bytes(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Writes `data` to `path` atomically. Raises InputError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 with `\\n` line ends to `path` atomically. Raises InputError as `atomic_path` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically; NaN and infinities become null, paths become strings."""
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def overwrite_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a small `value` over the JSON file that is there, in the room it has: for a full disk, where `write_json` finds none.

    Not atomic: only for what may be lost. Raises InputError where not even that is possible.
    """
    data = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    with explained(Path(path)), open(path, "r+b", buffering=0) as file:
        file.write(data)
        file.truncate()


def jsonable(value: Any) -> Any:
    """`value` with everything that JSON cannot hold replaced: non-finite numbers by None, numpy scalars by Python's, the rest by text."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value)


class GrowingFile:
    """A file that grows piece by piece, each handed to the system at once, so that kill -9 tears at most the last one.

    Raises InputError (full disk, no permission) on opening and writing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with explained(self.path):
            self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115  lives as long as this object

    def write(self, data: bytes) -> None:
        """Adds `data` at the end."""
        left = memoryview(data)
        with explained(self.path):
            while left:  # an almost full disk takes a part without complaint and refuses the rest
                left = left[self._handle.write(left) :]

    def close(self) -> None:
        """May be called twice."""
        self._handle.close()


class LineFile(GrowingFile):
    """A text file that grows line by line."""

    def line(self, line: str) -> None:
        """Adds `line` and a line end."""
        self.write(line.encode("utf-8") + b"\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. Raises InputError if it is damaged, or holds something else."""
    source = Path(path)
    if not source.exists():
        return None
    try:
        value = json.loads(source.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{source} is damaged ({error}): remove it") from error
    if not isinstance(value, dict):
        raise InputError(f"{source} is damaged (it holds a {type(value).__name__}, not an object): remove it")
    return value


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, one per line; [] where there is no file.

    A last line that is torn (the process died, or the disk filled up, while it was written) is left out. Raises InputError with the line's
    number where an earlier one is damaged: only somebody else can have done that.
    """
    source = Path(path)
    if not source.exists():
        return []
    lines = [line for line in source.read_bytes().split(b"\n") if line.strip(b"\0 \r\t")]
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record = None
            reason = str(error)
        else:
            reason = "not an object"
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise InputError(f"{source} line {number} is damaged ({reason}): remove that line, or the file to start it anew")
    return records


def ensure_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Makes the folder (and its parents) and proves by a probe file that it can be written to; returns it as a Path.

    Raises InputError naming the folder and the fix.
    """
    folder = Path(path)
    probe = folder / f".probe.{os.getpid()}.tmp"
    with explained(folder, "cannot write to folder"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"kronos")
        finally:
            with suppress(OSError):  # where the probe could not be written it cannot be removed either
                probe.unlink(missing_ok=True)
    return folder


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Removes temporary files that a killed process left directly in `folder`; returns how many.

    Only for a folder with one writer (a run's): another process's file in the making looks the same. Raises InputError where the folder has
    become read-only.
    """
    found = [path for pattern in (".*.[0-9]*.tmp", ".*.[0-9]*.tmp.*") for path in Path(folder).glob(pattern) if path.is_file()]
    with explained(Path(folder), "cannot write to folder"):
        for leftover in found:
            leftover.unlink(missing_ok=True)
    return len(found)
