"""The checklist before training on a folder of the Kaggle commands: everything that would stop training, or spoil it, told at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from finetune.data.checks import CLOSE, VOLUME
from finetune.data.kaggle_panel import MANIFEST, PANEL, TEST, midnights
from finetune.data.kaggle_test_rows import load_test_rows
from finetune.data.panel import KRONOS_COLUMNS, Panel
from finetune.engine.files import read_json
from kronos.errors import InputError

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
_COMMAND = "python finetune_csv/kaggle_data_preprocess.py --train train.csv --test test.csv --out"
_EXTREME = np.log(2)
_FEW, _MANY = 0.001, 0.2  # shares of returns that are extreme, and of bars without volume, that are worth a warning
_FREE_DISK, _FREE_MEMORY = 5e9, 2e9
_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Check:
    """One line of the checklist."""

    what: str
    status: str
    told: str


@dataclass
class _Rows:
    """What needs every row, gathered in one pass."""

    unusable: int = 0
    silent: int = 0
    extreme: int = 0
    returns: int = 0
    worst: list[tuple[float, int]] = field(default_factory=list)  # (log return, row), largest first


def check_folder(folder: Path, lookback: int = 256, predict: int = 1) -> list[Check]:
    """All checks of a folder written by `prepare`, in the order they are shown; nothing is raised for what is wrong with it."""
    checks: list[Check] = []
    panel = _open(folder, checks)
    if panel is not None:
        checks += _lengths(panel, lookback, predict)
        checks += _values(panel)
        checks.append(_test_rows(folder, panel, lookback))
    checks += _machine(folder if folder.is_dir() else Path.cwd(), panel)
    return checks


def as_table(checks: Iterable[Check]) -> str:
    """PASS, WARN or FAIL, what was checked, what was found: one line each."""
    checks = list(checks)
    width = max(len(check.what) for check in checks)
    return "\n".join(f"{check.status}  {check.what:<{width}}  {check.told}" for check in checks)


def _open(folder: Path, checks: list[Check]) -> Panel | None:
    """The panel, if it can be used at all."""
    try:
        manifest = read_json(folder / MANIFEST)
        if not manifest:
            why = "its preprocessing did not end" if (folder / PANEL).exists() else "it is not preprocessed yet" if folder.exists() else ""
            raise InputError(f"{folder}: {why or 'there is no such folder'}; run: {_COMMAND} {folder}")
        panel = Panel.open(folder / PANEL)
        if panel.fingerprint != manifest.get("panel"):
            raise InputError(f"{folder / PANEL}: is another panel than {MANIFEST} names; run: {_COMMAND} {folder} --force")
        if panel.columns != KRONOS_COLUMNS:
            raise InputError(f"{folder / PANEL}: has columns {', '.join(column.name for column in panel.columns)}, not those of Kronos")
        checks.append(Check("panel opens", PASS, f"{folder / PANEL}"))
        panel.verify()
    except InputError as error:
        checks.append(Check("panel is whole" if checks else "panel opens", FAIL, str(error)))
        return None
    checks.append(Check("panel is whole", PASS, f"every row has the fingerprint {panel.fingerprint}"))
    return panel


def _lengths(panel: Panel, lookback: int, predict: int) -> list[Check]:
    lengths = np.diff(panel.offsets)
    shortest, longest = int(lengths.argmin()), int(lengths.argmax())
    first, last = (_date(int(time)) for time in (panel.times[panel.offsets[:-1]].min(), panel.times[panel.offsets[1:] - 1].max()))
    # what counts is the longest stretch without an excluded gap: windows never straddle one
    starts = np.union1d(panel.offsets[:-1], panel.breaks)
    stretch = np.diff(np.append(starts, panel.n_rows))
    series = np.searchsorted(panel.offsets, starts, side="right") - 1
    best = np.zeros(panel.n_series, np.int64)
    np.maximum.at(best, series, stretch)
    needed = lookback + predict + 1
    long, windows = best >= needed, int(np.maximum(0, stretch - needed + 1).sum())
    share = float(long.mean())
    told = (
        f"{int(long.sum()):,} of {panel.n_series:,} ({share:.1%}) have lookback {lookback} + {predict} + 1 = {needed} bars without a gap: "
        f"{windows:,} windows"
    )
    return [
        Check("size", PASS, f"{panel.n_series:,} tickers, {panel.n_rows:,} rows, {len(panel.breaks):,} gaps"),
        Check(
            "length of tickers",
            PASS,
            f"shortest {panel.series[shortest].symbol} {lengths[shortest]:,}, longest {panel.series[longest].symbol} {lengths[longest]:,}, "
            f"median {np.median(lengths):,.0f}",
        ),
        Check("dates", PASS, f"{first} to {last}, wall clock {panel.timezone}"),
        Check("tickers long enough", FAIL if not long.any() else WARN if share < 0.5 else PASS, told),
    ]


def _date(time: int) -> str:
    return str(np.datetime64(time, "ns").astype("datetime64[D]"))


def _values(panel: Panel) -> list[Check]:
    found = _Rows()
    for begin in range(0, panel.n_rows, _ROWS_AT_ONCE):
        _look(panel, begin, min(begin + _ROWS_AT_ONCE, panel.n_rows), found)
    found.worst = sorted(found.worst, key=lambda pair: -abs(pair[0]))[:3]
    named = ", ".join(f"{_where(panel, row)} {np.expm1(value):+.0%}" for value, row in found.worst)
    share = found.extreme / max(1, found.returns)
    silent = found.silent / panel.n_rows
    return [
        Check("numbers", FAIL if found.unusable else PASS, f"{found.unusable:,} rows with NaN, infinity or a price that is not above 0"),
        Check("bars without volume", WARN if silent > _MANY else PASS, f"{found.silent:,} ({silent:.2%})"),
        Check(
            "extreme returns",
            WARN if share > _FEW or (found.worst and abs(found.worst[0][0]) > np.log(10)) else PASS,
            f"{found.extreme:,} of {found.returns:,} beyond a doubling or halving" + (f"; the worst: {named}" if named else ""),
        ),
    ]


def _look(panel: Panel, begin: int, end: int, found: _Rows) -> None:
    """Count in rows begin to end - 1; the row before joins the pieces."""
    first = max(0, begin - 1)
    rows = np.array(panel.features[first:end])
    fresh = rows[begin - first :]
    found.unusable += int((~(np.isfinite(fresh).all(axis=1) & (fresh[:, : CLOSE + 1] > 0).all(axis=1))).sum())
    found.silent += int((fresh[:, VOLUME] == 0).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.diff(np.log(rows[:, CLOSE].astype(np.float64)))
    row = np.arange(first + 1, end)
    inside = np.isfinite(change) & ~np.isin(row, panel.offsets)
    extreme = np.flatnonzero(inside & (np.abs(change) > _EXTREME))
    found.returns += int(inside.sum())
    found.extreme += len(extreme)
    worst = extreme[np.argsort(-np.abs(change[extreme]))[:3]]
    found.worst += [(float(change[place]), int(row[place])) for place in worst]


def _where(panel: Panel, row: int) -> str:
    series = int(np.searchsorted(panel.offsets, row, side="right")) - 1
    return f"{panel.series[series].symbol} on {_date(int(panel.times[row]))}"


def _test_rows(folder: Path, panel: Panel, lookback: int) -> Check:
    """How many test rows have the bars a forecast needs, no later than their date."""
    try:
        asked = load_test_rows(folder / TEST)
    except InputError as error:
        return Check("test rows", FAIL, str(error))
    series = {info.symbol: number for number, info in enumerate(panel.series)}
    until = midnights(asked.days, panel.timezone)
    enough, known = 0, 0
    for symbol, time in zip(asked.symbols, until.tolist(), strict=True):
        if symbol in series:
            first, end = panel.offsets[series[symbol]], panel.offsets[series[symbol] + 1]
            known += 1
            enough += int(np.searchsorted(panel.times[first:end], time, side="right")) >= lookback
    told = (
        f"{enough:,} of {len(asked.ids):,} have {lookback} bars before their date or on it; {known - enough:,} have fewer, "
        f"{len(asked.ids) - known:,} ask about tickers that are not in the panel (these get the class prior)"
    )
    return Check("test rows", FAIL if not enough else WARN if enough < len(asked.ids) else PASS, told)


def _machine(folder: Path, panel: Panel | None) -> list[Check]:
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    size = 0 if panel is None else panel.n_rows * 38  # bytes per row: 24 of features, 8 of times, 5 of stamps, 1 of origin
    return [
        Check("free disk", WARN if disk < _FREE_DISK else PASS, f"{disk / 1e9:.1f} GB (checkpoints need about 5)"),
        Check(
            "free memory",
            WARN if memory < _FREE_MEMORY + size else PASS,
            f"{memory / 1e9:.1f} GB (training needs about 2, and {size / 1e9:.1f} for the panel's pages to stay in memory)",
        ),
    ]
