"""Validation metrics per target and per period, the same whatever the number of ranks, and the composite score made of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune.engine.distributed import World
from finetune.engine.task import Outcome, WeightedMeans
from kronos.errors import InputError

from .losses import TargetLoss

CLASSIFICATION = ("f1", "accuracy", "precision", "recall", "auc", "ap")
REGRESSION = ("rmse", "mae")
_ERRORS = ("rmse", "mae", "loss", "loss_for_ckpt")  # smaller is better


class TargetMetrics:
    """Keeps every window's outputs and labels, brings those of all ranks together, orders them by panel row and judges them.

    Names: `target_x_f1` over all windows, `target_x_f1@1h` over one period's; also `target_x_loss`, the task's own `loss`, and
    `loss_for_ckpt`, the unweighted sum of the targets' losses, which stays comparable over stages. A metric that the labels do not define
    (AUC of one class, anything without a label) is left out. `confusion` holds [[TN, FP], [FN, TP]] by the same names after `compute`.
    """

    def __init__(
        self,
        losses: Mapping[str, TargetLoss],
        periods: Sequence[str] = (),
        composite: Composite | None = None,
        say: Callable[[str], None] = print,
    ):
        self.losses, self.periods, self.composite, self.say = dict(losses), list(periods), composite, say
        self.confusion: dict[str, np.ndarray] = {}
        self._means = WeightedMeans()
        self._kept: list[torch.Tensor] = []  # each [B, 2 + 3 K] float64: row, period, then point, label, loss per target

    def update(self, outcome: Outcome, batch: Mapping[str, torch.Tensor]) -> None:
        """Take one batch: `outcome.outputs` {target: [B, n]}, and of the batch targets [B, K], period and row [B].

        Without period all are of the first one, without row they keep their order. A filler of the loop (weight 0.0) is passed over.
        """
        if isinstance(outcome.weight, float) and outcome.weight == 0:
            return
        assert outcome.outputs is not None, "the task gives its outputs in evaluation"
        self._means.update(outcome._replace(terms={}), batch)
        targets = batch["targets"].double().cpu()
        first = sum(map(len, self._kept))
        zeros = torch.zeros(len(targets), dtype=torch.long)
        columns = [torch.as_tensor(batch.get("row", zeros + first + torch.arange(len(targets)))).double().cpu()]
        columns.append(torch.as_tensor(batch.get("period", zeros)).double().cpu())
        for k, (name, loss) in enumerate(self.losses.items()):
            out = outcome.outputs[name].detach().double().cpu()
            columns += [loss.point(out), targets[:, k], loss(out, targets[:, k])]
        self._kept.append(torch.stack(columns, 1))

    def compute(self, world: World) -> dict[str, float]:
        """All metrics of all ranks' windows; every rank must call it. Raises InputError if the composite score finds none of its parts."""
        values = self._means.compute(world)
        table = _of_all_ranks(self._kept, 2 + 3 * len(self.losses), world)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        self.confusion = {}
        total = 0.0
        for k, (name, loss) in enumerate(self.losses.items()):
            point, label, each = table[:, 2 + 3 * k : 5 + 3 * k].T
            for where, chosen in self._groups(table[:, 1]):
                there = chosen & ~np.isnan(label)
                if there.any():
                    values |= {f"{name}_{m}{where}": v for m, v in self._judge(name + where, loss, point[there], label[there]).items()}
                    values[f"{name}_loss{where}"] = float(each[there].mean())
            total += values.get(f"{name}_loss", 0.0)
        values["loss_for_ckpt"] = total
        if self.composite is not None:
            values["composite_score"] = self.composite(values, self.say if world.is_main else None)
        return values

    def _groups(self, period: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        yield "", np.ones(len(period), bool)
        for number, name in enumerate(self.periods):
            if name:
                yield f"@{name}", period == number

    def _judge(self, name: str, loss: TargetLoss, point: np.ndarray, label: np.ndarray) -> dict[str, float]:
        if not loss.classification:
            error = point - label
            return {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.abs(error).mean())}
        positive, said = label == 1, point > 0
        tp, fp, fn = (float(np.sum(a & b)) for a, b in ((positive, said), (~positive, said), (positive, ~said)))
        tn = len(label) - tp - fp - fn
        self.confusion[name] = np.array([[tn, fp], [fn, tp]])
        found = {"accuracy": (tp + tn) / len(label), "f1": _share(2 * tp, 2 * tp + fp + fn), "precision": _share(tp, tp + fp)}
        found["recall"] = _share(tp, tp + fn)
        if positive.any() and not positive.all():
            from sklearn.metrics import average_precision_score, roc_auc_score

            found |= {"auc": float(roc_auc_score(positive, point)), "ap": float(average_precision_score(positive, point))}
        return found


def _share(part: float, whole: float) -> float:
    """A ratio that counts as 0 where nothing was there to be counted, as scikit-learn and torchmetrics have it."""
    return part / whole if whole else 0.0


def _of_all_ranks(kept: list[torch.Tensor], width: int, world: World) -> np.ndarray:
    """Every rank's rows, on every rank: each adds its own to zeros at its own place."""
    own = torch.cat(kept) if kept else torch.zeros(0, width, dtype=torch.float64)
    if world.size == 1:
        return own.numpy()
    counts = torch.zeros(world.size, dtype=torch.float64, device=world.device)
    counts[world.rank] = len(own)
    ends = world.all_sum(counts).long().cumsum(0).tolist()
    everything = torch.zeros(ends[-1], width, dtype=torch.float64, device=world.device)
    everything[ends[world.rank] - len(own) : ends[world.rank]] = own.to(world.device)
    return world.all_sum(everything).cpu().numpy()


class Composite:
    """`composite_score.yaml`: weights of metrics, made into one score where larger is better.

    Σ w s / Σ |w| over the metrics that are there. s is the metric itself; an error (rmse, mae, loss) with a positive weight counts as
    1 / (1 + error), with a negative one it is subtracted. A metric that is missing is told once and left out.
    unknown: of the weights, names that are no metric of these targets, and what may have been meant.
    """

    def __init__(self, weights: Mapping[str, float], unknown: Mapping[str, str] | None = None):
        self.weights, self.unknown = dict(weights), dict(unknown or {})
        self._told: set[str] = set()

    @classmethod
    def read(cls, given: Mapping[str, Any], losses: Mapping[str, TargetLoss]) -> Composite:
        """From {metric: weight}, names with or without `val_`, or the same below a key `composite_score`.

        Raises InputError with everything that is wrong: weights that are none, and that no name is a metric of these targets.
        """
        inner = given.get("composite_score", given.get("weights", given))
        problems: list[str] = []
        known = [f"{t}_{m}" for t, loss in losses.items() for m in (*(CLASSIFICATION if loss.classification else REGRESSION), "loss")]
        known += ["loss", "loss_for_ckpt"]
        weights, unknown = {}, {}
        for name, weight in inner.items() if isinstance(inner, Mapping) else ():
            plain = str(name).removeprefix("val_")
            if plain.split("@")[0] not in known:
                near = difflib.get_close_matches(plain.split("@")[0], known, 1, 0.85)
                unknown[plain] = f" (did you mean val_{near[0]}?)" if near else ""
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not np.isfinite(weight) or weight == 0:
                problems.append(f"weight {weight!r} of {name} must be a number other than 0")
            weights[plain] = weight
        if not weights:
            problems.append("it names no metric; give e.g. val_target_binarytrend_f1: 1.0")
        elif len(unknown) == len(weights):
            problems.append(f"none of its names is a metric of these targets: {_named(unknown)}")
        if problems:
            raise InputError("composite_score: " + "; ".join(problems))
        return cls(weights, unknown)

    def tell_unknown(self, say: Callable[[str], Any]) -> None:
        """Before training: what no validation of these targets will measure."""
        if self.unknown:
            say(f"composite_score: left out, no metric of these targets: {_named(self.unknown)}")
            self._told.update(self.unknown)

    def __call__(self, values: Mapping[str, float], say: Callable[[str], None] | None = print) -> float:
        """The score of metrics named without `val_`. Raises InputError if none of its metrics is among them."""
        there = [name for name in self.weights if name in values]
        absent = {name: self.unknown.get(name, "") for name in self.weights if name not in values and name not in self._told}
        if not there:
            raise InputError(
                f"composite_score: none of its metrics ({', '.join(self.weights)}) was measured; check the period after @ and that the "
                "validation period has labels of both classes"
            )
        if absent:
            self._told.update(absent)
            if say:
                say(f"composite_score: left out, because not measured: {_named(absent)}")
        score = sum(self.weights[name] * _part(name, values[name], self.weights[name]) for name in there)
        return score / sum(abs(self.weights[name]) for name in there)


def _named(hints: Mapping[str, str]) -> str:
    return ", ".join(f"val_{name}{hint}" for name, hint in hints.items())


def _part(name: str, value: float, weight: float) -> float:
    """What a metric adds per weight: an error with a positive weight from 1 at none down to 0."""
    if weight < 0 or not name.split("@")[0].endswith(_ERRORS):
        return value
    return 1 / (1 + value) if value > 0 else 1 - value  # a loss with learned balance may be below 0: it goes on with the same slope
