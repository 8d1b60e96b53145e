"""Adaptive conformal calibration of quantiles: learns from outcomes that were known before each origin, and from nothing else.

Each quantile, at each horizon step, is moved by what the past asks for: a quantile of the past scores (outcome - quantile) / scale
(conformalised quantile regression, Romano, Patterson and Candès 2019), taken at a level that follows its own mistakes (adaptive conformal
inference, Gibbs and Candès 2021), so that it keeps up when markets change. Scale is the origin's recent volatility times the root of the
step. Outcomes that overlap are one experience told several times: rate and rank count them so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.evaluation.baselines import history
from finetune.evaluation.origins import Origins
from finetune.evaluation.scores import LEVELS

RATE = 0.02  # how far a level moves after a mistake
WINDOW = 250  # horizons that are remembered, at least
_MOST_SCORES = 4_000  # of a pool are enough for a quantile
_FEWEST_MOMENTS = 10  # realised before the first correction
_SCALE_BARS = 60


@dataclass(frozen=True, eq=False)
class Calibrated:
    """quantiles [O, H, Q]: calibrated, sorted over levels. shift [H, Q]: what the last origin's quantiles were moved by, in scales; it is
    what a forecast made now should be moved by. active [O]: whether there was a past to learn from."""

    quantiles: np.ndarray
    shift: np.ndarray
    active: np.ndarray


def calibrate(quantiles: np.ndarray, origins: Origins, *, rate: float = RATE, window: int = WINDOW) -> Calibrated:
    """Calibrate log-return quantiles [O, H, Q] at `LEVELS`, in one pass through the moments in the order of time.

    The score of origin o at step h is used from the moment on at which bar o + h is known: never before.
    """
    levels = np.array(LEVELS)
    scale = forecast_scale(origins)[:, :, None]
    scores = (origins.returns[:, :, None] - quantiles) / scale  # [O, H, Q]
    result, active = quantiles.copy(), np.zeros(len(origins), bool)
    overlap = origins.overlap[:, None]  # [H, 1]
    share = 1.0 / np.bincount(origins.moment)[origins.moment]  # an origin's weight among those of its moment
    target = np.broadcast_to(levels, scores.shape[1:]).copy()  # [H, Q] the level asked of past scores
    told = np.zeros(origins.returns.shape, bool)  # outcomes that levels have learned from
    shift = np.zeros(scores.shape[1:])
    for number in range(len(origins.moments)):
        members = np.flatnonzero(origins.moment == number)
        known = origins.realised <= origins.now[members].min()  # [O, H]
        news = np.flatnonzero(active & (known & ~told).any(1))
        if len(news):
            missed = levels - (origins.returns[news, :, None] <= result[news])  # above 0: the quantile was too low
            weight = share[news, None] * (known & ~told)[news]  # [n, H]
            target = np.clip(target + rate / overlap * (missed * weight[:, :, None]).sum(0), 0.0, 1.0)
            told[news] |= known[news]
        pool = known & (origins.moment >= number - window * overlap.max())[:, None]
        moments = _moments(pool, origins.moment)[:, None]
        if moments.min() < _FEWEST_MOMENTS:
            continue
        shift = _pool_quantile(scores, pool, target, moments / overlap)
        result[members] = np.sort(quantiles[members] + scale[members] * shift, axis=-1)
        active[members] = True
    return Calibrated(result, shift, active)


def forecast_scale(origins: Origins) -> np.ndarray:
    """[O, H]: deviation of the last 60 log returns (fewer if the lookback is shorter) times the root of the step; above 0."""
    past = history(origins, np.arange(len(origins)), min(_SCALE_BARS, origins.lookback - 1))
    _, deviation = past.moments()
    return np.maximum(deviation, 1e-6) * np.sqrt(np.arange(1, origins.horizon + 1))


def _moments(pool: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """How many moments of [O, H] are in the pool at each step, [H]."""
    first = np.flatnonzero(np.diff(moment, prepend=-1))  # origins are sorted by moment
    return np.logical_or.reduceat(pool, first, axis=0).sum(0)


def _pool_quantile(scores: np.ndarray, pool: np.ndarray, level: np.ndarray, independent: np.ndarray) -> np.ndarray:
    """Quantile of the pooled scores per step and quantile: scores [O, H, Q], pool [O, H], level [H, Q], independent [H, 1] → [H, Q].

    The rank is level · (m + 1) among m independent scores, whatever their number in the pool: the fewer, the further out (for all
    independent, Weibull's rank as in `path_quantiles`). Every step has scores in the pool.
    """
    used = np.flatnonzero(pool.any(1))
    used = used[:: max(1, len(used) // _MOST_SCORES)]
    ordered = np.sort(np.where(pool[used, :, None], scores[used], np.inf), axis=0)  # what is not in the pool goes to the end
    count = pool[used].sum(0)[:, None]
    rank = (level * (independent + 1) - 0.5) * count / independent + 0.5
    at = np.clip(rank, 1, count) - 1
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    below, above = (np.take_along_axis(ordered, index[None], axis=0)[0] for index in (low, high))
    return below + (at - low) * (above - below)
