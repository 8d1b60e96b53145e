"""Scores of sampled forecasts, as plain functions on arrays. Each says its definition and where it comes from."""

from __future__ import annotations

import numpy as np
import pandas as pd

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # quantiles that are kept of every forecast
BANDS = {0.5: (0.25, 0.75), 0.8: (0.1, 0.9), 0.9: (0.05, 0.95)}  # central bands and their edges


def fair_crps(paths: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of an ensemble, unbiased for the distribution that its M ≥ 2 members were drawn from.

    mean |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1)): the kernel form of Gneiting and Raftery (2007, eq. 21) with the divisor of Ferro
    (2014, eq. 3), so that few paths are not punished for being few. paths [..., M] sorted, outcome [...]; returns [...].
    """
    members = paths.shape[-1]
    assert members >= 2, "the fair CRPS needs two members"
    weights = (2.0 * np.arange(members) - members + 1) / (members * (members - 1))  # sum_ij |x_i - x_j| = 2 sum_i (2 i - M + 1) x_(i)
    # both sums are taken about the outcome, so that prices of 1e5 lose no digits
    away = paths - outcome[..., None]
    return np.abs(away).mean(-1) - away @ weights


def pinball(quantile: np.ndarray, outcome: np.ndarray, level: float | np.ndarray) -> np.ndarray:
    """Quantile loss, (level - 1{y < q}) (y - q): least in expectation at the true quantile (Koenker and Bassett 1978)."""
    away = outcome - quantile
    return np.maximum(level * away, (level - 1) * away)


def path_quantiles(paths: np.ndarray, levels: tuple[float, ...] = LEVELS) -> np.ndarray:
    """Quantiles of sorted paths [..., M] → [..., Q], at rank level · (M + 1) (type 6 of Hyndman and Fan 1996, Weibull's).

    The k-th of M draws lies below a further draw with probability k / (M + 1), so at these ranks the band of a perfect forecaster covers
    what it claims. Ranks beyond the ends give the end: 19 paths are the fewest that reach 5 and 95 %.
    """
    members = paths.shape[-1]
    at = np.clip(np.asarray(levels) * (members + 1), 1, members) - 1
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, members - 1)
    return paths[..., low] + (at - low) * (paths[..., high] - paths[..., low])


def randomised_pit(paths: np.ndarray, outcome: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Probability integral transform, in [0, 1): uniform if outcome and members come from one distribution, ties and few members included.

    (#{x_i < y} + v (#{x_i = y} + 1)) / (M + 1) with v uniform: Czado, Gneiting and Held (2009, eq. 1) on the ranks of an ensemble.
    paths [..., M], outcome and uniforms [...]; returns [...].
    """
    below = (paths < outcome[..., None]).sum(-1)
    equal = (paths == outcome[..., None]).sum(-1)
    return (below + uniforms * (equal + 1)) / (paths.shape[-1] + 1)


def realised_volatility(returns: np.ndarray) -> np.ndarray:
    """Root of the summed squared steps of cumulative log returns [..., horizon] that start from 0 (Andersen and Bollerslev 1998)."""
    return np.sqrt(np.square(np.diff(returns, axis=-1, prepend=0.0)).sum(-1))


def r_squared(forecast: np.ndarray, outcome: np.ndarray) -> float:
    """1 - squared errors / squared distances from the outcomes' mean; NaN where outcomes do not vary."""
    spread = np.square(outcome - outcome.mean()).sum() if len(outcome) else 0.0
    return float(1 - np.square(outcome - forecast).sum() / spread) if spread > 0 else np.nan


def correlation(forecast: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Pearson's along the last axis, over the places where both are numbers; NaN where fewer than 3 are or either does not vary."""
    known = np.isfinite(forecast) & np.isfinite(outcome)
    (a, a_norm), (b, b_norm) = (_centred(values, known) for values in (forecast, outcome))
    usable = (known.sum(-1) >= 3) & (a_norm > 0) & (b_norm > 0)
    return np.where(usable, (a * b).sum(-1) / np.where(usable, a_norm * b_norm, 1.0), np.nan)


def _centred(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values less their mean over the known ones (0 elsewhere), and their norm: exactly 0 where they vary by rounding only."""
    filled = np.where(known, values, 0.0)
    count = np.maximum(known.sum(-1, keepdims=True), 1)
    centred = np.where(known, filled - filled.sum(-1, keepdims=True) / count, 0.0)
    norm = np.sqrt(np.square(centred).sum(-1))
    rounding = 1e-13 * np.abs(filled).max(-1, initial=0.0) * np.sqrt(count[..., 0])
    return centred, np.where(norm > rounding, norm, 0.0)


def rank_correlation(forecast: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Spearman's along the last axis of [rows, columns]: Pearson's of ranks, ties at their mean rank."""
    known = np.isfinite(forecast) & np.isfinite(outcome)
    ranks = [pd.DataFrame(np.where(known, values, np.nan)).rank(axis=1).to_numpy() for values in (forecast, outcome)]
    return correlation(*ranks)


def brier(probability: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Squared error of the probability of a rise (Brier 1950): 0.25 for a coin, NaN where nothing moved."""
    return np.where(outcome == 0, np.nan, np.square(probability - (outcome > 0)))


def direction_hits(forecast: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """1 where a forecast return has the outcome's sign, 0 where not, 0.5 where it is 0 (a coin would do); NaN where nothing moved."""
    hits = np.where(forecast == 0, 0.5, np.sign(forecast) == np.sign(outcome))
    return np.where(outcome == 0, np.nan, hits)
