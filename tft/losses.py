"""Losses by target, as YAML names them, and their sum: masked where a label is missing, weighted by stage, balanced if asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos.errors import InputError

BOUNDS = (0.1, 10.0)  # an automatic positive weight never leaves these
_NAMES = {"weightedbce": "bce", "bce": "bce", "focal": "focal", "smoothl1": "smooth_l1", "mse": "mse", "quantile": "quantile"}
_OPTIONS = {"bce": {"pos_weight"}, "focal": {"gamma", "alpha"}, "smooth_l1": {"beta"}, "mse": set(), "quantile": {"quantiles"}}


@dataclass(frozen=True)
class TargetLoss:
    """One target's loss. bce and focal make it a classification of 0 and 1, the others a regression."""

    kind: str
    weight: float = 1.0
    pos_weight: float | None = None  # bce: how much a positive counts; None = from training data
    gamma: float = 2.0  # focal: how much easy examples are faded out
    alpha: float = 0.25  # focal: share of the positives
    beta: float = 1.0  # smooth_l1: where it turns from square to linear
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    @property
    def classification(self) -> bool:
        return self.kind in ("bce", "focal")

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for it."""
        return len(self.quantiles) if self.kind == "quantile" else 1

    def __call__(self, out: Tensor, target: Tensor) -> Tensor:
        """out [B, outputs] (logits of classes), target [B] without NaN -> losses [B], float32 at least."""
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        target = target.to(out.dtype)
        if self.kind == "quantile":
            levels = out.new_tensor(self.quantiles)
            error = target.unsqueeze(-1) - out
            return torch.maximum(levels * error, (levels - 1) * error).mean(-1)
        out = out.squeeze(-1)
        if self.kind == "bce":
            return F.binary_cross_entropy_with_logits(out, target, reduction="none", pos_weight=out.new_tensor(self.pos_weight or 1.0))
        if self.kind == "focal":
            plain = F.binary_cross_entropy_with_logits(out, target, reduction="none")
            wrong = torch.sigmoid(out * (1 - 2 * target))  # probability of the other class (arXiv 1708.02002)
            return (self.alpha * target + (1 - self.alpha) * (1 - target)) * wrong**self.gamma * plain
        if self.kind == "mse":
            return (out - target).square()
        return F.smooth_l1_loss(out, target, reduction="none", beta=self.beta)

    def point(self, out: Tensor) -> Tensor:
        """The one number that metrics judge: the logit, the value, or the quantile nearest to the median. [B, outputs] -> [B]."""
        if self.kind != "quantile":
            return out.squeeze(-1)
        return out[:, min(range(len(self.quantiles)), key=lambda i: abs(self.quantiles[i] - 0.5))]


def read_targets(given: Mapping[str, Any], known: Sequence[str] | None = None) -> dict[str, TargetLoss]:
    """Losses by target, from {target: name} or {target: {name: focal, gamma: 2, weight: 1}} (key `loss` means `name`).

    known: targets that the data has. Raises InputError with everything that is wrong in it.
    """
    problems: list[str] = []
    if not given:
        problems.append("no target is named")
    losses = {}
    for target, value in given.items():
        if known is not None and target not in known:
            problems.append(f"{target}: there is no such target{_nearest(target, known)}; the data has {', '.join(known)}")
        losses[target] = _read_loss(target, value, problems)
    if problems:
        raise InputError("targets: " + "; ".join(problems))
    return losses


def _read_loss(target: str, value: Any, problems: list[str]) -> TargetLoss:
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = str(options.pop("name", options.pop("loss", options.pop("kind", None))))
    kind = _NAMES.get(name.lower().replace("_", ""))
    if kind is None:
        shown = ("WeightedBCE", "focal", "SmoothL1", "MSE", "quantile")
        problems.append(f"{target}: unknown loss '{name}'{_nearest(name, shown)}; use {', '.join(shown)}")
        return TargetLoss("mse")
    if options.get("pos_weight") == "auto":
        options["pos_weight"] = None
    if unknown := sorted(set(options) - _OPTIONS[kind] - {"weight"}):
        problems.append(f"{target}: {name} has no option {', '.join(unknown)}; it takes {', '.join(sorted(_OPTIONS[kind] | {'weight'}))}")
        return TargetLoss(kind)
    return _checked(target, kind, options, problems)


def _checked(target: str, kind: str, options: dict[str, Any], problems: list[str]) -> TargetLoss:
    before = len(problems)
    levels = options.pop("quantiles", TargetLoss.quantiles)
    if not isinstance(levels, list | tuple) or not levels or not all(_number(q) and 0 < q < 1 for q in levels):
        problems.append(f"{target}: quantiles {levels!r} must be numbers between 0 and 1, e.g. [0.1, 0.5, 0.9]")
    for name, value in options.items():
        if name == "pos_weight" and value is None:
            continue
        if not _number(value) or value < 0 or (name in ("pos_weight", "beta") and value == 0) or (name == "alpha" and value > 1):
            problems.append(f"{target}: {name} {value!r} is not possible; give a number from 0 (alpha: to 1; pos_weight, beta: above 0)")
    if len(problems) > before:
        return TargetLoss(kind)
    return TargetLoss(kind, quantiles=tuple(sorted(map(float, levels))), **{k: v if v is None else float(v) for k, v in options.items()})


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def with_training_weights(
    losses: Mapping[str, TargetLoss], targets: np.ndarray, names: Sequence[str], bounds: tuple[float, float] = BOUNDS
) -> dict[str, TargetLoss]:
    """Losses with every automatic positive weight set to negatives / positives of the training labels, kept within `bounds`.

    targets: [N, K] labels of training windows, NaN where unknown, columns `names`. Raises InputError for labels that cannot be learned:
    none at all, a class that does not occur, others than 0 and 1 where classes are meant, no variation where values are.
    """
    problems, weighted = [], {}
    for target, loss in losses.items():
        labels = targets[:, list(names).index(target)]
        labels = labels[~np.isnan(labels)]
        weighted[target] = loss
        if not len(labels):
            problems.append(f"{target}: no training window has a label; check its horizon and the split")
        elif loss.classification and not np.isin(labels, (0, 1)).all():
            odd = labels[~np.isin(labels, (0, 1))][0]
            problems.append(f"{target}: label {odd:g} is neither 0 nor 1; use SmoothL1, MSE or quantile for values")
        elif labels.min() == labels.max():
            problems.append(f"{target}: all {len(labels):,} training labels are {labels[0]:g}; leave it out, or change its definition")
        elif loss.kind == "bce" and loss.pos_weight is None:
            positives = float((labels == 1).sum())
            weighted[target] = replace(loss, pos_weight=float(np.clip((len(labels) - positives) / positives, *bounds)))
    if problems:
        raise InputError("targets: " + "; ".join(problems))
    return weighted


class Stage(NamedTuple):
    """Weights by target that hold from an epoch (counted from 0) on."""

    start: int
    weights: dict[str, float]


def read_stages(given: Mapping[str, Any], targets: Sequence[str]) -> list[Stage]:
    """Stages of `weights_config.yaml`: {stage_1: {start_epoch: 0, weights: {target: 1.0}}, ...}; targets not named there keep weight 1.

    The weights may also stand beside start_epoch. Raises InputError with everything that is wrong.
    """
    problems, stages = [], []
    for name, value in given.items():
        block = dict(value) if isinstance(value, Mapping) else {}
        start = block.pop("start_epoch", block.pop("start", None))
        weights = block.pop("weights", block)
        if not isinstance(start, int) or isinstance(start, bool) or start < 0 or not isinstance(weights, Mapping):
            problems.append(f"{name}: give start_epoch (a whole number from 0) and weights by target, not {value!r}")
            continue
        for target, weight in weights.items():
            if target not in targets:
                problems.append(f"{name}: there is no target {target}{_nearest(str(target), targets)}; there are {', '.join(targets)}")
            elif not _number(weight) or weight < 0:
                problems.append(f"{name}: weight {weight!r} of {target} is negative or no number; give one from 0")
        stages.append(Stage(start, dict(weights)))
    starts = [stage.start for stage in stages]
    if not problems and len(set(starts)) < len(starts):
        problems.append(f"two stages start at the same epoch ({sorted(starts)})")
    if problems:
        raise InputError("weights_config: " + "; ".join(problems))
    return sorted(stages, key=lambda stage: stage.start)


class TargetLosses(nn.Module):
    """The sum over targets: Σ_k w_k L_k, or with `uncertainty` Σ_k w_k (L_k / σ_k² + log σ_k²), σ learned (arXiv 1705.07115).

    A missing label (NaN) leaves out that one term. The result is the mean over all labels there are, times the number of targets;
    its weight says how many whole windows the labels make: so any split over micro-batches and ranks has the same weighted mean.
    """

    def __init__(self, losses: Mapping[str, TargetLoss], stages: Sequence[Stage] = (), uncertainty: bool = False):
        super().__init__()
        self.losses, self.stages = dict(losses), list(stages)
        self.log_variance = nn.Parameter(torch.zeros(len(self.losses))) if uncertainty else None
        self.on_epoch(0)

    def on_epoch(self, epoch: int) -> None:
        """Take the weights of the last stage that has begun."""
        begun = [stage for stage in self.stages if stage.start <= epoch]
        of_stage = begun[-1].weights if begun else {}
        self.weights = [loss.weight * float(of_stage.get(name, 1.0)) for name, loss in self.losses.items()]

    def forward(self, logits: Mapping[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """logits {target: [B, n]}, targets [B, K] in the order of `losses` -> loss, its weight, and each target's share unweighted.

        A target's share is its mean loss where no label is missing; in general its sum over labels, over `weight`.
        """
        there = ~targets.isnan()
        filled = torch.where(there, targets, 0.0)
        columns = [loss(logits[name], filled[:, k]) for k, (name, loss) in enumerate(self.losses.items())]
        each = torch.stack(columns, 1) * there  # [B, K]
        weight = there.sum() / len(self.losses)
        share = 1 / weight.clamp(min=1 / len(self.losses))
        sums = each.sum(0) * share  # [K]
        whole = sums
        if self.log_variance is not None:
            log_variance = self.log_variance.to(sums.dtype)
            whole = sums * torch.exp(-log_variance) + log_variance * (there.sum(0) * share)
        loss = (whole * whole.new_tensor(self.weights)).sum()
        return loss, weight, dict(zip(self.losses, sums.detach().unbind(), strict=True))


def plain_losses(losses: Mapping[str, TargetLoss]) -> dict[str, dict[str, Any]]:
    """As YAML and JSON can hold them, to be read by `read_targets`."""
    return {
        target: {"name": loss.kind} | {k: v for k, v in asdict(loss).items() if k in _OPTIONS[loss.kind] | {"weight"}}
        for target, loss in losses.items()
    }
