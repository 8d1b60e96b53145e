"""Forecasts of every origin by any method, as sampled paths, and what is kept of them: scores and quantiles, never all paths at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from tqdm import tqdm

from finetune.data.frames import bars_frame, wall_clock
from finetune.engine.randomness import mix
from finetune.evaluation.origins import CLOSE, Origins
from finetune.evaluation.scores import LEVELS, fair_crps, path_quantiles, randomised_pit, realised_volatility
from kronos import KronosPredictor

_CHUNK, _CHUNK_VALUES = 64, 4_000_000  # origins whose paths are held together, fewer where paths are many or long
_TELL_EVERY_S = 30.0
_FLOOR = 1e-3  # a sampled price at or below 0 has no return: it counts as this share of the origin's close, and is reported

Say = Callable[[str], Any]


class Forecaster(Protocol):
    """Anything that draws paths. `label` names it in reports."""

    name: str
    label: str

    def paths(self, origins: Origins, index: np.ndarray, samples: int) -> np.ndarray:
        """Sampled closes [len(index), samples, horizon] float64 of some of the origins, learned from bars up to each origin only."""
        ...


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What is kept of one method's paths at O origins and H steps. Returns are log returns from the origin's close.

    mean_price, mean_return, up (share of paths above the origin's close), crps_price, crps_return, pit [O, H];
    quantiles [O, H, Q] of returns at `scores.LEVELS`; volatility [O]: mean over paths of the realised volatility.
    floored: sampled prices that were not above 0.001 of the origin's close.
    """

    name: str
    label: str
    mean_price: np.ndarray
    mean_return: np.ndarray
    up: np.ndarray
    crps_price: np.ndarray
    crps_return: np.ndarray
    pit: np.ndarray
    quantiles: np.ndarray
    volatility: np.ndarray
    floored: int

    @property
    def median(self) -> np.ndarray:
        """[O, H] median return."""
        return self.quantiles[:, :, LEVELS.index(0.5)]


def forecast_all(forecaster: Forecaster, origins: Origins, samples: int, seed: int, *, say: Say | None = None) -> Forecasts:
    """Let a forecaster draw `samples` paths at every origin, chunk by chunk, and keep what is scored.

    say: shows a bar in a terminal; elsewhere it is told every half minute how far the forecasts are.
    """
    pieces: list[dict[str, np.ndarray]] = []
    size = max(1, min(_CHUNK, _CHUNK_VALUES // (samples * origins.horizon)))
    told = begun = time.monotonic()
    with tqdm(total=len(origins), disable=None if say else True, unit="forecast", desc=forecaster.label, leave=False) as bar:
        for first in range(0, len(origins), size):
            index = np.arange(first, min(first + size, len(origins)))
            pieces.append(_digest(forecaster.paths(origins, index, samples), origins, index, seed))
            bar.update(len(index))
            now, done = time.monotonic(), first + len(index)
            if say and bar.disable and now - told > _TELL_EVERY_S:
                left_s = (now - begun) / done * (len(origins) - done)
                say(f"{forecaster.label}: {done:,} of {len(origins):,} forecasts, {left_s // 60:.0f} min {left_s % 60:.0f} s left")
                told = now
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    floored = int(whole.pop("floored").sum())
    return Forecasts(forecaster.name, forecaster.label, **whole, floored=floored)


def _digest(paths: np.ndarray, origins: Origins, index: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """paths [B, S, H] → everything of `Forecasts` for these origins."""
    start = origins.closes[index, :1]  # [B, 1]
    ratio = paths / start[:, :, None]
    low = ~(ratio > _FLOOR)
    returns = np.log(np.where(low, _FLOOR, ratio))  # [B, S, H]
    volatility = realised_volatility(returns).mean(1)
    returns = np.sort(np.moveaxis(returns, 1, 2), axis=-1)  # [B, H, S]
    outcome = origins.returns[index]
    prices = start[:, :, None] * np.exp(returns)
    return {
        "mean_price": prices.mean(-1),
        "mean_return": returns.mean(-1),
        "up": (returns > 0).mean(-1),
        "crps_price": fair_crps(prices, origins.closes[index, 1:]),
        "crps_return": fair_crps(returns, outcome),
        "pit": randomised_pit(returns, outcome, origin_uniforms(origins, index, outcome.shape[1:], seed)),
        "quantiles": path_quantiles(returns),
        "volatility": volatility,
        "floored": low.sum(axis=(1, 2)),
    }


def origin_uniforms(origins: Origins, index: np.ndarray, shape: tuple[int, ...], *seeds: int) -> np.ndarray:
    """Random numbers in [0, 1), [B, *shape], a pure function of (seeds, symbol's number, time of the origin): whatever else is forecast."""
    draws = np.empty((len(index), *shape))
    for place, i in enumerate(index):
        key = mix(*seeds, int(origins.series[i]), int(origins.now[i]))
        draws[place] = np.random.Generator(np.random.Philox(key=key)).random(shape)
    return draws


class ModelForecaster:
    """A Kronos pair as a forecaster. The same seed gives the same paths for the same bars, in whatever company."""

    name = "model"

    def __init__(self, predictor: KronosPredictor, *, label: str, T: float, top_p: float, seed: int, top_k: int = 0):
        self.predictor, self.label = predictor, label
        self.how = dict(T=T, top_k=top_k, top_p=top_p, seed=seed)

    def paths(self, origins: Origins, index: np.ndarray, samples: int) -> np.ndarray:
        return np.stack(self.bars(origins, index, samples))[..., CLOSE]

    def bars(self, origins: Origins, index: np.ndarray, samples: int) -> list[np.ndarray]:
        """Whole bars of each origin's paths, [samples, horizon, 6] each."""
        rows, panel = origins.rows[index].tolist(), origins.panel
        history = [bars_frame(panel, row + 1 - origins.lookback, row + 1) for row in rows]
        ahead = [pd.Series(wall_clock(panel, row + 1, row + 1 + origins.horizon)) for row in rows]
        known = [pd.Series(frame.index) for frame in history]
        return self.predictor.predict_batch(
            history, known, ahead, origins.horizon, sample_count=samples, verbose=False, return_samples=True, **self.how
        )
