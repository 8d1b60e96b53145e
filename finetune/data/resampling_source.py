"""From a model's configuration to its panel: the finer bars read, resampled, saved with a manifest, and checked against published bars."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from finetune.data.config import CsvDataSection
from finetune.data.load import load_panel
from finetune.data.panel import Panel, SeriesInfo
from finetune.data.panel_store import is_panel_folder
from finetune.data.resampling import Resampled, resample
from finetune.data.resampling_check import compare
from finetune.data.resampling_grid import exchange_of, period_ns
from finetune.data.resampling_report import SeriesReport, table, whole_reports
from finetune.data.resampling_settings import MANIFEST, SOURCE_KEY, panel_settings
from finetune.data.source_facts import digests, named_sources, seen
from finetune.engine.files import jsonable, read_json, write_json
from finetune.engine.provenance import versions
from kronos.errors import InputError

DIFFERENCES = "differences.csv"
_VERSION = 1  # of the way bars are made: another one makes every panel anew
_SHOWN = 20  # differing bars are printed, and differences.csv has all
Say = Callable[[str], Any]


class Timeframe(Protocol):
    """`timeframe` of a configuration."""

    period: str
    source: list[str]
    stamp: str
    calendar: str


class Model(Protocol):
    """What is read of a model's configuration."""

    timeframe: Timeframe
    data: CsvDataSection
    panel_folder: Path

    @property
    def name(self) -> str: ...


def prepare(config: Model, *, force: bool = False, check: Sequence[str] = (), say: Say = print) -> Panel:
    """Make `config.panel_folder` of the finer bars `timeframe.source`, with a manifest.json of what went in and what became of it.

    A panel that was made of the same files in the same way stays, unless `force`. check: files of published bars of the period; what
    differs is printed and written to differences.csv there. Raises InputError for anything wrong with the source, MissingFileError if it
    is not there.
    """
    frame, folder = config.timeframe, Path(config.panel_folder)
    if not frame.source:
        raise InputError(f"{config.name}: timeframe.source names no file; give the finer bars, or set KRONOS_DATA_PATH")
    sources = named_sources(frame.source, SOURCE_KEY)
    try:
        looked = seen(sources)  # before they are read: what is written to them meanwhile is then noticed the next time
        inputs = {"version": _VERSION, "settings": panel_settings(config), "files": digests(sources)}
    except OSError as error:
        told = f"{error.filename or 'a file'}: {SOURCE_KEY} names this, and it cannot be read ({error.strerror}); mend it or take it out"
        raise InputError(told) from error
    manifest = _same(folder, inputs)
    if manifest and manifest.get("seen") != looked:  # copied, or touched: the next look need not read them again
        write_json(folder / MANIFEST, {**manifest, "seen": looked})
    if manifest and not force and not check:
        say(table([SeriesReport(**row) for row in manifest["series"]]))
        say(f"{folder}: is there already, made of the same files; --force makes it again")
        return Panel.open(folder)
    made = bars_of(config, say)
    if manifest and not force:
        say(f"{folder}: is there already, made of the same files")
    else:
        made.panel.save(folder)
        write_json(folder / MANIFEST, {**inputs, "seen": looked, "panel": made.panel.fingerprint, **_told(made)})
    say(table(made.series))
    for note in _notes(made, config):
        say(note)
    if check:
        _check(made, config, check, folder, say)
    return Panel.open(folder)


def bars_of(config: Model, say: Say = print) -> Resampled:
    """The bars of timeframe.period: made of the source's, or the source's own if they are of that period."""
    frame = config.timeframe
    fine = _load(config, frame.source, frame.stamp, "timeframe.source", say)
    if {info.period for info in fine.series} - {""} == {frame.period}:
        say(f"timeframe.source has bars of {frame.period} already: taken as they are")
        edges = np.asarray(fine.times)
        ones = np.ones(fine.n_rows, np.int64)
        return Resampled(fine, edges, edges, ones, ones, whole_reports(fine))
    return resample(fine, frame.period, calendar=frame.calendar)


def _load(config: Model, paths: Sequence[str], stamp: str, key: str, say: Say) -> Panel:
    """The bars of some files, read as `data` says; times without a zone are an exchange's wall clock. Series go by their symbol alone."""
    data = config.data
    exchange = exchange_of(config.timeframe.calendar)
    zone = data.timezone or (exchange.tz.key if exchange is not None else "")
    columns = {name: theirs for name, theirs in data.columns if theirs != name}
    changes = {"columns": columns, "timezone": zone, "stamp": stamp, "data_path": list(paths), "lookback_window": 0, "predict_window": 0}
    try:
        return _renamed(load_panel(SimpleNamespace(**{**dict(data), **changes}), say=say), config.timeframe.calendar)
    except InputError as error:
        raise type(error)(str(error).replace("data.data_path", key).replace("data.stamp", "timeframe.stamp")) from error


def _renamed(panel: Panel, calendar: str) -> Panel:
    """The panel with series named BTCUSDT that were BTCUSDT_1h, after their files: a symbol has the same name at every period."""
    symbols = [_symbol(info) for info in panel.series]
    if len(set(symbols)) < len(symbols):
        symbols = [info.symbol for info in panel.series]
    return Panel.build(
        **{name: getattr(panel, name) for name in ("features", "stamps", "times", "offsets", "columns", "origin", "breaks")},
        series=[replace(info, symbol=symbol, calendar=calendar) for info, symbol in zip(panel.series, symbols, strict=True)],
        stamp=panel.stamp,
        timezone=panel.timezone,
    )


def _symbol(info: SeriesInfo) -> str:
    found = re.fullmatch(r"(.+)[_\-. ]([^_\-. ]+)", info.symbol)
    named = period_ns(re.sub("m$", "min", found[2].lower())) if found else 0
    return found[1] if found and named and named == period_ns(info.period) else info.symbol


def _same(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the panel that is there, if it was made of these inputs."""
    manifest = read_json(folder / MANIFEST) if is_panel_folder(folder) else None
    if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in jsonable(inputs).items()):
        return None
    return manifest if Panel.open(folder).fingerprint == manifest["panel"] else None


def _told(made: Resampled) -> dict[str, Any]:
    """What the manifest says of the bars."""
    counts = ("rows", "outside", "bars", "partial", "gaps", "missing", "missing_bars")
    totals = {name: sum(getattr(report, name) for report in made.series) for name in counts}
    return {
        "totals": {**totals, "incomplete": len(made.left)},
        "stamp": made.panel.stamp,
        "timezone": made.panel.timezone,
        "series": [report.values() for report in made.series],
        "made_with": versions(),
    }


def _notes(made: Resampled, config: Model) -> list[str]:
    """What a user should know beside the table."""
    notes = []
    for report in made.series:
        for bar in report.incomplete:
            notes.append(f"{report.symbol}: left out as incomplete: {bar}")
        if report.gaps:
            before, after = report.largest_gap
            notes.append(
                f"{report.symbol}: {report.missing:,} finer bars are missing in {report.gaps:,} gaps, the largest from {before} to {after}"
                f"; {report.partial:,} bars lack some, {report.missing_bars:,} could not be made; nothing was filled"
            )
        if report.outside:
            notes.append(
                f"{report.symbol}: {report.outside:,} rows lie outside the sessions of {config.timeframe.calendar} and were left out"
            )
        if not report.bars:
            notes.append(f"{report.symbol}: has no whole bar and was left out")
    panel, needed = made.panel, config.data.lookback_window + config.data.predict_window + 1
    edges = np.union1d(panel.offsets, panel.breaks)
    if (longest := int(np.diff(edges).max())) < needed:
        notes.append(f"the longest unbroken stretch has {longest:,} bars, and training needs {needed:,}: give more bars or shorter windows")
    more = len(notes) - _SHOWN
    return [*notes[:_SHOWN], *([f"... and {more:,} more notes of this kind; {MANIFEST} has all"] if more > 0 else [])]


def _check(made: Resampled, config: Model, files: Sequence[str], folder: Path, say: Say) -> None:
    found = compare(made, _load(config, files, "auto", "--check", say))
    counts, same = found["kind"].value_counts(), found.attrs["same"]
    say(
        f"check: {sum(same.values()):,} bars of {', '.join(same)} are equal (open, high, low, close exactly, volume to 1e-6), "
        f"{counts.get('differs', 0):,} differ, {counts.get('only given', 0):,} are only in the files given, "
        f"{counts.get('only made', 0):,} only here"
    )
    differing = found[found["kind"] == "differs"]
    for row in differing.head(_SHOWN).itertuples():
        say(f"  {row.symbol} {row.time}: {row.made} made, {row.given} given: {row.why}")
    if len(differing) > _SHOWN:
        say(f"  ... and {len(differing) - _SHOWN:,} more")
    for (symbol, kind, why), rows in found[found["kind"] != "differs"].groupby(["symbol", "kind", "why"]):
        say(f"  {symbol}, {kind}: {len(rows):,} bars, {rows['time'].iloc[0]} to {rows['time'].iloc[-1]}: {why}")
    found.to_csv(folder / DIFFERENCES, index=False)
