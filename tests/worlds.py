"""Panels whose true distribution is known, and forecasters that know it, or know it wrongly; shared by tests of the evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from finetune.data.panel import Panel, SeriesInfo
from finetune.engine.splits import make_splits
from finetune.evaluation.evaluate import Evaluation, compare
from finetune.evaluation.forecasts import origin_uniforms
from finetune.evaluation.origins import Origins, choose_origins

LOOKBACK, HORIZON = 30, 5
DAY_NS = 86_400_000_000_000


def deviation(rows: np.ndarray) -> np.ndarray:
    """What a bar's log return truly varies by: calm and rough spells of 25 bars, known ahead to those who know."""
    return np.where(np.asarray(rows) // 25 % 2 == 0, 0.008, 0.02)


def make_world(n_series: int = 4, n_rows: int = 1000, seed: int = 0) -> Panel:
    """Daily bars of independent random walks whose steps are normal with `deviation` of the row within the series."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n_series, n_rows)) * deviation(np.arange(n_rows))
    close = 100 * np.exp(np.cumsum(steps, axis=1)).ravel()
    features = np.stack([close, close * 1.001, close * 0.999, close, np.full(close.shape, 1e3), close * 1e3], axis=1)
    day = np.datetime64("2015-01-01") + np.arange(n_rows)
    numbers = [np.zeros(n_rows), np.zeros(n_rows), (day.astype(int) + 3) % 7]  # 1 January 1970 was a Thursday
    month = day.astype("datetime64[M]")
    numbers += [(day - month).astype(int) + 1, month.astype(int) % 12 + 1]
    return Panel.build(
        features=features.astype(np.float32),
        stamps=np.tile(np.stack(numbers, axis=1).astype(np.uint8), (n_series, 1)),
        times=np.tile(day.astype("datetime64[ns]").astype(np.int64), n_series),
        offsets=np.arange(n_series + 1) * n_rows,
        series=[SeriesInfo(f"W{i:02d}", "1d") for i in range(n_series)],
    )


def settings(**changes) -> SimpleNamespace:
    known = dict(split="test", stride=1, max_origins=120, max_series=0, samples=100, T=1.0, top_p=1.0, seed=0, calibrate=True, baselines=[])
    return SimpleNamespace(**{**known, **changes})


def origins_of(panel: Panel, lookback: int = LOOKBACK, horizon: int = HORIZON, ratios=(0.5, 0.25, 0.25), **changes) -> Origins:
    return choose_origins(make_splits(panel, lookback, horizon, ratios, say=lambda _: None), settings(**changes), lambda _: None)


class Knowing:
    """Draws from the true distribution of `make_world`, moved by `bias` (in true deviations) and stretched by `width`."""

    def __init__(self, name: str = "knowing", *, seed: int = 1, bias: float = 0.0, width: float = 1.0):
        self.name = self.label = name
        self.seed, self.bias, self.width = seed, bias, width

    def paths(self, origins: Origins, index: np.ndarray, samples: int) -> np.ndarray:
        ahead = origins.rows[index][:, None] + np.arange(1, origins.horizon + 1) - origins.panel.offsets[origins.series[index]][:, None]
        true = deviation(ahead)[:, None]  # [B, 1, H]
        draws = origin_uniforms(origins, index, (2, samples, origins.horizon), self.seed)
        normal = np.sqrt(-2 * np.log(1 - draws[:, 0])) * np.cos(2 * np.pi * draws[:, 1])  # Box and Muller
        return origins.closes[index, :1, None] * np.exp(np.cumsum(true * (self.width * normal + self.bias), axis=2))


class Noise:
    """Draws prices around the origin's close that have nothing to do with anything."""

    name = label = "noise"

    def __init__(self, reach: float = 0.5):
        self.reach = reach

    def paths(self, origins: Origins, index: np.ndarray, samples: int) -> np.ndarray:
        draws = origin_uniforms(origins, index, (samples, origins.horizon), 99)
        return origins.closes[index, :1, None] * np.exp(self.reach * (draws - 0.5))


def compared(model, *baselines, panel: Panel | None = None, **changes) -> Evaluation:
    """`model` against baselines in a world."""
    origins = origins_of(panel if panel is not None else make_world(), **changes)
    return compare([model, *baselines], origins, settings(**changes), title=model.label, notes=[])
