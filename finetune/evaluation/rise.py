"""The probability of a rise from sampled closes, and what is made of it: a calibrated probability and a yes or no.

All that is chosen (how paths become a probability, how that is calibrated, where the line between rise and fall lies) is chosen on
forecasts that are earlier than any that is scored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.data.panel import Panel
from finetune.engine.windows import Source, Windows
from finetune.evaluation.origins import CLOSE

_NEAR = 1e-6  # probabilities keep this distance from 0 and 1
_SURE = 2.0  # standard errors
_PRIOR_WINDOWS = 100_000  # training windows that the class prior is counted over: its standard error is 0.16 %


def by_share(closes: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[O] probability from closes [O, S] and last closes [O]: (paths above + half of ties + ½) / (S + 1).

    The half is Jeffreys' prior: no number of paths makes a rise certain, and the log-loss stays finite.
    """
    last = last[:, None].astype(np.float32)  # as the panel holds it: a path that ends at the last close is a tie
    risen = (closes > last).sum(1) + 0.5 * (closes == last).sum(1)
    return (risen + 0.5) / (closes.shape[1] + 1)


def by_spread(closes: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[O] probability that a further path rises, if log returns are normal with unknown mean and deviation: Student's t with S - 1 degrees
    of freedom at mean / (deviation · √(1 + 1/S)) (Gelman et al. 2013, section 3.2). Smoother than a share of few paths: it uses how far
    they rise. Where paths do not vary, or a sampled close is not above 0, the share holds.
    """
    from scipy.stats import t  # scipy comes with arch

    samples = closes.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        returns = np.log(closes.astype(np.float64) / last[:, None])
        mean, spread = returns.mean(1), returns.std(1, ddof=1) if samples > 1 else np.zeros(len(closes))
        found = t.cdf(mean / (spread * np.sqrt(1 + 1 / samples)), max(1, samples - 1))
    usable = np.isfinite(found) & (spread > 1e-9)
    return np.where(usable, np.clip(found, _NEAR, 1 - _NEAR), by_share(closes, last))


ESTIMATES = {"share": by_share, "spread": by_spread}


@dataclass(frozen=True)
class Rule:
    """From paths to a probability to a decision. estimate: a name of ESTIMATES; slope, intercept: of its log-odds (Platt 1999).

    log_loss: of every estimate after calibration, where the rule was chosen. chosen_on: how many forecasts that were, 0 for the plain rule.
    """

    estimate: str = "spread"
    slope: float = 1.0
    intercept: float = 0.0
    threshold: float = 0.5
    log_loss: dict[str, float] | None = None
    chosen_on: int = 0

    def raw(self, closes: np.ndarray, last: np.ndarray) -> np.ndarray:
        """[O] probability as the paths have it."""
        return ESTIMATES[self.estimate](closes, last)

    def probability(self, closes: np.ndarray, last: np.ndarray) -> np.ndarray:
        """[O] calibrated probability of a rise."""
        return calibrated(self.raw(closes, last), self.slope, self.intercept)

    def decide(self, probability: np.ndarray) -> np.ndarray:
        """[O] 1 for a rise."""
        return (probability > self.threshold).astype(np.int64)

    def table(self) -> dict[str, Any]:
        return asdict(self)


def choose_rule(closes: np.ndarray, last: np.ndarray, rose: np.ndarray, moment: np.ndarray) -> Rule:
    """The estimate with the lowest log-loss once calibrated, and the threshold with the best accuracy.

    closes [O, S], last [O]; rose [O] bool: what came; moment [O]: which forecasts are of one moment, and so not independent.
    """
    losses, fits = {}, {}
    for name, estimate in ESTIMATES.items():
        raw = estimate(closes, last)
        fits[name] = fit_calibration(raw, rose)
        losses[name] = mean_log_loss(calibrated(raw, *fits[name]), rose)
    best = min(losses, key=lambda name: losses[name])
    probability = calibrated(ESTIMATES[best](closes, last), *fits[best])
    return Rule(best, *fits[best], choose_threshold(probability, rose, moment), losses, len(rose))


def calibrated(probability: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Probabilities with their log-odds stretched and moved."""
    return 1 / (1 + np.exp(-(slope * _log_odds(probability) + intercept)))


def fit_calibration(probability: np.ndarray, rose: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of least log-loss, slope ≥ 0: a model that is wrong more often than right is not turned round, but ignored.

    Newton's method on logistic regression. Outcomes count as Platt's (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), so that a fit exists even where
    one class is missing or both are told apart without error.
    """
    x, up = _log_odds(probability), rose.sum()
    target = np.where(rose, (up + 1) / (up + 2), 1 / (len(rose) - up + 2))
    design = np.column_stack([x, np.ones_like(x)])
    weights = np.array([0.0, float(_log_odds(target.mean()))])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weights))
        curvature = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, design.T @ (target - p))
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    if weights[0] <= 0:
        return 0.0, float(_log_odds(target.mean()))
    return float(weights[0]), float(weights[1])


def choose_threshold(probability: np.ndarray, rose: np.ndarray, moment: np.ndarray) -> float:
    """The threshold with the best accuracy (the competition's score); 0.5, where it belongs for calibrated probabilities, unless another
    one is better by more than two standard errors of the difference, counted over moments: the best of many noisy ones is mostly luck.
    """
    order = np.argsort(probability, kind="stable")
    p, hits = probability[order], np.where(rose[order], 1, -1)
    gain = np.concatenate([[0], -np.cumsum(hits)])  # accuracy against calling all a rise, if the first k are called falls
    borders = np.concatenate([[p[0] - 1e-9], (p[1:] + p[:-1]) / 2, [p[-1]]])
    allowed = np.concatenate([[True], p[1:] > p[:-1], [True]])
    best = float(borders[np.argmax(np.where(allowed, gain, gain.min() - 1))])
    best = min(max(best, _NEAR), 1 - _NEAR)
    difference = ((probability > best) == rose).astype(float) - ((probability > 0.5) == rose)
    _, group, sizes = np.unique(moment, return_inverse=True, return_counts=True)
    sums = np.bincount(group, difference - difference.mean())
    error = np.sqrt(np.square(sums).sum() * len(sizes) / max(1, len(sizes) - 1)) / len(difference)
    return best if difference.mean() > _SURE * error else 0.5


def mean_log_loss(probability: np.ndarray, rose: np.ndarray) -> float:
    """Mean negative log-likelihood; ln 2 = 0.693 for a coin."""
    p = np.clip(probability, _NEAR, 1 - _NEAR)
    return float(-np.where(rose, np.log(p), np.log1p(-p)).mean())


def class_prior(train: Source, horizon: int) -> float:
    """Share of training windows whose close rose over the horizon, counted over at most 100,000 spread evenly."""
    windows = train if isinstance(train, Windows) else train.source  # type: ignore[attr-defined]  # drawn by symbol: each window once
    assert isinstance(windows, Windows) and windows.horizon == horizon
    index = np.unique(np.linspace(0, len(windows) - 1, min(_PRIOR_WINDOWS, len(windows))).round().astype(np.int64))
    rows = windows.start_rows(index) + windows.lookback - 1
    return float(rose_after(windows.panel, rows, horizon).mean())


def rose_after(panel: Panel, rows: np.ndarray, horizon: int) -> np.ndarray:
    """[len(rows)] bool: the close `horizon` rows later is above this one."""
    return panel.features[rows + horizon, CLOSE] > panel.features[rows, CLOSE]


def _log_odds(probability: Any) -> Any:
    p = np.clip(probability, _NEAR, 1 - _NEAR)
    return np.log(p) - np.log1p(-p)
