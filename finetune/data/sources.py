"""What `data_path` may name: files, lists, globs, folders and bundled samples, and what each series is called."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.panel_store import is_panel_folder
from kronos.errors import InputError, MissingFileError

SUFFIXES = (".csv", ".csv.gz", ".parquet")
SAMPLE_PREFIX = "arch:"


@dataclass(frozen=True)
class Source:
    """One thing to read. name: what its series is called unless it has a symbol column. path: a file, or "arch:NAME" for a sample."""

    name: str
    path: Path | str


def find_sources(data_path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Source]:
    """The files meant by `data_path`: a file, a folder (its .csv, .csv.gz and .parquet files), a glob, "arch:sp500", or a list of these.

    A file named twice is read once. Files of one name in several folders are told apart by their folder. Raises MissingFileError for what
    is not there, InputError for an empty path, a folder without bars, or two files that would be one series.
    """
    entries = list(data_path) if isinstance(data_path, list | tuple) else [data_path]
    if not entries or not all(isinstance(entry, str | os.PathLike) and os.fspath(entry).strip() for entry in entries):
        raise InputError(f"data.data_path: {data_path!r} names no file; give a CSV or parquet file, a folder, a glob or a list of them")
    found: dict[str, Path | str] = {}  # keyed by what it really is, so that nothing is read twice
    for entry in map(os.fspath, entries):
        if entry.startswith(SAMPLE_PREFIX):
            found[entry] = entry
        else:
            found.update({os.path.realpath(file): file for file in _files(entry.strip())})
    return _named(list(found.values()))


def _files(entry: str) -> list[Path]:
    path = Path(os.path.expanduser(entry))  # Path's own fails for the home of nobody
    if os.path.isdir(path):  # of os.path: what is too long to be a path is none
        if is_panel_folder(path):
            raise InputError(f"{path}: a saved panel cannot stand in a list with other data; give it alone as data.data_path")
        try:
            entries = list(path.iterdir())
        except OSError as error:
            told = f"{path}: the folder cannot be read ({error.strerror}); make it readable or name another data_path"
            raise MissingFileError(told) from error
        files = sorted(file for file in entries if file.name.lower().endswith(SUFFIXES) and not file.name.startswith("."))
        if not files:
            raise InputError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file; give the folder that holds the bars")
        return files
    if os.path.exists(path):
        return [path]
    if glob.has_magic(entry):
        files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(file)]
        if not files:
            raise MissingFileError(f"{entry}: no file matches this pattern (from {Path.cwd()}); check data.data_path")
        return files
    raise MissingFileError(f"{entry:.300}: there is no such file or folder (from {Path.cwd()}); check data.data_path")


def _stem(path: Path | str) -> str:
    if isinstance(path, str):
        return path.removeprefix(SAMPLE_PREFIX)
    name = path.name
    for suffix in (".gz", ".csv", ".parquet", ".txt"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) and len(name) > len(suffix) else name
    return name


def _named(paths: list[Path | str]) -> list[Source]:
    """Sources under their stems; stems that meet are led by as many folders as tell them apart."""
    by_stem = defaultdict(list)
    for path in paths:
        by_stem[_stem(path)].append(path)
    names = {}
    for stem, same in by_stem.items():
        for depth in range(64):
            tried = {path: _led(path, stem, depth) for path in same}
            if len(set(tried.values())) == len(same):
                names.update(tried)
                break
        else:
            listed = " and ".join(map(str, same[:3]))
            raise InputError(f"data.data_path: {listed} would both be series {stem!r}; leave one out or rename it")
    return [Source(names[path], path) for path in paths]


def _led(path: Path | str, stem: str, depth: int) -> str:
    if isinstance(path, str) or not depth:
        return stem
    folders = Path(os.path.abspath(path)).parent.parts[1:][-depth:]
    return "/".join([*folders, stem])
