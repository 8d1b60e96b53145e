"""Forecasts as a table: one row per symbol, period, time of the last bar and target, in the target's own units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from finetune.data.panel import Panel
from finetune.engine.windows import Source
from kronos.errors import InputError
from kronos.files import atomic_path
from tft.forecasts import Outputs, meaning, run_network
from tft.losses import TargetLoss
from tft.training import Prepared

SPLITS = ("train", "val", "test", "latest")


def chosen_sources(prepared: Prepared, wanted: list[str], calendar: str = "") -> dict[str, Source]:
    """{split: windows}, in the order of time. all: every one. latest: one window per series that ends at its newest bar.

    calendar: what follows the newest bar of series that name none. Splits without a window are left out. Raises InputError if none is
    left, and what `TftWindows.predict` raises.
    """
    names = SPLITS if "all" in wanted else [name for name in SPLITS if name in wanted]
    found: dict[str, Source] = {name: prepared.windows[name] if name != "latest" else prepared.data.predict(1, calendar) for name in names}
    left = {name: source for name, source in found.items() if len(source)}
    if not left:
        raise InputError(f"--split {' '.join(wanted)}: has no window; set test_ratio or test_days in training, or name another split")
    return left


def forecast(prepared: Prepared, sources: dict[str, Source]) -> dict[str, Outputs]:
    """The network's outputs by split. Raises what `run_network` raises."""
    return {name: run_network(prepared.task, source) for name, source in sources.items()}


def prediction_table(prepared: Prepared, outputs: dict[str, Outputs]) -> pd.DataFrame:
    """symbol, period, time (UTC, as the bar is stamped), target, kind, value, decision, q0.1 ..., truth, split.

    value: probability of class 1 as the data has it (preferences of the loss taken out), or the forecast in the target's own units.
    decision: 1 or 0, what the metrics judge; NaN for values. q...: quantiles where the head has them. truth: NaN where not known yet.
    """
    losses = prepared.task.losses.losses
    tables = [_one(prepared, split, found, name, loss) for split, found in outputs.items() for name, loss in losses.items()]
    table = pd.concat(tables, ignore_index=True)
    order = {"split": [*SPLITS], "target": list(losses)}
    for name, categories in order.items():
        table[name] = pd.Categorical(table[name], categories=categories)
    table = table.sort_values(["split", "symbol", "period", "time", "target"], kind="stable", ignore_index=True)
    return table.astype({"split": str, "target": str})


def _one(prepared: Prepared, split: str, found: Outputs, name: str, loss: TargetLoss) -> pd.DataFrame:
    panel, rows = prepared.panel, found.row
    raw = found.raw[name]
    columns: dict[str, Any] = series_columns(panel, rows)
    columns |= {"target": name, "kind": "class" if loss.classification else "value"}
    columns["value"] = in_units(prepared, name, rows, meaning(loss, raw))
    columns["decision"] = np.where(loss.classification, (raw[:, 0] > 0).astype(float), np.nan)
    if loss.kind == "quantile":
        for k, values in enumerate(np.sort(in_units(prepared, name, rows, raw), 1).T):  # crossed quantiles put in order
            columns[f"q{loss.quantiles[k]:g}"] = values
    columns |= {"truth": true_values(panel, name, rows), "split": split}
    return pd.DataFrame(columns)


def series_columns(panel: Panel, rows: np.ndarray) -> dict[str, Any]:
    """symbol, period and time (UTC) of rows."""
    series = np.searchsorted(panel.offsets, rows, side="right") - 1
    named = {key: np.array([getattr(info, key) for info in panel.series], object)[series] for key in ("symbol", "period")}
    return {**named, "time": pd.to_datetime(np.asarray(panel.times)[rows], utc=True)}


def true_values(panel: Panel, target: str, rows: np.ndarray) -> np.ndarray:
    """[W] float64 labels in their own units, NaN where unknown."""
    return np.asarray(panel.targets[rows, panel.target_names.index(target)], np.float64)


def in_units(prepared: Prepared, target: str, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Standardised values [W] or [W, q] in the target's own units; of a class as they are."""
    return values if prepared.task.losses.losses[target].classification else prepared.scales.inverse(prepared.panel, rows, target, values)


def write_table(table: pd.DataFrame, path: Any) -> None:
    """As .parquet or .csv, by its name, whole or not at all. Raises InputError for another name, or if it cannot be written."""
    text = str(path)
    if not text.endswith((".parquet", ".csv")):
        raise InputError(f"{text}: end the name with .parquet or .csv")
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False) if text.endswith(".parquet") else table.to_csv(temporary, index=False)
