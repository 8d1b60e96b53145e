"""What the network looked at: weights of its variable selection and of its attention, over windows, as tables with percentile bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from kronos.errors import InputError
from tft.forecasts import batches
from tft.task import TftTask

PERCENTILES = (10, 50, 90)
PARTS = ("past", "known", "static")
_SPANS = 24  # of time, at most


@dataclass(frozen=True, eq=False)
class Looked:
    """Of W windows: weights {part: [W, V]} float32, adding up to 1 (past: mean over the encoder's rows; known: over the decoder's);
    names {part: V variables}; attention [W, E + P] of the last decoder row; row [W] of the last encoder step; names period, symbol [W].
    """

    weights: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]
    attention: np.ndarray
    encoder: int
    row: np.ndarray
    period: np.ndarray
    symbol: np.ndarray

    @property
    def lags(self) -> np.ndarray:
        """[E + P] bars before the last known one: E - 1 ... 0, then -1 ... -P for the rows to be forecast."""
        return self.encoder - 1 - np.arange(self.attention.shape[1])


@torch.no_grad()
def look(task: TftTask, source: Any, past: Sequence[str], known: Sequence[str], categorical: Sequence[str], index: np.ndarray) -> Looked:
    """Run the windows `index` of a source. past, known, categorical: names of its columns. Symbol and period names are left empty.

    Raises InputError if there is no window.
    """
    if not len(index):
        raise InputError("there is no window to interpret; name another --split, or give more bars")
    model, device = task.model.eval(), next(task.parameters()).device
    parts = []
    for batch in batches(source, index=index):
        seen = model({name: part.to(device) for name, part in batch.items()}, interpret=True)
        weights = (seen["past_weights"].mean(1), seen["known_weights"].mean(1), seen["static_weights"])
        parts.append((*(part.float().cpu() for part in weights), seen["attention"][:, -1].float().cpu(), batch["row"].cpu()))
    of_past, of_known, of_static, attention, row = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    names = {
        "past": (*past, *known, *categorical),
        "known": (*known, *categorical),
        "static": ("symbol", "period")[: of_static.shape[1]],
    }
    found = {name: w for name, w in zip(PARTS, (of_past, of_known, of_static), strict=True) if w.shape[1]}
    assert all(w.shape[1] == len(names[name]) for name, w in found.items()), "columns and selection weights do not fit"
    empty = np.full(len(row), "", object)
    encoder = batch["past"].shape[1]
    return Looked(found, {name: names[name] for name in found}, attention, encoder, row, empty, empty)


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n windows, evenly spread in runs of 16 neighbours: these share rows, and cost little more than one."""
    if n <= most:
        return np.arange(n)
    run = min(16, most)
    starts = np.linspace(0, n - run, most // run).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(run))


def bands(values: np.ndarray, names: Sequence[Any], group: np.ndarray | None = None) -> pd.DataFrame:
    """Mean and percentiles of values [W, V] over windows: a row per (group and) name. Columns: name, mean, p10, p50, p90, windows.

    group [W]: what to tell apart; None: all together, and no column `group`.
    """
    tables = []
    for one in [None] if group is None else pd.unique(pd.Series(group).sort_values(kind="stable")).tolist():
        chosen = values if group is None else values[group == one]
        low, middle, high = np.percentile(chosen, PERCENTILES, axis=0)
        table = pd.DataFrame({"name": list(names), "mean": chosen.mean(0, dtype=np.float64), "p10": low, "p50": middle, "p90": high})
        table["windows"] = len(chosen)
        if group is not None:
            table.insert(0, "group", one)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def importance(looked: Looked, group: np.ndarray | None = None) -> pd.DataFrame:
    """`bands` of every variable: part, (group,) variable, mean, p10, p50, p90, windows, and its rank in part (and group), 1 the first."""
    tables = []
    for part, weights in looked.weights.items():
        table = bands(weights, looked.names[part], group).rename(columns={"name": "variable"})
        table.insert(0, "part", part)
        tables.append(table)
    found = pd.concat(tables, ignore_index=True)
    found["part"] = pd.Categorical(found["part"], categories=list(looked.weights))
    by = ["part"] if group is None else ["part", "group"]
    found["rank"] = found.groupby(by, sort=False, observed=True)["mean"].rank(ascending=False, method="first").astype(int)
    return found.sort_values([*by, "rank"], kind="stable", ignore_index=True).astype({"part": str})


def attention_by_lag(looked: Looked, group: np.ndarray | None = None) -> pd.DataFrame:
    """`bands` of the attention on each row: (group,) lag, mean, p10, p50, p90, windows. Lag 0: the last known bar, -1: the one forecast."""
    return bands(looked.attention, looked.lags, group).rename(columns={"name": "lag"})


def time_spans(times: np.ndarray, most: int = _SPANS) -> np.ndarray:
    """[W] the beginning (datetime64[s], UTC) of the span that each time [W] (ns) lies in: equal spans, at most `most` of them."""
    first, last = int(times.min()), int(times.max())
    day = 86_400 * 10**9
    width = max(1, -(-(last - first + 1) // most))
    if width > day:  # whole days are easier to read
        width, first = -(-width // day) * day, first // day * day
    begins = first + (times - first) // width * width
    return begins.astype("datetime64[ns]").astype("datetime64[s]")
