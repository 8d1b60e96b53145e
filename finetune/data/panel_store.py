"""A panel on disk: a folder of .npy files and a panel.json, written all or nothing, read memory-mapped. Never pickled."""

from __future__ import annotations

import json
import math
import os
import shutil
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kronos.errors import InputError, MissingFileError
from kronos.files import explained, flush_folder, new_folder

META_FILE = "panel.json"
FORMAT = "kronos-panel"
VERSION = 1
_DTYPES = {"features": "<f4", "stamps": "|u1", "times": "<i8", "origin": "|b1", "offsets": "<i8", "breaks": "<i8", "targets": "<f4"}
_IN_MEMORY = ("offsets", "breaks")  # small, used at every look-up; the rest stays on disk until touched


def damaged(file: Path, why: str) -> InputError:
    """The one message for a file of a panel that is not what it should be."""
    return InputError(f"{file}: damaged or not a panel ({why}); delete the folder and make the panel again")


def is_panel_folder(folder: Path) -> bool:
    """Whether `folder` looks like a saved panel, judged by its panel.json alone; its arrays may still be damaged."""
    try:
        file = folder / META_FILE
        return file.is_file() and json.loads(file.read_bytes())["format"] == FORMAT  # reading a pipe might never end
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def write_folder(folder: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Path:
    """Write into a temporary sibling, flush it to the disk, then rename: a reader sees the old panel, the new one, or none.

    Raises InputError if `folder` exists and is not a panel (or empty), or if the disk is full or may not be written.
    """
    with FolderWriter(folder) as writer, explained(writer.folder, "cannot write the panel"):
        _write_files(writer, arrays)
        return writer.finish(meta)


def _write_files(writer: FolderWriter, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        writer.begin(name, array.shape)
        writer.append(name, array)


def refuse_foreign(folder: Path) -> None:
    """InputError if `folder` holds something that is not a panel and would be lost if one were written there."""
    if folder.exists() and not is_panel_folder(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not a panel, so it is not overwritten; choose another folder or remove it")


class FolderWriter:
    """Writes a panel folder array by array and piece by piece; nothing is seen of it before `finish`, and nothing is left without it.

    Use as a context manager: begin(name, shape), append(name, rows) until the shape is full, finish(meta). Raises as `write_folder` says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        refuse_foreign(self.folder)
        self._fresh, self._old = (self.folder.with_name(f".{self.folder.name}.{tag}-{os.getpid()}") for tag in ("new", "old"))
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, list[int]] = {}
        self._rows: dict[str, int] = {}

    def __enter__(self) -> FolderWriter:
        with explained(self.folder, "cannot write the panel"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self.folder)
            new_folder(self._fresh)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # what could not be flushed has been told already
                file.close()
        shutil.rmtree(self._fresh, ignore_errors=True)

    def begin(self, name: str, shape: tuple[int, ...]) -> None:
        """Open the file of one array that will have `shape`, in the same bytes as np.save writes."""
        header = {"descr": _DTYPES[name], "fortran_order": False, "shape": tuple(int(size) for size in shape)}
        with explained(self.folder, "cannot write the panel"):
            self._files[name] = open(self._fresh / f"{name}.npy", "wb")  # noqa: SIM115  closed by finish or __exit__
            np.lib.format.write_array_header_1_0(self._files[name], header)
        self._shapes[name], self._rows[name] = list(header["shape"]), 0

    def append(self, name: str, array: np.ndarray) -> None:
        """The next rows of an array, in its own dtype."""
        assert array.dtype.str == _DTYPES[name], f"{name} is {array.dtype.str}, not {_DTYPES[name]}"
        assert list(array.shape[1:]) == self._shapes[name][1:], f"{name}: rows of {array.shape[1:]} in {self._shapes[name]}"
        with explained(self.folder, "cannot write the panel"):
            self._files[name].write(np.ascontiguousarray(array).data)
        self._rows[name] += len(array)

    def stored(self) -> dict[str, StoredArray]:
        """All arrays as they are on the disk, whole; they stay readable until `finish`."""
        with explained(self.folder, "cannot write the panel"):
            for name, file in self._files.items():
                assert self._rows[name] == self._shapes[name][0], f"{name} has {self._rows[name]} rows of {self._shapes[name]}"
                file.flush()
        return {name: StoredArray(self._fresh / f"{name}.npy", name, shape) for name, shape in self._shapes.items()}

    def finish(self, meta: dict[str, Any]) -> Path:
        """Flush everything to the disk and put the folder in its place; an earlier panel there is replaced."""
        self.stored()
        with explained(self.folder, "cannot write the panel"):
            with open(self._fresh / META_FILE, "w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, "version": VERSION, "shapes": self._shapes, **meta}, file, ensure_ascii=False)
                _flush(file)
            for file in self._files.values():
                _flush(file)
                file.close()
            flush_folder(self._fresh)
            _swap(self._fresh, self.folder, self._old)
        return self.folder


class StoredArray:
    """An array on the disk of which only the rows asked for are in memory, and not even mapped afterwards."""

    def __init__(self, file: Path, name: str, shape: list[int]) -> None:
        self._file, self._name, self.shape = file, name, tuple(shape)
        self.dtype, self.ndim = np.dtype(_DTYPES[name]), len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.array(_read_array(self._file, self._name, list(self.shape))[rows])


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    """Put `fresh` in the place of `folder`; a panel that was there steps aside first and comes back if the rename fails."""
    if not folder.exists():
        os.rename(fresh, folder)
    else:
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        try:
            os.rename(fresh, folder)
        except OSError:
            os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    flush_folder(folder.parent)


def _sweep(folder: Path) -> None:
    """Clear away what killed writers left beside `folder`; a panel that had stepped aside for one, and lost its place, comes back."""
    for tag in ("old", "new"):
        for left in folder.parent.glob(f".{escape(folder.name)}.{tag}-*"):
            owner = left.name.rpartition("-")[2]
            if not owner.isdecimal() or psutil.pid_exists(int(owner)):
                continue
            if tag == "old" and not folder.exists() and is_panel_folder(left):
                os.rename(left, folder)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def read_folder(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays (memory-mapped, except the small ones) and metadata of a panel folder. Raises as `Panel.open` says."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such panel folder; check the path, or make the panel first")
    meta = _read_meta(folder / META_FILE)
    shapes = meta.pop("shapes", None)
    wanted = set(_DTYPES) - {"targets"}
    if not isinstance(shapes, dict) or not wanted <= set(shapes) <= set(_DTYPES):
        raise damaged(folder / META_FILE, "its list of arrays is not complete")
    return {name: _read_array(folder / f"{name}.npy", name, shape) for name, shape in shapes.items()}, meta


def _read_meta(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise damaged(file, "not a file")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent}: not a panel folder (no {META_FILE} in it); give a folder written by Panel.save") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, f"unreadable: {error}") from error
    if not isinstance(meta, dict) or meta.pop("format", None) != FORMAT:
        raise InputError(f"{file}: not the metadata of a panel (format is not {FORMAT!r}); give a folder written by Panel.save")
    version = meta.pop("version", None)
    if version != VERSION:
        raise InputError(f"{file}: panel version {version!r}, this program reads version {VERSION}; make the panel again with this program")
    return meta


def _check_header(file: Path, name: str, shape: Any) -> None:
    """Everything that an array's header says, before anything of the size that it claims is asked for."""
    if file.exists() and not file.is_file():
        raise damaged(file, "not a file")
    with open(file, "rb") as stream:
        if stream.read(4) == b"PK\x03\x04":
            raise damaged(file, "an archive, not one array")
        stream.seek(0)
        np.lib.format.read_magic(stream)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        header, size = stream.tell(), os.fstat(stream.fileno()).st_size
    if dtype.str != _DTYPES[name] or list(found) != shape or (fortran and len(found) > 1):
        raise damaged(file, f"{dtype.str} {list(found)} where {_DTYPES[name]} {shape} was written"[:300])
    if size != header + dtype.itemsize * math.prod(found):
        raise damaged(file, f"its size does not fit {list(found)}")


def _read_array(file: Path, name: str, shape: Any) -> np.ndarray:
    try:
        _check_header(file, name, shape)
        array = np.load(file, mmap_mode=None if name in _IN_MEMORY else "r", allow_pickle=False)
    except FileNotFoundError:
        raise damaged(file, "the file is missing") from None
    except InputError:
        raise
    except Exception as error:  # numpy's header parser lets many kinds out; every one of them means this file is not ours
        raise damaged(file, f"unreadable: {error}") from error
    array.flags.writeable = False
    return array
