"""Rows of a panel: which remain, where a gap is left behind, and what stands next to a panel on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.resampling_grid import period_ns
from finetune.data.stamps import period_of
from finetune.engine.files import read_json, write_json
from kronos.errors import InputError, MissingFileError

Say = Callable[[str], Any]


class Kept(NamedTuple):
    """rows [n]: the kept rows of the old panel; series: numbers of the series with rows left; offsets, breaks: of the new panel."""

    rows: np.ndarray
    series: np.ndarray
    offsets: np.ndarray
    breaks: np.ndarray


def keep_rows(keep: np.ndarray, offsets: np.ndarray, breaks: np.ndarray) -> Kept:
    """Drop rows. keep [N] bool. A break stands where rows were lost between two that stay, and where there was one before.

    Rows lost at the beginning or the end of a series leave no break.
    """
    rows = np.flatnonzero(keep)
    series = np.searchsorted(offsets, rows, side="right") - 1
    stretch = np.zeros(len(keep), np.int64)
    stretch[breaks] = 1
    stretch = np.cumsum(stretch) + np.cumsum(~keep)
    new_stretch = np.diff(stretch[rows]) > 0
    same_series = np.diff(series) == 0
    present, first = np.unique(series, return_index=True)
    new_breaks = np.flatnonzero(new_stretch & same_series) + 1
    return Kept(rows, present, np.append(first, len(rows)).astype(np.int64), new_breaks.astype(np.int64))


def series_rows(panel: Panel) -> list[slice]:
    """The rows of each series."""
    return [slice(int(a), int(b)) for a, b in zip(panel.offsets[:-1], panel.offsets[1:], strict=True)]


def period_of_series(info: SeriesInfo, times: np.ndarray) -> int:
    """ns between bars: as the series says, else the commonest distance."""
    return period_ns(info.period) or period_of(times)


def plain_symbol(info: SeriesInfo) -> SeriesInfo:
    """BTCUSDT_1h of 1h bars is BTCUSDT: one symbol whatever the file of a period is called."""
    if not info.period:
        return info
    found = re.fullmatch(rf"(.+?)[_\-. ]{re.escape(info.period)}([_\-. ]all)?", info.symbol, re.IGNORECASE)
    return replace(info, symbol=found[1]) if found else info


def columns_named(panel: Panel, names: tuple[str, ...] | list[str], who: str) -> list[int]:
    """Positions of columns. Raises InputError naming every one that is missing."""
    place = {column.name: k for k, column in enumerate(panel.columns)}
    missing = [name for name in names if name not in place]
    if missing:
        there = ", ".join(list(place)[:12]) + (" ..." if len(place) > 12 else "")
        raise InputError(f"{who}: the panel has no column {', '.join(map(repr, missing))}; it has {there}")
    return [place[name] for name in names]


def with_kinds(panel: Panel, kinds: Mapping[str, str]) -> Panel:
    """The same panel with columns of other kinds."""
    if not kinds:
        return panel
    names = ("features", "stamps", "times", "offsets", "series", "targets", "target_names", "origin", "breaks", "stamp", "timezone")
    columns = [Column(column.name, kinds.get(column.name, column.kind)) for column in panel.columns]
    return Panel.build(**{name: getattr(panel, name) for name in names}, columns=columns)


def check_constant(features: np.ndarray, columns: list[Column], policy: str, say: Say) -> list[int]:
    """Positions of the columns that stay. Columns with one value in all rows are an InputError, or left out under policy "drop"."""
    constant = [k for k in range(features.shape[1]) if len(features) and (features[:, k] == features[0, k]).all()]
    if constant:
        shown = ", ".join(f"{columns[k].name} = {float(features[0, k]):g}" for k in constant[:10])
        more = f" and {len(constant) - 10} more" if len(constant) > 10 else ""
        if policy == "error":
            raise InputError(
                f"{len(constant)} columns have the same value in all {len(features):,} rows and tell a model nothing: {shown}{more}; "
                "take them out of features.use, or set features.constant: drop"
            )
        say(f"left out, the same value in all rows: {shown}{more}")
    gone = set(constant)
    return [k for k in range(features.shape[1]) if k not in gone]


def manifest_path(panel: str | Path) -> Path:
    """The JSON that stands next to a panel folder."""
    folder = Path(panel)
    return folder.with_name(folder.name + ".json")


def save_with_manifest(panel: Panel, folder: Path, manifest: dict[str, Any]) -> None:
    """Write a panel, then its manifest with the panel's fingerprint."""
    panel.save(folder)
    write_json(manifest_path(folder), {**manifest, "fingerprint": panel.fingerprint})


def open_with_manifest(folder: str | Path, made_by: str) -> tuple[Panel, dict[str, Any]]:
    """A panel and what was noted next to it ({} if nothing was, or it belongs to another panel).

    Raises MissingFileError naming the command that makes it.
    """
    if not Path(folder).exists():
        raise MissingFileError(f"{folder}: there is no such panel; make it first: {made_by}")
    panel = Panel.open(folder)
    noted = read_json(manifest_path(folder)) or {}
    return panel, noted if noted.get("fingerprint") == panel.fingerprint else {}
