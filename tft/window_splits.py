"""Which rows may be a window's last encoder row in training, validation and test.

A row's now is the moment its bar closes. Training ends at a moment, the same for all series and periods: a label of training is made of
bars that have closed by then (purge). Validation begins where that has passed and the series' largest target horizon more (embargo).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from finetune.data.panel import Panel
from finetune.engine.splits import time_at_share
from kronos.errors import InputError
from tft.rows import Say
from tft.target_panel import close_times, training_end

Horizon = int | Mapping[str, int] | None
_DAY = 86_400 * 10**9
_EVER = np.iinfo(np.int64).max
_NAMED = 8


@dataclass(frozen=True)
class SplitRule:
    """Where training and validation end; keys and meaning are those of the data configuration's `targets` section.

    val_mode "ratio": shares of all rows. "days": lengths at the end of the bars. train_until: a date (UTC) that ends training; it wins.
    test_ratio or test_days 0: no test.
    """

    val_mode: Literal["ratio", "days"] = "ratio"
    val_ratio: float = 0.2
    test_ratio: float = 0.1
    val_days: float = 30.0
    test_days: float = 30.0
    train_until: str = ""


def cut_times(times: np.ndarray, rule: SplitRule, manifest: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """(end of training, end of validation), ns UTC. Raises InputError if they are not in this order.

    Where the targets of the manifest were made by the same rule, training ends where their thresholds do: fusion drops rows, so that a
    share of those left would fall elsewhere.
    """
    noted = manifest or {}
    same = noted.get("split") == asdict(rule) and "train_until" in noted
    train_end = training_end(times, replace(rule, train_until=noted["train_until"]) if same else rule)
    days = rule.val_mode == "days"
    if not (rule.test_days if days else rule.test_ratio):
        val_end = _EVER
    else:
        val_end = int(times.max()) - int(rule.test_days * _DAY) if days else time_at_share(times, 1 - rule.test_ratio)
    if train_end >= val_end:
        raise InputError(
            f"validation would end {moment(val_end)} before training does ({moment(train_end)}): lower {rule.val_mode} of the test"
        )
    return train_end, val_end


def moment(time: int) -> str:
    """A time in ns UTC as text."""
    return "after the last bar" if time == _EVER else pd.Timestamp(time, tz="UTC").floor("s").isoformat()


def horizons_of(panel: Panel, manifest: Mapping[str, Any], targets: Sequence[str], horizon: Horizon) -> np.ndarray:
    """[S, K] int64: bars that each target looks ahead in each series. `horizon`, if given, speaks for targets the manifest does not know.

    Raises InputError where neither tells.
    """
    noted = manifest.get("targets", {})
    found = np.zeros((panel.n_series, len(targets)), np.int64)
    for k, name in enumerate(targets):
        for s, info in enumerate(panel.series):
            bars = noted.get(name, {}).get("horizon", {}).get(info.period)
            if bars is None:
                bars = horizon.get(info.period) if isinstance(horizon, Mapping) else horizon
            if bars is None or bars < 1:
                raise InputError(
                    f"{name}: how many {info.period or 'unnamed'} bars it looks ahead is not known ({bars}); data_fusion.py notes it, "
                    "for other data give horizon: a whole number from 1, or one per period"
                )
            found[s, k] = bars
    return found


def possible_origins(panel: Panel, encoder: int, prediction: int, focus: Sequence[str], say: Say) -> tuple[np.ndarray, list[str]]:
    """([N] bool: rows with `encoder` rows up to them and `prediction` after them in one stretch, names of groups too short for any).

    focus: periods; () for all. Raises InputError for a period that no series has, or if every group is too short.
    """
    periods = {info.period for info in panel.series}
    if set(focus) - periods:
        raise InputError(
            f"focus_period: {sorted(set(focus) - periods)[0]!r} is not among the periods of the panel: {', '.join(sorted(periods))}"
        )
    mask = np.array(panel.origin, bool)
    stretch = np.append(np.union1d(panel.offsets[:-1], panel.breaks), panel.n_rows).astype(np.int64)
    for first, end in zip(stretch[:-1].tolist(), stretch[1:].tolist(), strict=True):
        mask[first : min(end, first + encoder - 1)] = False
        mask[max(first, end - prediction) : end] = False
    longest = np.zeros(panel.n_series, np.int64)
    np.maximum.at(longest, np.searchsorted(panel.offsets, stretch[:-1], side="right") - 1, np.diff(stretch))
    left_out = []
    for s, info in enumerate(panel.series):
        if focus and info.period not in focus:
            mask[panel.offsets[s] : panel.offsets[s + 1]] = False
        elif longest[s] < encoder + prediction:
            left_out.append(f"{info.symbol} {info.period} ({longest[s]} rows in a row)".replace("  ", " "))
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        told = f"shorter than encoder {encoder} + prediction {prediction}: {', '.join(left_out[:_NAMED])}{more}"
        if not mask.any():
            raise InputError(f"every group is {told}; lower max_encoder_length, or give more bars")
        say(f"left out, {told}")
    return mask, left_out


def origin_runs(
    panel: Panel, possible: np.ndarray, horizons: np.ndarray, cuts: tuple[int, int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{split: (first rows, counts)} of unbroken runs of origins. horizons [S]: the largest of each series."""
    closes, pieces = close_times(panel), {name: ([], []) for name in ("train", "val", "test")}
    for s, (first, end) in enumerate(zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True)):
        own, ahead = closes[first:end], int(horizons[s])
        closed = first + np.searchsorted(own, cuts, side="right") - ahead  # from here on a label would end after the cut
        begins = first + np.searchsorted(own, cuts, side="left") + ahead  # the first origin at or after the cut, and the embargo
        bounds = {"train": (first, closed[0]), "val": (begins[0], closed[1] if cuts[1] != _EVER else end), "test": (begins[1], end)}
        for name, (low, high) in bounds.items():
            low, high = max(first, int(low)), min(end, int(high))
            if high > low:
                edges = np.flatnonzero(np.diff(possible[low:high].astype(np.int8), prepend=0, append=0))
                pieces[name][0].append(low + edges[::2])
                pieces[name][1].append(np.diff(edges)[::2])
    return {name: tuple(np.concatenate([np.empty(0, np.int64), *part]) for part in both) for name, both in pieces.items()}
