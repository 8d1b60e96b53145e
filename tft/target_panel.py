"""Targets for every row of a panel, and the thresholds they were made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.panel import Panel
from finetune.engine.files import read_json
from finetune.engine.splits import time_at_share
from kronos.errors import InputError, MissingFileError
from tft.data_config import TargetsSection
from tft.rows import Say, columns_named, period_of_series, series_rows
from tft.targets import Wanted, choose_targets

SPLIT_KEYS = ("val_mode", "val_ratio", "test_ratio", "val_days", "test_days", "train_until")
_DAY = 86_400 * 10**9


def training_end(times: np.ndarray, section: TargetsSection) -> int:
    """The moment (ns UTC) that ends the training data: `train_until`, or what val_mode and its numbers say of times [N]."""
    if section.train_until:
        return pd.to_datetime(section.train_until, utc=True).as_unit("ns").value
    if section.val_mode == "days":
        return int(times.max()) - int((section.val_days + section.test_days) * _DAY)
    return time_at_share(times, 1 - section.val_ratio - section.test_ratio)


def close_times(panel: Panel) -> np.ndarray:
    """[N] when each bar closes, ns UTC: its time, or under stamp "open" that plus its period.

    A bar followed late by the next one (less than half a period: the hour that a clock change adds to a day) closes when that one opens.
    """
    closes = np.array(panel.times, np.int64)
    if panel.stamp == "close":
        return closes
    for info, rows in zip(panel.series, series_rows(panel), strict=True):
        opens = np.asarray(panel.times[rows])
        period = period_of_series(info, opens)
        ends = opens + period
        following = np.append(opens[1:], ends[-1:])
        late = (following > ends) & (following < ends + period // 2)
        closes[rows] = np.where(late, following, ends)
    return closes


def stretches(panel: Panel) -> np.ndarray:
    """[N] number of the unbroken stretch that each row belongs to."""
    starts = np.zeros(panel.n_rows, np.int64)
    starts[panel.breaks] = 1
    starts[panel.offsets[:-1]] = 1
    return np.cumsum(starts)


def target_panel(panel: Panel, section: TargetsSection, say: Say = print) -> tuple[Panel, dict[str, Any]]:
    """`panel` with the targets of `section`, and what a reader of it should know: (panel, manifest).

    manifest: "train_until" (ISO, UTC), "split" (the keys that led to it), "targets" {column: kind, name, parameters, horizon
    {period: bars}}, "thresholds" {column: {"symbol period": value}}.
    Raises InputError: unknown targets, missing columns, too little training data, a class target that is all one class, a file of
    thresholds that lacks one. MissingFileError if that file is not there.
    """
    high, low, close = columns_named(panel, ["high", "low", "close"], "targets")
    chosen = {info.period: choose_targets(section.use, info.period, section.horizon) for info in panel.series}
    names = [wanted.column for wanted in next(iter(chosen.values()))]
    end, given = training_end(np.asarray(panel.times), section), _given(section.thresholds)
    closes, stretch = close_times(panel), stretches(panel)
    targets = np.full((panel.n_rows, len(names)), np.nan, np.float32)
    thresholds: dict[str, dict[str, float]] = {name: {} for name in names}
    for info, rows in zip(panel.series, series_rows(panel), strict=True):
        bars = [np.asarray(panel.features[rows, k]) for k in (close, high, low)]
        if (np.concatenate(bars) <= 0).any():
            raise InputError(f"targets: {info.symbol} {info.period} has prices at or below 0; their logarithm is not known")
        for k, wanted in enumerate(chosen[info.period]):
            measure = wanted.measure(*bars, stretch[rows])
            training = _known_by(closes[rows], wanted.horizon, end)
            series = f"{info.symbol} {info.period}"
            threshold = _taken(wanted, given, series, section.thresholds) if given else _fitted(wanted, measure, training, series)
            if threshold is not None:
                thresholds[wanted.column][series] = threshold
            targets[rows, k] = wanted.values(measure, threshold)
    _say_shares(names, chosen, targets, say)
    manifest = {
        "train_until": pd.Timestamp(end, tz="UTC").floor("s").isoformat(),
        "split": {name: getattr(section, name) for name in SPLIT_KEYS},
        "targets": _described(chosen),
        "thresholds": {name: found for name, found in thresholds.items() if found},
    }
    return with_targets(panel, targets, names), manifest


def _known_by(closes: np.ndarray, horizon: int, end: int) -> np.ndarray:
    """[n] bool: bar t + horizon has closed by `end`."""
    known = np.zeros(len(closes), bool)
    known[: max(0, len(closes) - horizon)] = closes[horizon:] <= end
    return known


def _fitted(wanted: Wanted, measure: np.ndarray, training: np.ndarray, series: str) -> float | None:
    try:
        return wanted.fit(measure, training)
    except InputError as error:
        raise InputError(f"{series}, {error}") from None


def _given(path: str) -> dict[str, dict[str, float]]:
    """The thresholds of another run's targets.json, {} where none is named."""
    if not path:
        return {}
    noted = read_json(Path(path))
    if noted is None:
        raise MissingFileError(
            f"targets.thresholds: {path} is not there; it is the targets.json beside the panel of another target_config.py"
        )
    if not noted.get("thresholds"):
        raise InputError(f"targets.thresholds: {path} holds no thresholds; give the targets.json that target_config.py wrote")
    return noted["thresholds"]


def _taken(wanted: Wanted, given: Mapping[str, Mapping[str, float]], series: str, path: str) -> float | None:
    """The given threshold of a target that has one."""
    if wanted.target.label is None:
        return None
    if series not in given.get(wanted.column, {}):
        there = ", ".join(sorted(given.get(wanted.column, {}))) or "none of this target"
        raise InputError(f"targets.thresholds: {path} has no threshold of {wanted.column} for {series}, only {there}")
    return float(given[wanted.column][series])


def _say_shares(names: list[str], chosen: dict[str, list[Wanted]], targets: np.ndarray, say: Say) -> None:
    """What each target looks like; InputError for one that is unknown everywhere or all one class."""
    kinds = [wanted.target.kind for wanted in next(iter(chosen.values()))]
    for name, kind, values in zip(names, kinds, targets.T, strict=True):
        known = values[~np.isnan(values)]
        if not len(known):
            raise InputError(f"{name}: no row has its full future; give more bars or a shorter targets.horizon")
        if kind == "class":
            if known.min() == known.max():
                raise InputError(f"{name}: is {known[0]:g} in all {len(known):,} rows, so there is nothing to learn; change its parameters")
            say(f"{name}: {known.mean():.1%} ones, {len(values) - len(known):,} rows unknown")
        else:
            say(f"{name}: mean {known.mean(dtype=float):.4g}, deviation {known.std(dtype=float):.4g}, {len(values) - len(known):,} unknown")


def _described(chosen: dict[str, list[Wanted]]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for period, targets in chosen.items():
        for wanted in targets:
            entry = {"name": wanted.target.name, "kind": wanted.target.kind, "parameters": wanted.parameters, "horizon": {}}
            described.setdefault(wanted.column, entry)["horizon"][period] = wanted.horizon
    return described


def with_targets(panel: Panel, targets: np.ndarray, names: list[str]) -> Panel:
    """The same panel with targets [N, K]."""
    shared = {name: getattr(panel, name) for name in ("features", "stamps", "times", "offsets", "series", "columns", "origin", "breaks")}
    return Panel.build(**shared, targets=targets, target_names=names, stamp=panel.stamp, timezone=panel.timezone)
