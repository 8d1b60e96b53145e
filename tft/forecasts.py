"""A trained network over all windows of a source: its raw outputs, what they mean, and the rows that a baseline may learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kronos.errors import InputError
from tft.losses import TargetLoss
from tft.model import TemporalFusionTransformer
from tft.task import TftTask

_MOST = 256  # windows at a time; neighbours share their rows, so more of them would only cost memory


@dataclass(frozen=True, eq=False)
class Outputs:
    """Of W windows in the order of their source. row [W]: panel row of the last encoder step. period [W]: number of its period.

    raw {target: [W, n]}: as the heads give them (logits, standardised values). labels [W, K]: as training sees them, NaN where unknown.
    """

    row: np.ndarray
    period: np.ndarray
    raw: dict[str, np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


class Rows(NamedTuple):
    """What a model without memory sees of W windows: the last encoder step and the known future. features [W, F] float32; `codes` of its
    columns are categories, not sizes. labels [W, K], period and row [W] as in `Outputs`."""

    features: np.ndarray
    codes: tuple[int, ...]
    labels: np.ndarray
    period: np.ndarray
    row: np.ndarray


def batches(source: Any, most: int = _MOST, index: np.ndarray | None = None) -> Iterator[dict[str, Tensor]]:
    """All windows of a source (or those of `index`) in order; neighbours a row apart come as one block, so that they share their rows."""
    index = np.arange(len(source)) if index is None else np.asarray(index, np.int64)
    for first in range(0, len(index), most):
        batch = {name: part for name, part in source.gather(index[first : first + most]).items() if name != "blocks"}
        joined = (batch["row"].diff() == 1) & (batch["static"][1:] == batch["static"][:-1]).all(1)
        for name in ("past", "known", "categorical"):  # a row of two windows must be one row, or sharing it would be wrong
            joined &= (batch[name][1:, :-1] == batch[name][:-1, 1:]).flatten(1).all(1)
        cuts = [0, *(torch.nonzero(~joined).flatten() + 1).tolist(), len(batch["row"])]
        if len(cuts) > 2 + len(batch["row"]) // 8:  # windows far apart: nothing to share
            yield batch
            continue
        for a, b in pairwise(cuts):
            yield {**{name: part[a:b] for name, part in batch.items()}, "blocks": torch.empty(1, b - a)}


@torch.no_grad()
def run_network(task: TftTask, source: Any) -> Outputs:
    """The task's network over every window of a source. Raises InputError if it gives something that is not a number."""
    model: TemporalFusionTransformer = task.model.eval()
    names, parts = list(task.losses.losses), []
    device = next(model.parameters()).device
    for batch in batches(source):
        logits = model({name: part.to(device) for name, part in batch.items()})["logits"]
        parts.append((batch["row"], batch["period"], batch["targets"], *(logits[name].float().cpu() for name in names)))
    if not parts:
        raise InputError("there is no window to forecast from; name another --split, or give more bars")
    row, period, labels, *raw = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    bad = [name for name, values in zip(names, raw, strict=True) if not np.isfinite(values).all()]
    if bad:
        raise InputError(
            f"the weights give numbers that are not finite for {', '.join(bad)}: its training diverged; take another checkpoint"
        )
    return Outputs(row, period, dict(zip(names, raw, strict=True)), labels)


def last_rows(source: Any) -> Rows:
    """The same windows for a model without memory, in the units that the network sees."""
    parts = []
    for first in range(0, len(source), 4 * _MOST):
        batch = source.gather(np.arange(first, min(len(source), first + 4 * _MOST)))
        encoder = batch["past"].shape[1]
        seen = [batch["past"][:, -1], batch["known"][:, encoder - 1 :].flatten(1)]
        coded = [batch["categorical"][:, encoder - 1 :].flatten(1), batch["static"]]
        real = sum(part.shape[1] for part in seen)
        parts.append((torch.cat([*seen, *(part.float() for part in coded)], 1), batch["targets"], batch["period"], batch["row"]))
    features, labels, period, row = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Rows(features, tuple(range(real, features.shape[1])), labels, period, row)


def probability(loss: TargetLoss, logit: np.ndarray) -> np.ndarray:
    """The probability of class 1 that a logit stands for: sigmoid, with the loss's own preference for a class taken out again.

    A positive weight w teaches odds w times too high. Focal loss has its minimum where p α A = (1 - p) (1 - α) B, with A and B the slopes
    of its two branches (arXiv 1708.02002): solved for p.
    """
    logit = np.asarray(logit, np.float64)
    if loss.kind == "bce":
        return _sigmoid(logit - np.log(loss.pos_weight or 1.0))
    q, other = _sigmoid(logit), _sigmoid(-logit)  # both, since 1 - q would lose a small one
    log_q, log_other = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
    gamma, alpha = loss.gamma, loss.alpha
    # slopes by the logit (dq = q (1 - q) dlogit), which stay finite at both ends
    a = other**gamma * (other - gamma * q * log_q)
    b = q**gamma * (q - gamma * other * log_other)
    wanted, unwanted = (1 - alpha) * b, alpha * a
    return wanted / np.maximum(wanted + unwanted, np.finfo(float).tiny)


def threshold(loss: TargetLoss) -> float:
    """The probability above which the network says 1: its logit is 0 there. 0.5 without a preference for a class."""
    return float(probability(loss, np.zeros(1))[0])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def meaning(loss: TargetLoss, raw: np.ndarray) -> np.ndarray:
    """The one number of a head's outputs [W, n] that is judged: a probability, or a standardised value. [W] float64."""
    point = loss.point(torch.from_numpy(np.ascontiguousarray(raw))).numpy().astype(np.float64)
    return probability(loss, point) if loss.classification else point
