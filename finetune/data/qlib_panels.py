"""A Qlib store → the panels of training, validation and test with a manifest, saved and opened again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from finetune.data.panel import Panel, SeriesInfo
from finetune.data.qlib_ranges import NAMES, Range, RangesSection, day, ranges_of
from finetune.data.qlib_reading import Lives, read_lives, tell
from finetune.data.qlib_store import Store, listed, open_store
from finetune.data.timestamps import parse_times, stamp_features
from finetune.engine.files import ensure_writable_folder, read_json, write_json
from finetune.engine.provenance import versions
from kronos.errors import InputError, MissingFileError

MANIFEST = "manifest.json"
COMMAND = "python finetune/qlib_data_preprocess.py"
_FORMAT, _VERSION = "kronos-qlib-panels", 1
# Settings that decide what is in the panels; panels made with others are refused.
_SETTINGS = (
    *("qlib_data_path", "freq", "instrument", "dataset_begin_time", "dataset_end_time", "train_time_range", "val_time_range"),
    *("test_time_range", "lookback_window", "predict_window", "raw", "timezone", "stamp"),
)


class QlibDataSection(RangesSection, Protocol):
    """What is read of the configuration's `data` section, beside the ranges."""

    qlib_data_path: str
    freq: str  # Qlib's name: day, 60min, 240min, ...
    instrument: str  # a pool of the store
    raw: bool  # prices / factor and volume * factor, instead of as stored
    timezone: str  # the zone of the store's wall clock
    stamp: str  # open or close: which edge of the bar its time names


@dataclass(frozen=True)
class Preprocessed:
    """Panels of the three ranges, and how they came about.

    Rows: bars of symbols that were ever members of the pool and have an origin there, over their whole life: from lookback_window bars
    before the range to its end (test: and predict_window bars more, where there are, to score with). `origin`: the symbol is a member that
    day, has lookback_window bars, and the next bar of the calendar lies in the range and after the end of the range ahead of it; for train
    and val, predict_window + 1 more of its bars lie in the range. Bars not traded are left out and the rest counts as consecutive, as the
    published pipeline does: there are no breaks.
    """

    train: Panel
    val: Panel
    test: Panel
    manifest: dict[str, Any]


def build_panels(section: QlibDataSection, say: Callable[[str], Any] = print, *, min_symbols: int = 1) -> Preprocessed:
    """Read the store through pyqlib and cut it by the ranges; says what was read, and what was left out and why.

    min_symbols: fewer than this left is an InputError, as are a missing store, an unknown pool, wrong ranges, and a range in which no
    forecast can start.
    """
    store = open_store(section.qlib_data_path, section.freq)
    ranges, first, last = ranges_of(section, store.calendar)
    spans = store.members(section.instrument)
    days = f"{day(store.calendar[first])} to {day(store.calendar[last])}"
    say(f"store {store.path}: {section.freq} bars, {days}; pool {section.instrument}: {len(spans):,} symbols were ever in it")
    needed = section.lookback_window + section.predict_window + 1
    lives = read_lives(store, spans, first, last, needed=needed, raw=section.raw, say=say)
    tell(lives, say)
    if len(lives.symbols) < max(1, min_symbols):
        raise InputError(_too_few(lives, section, max(1, min_symbols), needed))
    source = f"{store.path}/calendars/{section.freq}.txt"
    clock = parse_times(pd.Series(store.calendar), timezone=section.timezone, source=source)
    stamps = stamp_features(clock.wall)
    panels = {}
    for name in NAMES:
        picked = _pick(lives, ranges[name], section, len(store.calendar))
        if not len(picked.series):
            raise InputError(_no_origin(ranges[name], store, section))
        place = lives.place[picked.rows]
        panels[name] = Panel.build(
            features=lives.features[picked.rows],
            stamps=stamps[place],
            times=clock.times[place],
            offsets=picked.offsets,
            origin=picked.origin,
            series=[SeriesInfo(lives.symbols[s], _period(section.freq), section.instrument) for s in picked.series],
            stamp=section.stamp,
            timezone=section.timezone or clock.zone,
        )
        bars = " to ".join(day(store.calendar[place]) for place in (ranges[name].first, ranges[name].last))
        facts = f"{panels[name].n_series:,} symbols, {panels[name].n_rows:,} rows, forecasts start at {picked.origin.sum():,} of them"
        say(f"{name}: {bars}, {facts}, fingerprint {panels[name].fingerprint[:12]}")
    return Preprocessed(**panels, manifest=_manifest(section, store, ranges, lives, panels, len(spans)))


def save_panels(folder: str | Path, made: Preprocessed) -> Path:
    """Write folder/train, folder/val, folder/test and, last of all, manifest.json: without it the others do not count."""
    folder = ensure_writable_folder(Path(folder).expanduser())
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in NAMES:
        getattr(made, name).save(folder / name)
    write_json(folder / MANIFEST, made.manifest)
    return folder


def open_panels(folder: str | Path, section: QlibDataSection, command: str = COMMAND) -> Preprocessed:
    """What `save_panels` wrote, memory-mapped. command: what makes them, for messages.

    Raises MissingFileError without it, InputError if other settings or another state of the store made it, or it changed.
    """
    folder = Path(folder).expanduser()
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise MissingFileError(f"data.dataset_path: {folder} holds no {MANIFEST}, so no panels; make them first: {command}")
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT or manifest.get("version") != _VERSION:
        raise InputError(f"{folder / MANIFEST}: is no manifest of this version; make the panels anew: {command}")
    was, now = manifest["settings"], _settings(section)
    changed = [f"data.{key} was {was.get(key)!r} and is {now[key]!r}" for key in _SETTINGS if was.get(key) != now[key]]
    if changed:
        raise InputError(f"{folder}: the panels were made with other settings ({'; '.join(changed)}); make them anew: {command}")
    store = Path(now["qlib_data_path"])
    if store.is_dir() and _store_state(store, section) != manifest["store"]["state"]:
        raise InputError(f"{folder}: the store {store} has changed since the panels were made; make them anew: {command}")
    panels = {name: Panel.open(folder / name) for name in NAMES}
    for name, panel in panels.items():
        if panel.fingerprint != manifest["panels"][name]["fingerprint"]:
            raise InputError(f"{folder / name}: is not the panel that {MANIFEST} lists; make the panels anew: {command}")
    return Preprocessed(**panels, manifest=manifest)


@dataclass(frozen=True)
class _Picked:
    """Rows of `Lives` that make a panel: rows [n], origin [n], offsets [k + 1], series [k]: numbers of its symbols."""

    rows: np.ndarray
    origin: np.ndarray
    offsets: np.ndarray
    series: np.ndarray


def _pick(lives: Lives, window: Range, section: QlibDataSection, bars: int) -> _Picked:
    """The rows of one range and where forecasts may start, by the rules of `Preprocessed`. bars: length of the calendar."""
    low, high = lives.offsets[:-1], lives.offsets[1:]
    number = np.arange(len(low))
    series = np.repeat(number, high - low)  # [N] whose row it is
    key = series * bars + lives.place  # increasing over all rows, so that one search finds a calendar bar in every symbol
    inside = np.searchsorted(key, number * bars + window.first)  # first row in the range, of each symbol
    beyond = np.searchsorted(key, number * bars + window.last + 1)
    begin, end = np.maximum(low, inside - section.lookback_window), beyond
    row, following = np.arange(len(key)), lives.place + 1
    origin = lives.member & (following >= max(window.first, window.after + 1)) & (following <= window.last)
    origin &= row - low[series] >= section.lookback_window - 1
    if window.name == "test":
        end = np.minimum(high, beyond + section.predict_window)
    else:
        origin &= row + section.predict_window + 1 < end[series]
    used = np.flatnonzero(np.bincount(series[origin], minlength=len(low)))
    sizes = (end - begin)[used]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(offsets[-1]) + np.repeat(begin[used] - offsets[:-1], sizes)
    return _Picked(rows, origin[rows], offsets, used)


def _period(freq: str) -> str:
    return "1d" if freq == "day" else freq


def _settings(section: QlibDataSection) -> dict[str, Any]:
    values = {key: getattr(section, key) for key in _SETTINGS}
    values = {key: [str(part) for part in value] if isinstance(value, list | tuple) else value for key, value in values.items()}
    return {**values, "qlib_data_path": str(Path(section.qlib_data_path).expanduser().resolve())}


def _manifest(
    section: QlibDataSection, store: Store, ranges: dict[str, Range], lives: Lives, panels: dict[str, Panel], members: int
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "settings": _settings(section),
        "store": {
            "path": str(store.path),
            "freq": store.freq,
            "calendar": [day(store.calendar[0]), day(store.calendar[-1])],
            "bars": len(store.calendar),
            "state": _store_state(store.path, section),
        },
        "pool": {
            "name": section.instrument,
            "symbols": members,
            "used": len(lives.symbols),
        },
        "ranges": {name: _told_range(section, ranges[name], store) for name in NAMES},
        "panels": {
            name: {
                "fingerprint": panel.fingerprint,
                "symbols": panel.n_series,
                "rows": panel.n_rows,
                "origins": int(panel.origin.sum()),
            }
            for name, panel in panels.items()
        },
        "fields": dict(lives.fields),
        "dropped_symbols": lives.dropped,
        "dropped_bars": lives.lost,
        "kept_bars": lives.kept,
        "versions": {**versions(), "pyqlib": metadata.version("pyqlib")},
    }


def _told_range(section: QlibDataSection, window: Range, store: Store) -> dict[str, Any]:
    first, last = store.calendar[window.first], store.calendar[window.last]
    return {
        "asked": _settings(section)[f"{window.name}_time_range"],
        "first": day(first),
        "last": day(last),
        "bars": window.last - window.first + 1,
        "forecasts_after": day(store.calendar[window.after]) if window.after >= 0 else None,
    }


def _store_state(store: Path, section: QlibDataSection) -> str:
    """A digest of what the panels are made of: calendar, pool, and size and time of change of every field's file."""
    found = hashlib.blake2b(digest_size=16)
    for file in (store / "calendars" / f"{section.freq}.txt", store / "instruments" / f"{section.instrument.lower()}.txt"):
        found.update(file.read_bytes() if file.is_file() else b"-")
    for file in sorted(store.glob(f"features/*/*.{section.freq}.bin")):
        facts = file.stat()
        found.update(f"{file.parent.name}/{file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return found.hexdigest()


def _too_few(lives: Lives, section: QlibDataSection, wanted: int, needed: int) -> str:
    told = listed(f"{symbol} ({why})" for symbol, why in lives.dropped.items())
    return (
        f"data.instrument: of pool {section.instrument!r} {len(lives.symbols):,} symbols can be used, and {wanted:,} are needed; left out: "
        f"{told}; a symbol needs {needed:,} bars (lookback_window + predict_window + 1) from data.dataset_begin_time to "
        "data.dataset_end_time"
    )


def _no_origin(window: Range, store: Store, section: QlibDataSection) -> str:
    begins, ends, first = store.calendar[window.first], store.calendar[window.last], max(window.first, window.after + 1)
    bars = f"{window.last - window.first + 1:,} bars"
    if first > window.first:
        bars += f", {window.last - first + 1:,} of them after the range ahead of it"
    wanted = f"lookback_window {section.lookback_window} bars before"
    if window.name != "test":
        wanted += f", and predict_window + 1 = {section.predict_window + 1} in the range"
    return (
        f"data.{window.name}_time_range: no forecast can start there ({day(begins)} to {day(ends)} is {bars}): a member of pool "
        f"{section.instrument!r} needs {wanted}; give a longer range or shorter windows"
    )
