"""Every score of one method on the scored origins, by horizon step and overall, as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.forecasts import Forecasts
from finetune.evaluation.origins import Origins
from finetune.evaluation.scores import (
    BANDS,
    LEVELS,
    brier,
    correlation,
    direction_hits,
    pinball,
    r_squared,
    rank_correlation,
    realised_volatility,
)

FEWEST_SYMBOLS = 10  # an information coefficient across fewer is a draw of luck
PIT_BINS = 20
_ROUNDING = 1e-9  # correlations that differ by no more between moments are equal


def score_table(forecasts: Forecasts, origins: Origins, keep: np.ndarray) -> dict[str, Any]:
    """All scores over the origins of a mask. {"returns": {name: {"overall": x, "by_step": [H]}}, "prices": ..., "bands": ..., ...}.

    Point errors take the median for MAE, MAPE and direction, the mean for RMSE, R², correlation and IC: each the value that the score asks
    for (Gneiting 2011). R² and correlation are taken in each series and averaged, since levels of several series would fake them.
    """
    part = origins.chosen(keep)
    start, prices, returns = part.closes[:, :1], part.closes[:, 1:], part.returns
    median, mean = forecasts.median[keep], forecasts.mean_return[keep]
    return {
        "returns": {
            **_errors(median, mean, returns, part.series),
            "directional_accuracy": _mean(direction_hits(median, returns)),
            "brier": _mean(brier(forecasts.up[keep], returns)),
            "crps": _mean(forecasts.crps_return[keep]),
            "pinball": _mean(mean_pinball(forecasts.quantiles[keep], returns)),
        },
        "prices": {
            **_errors(start * np.exp(median), forecasts.mean_price[keep], prices, part.series),
            "crps": _mean(forecasts.crps_price[keep]),
            "pinball": _mean(mean_pinball(start[..., None] * np.exp(forecasts.quantiles[keep]), prices)),
        },
        "bands": coverage_of(forecasts.quantiles[keep], returns),
        "pit_histogram": pit_counts(forecasts.pit[keep]).tolist(),
        "volatility": _volatility_errors(forecasts.volatility[keep], returns),
        "ic": ic_table(mean, returns, part.moment, part.series),
        "paths_not_above_zero": forecasts.floored,
    }


def mean_pinball(quantiles: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Pinball loss averaged over `LEVELS`: quantiles [O, H, Q], outcome [O, H] → [O, H]."""
    return pinball(quantiles, outcome[..., None], np.array(LEVELS)).mean(-1)


def coverage_of(quantiles: np.ndarray, outcome: np.ndarray) -> dict[str, Any]:
    """Share of outcomes inside the central bands and the bands' mean width in log returns, e.g. {"90": {"coverage": ..., "width": ...}}."""
    table = {}
    for band, edges in BANDS.items():
        low, high = (quantiles[:, :, LEVELS.index(level)] for level in edges)
        table[f"{band:.0%}"] = {"coverage": _mean(((low <= outcome) & (outcome <= high)).astype(float)), "width": _mean(high - low)}
    return table


def pit_counts(pit: np.ndarray) -> np.ndarray:
    """Share of outcomes in each of 20 equal bins of the probability integral transform; flat if the distribution is right."""
    return np.histogram(pit, bins=PIT_BINS, range=(0, 1))[0] / max(1, pit.size)


def ic_table(forecast: np.ndarray, outcome: np.ndarray, moment: np.ndarray, series: np.ndarray) -> dict[str, Any] | None:
    """Information coefficients across symbols: mean over moments of the correlation of forecast and outcome (and of their ranks), and its
    ratio to its standard deviation over moments (ICIR, Grinold and Kahn 2000; not annualised). None with fewer than 10 symbols throughout.
    """
    _, column = np.unique(series, return_inverse=True)
    if column.max(initial=-1) + 1 < FEWEST_SYMBOLS:
        return None
    shape = (moment.max() + 1, column.max() + 1, forecast.shape[1])
    wide = np.full((2, *shape), np.nan)
    wide[0, moment, column], wide[1, moment, column] = forecast, outcome
    wide = wide[:, (~np.isnan(wide[1, :, :, 0])).sum(1) >= FEWEST_SYMBOLS]
    if not wide.shape[1]:
        return None
    by_step = np.moveaxis(wide, 3, 1)  # [2, H, D, S]
    pearson = correlation(*by_step)  # [H, D]
    spearman = np.stack([rank_correlation(a, b) for a, b in zip(*by_step, strict=True)])
    table: dict[str, Any] = {"moments": wide.shape[1]}
    for name, values in (("ic", pearson), ("rank_ic", spearman)):
        known = values[:, ~np.isnan(values).any(0)]
        steps = [(line.mean(), _ratio(line)) if known.size else (np.nan, np.nan) for line in known]
        pooled = known.mean(0) if known.size else np.empty(0)
        table[name] = {"overall": _or_nan(pooled), "by_step": [mean for mean, _ in steps]}
        table[f"{name}ir"] = {"overall": _ratio(pooled), "by_step": [ratio for _, ratio in steps]}
    return table


def _errors(median: np.ndarray, mean: np.ndarray, outcome: np.ndarray, series: np.ndarray) -> dict[str, Any]:
    away = np.abs(outcome - median)
    squares = np.square(outcome - mean)
    moved = np.where(outcome == 0, np.nan, np.abs(outcome))
    return {
        "mae": _mean(away),
        "rmse": {"overall": float(np.sqrt(squares.mean())), "by_step": np.sqrt(squares.mean(0)).tolist()},
        "mape": _mean(away / moved),
        "r2": _per_series(r_squared, mean, outcome, series),
        "correlation": _per_series(lambda a, b: float(correlation(a, b)), mean, outcome, series),
    }


def _volatility_errors(forecast: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """Realised volatility over the whole horizon: forecast (mean over paths) against what came."""
    came = realised_volatility(returns)
    return {
        "mae": float(np.abs(came - forecast).mean()),
        "rmse": float(np.sqrt(np.square(came - forecast).mean())),
        "bias": float((forecast - came).mean()),
        "correlation": float(correlation(forecast, came)),
        "mean_realised": float(came.mean()),
    }


def _per_series(score: Any, forecast: np.ndarray, outcome: np.ndarray, series: np.ndarray) -> dict[str, Any]:
    """A score of each series and step, averaged over series; overall: also over steps."""
    members = [series == number for number in np.unique(series)]
    table = np.array([[score(forecast[of, h], outcome[of, h]) for h in range(outcome.shape[1])] for of in members])
    return _mean(table)


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Overall and by step of [O, H], without NaN."""
    return {"overall": _or_nan(values), "by_step": [_or_nan(column) for column in values.T]}


def _or_nan(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _ratio(values: np.ndarray) -> float:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return float(values.mean() / spread) if spread > _ROUNDING else float("nan")
