"""How well forecasts did, and by how much one method did better than another: the metrics of training, with block-bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from finetune.engine.distributed import World
from finetune.engine.task import Outcome
from finetune.evaluation.skill import Resampler
from tft.losses import TargetLoss
from tft.metrics import CLASSIFICATION, REGRESSION, TargetMetrics

DECIDES = {True: "auc", False: "rmse"}  # by classification; fixed before anything is seen. A quantile head's median is judged by MAE
_FEWEST_MOMENTS, _FEWEST_BLOCKS = 30, 5
_MOST_DRAWN = 30_000_000  # moments drawn in all; a longer split is resampled less often
_RESAMPLES = 2000
_CHUNK = 2_000_000  # weights looked at together


@dataclass(frozen=True, eq=False)
class Moments:
    """When scored rows were known and how long their labels take, as `Resampler` asks for it.

    moment [W]: number of the row's moment. moments [D] int64 ns. overlap [1]: moments that pass before an outcome is known.
    """

    moment: np.ndarray
    moments: np.ndarray
    overlap: np.ndarray

    @classmethod
    def of(cls, times: np.ndarray, reach: np.ndarray) -> Moments:
        """times [W] int64 ns: when each row is known. reach [W] ns: how much later its label is."""
        moments, moment = np.unique(times, return_inverse=True)
        after = np.searchsorted(moments, times + reach) - moment
        return cls(moment, moments, np.array([max(1, int(after.max(initial=1)))]))

    @property
    def block(self) -> int:
        """As `Origins.block`: two horizons where labels overlap, and no fewer than D^(1/3) moments."""
        longest = int(self.overlap[-1])
        return int(max(2 * longest if longest > 1 else 1, np.ceil(len(self.moments) ** (1 / 3))))

    @property
    def enough(self) -> bool:
        """Whether an interval over them means anything."""
        return len(self.moments) >= max(_FEWEST_MOMENTS, _FEWEST_BLOCKS * self.block)

    def chosen(self, keep: np.ndarray) -> Moments:
        used, moment = np.unique(self.moment[keep], return_inverse=True)
        return Moments(moment, self.moments[used], self.overlap)

    def resampler(self, seed: int) -> Resampler:
        draws = int(np.clip(_MOST_DRAWN // max(1, len(self.moments)), 200, _RESAMPLES))
        return Resampler(self, np.ones(len(self.moment), bool), seed, draws)


@dataclass(frozen=True)
class Difference:
    """Model minus other of one metric with its 95 % interval, and what it allows to say. Errors (RMSE, MAE) are better when smaller."""

    metric: str
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if not np.isfinite([self.low, self.high]).all():
            return "not comparable with"
        low, high = (-self.high, -self.low) if self.metric in REGRESSION else (self.low, self.high)
        if low > 0:
            return "better than"
        return "worse than" if high < 0 else "indistinguishable from"

    def table(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def decides(loss: TargetLoss) -> str:
    """The metric that the verdict on a target rests on."""
    return "mae" if loss.kind == "quantile" else DECIDES[loss.classification]


def metrics_of(
    losses: Mapping[str, TargetLoss], points: Mapping[str, np.ndarray], labels: np.ndarray, period: np.ndarray, periods: list[str]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """(metrics, confusion matrices) by the names of training: `target_x_f1`, `target_x_rmse@1h`.

    points {target: [W]}: above 0 means class 1, or values; labels [W, K] in the same units.
    """
    judged = TargetMetrics({t: TargetLoss("bce" if loss.classification else "mse") for t, loss in losses.items()}, periods)
    outputs = {target: torch.from_numpy(np.ascontiguousarray(points[target]))[:, None] for target in losses}
    batch = {"targets": torch.from_numpy(np.ascontiguousarray(labels)), "period": torch.from_numpy(np.ascontiguousarray(period))}
    judged.update(Outcome(torch.zeros(()), torch.ones(()), {}, outputs), batch)
    values = judged.compute(World())
    wanted = {f"{t}_{m}" for t, loss in losses.items() for m in (CLASSIFICATION if loss.classification else REGRESSION)}
    return {name: value for name, value in values.items() if name.split("@")[0] in wanted}, judged.confusion


def resampled(loss: TargetLoss, point: np.ndarray, label: np.ndarray, resampler: Resampler) -> dict[str, np.ndarray]:
    """{metric: [1 + resamples]}: of the sample itself, then of each resample; NaN where one has no row of a class.

    point, label [W] without NaN, the rows that `resampler` was made for.
    """
    if not loss.classification:
        error = point - label
        square, size = resampler.means(np.column_stack([error**2, np.abs(error)])).T
        return {"rmse": np.sqrt(square), "mae": size}
    positive, said = label == 1, point > 0
    tp, fp, fn, all_positive = resampler.means(
        np.column_stack([positive & said, ~positive & said, positive & ~said, positive]).astype(float)
    ).T
    found = {
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "accuracy": 1 - fp - fn,
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
    }
    both = (all_positive > 0) & (all_positive < 1)
    ranked = _ranking(point, positive, resampler)
    return found | {name: np.where(both, values, np.nan) for name, values in ranked.items()}


def _ranking(point: np.ndarray, positive: np.ndarray, resampler: Resampler) -> dict[str, np.ndarray]:
    """AUC and average precision of every resample: rows sorted once, weights summed along the order, ties taken together."""
    order = np.argsort(-point, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(point[order])), len(order) - 1)  # the last row of each tie
    moment, truth = resampler.moment[order], positive[order].astype(float)
    auc, ap = (np.full(len(resampler.weights), np.nan) for _ in range(2))
    step = max(1, _CHUNK // len(order))
    for first in range(0, len(auc), step):
        here = slice(first, first + step)
        weights = resampler.weights[here][:, moment]  # [r, W]
        tp = np.cumsum(weights * truth, 1)[:, ends]
        fp = np.cumsum(weights * (1 - truth), 1)[:, ends]
        more_tp, more_fp = np.diff(tp, axis=1, prepend=0), np.diff(fp, axis=1, prepend=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            auc[here] = (more_fp * (tp - more_tp / 2)).sum(1) / (tp[:, -1] * fp[:, -1])
            ap[here] = (more_tp * np.nan_to_num(tp / (tp + fp))).sum(1) / tp[:, -1]
    return {"auc": auc, "ap": ap}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def differences(
    loss: TargetLoss, model: np.ndarray, others: Mapping[str, np.ndarray], label: np.ndarray, moments: Moments, seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """{other: {metric: model minus other}} over rows whose label and forecasts are all known; paired: one drawing of blocks serves all.

    model, others, label [W]; moments: of the same rows. Too few moments or one class only give NaN ends.
    """
    there = ~np.isnan(np.column_stack([label, model, *others.values()])).any(1)
    some = moments.chosen(there)
    if not there.any():
        return {}
    resampler = some.resampler(seed)
    own = resampled(loss, model[there], label[there], resampler)
    found = {}
    for name, point in others.items():
        theirs = resampled(loss, point[there], label[there], resampler)
        found[name] = {metric: _difference(metric, own[metric] - theirs[metric], resampler, some.enough) for metric in own}
    return found


def _difference(metric: str, values: np.ndarray, resampler: Resampler, enough: bool) -> Difference:
    known = np.isfinite(values)
    if not enough or not known[0] or known.mean() < 0.9:
        return Difference(metric, float(values[0]), float("nan"), float("nan"))
    return Difference(metric, *map(float, resampler.ends(values[known])))
