"""Scores of yes or no forecasts of a rise, the baselines they have to beat, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.evaluation.origins import CLOSE, Origins
from finetune.evaluation.rise import mean_log_loss
from finetune.evaluation.skill import Resampler

MOMENTUM_BARS = 20


@dataclass(frozen=True, eq=False)
class Called:
    """One method's forecasts of O rises. probability [O], decision [O] 0 or 1, rank [O]: what AUC orders by (any increasing score)."""

    label: str
    probability: np.ndarray
    decision: np.ndarray
    rank: np.ndarray

    def part(self, keep: np.ndarray) -> Called:
        return Called(self.label, self.probability[keep], self.decision[keep], self.rank[keep])


def rise_scores(called: Called, rose: np.ndarray) -> dict[str, float]:
    """accuracy, f1 (of rises), auc (0.5: no order; NaN where one class is missing), log_loss, brier and share of rises called."""
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    truth = rose.astype(np.int64)
    both = 0 < truth.sum() < len(truth)
    return {
        "accuracy": float(accuracy_score(truth, called.decision)),
        "f1": float(f1_score(truth, called.decision, zero_division=0.0)),
        "auc": float(roc_auc_score(truth, called.rank)) if both else float("nan"),
        "log_loss": mean_log_loss(called.probability, rose),
        "brier": float(np.square(called.probability - truth).mean()),
        "called_up": float(called.decision.mean()),
    }


def baselines(origins: Origins, rose: np.ndarray, prior: float) -> dict[str, Called]:
    """Always up, persistence (the last bar's return goes on) and momentum (that of the last 20 bars does), at all origins.

    Their probabilities are the frequencies of a rise after their call, counted on the origins that are not scored; always up has the class
    prior of training.
    """
    chosen_on = ~origins.scored
    up = np.ones(len(rose), np.int64)
    found = {"always_up": Called("always up", np.full(len(rose), prior), up, np.zeros(len(rose)))}
    for name, label, bars in (
        ("persistence", "persistence (sign of the last return)", 1),
        ("momentum", f"momentum (sign of the last {MOMENTUM_BARS} bars' return)", MOMENTUM_BARS),
    ):
        change = past_returns(origins, bars)
        call = (change > 0).astype(np.int64)
        found[name] = Called(label, _frequency(call, rose, chosen_on), call, change)
    return found


def past_returns(origins: Origins, bars: int) -> np.ndarray:
    """[O] log return of the last `bars` bars up to each origin, fewer where the lookback is shorter."""
    before = np.maximum(1, min(bars, origins.lookback - 1))
    close = origins.panel.features[:, CLOSE]
    now, then = close[origins.rows].astype(np.float64), close[origins.rows - before].astype(np.float64)
    return np.log(np.maximum(now, 1e-12) / np.maximum(then, 1e-12))


def _frequency(call: np.ndarray, rose: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """[O] how often the close rose after this call, (k + 1) / (n + 2) over the counted ones."""
    rates = [(rose[counted & (call == kind)].sum() + 1) / ((counted & (call == kind)).sum() + 2) for kind in (0, 1)]
    return np.array(rates)[call]


@dataclass(frozen=True)
class Difference:
    """Accuracy of the model less a baseline's, with a 95 % interval."""

    baseline: str
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > 0:
            return "better than"
        return "worse than" if self.high < 0 else "indistinguishable from"

    def sentence(self, title: str) -> str:
        """E.g. "demo is indistinguishable from always up: accuracy +0.3 points (95 % interval -1.1 to +1.7)."."""
        numbers = f"accuracy {100 * self.value:+.1f} points (95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return f"{title} is {self.verdict} {self.baseline}: {numbers}."


def differences(model: Called, others: Mapping[str, Called], rose: np.ndarray, origins: Origins, seed: int) -> dict[str, Difference]:
    """Accuracy differences on the scored origins, by block bootstrap over moments with all their series (`skill.Resampler`)."""
    keep = origins.scored
    resampler = Resampler(origins, keep, seed)
    hits = {name: (called.decision == rose)[keep].astype(float) for name, called in {"": model, **others}.items()}
    found = {}
    for name, called in others.items():
        value, low, high = resampler.ends(resampler.means(hits[""] - hits[name]))
        found[name] = Difference(called.label, float(value), float(low), float(high))
    return found


def reliability(probability: np.ndarray, rose: np.ndarray, bins: int = 10) -> list[dict[str, Any]]:
    """Forecast and frequency of a rise in equally filled bins of the probability."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    return [{"count": len(part), "forecast": float(probability[part].mean()), "rose": float(rose[part].mean())} for part in parts]
