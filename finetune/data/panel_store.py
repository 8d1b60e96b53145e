"""A panel on disk: a folder of .npy files and a panel.json, written all or nothing, read memory-mapped. Never pickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from kronos.errors import InputError, MissingFileError
from kronos.files import explained, flush_folder

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
        return json.loads((folder / META_FILE).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_folder(folder: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Path:
    """Write into a temporary sibling, flush it to the disk, then rename: a reader sees the old panel, the new one, or none.

    Raises InputError if `folder` exists and is not a panel (or empty), or if the disk is full or may not be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not is_panel_folder(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not a panel, so it is not overwritten; choose another folder or remove it")
    fresh, old = (folder.with_name(f".{folder.name}.{tag}-{os.getpid()}") for tag in ("new", "old"))
    try:
        with explained(folder, "cannot write the panel"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(fresh, ignore_errors=True)
            _write_files(fresh, arrays, meta)
            _swap(fresh, folder, old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _write_files(fresh: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    fresh.mkdir()
    shapes = {}
    for name, array in arrays.items():
        assert array.dtype.str == _DTYPES[name], f"{name} is {array.dtype.str}, not {_DTYPES[name]}"
        shapes[name] = list(array.shape)
        with open(fresh / f"{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
            _flush(file)
    with open(fresh / META_FILE, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "version": VERSION, "shapes": shapes, **meta}, file, ensure_ascii=False)
        _flush(file)
    flush_folder(fresh)


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


def _read_array(file: Path, name: str, shape: Any) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode=None if name in _IN_MEMORY else "r", allow_pickle=False)
    except FileNotFoundError:
        raise damaged(file, "the file is missing") from None
    except Exception as error:  # numpy's header parser lets many kinds out; every one of them means this file is not ours
        raise damaged(file, f"unreadable: {error}") from error
    if not isinstance(array, np.ndarray):
        raise damaged(file, "an archive, not one array")
    if array.dtype.str != _DTYPES[name] or list(array.shape) != shape or not array.flags.c_contiguous:
        raise damaged(file, f"{array.dtype.str} {list(array.shape)} where {_DTYPES[name]} {shape} was written")
    start = file.stat().st_size - array.nbytes
    if not 0 < start <= 4096:  # numpy's header is 128 bytes here; more means bytes were added behind the array
        raise damaged(file, f"its size does not fit {list(array.shape)}")
    array.flags.writeable = False
    return array
