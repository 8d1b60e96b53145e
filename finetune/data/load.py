"""From a configuration's `data` section to a Panel: read, clean, say what was done. The one entry that commands call."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from finetune.data.checks import moment
from finetune.data.cleaning import CleanBars, Counts, Policy, clean
from finetune.data.columns import check_mapping
from finetune.data.csv_bars import read_table, table_of_frame
from finetune.data.panel import Panel, SeriesInfo
from finetune.data.panel_store import is_panel_folder
from finetune.data.samples import CALENDAR, load_sample
from finetune.data.sources import Source, find_sources
from finetune.data.stamps import choose_stamp, missing_bars, period_name, period_of
from kronos.errors import InputError, printable

_NAMED = 5  # so many series, files or notes of one kind are named; the rest is a count
Say = Callable[[str], Any]


class DataSection(Protocol):
    """What `load_panel` reads of a configuration."""

    data_path: str | Sequence[str]  # files, folders, globs, "arch:sp500"; or one saved panel
    symbol_column: str  # "" finds symbol, ticker, code or instrument by itself
    columns: Mapping[str, str]  # canonical name → the file's name
    timezone: str  # IANA name; "" keeps wall clocks as written
    stamp: str  # auto, open or close
    missing: str  # error, drop or ffill
    max_ffill: int
    drop_suspended: bool
    lookback_window: int
    predict_window: int


def load_panel(section: DataSection, *, say: Say = print) -> Panel:
    """Read what `section.data_path` names into one Panel and say in a few lines what is in it and what was cleaned.

    Series shorter than lookback + predict + 1 rows are left out and counted. Raises InputError (or MissingFileError) with everything that
    is wrong with the files, or if no series is left.
    """
    needed = section.lookback_window + section.predict_window + 1
    alone = isinstance(section.data_path, str | os.PathLike)
    if alone and is_panel_folder(folder := Path(os.path.expanduser(section.data_path))):
        panel = _opened(folder)
        _say_lengths(panel, needed, say)
    else:
        policy = Policy(section.missing, section.max_ffill, section.drop_suspended)
        check_mapping(section.columns)
        sources = find_sources(section.data_path)
        panel = _assemble(_read_all(sources, section, policy), section.stamp, needed, say)
    say(summary(panel))
    return panel


def _opened(folder: Path) -> Panel:
    """A saved panel, every row read once (about a second per GB): a flipped bit in it would be trained on without a word."""
    panel = Panel.open(folder)
    try:
        panel.verify()
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return panel


def build_panel(
    frames: Mapping[SeriesInfo | str, pd.DataFrame],
    *,
    timezone: str = "",
    stamp: str = "auto",
    policy: Policy | None = None,
    columns: Mapping[str, str] | None = None,
    min_rows: int = 1,
    say: Say | None = None,
) -> Panel:
    """A Panel of one DataFrame per series (columns as in a CSV, or times in the index), checked and cleaned like files.

    Raises InputError naming the series and the row (from 1), or if no series has `min_rows` rows.
    """
    parts = []
    for key, frame in frames.items():
        info = key if isinstance(key, SeriesInfo) else SeriesInfo(key)
        table = table_of_frame(frame, f"series {info.symbol!r}", mapping=columns)
        table.chosen = replace(table.chosen, symbol="")  # the mapping's keys name the series
        parts.append((info, clean(table, info.symbol, policy=policy or Policy(), timezone=timezone)))
    return _assemble(parts, stamp, min_rows, say or (lambda text: None))


def summary(panel: Panel) -> str:
    """One line: series, rows, period, first and last time, zone and stamp."""
    periods = Counter(info.period for info in panel.series)
    names = ", ".join(period or "?" for period, _ in periods.most_common(3))
    first, last = (str(np.datetime64(int(time), "ns"))[:16].replace("T", " ") for time in _span(panel))
    return (
        f"panel: {panel.n_series:,} series, {panel.n_rows:,} rows of {names}, {first} to {last} UTC, wall clock {panel.timezone}, "
        f"stamped at {panel.stamp}, {len(panel.breaks):,} breaks, fingerprint {panel.fingerprint[:12]}"
    )


def describe(panel: Panel) -> pd.DataFrame:
    """One row per series: symbol, period, rows, breaks, first and last time (UTC)."""
    breaks = np.diff(np.searchsorted(panel.breaks, panel.offsets))
    first, last = (pd.to_datetime(panel.times[rows], utc=True) for rows in (panel.offsets[:-1], panel.offsets[1:] - 1))
    return pd.DataFrame(
        {
            "symbol": [info.symbol for info in panel.series],
            "period": [info.period for info in panel.series],
            "rows": np.diff(panel.offsets),
            "breaks": breaks,
            "first": first,
            "last": last,
        }
    )


def _span(panel: Panel) -> tuple[int, int]:
    return int(panel.times[panel.offsets[:-1]].min()), int(panel.times[panel.offsets[1:] - 1].max())


def _read_all(sources: Sequence[Source], section: DataSection, policy: Policy) -> list[tuple[SeriesInfo, CleanBars]]:
    """Every source cleaned; what is wrong in several files comes in one error."""
    parts, errors = [], []
    for source in sources:
        try:
            parts.append(_read_one(source, section, policy))
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        left = f"\n... and {len(errors) - _NAMED} more files" if len(errors) > _NAMED else ""
        raise InputError("\n".join([f"{len(errors)} of {len(sources)} files cannot be used:", *map(str, errors[:_NAMED])]) + left)
    return parts


def _read_one(source: Source, section: DataSection, policy: Policy) -> tuple[SeriesInfo, CleanBars]:
    if isinstance(source.path, str):
        table = table_of_frame(load_sample(source.path), source.path)
        info = SeriesInfo(source.name, calendar=CALENDAR)
    else:
        table = read_table(source.path, mapping=section.columns, symbol_column=section.symbol_column)
        info = SeriesInfo(source.name)
    return info, clean(table, source.name, policy=policy, timezone=section.timezone)


def _assemble(parts: Sequence[tuple[SeriesInfo, CleanBars]], stamp: str, needed: int, say: Say) -> Panel:
    """One Panel of all series long enough, in the order of the sources; says what was cleaned and how the stamp was found."""
    _say_cleaning([bars for _, bars in parts], say)
    series, pieces, breaks, short, rows = [], [], [], Counter(), 0
    for info, bars in parts:
        for number, name in enumerate(bars.names):
            first, end = int(bars.offsets[number]), int(bars.offsets[number + 1])
            if end - first < needed:
                short[name if name not in short else f"{name} of {bars.source}"] = end - first
                continue
            period = info.period or period_name(period_of(bars.times[first:end]))
            series.append(replace(info, symbol=name, period=period))
            breaks.append(bars.breaks[slice(*np.searchsorted(bars.breaks, [first, end]))] - first + rows)
            pieces.append((bars, slice(first, end)))
            rows += end - first
    _say_short(short, needed, bool(series), say)
    _say_gaps(series, pieces, say)
    _told_apart(series, [bars.source for bars, _ in pieces])
    guess = choose_stamp(stamp, [bars.wall[piece] for bars, piece in pieces])
    say(f"stamp: {guess.stamp} ({guess.reason})")
    return Panel.build(
        features=np.concatenate([bars.features[piece] for bars, piece in pieces]),
        stamps=np.concatenate([bars.stamps[piece] for bars, piece in pieces]),
        times=np.concatenate([bars.times[piece] for bars, piece in pieces]),
        offsets=np.cumsum([0, *(piece.stop - piece.start for _, piece in pieces)]),
        breaks=np.concatenate(breaks),
        series=series,
        stamp=guess.stamp,
        timezone="/".join(sorted({bars.zone for bars, _ in pieces})),
    )


def _told_apart(series: Sequence[SeriesInfo], sources: Sequence[str]) -> None:
    seen: dict[SeriesInfo, str] = {}
    for info, source in zip(series, sources, strict=True):
        if info in seen:
            where = f"{seen[info]} and {source}"
            bars = f"{info.period} bars" if info.period else "bars"
            raise InputError(f"{where}: both hold {bars} of {info.symbol!r}; join them in one file, or rename one symbol")
        seen[info] = source


def _say_cleaning(parts: Sequence[CleanBars], say: Say) -> None:
    notes: dict[str, list[str]] = defaultdict(list)
    counts: Counts = defaultdict(Counter)
    for bars in parts:
        for note in bars.notes:
            notes[note.removeprefix(f"{bars.source}: ")].append(bars.source)
        for what, per_series in bars.counts.items():
            counts[what].update(per_series)
    for note, sources in notes.items():
        say(f"{_listed([os.path.basename(source) for source in sources])}: {note}")
    for what, per_series in counts.items():
        say(f"{what}: {per_series.total():,} bars in {len(per_series):,} series ({_with_counts(per_series)})")


def _say_short(short: Counter[str], needed: int, some_left: bool, say: Say) -> None:
    if not some_left:
        longest = f"the longest has {max(short.values()):,}" if short else "there is none"
        raise InputError(
            f"data: no series has the {needed:,} rows that lookback_window + predict_window + 1 needs ({longest}: "
            f"{_with_counts(short) or 'all bars were dropped'}); give more bars, or reduce data.lookback_window or data.predict_window"
        )
    if short:
        what = f"shorter than lookback_window + predict_window + 1 = {needed:,} rows"
        say(f"left out, {what}: {len(short):,} series ({_with_counts(short)})")


def _say_gaps(series: Sequence[SeriesInfo], pieces: Sequence[tuple[CleanBars, slice]], say: Say) -> None:
    """Bars that a market around the clock should have and the file has not. Those that cleaning dropped were told already."""
    lacking: Counter[str] = Counter()
    example = ""
    for info, (bars, rows) in zip(series, pieces, strict=True):
        wall = bars.wall[rows]
        missing, after = missing_bars(wall)
        if missing and not len(bars.breaks):
            lacking[info.symbol] += missing
            example = example or f"{info.symbol} from {moment(wall[after - 1])} to {moment(wall[after])}"
    if lacking:
        what = f"{lacking.total():,} bars are missing in {len(lacking):,} series of a market that never closes ({_with_counts(lacking)}"
        say(f"{what}; the first: {example}); windows run across such gaps")


def _say_lengths(panel: Panel, needed: int, say: Say) -> None:
    """A saved panel stays as it is; windows pass over its short series."""
    lengths = np.diff(panel.offsets)
    short = Counter({panel.series[i].symbol: int(lengths[i]) for i in np.flatnonzero(lengths < needed)})
    _say_short(short, needed, bool((lengths >= needed).any()), say)


def _with_counts(counts: Counter[str]) -> str:
    return _listed([f"{name} {number:,}" for name, number in counts.most_common()])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return printable(", ".join(map(str, names[:_NAMED])) + more)
