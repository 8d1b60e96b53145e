"""Is the model better than a baseline, and how sure is that: skill with intervals from blocks of moments, and one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.engine.randomness import numpy_generator
from finetune.evaluation.origins import Origins

_RESAMPLES = 2000
_SKILL_SEED = 11  # so that resampling does not share the paths' random numbers


@dataclass(frozen=True)
class Skill:
    """1 - score / baseline's score (1: perfect, 0: no better, below: worse), with a 95 % interval; overall and by step."""

    overall: float
    low: float
    high: float
    by_step: list[float]
    low_by_step: list[float]
    high_by_step: list[float]

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > 0:
            return "better than"
        return "worse than" if self.high < 0 else "indistinguishable from"

    def table(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


class Resampler:
    """Circular block bootstrap (Politis and Romano 1992) over moments: a block is `block` successive moments with all their series.

    The same draws serve every score, so that differences are paired. Percentile intervals are widened as Student's t is against the normal
    with a degree of freedom less than there are blocks: few blocks tell little about their own spread.
    """

    def __init__(self, origins: Origins, keep: np.ndarray, seed: int, resamples: int = _RESAMPLES):
        from scipy.stats import norm, t  # scipy comes with arch

        part = origins.chosen(keep)
        self.moment, self.block, self.overlap = part.moment, part.block, part.overlap
        moments = self.size = len(part.moments)
        generator = numpy_generator(seed, _SKILL_SEED)
        blocks = -(-moments // self.block)
        self.widening = float(t.ppf(0.975, max(1.0, moments / self.block - 1)) / norm.ppf(0.975))
        starts = generator.integers(0, moments, (resamples, blocks))
        drawn = (starts[:, :, None] + np.arange(self.block)).reshape(resamples, -1)[:, :moments] % moments
        flat = drawn + moments * np.arange(resamples)[:, None]
        counts = np.bincount(flat.ravel(), minlength=resamples * moments).reshape(resamples, moments)
        self.weights = np.concatenate([np.ones((1, moments)), counts])  # [1 + resamples, D]; first the sample itself

    def means(self, values: np.ndarray) -> np.ndarray:
        """values [O, ...] of the kept origins → their mean over the sample itself and over each resample, [1 + resamples, ...]."""
        flat = values.reshape(len(values), -1)
        sums = np.zeros((self.weights.shape[1], flat.shape[1]))
        np.add.at(sums, self.moment, flat)
        sizes = np.bincount(self.moment, minlength=self.weights.shape[1])
        return ((self.weights @ sums) / (self.weights @ sizes)[:, None]).reshape(-1, *values.shape[1:])

    def interval(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean of [O, ...] shares from 0 to 1, with the ends of its 95 % interval."""
        value, low, high = self.ends(self.means(shares))
        return value, np.maximum(low, 0.0), np.minimum(high, 1.0)

    def ends(self, resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value of the sample itself and the ends of its 95 % interval, from [1 + resamples, ...]."""
        value, ends = resampled[0], np.quantile(resampled[1:], (0.025, 0.975), axis=0)
        low, high = value + self.widening * (ends - value)
        return value, low, high


def skill(model: np.ndarray, baseline: np.ndarray, resampler: Resampler) -> Skill:
    """model, baseline: scores [O, H] of the kept origins, lower is better, both not below 0 (a baseline's of 0 gives NaN)."""
    means = [resampler.means(np.column_stack([scores.mean(1), scores])) for scores in (model, baseline)]  # [1 + R, 1 + H]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(means[1] > 0, 1 - means[0] / means[1], np.nan)
    value, low, high = resampler.ends(ratio)
    steps = [part[1:].tolist() for part in (value, low, high)]
    return Skill(float(value[0]), float(low[0]), float(high[0]), *steps)


def best_of(scores: Mapping[str, np.ndarray], keep: np.ndarray) -> str:
    """The method with the lowest mean score [O, H] over the origins of a mask: the earlier ones, never those that are scored."""
    return min(scores, key=lambda name: float(scores[name][keep].mean()))


def sentence(title: str, found: Skill, baseline: str, score: str) -> str:
    """The verdict in words, e.g. "demo is worse than persistence: CRPS skill -3.1 % (95 % interval -4.0 to -2.2 %)."."""
    interval = f"95 % interval {signed(found.low, unit='')} to {signed(found.high)}"
    return f"{title} is {found.verdict} {baseline}: {score} skill {signed(found.overall)} ({interval})."


def percent(share: float, digits: int = 1, *, unit: str = " %") -> str:
    """0.715 → "71.5 %"; a dash where there is no number."""
    return f"{100 * share:.{digits}f}{unit}" if np.isfinite(share) else "–"


def signed(share: float, digits: int = 1, *, unit: str = " %") -> str:
    """-0.031 → "-3.1 %"; 0.02 → "+2.0 %"."""
    return f"{100 * share:+.{digits}f}{unit}" if np.isfinite(share) else "–"
