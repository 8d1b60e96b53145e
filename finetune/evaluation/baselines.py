"""What any forecast should beat: simple methods that draw as many paths as the model, at the same origins, from bars up to each origin.

Nothing here is trained on a bar later than the first origin of its series; everything is vectorised over origins and paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.frames import wall_clock
from finetune.data.panel import Panel
from finetune.evaluation.forecasts import Forecaster, origin_uniforms
from finetune.evaluation.origins import CLOSE, Origins

_HISTORY = 260  # returns before an origin that baselines may look at, or the lookback's if that is longer
_MOST_SEASONS = 20
_DECAY = 0.94  # of daily squared returns, RiskMetrics (1996)
_FEWEST_TRAINING = 100  # returns; an autoregression of fewer is noise
_MOST_TRAINING = 20_000
_MOST_LAGS = 10
_BASELINE_SEED = 7  # so that a baseline's draws are not the PIT's


@dataclass(frozen=True, eq=False)
class History:
    """Log returns before B origins, newest last: returns [B, L], of which the last `known` [B] belong to the origin's unbroken stretch."""

    returns: np.ndarray
    known: np.ndarray

    @cached_property
    def mask(self) -> np.ndarray:
        """[B, L] which returns are real."""
        return np.arange(self.returns.shape[1]) >= self.returns.shape[1] - self.known[:, None]

    def last(self, count: int) -> History:
        """The newest `count` of them."""
        return History(self.returns[:, -count:], np.minimum(self.known, count))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [B, 1]; 0 deviation where fewer than 2 are known."""
        count = np.maximum(self.known[:, None], 1)
        mean = np.where(self.mask, self.returns, 0.0).sum(1, keepdims=True) / count
        squares = np.where(self.mask, np.square(self.returns - mean), 0.0).sum(1, keepdims=True)
        return mean, np.sqrt(squares / np.maximum(count - 1, 1))


def history(origins: Origins, index: np.ndarray, length: int) -> History:
    """Up to `length` returns before each origin, from its unbroken stretch only; 0 to and from a close of 0 or below."""
    panel, rows = origins.panel, origins.rows[index]
    stretches = np.union1d(panel.offsets[:-1], panel.breaks)
    first = stretches[np.searchsorted(stretches, rows, side="right") - 1]
    at = np.maximum(rows[:, None] + np.arange(-length, 1), first[:, None])  # before the stretch: its first row again, masked below
    closes = panel.features[at, CLOSE].astype(np.float64)
    logs = np.log(np.where(closes > 0, closes, np.nan))
    return History(np.nan_to_num(np.diff(logs)), np.minimum(rows - first, length))


class Baseline:
    """A method that draws log-return steps; prices follow from the origin's close."""

    name = ""
    label = ""

    def __init__(self, seed: int):
        self.seed = seed

    def paths(self, origins: Origins, index: np.ndarray, samples: int) -> np.ndarray:
        """Sampled closes [B, samples, horizon]."""
        past = history(origins, index, max(_HISTORY, origins.lookback - 1))
        steps = self.steps(origins, index, past, samples)
        return origins.closes[index, :1, None] * np.exp(np.cumsum(steps, axis=-1))

    def steps(self, origins: Origins, index: np.ndarray, past: History, samples: int) -> np.ndarray:
        """Log returns of each step, [B, samples, horizon] or what broadcasts to it."""
        raise NotImplementedError

    def uniforms(self, origins: Origins, index: np.ndarray, *shape: int) -> np.ndarray:
        return origin_uniforms(origins, index, shape, self.seed, _BASELINE_SEED)


class Persistence(Baseline):
    """The last close, for ever: tomorrow is today. A point, so its CRPS is its absolute error."""

    name, label = "persistence", "persistence (tomorrow = today)"

    def steps(self, origins: Origins, index: np.ndarray, past: History, samples: int) -> np.ndarray:
        return np.zeros((len(index), samples, origins.horizon))


class Drift(Baseline):
    """A random walk with normal steps of the lookback's mean and deviation (Hyndman and Athanasopoulos 2021, section 5.2)."""

    name, label = "drift", "drift (random walk with the lookback's mean step)"

    def steps(self, origins: Origins, index: np.ndarray, past: History, samples: int) -> np.ndarray:
        from scipy.special import ndtri  # scipy comes with arch

        mean, deviation = past.last(origins.lookback - 1).moments()
        normal = ndtri(np.maximum(self.uniforms(origins, index, samples, origins.horizon), 1e-12))
        return mean[:, None] + deviation[:, None] * normal


class SeasonalNaive(Baseline):
    """The returns of the same phase in earlier seasons: each path replays one of the last 20, the newest being the classical forecast.

    A season is a trading day of intraday bars, a week of daily bars; see `season_length`.
    """

    name, label = "seasonal_naive", "seasonal naive (returns of the same phase before)"

    def __init__(self, seed: int, seasons: np.ndarray):
        super().__init__(seed)
        self.seasons = seasons  # [series]

    def steps(self, origins: Origins, index: np.ndarray, past: History, samples: int) -> np.ndarray:
        season = self.seasons[origins.series[index]][:, None]  # [B, 1]
        ahead = np.arange(origins.horizon)
        newest = ahead % season - season  # [B, H]: the same phase in the newest season, counted back from the end
        rounds = np.clip(past.known[:, None] // season, 1, _MOST_SEASONS)  # [B, 1]
        back = np.floor(self.uniforms(origins, index, samples) * rounds).astype(np.int64)  # [B, S]
        at = past.returns.shape[1] + newest[:, None, :] - back[:, :, None] * season[:, :, None]
        return np.take_along_axis(past.returns[:, None, :], at, axis=2)


class Volatility(Baseline):
    """Steps drawn with replacement from the last `bars` returns, less their mean: the spread of late, no opinion about the direction."""

    def __init__(self, seed: int, bars: int):
        super().__init__(seed)
        self.bars = bars
        self.name, self.label = f"volatility_{bars}", f"volatility of {bars} bars (bootstrap)"

    def steps(self, origins: Origins, index: np.ndarray, past: History, samples: int) -> np.ndarray:
        recent = past.last(self.bars)
        mean, _ = recent.moments()
        count = np.maximum(recent.known[:, None], 1)
        centred = (recent.returns - mean) * np.sqrt(count / np.maximum(count - 1, 1))  # the mean took a degree of freedom
        drawn = np.floor(self.uniforms(origins, index, samples, origins.horizon) * count[:, :, None]).astype(np.int64)
        at = self.bars - count[:, :, None] + drawn
        return np.take_along_axis(centred[:, None, :], at, axis=2)


class Autoregression(Baseline):
    """AR(p) of log returns from statsmodels, fitted to each series before its first origin, p ≤ 10 by BIC; its own standardised residuals
    are drawn and scaled by the exponentially weighted volatility at the origin (filtered historical simulation, Barone-Adesi 1999)."""

    name, label = "ar", "autoregression (AR with recent volatility)"

    def __init__(self, seed: int, fits: dict[int, ArFit]):
        super().__init__(seed)
        self.fits = fits  # by series

    def steps(self, origins: Origins, index: np.ndarray, past: History, samples: int) -> np.ndarray:
        drawn = self.uniforms(origins, index, samples, origins.horizon)
        steps = np.empty_like(drawn)
        scale = ewma_volatility(np.where(past.mask, past.returns, np.nan))[:, -1]
        for number in np.unique(origins.series[index]):
            of_series = origins.series[index] == number
            fit = self.fits[int(number)]
            shocks = fit.residuals[np.floor(drawn[of_series] * len(fit.residuals)).astype(np.int64)] * scale[of_series, None, None]
            steps[of_series] = _simulate(fit, past.returns[of_series], shocks)
        return steps


@dataclass(frozen=True, eq=False)
class ArFit:
    """constant and coefficients [p] (of the newest return first), standardised residuals [n]."""

    constant: float
    coefficients: np.ndarray
    residuals: np.ndarray


def _simulate(fit: ArFit, past: np.ndarray, shocks: np.ndarray) -> np.ndarray:
    """past [B, L], shocks [B, S, H] → steps [B, S, H]."""
    lags, horizon = len(fit.coefficients), shocks.shape[2]
    line = np.empty((*shocks.shape[:2], lags + horizon))
    line[:, :, :lags] = past[:, None, past.shape[1] - lags :]
    for step in range(horizon):
        before = line[:, :, step : step + lags]
        line[:, :, lags + step] = fit.constant + before @ fit.coefficients[::-1] + shocks[:, :, step]
    return line[:, :, lags:]


def ewma_volatility(returns: np.ndarray) -> np.ndarray:
    """Root of the exponentially weighted mean of squared returns up to each place, [..., L] → [..., L] (RiskMetrics 1996, decay 0.94).

    Leading NaN are passed over.
    """
    squares = pd.DataFrame(np.square(returns.reshape(-1, returns.shape[-1])).T)
    return np.sqrt(squares.ewm(alpha=1 - _DECAY).mean().to_numpy().T).reshape(returns.shape)


def fit_autoregressions(origins: Origins) -> dict[int, ArFit]:
    """An AR(p) for each series that has origins, from its bars up to its first origin."""
    fits = {}
    for number in np.unique(origins.series).tolist():
        rows = origins.rows[origins.series == number]
        fits[number] = _fit_one(origins.panel, number, int(rows.min()))
    return fits


def _fit_one(panel: Panel, series: int, last: int) -> ArFit:
    """The longest unbroken stretch of rows offsets[series]..last, at most the newest 20,000; white noise if it is too short."""
    from statsmodels.tsa.ar_model import AutoReg, ar_select_order  # seconds to import; comes with arch

    inside = panel.breaks[(panel.breaks > panel.offsets[series]) & (panel.breaks <= last)]
    edges = np.concatenate([[panel.offsets[series]], inside, [last + 1]])
    longest = int(np.argmax(np.diff(edges)))
    first, end = int(edges[longest]), int(edges[longest + 1])
    closes = panel.features[max(first, end - _MOST_TRAINING) : end, CLOSE].astype(np.float64)
    returns = np.diff(np.log(closes)) if (closes > 0).all() else np.zeros(0)
    if len(returns) < _FEWEST_TRAINING or returns.std() == 0:
        return ArFit(0.0, np.zeros(0), np.array([-1.0, 1.0]))
    lags = ar_select_order(returns, maxlag=_MOST_LAGS, ic="bic").ar_lags or []
    fitted = AutoReg(returns, lags=lags or 0).fit()
    coefficients = np.zeros(max(lags, default=0))
    coefficients[np.array(lags, np.int64) - 1] = fitted.params[1:]
    volatility = ewma_volatility(returns)
    before = volatility[len(coefficients) + 20 - 1 : -1]  # known before each residual; the first 20 returns only start it
    residuals = fitted.resid[20:][before > 0] / before[before > 0]
    return ArFit(float(fitted.params[0]), coefficients, residuals - residuals.mean())


def season_length(panel: Panel, series: int, last: int) -> int:
    """Bars of a season, from the times of a series up to row `last`: of a trading day, or, for daily bars, of a week; 0: neither."""
    first = max(int(panel.offsets[series]), last - 5_000)
    clock = wall_clock(panel, first, last + 1)
    per_day = np.unique(clock.normalize(), return_counts=True)[1]
    bars = int(np.median(per_day))
    if bars > 1:
        return bars
    gap_days = float(np.median(np.diff(clock.to_numpy()) / np.timedelta64(1, "D"))) if len(clock) > 1 else 0.0
    if not 0.5 < gap_days < 2:
        return 0
    return 7 if np.mean(clock.day_of_week >= 5) > 0.1 else 5


def make_baselines(names: Sequence[str], origins: Origins, seed: int, say: Callable[[str], Any] = print) -> list[Forecaster]:
    """The named baselines, fitted. Says so where one cannot be made (a season longer than the lookback)."""
    made: list[Forecaster] = []
    for name in names:
        if name == "seasonal_naive":
            seasons = np.zeros(origins.panel.n_series, np.int64)
            for number in np.unique(origins.series):
                seasons[number] = season_length(origins.panel, int(number), int(origins.rows[origins.series == number].min()))
            used = seasons[np.unique(origins.series)]
            if used.min() == 0 or used.max() > origins.lookback - 1:
                say(f"seasonal_naive is left out: a season has {used.min()} to {used.max()} bars, the lookback {origins.lookback}")
                continue
            made.append(SeasonalNaive(seed, seasons))
        elif name == "ar":
            made.append(Autoregression(seed, fit_autoregressions(origins)))
        elif name.startswith("volatility_"):
            made.append(Volatility(seed, int(name.removeprefix("volatility_"))))
        else:
            made.append({"persistence": Persistence, "drift": Drift}[name](seed))
    return made
