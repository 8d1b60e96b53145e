"""What the loop asks of anything it trains. The loop knows nothing of Kronos, TFT or Flower; they know this page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from .distributed import World
from .tracking import Run


class Outcome(NamedTuple):
    """One micro-batch's result. The step's loss is the weighted mean over all micro-batches and ranks."""

    loss: torch.Tensor  # mean over the micro-batch, scalar
    weight: torch.Tensor | float  # what that mean stands for, e.g. windows, or unmasked targets
    terms: dict[str, torch.Tensor]  # named parts to log, means like `loss`
    outputs: Any = None  # what the task's own metrics need of a validation forward; the loop only hands it on


class Metrics(Protocol):
    """Collects validation outcomes; torchmetrics collections fit behind the same three calls."""

    def update(self, outcome: Outcome, batch: dict[str, torch.Tensor]) -> None: ...
    def compute(self, world: World) -> dict[str, float]: ...


class Task(nn.Module):
    """A model with its loss. Subclasses hold the model as a submodule and implement `forward`, `trained` and `save`."""

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        raise NotImplementedError

    def trained(self) -> nn.Module:
        """The part whose weights are optimised and saved; everything else in the task stays frozen."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the result for its users, e.g. the published checkpoint format."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint of another run to be continued here; plain values."""
        return {"task": type(self).__name__}

    def metrics(self) -> Metrics:
        return WeightedMeans()

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch, for staged loss weights and the like."""

    def report(self, run: Run, step: int) -> None:
        """Called on rank 0 after each epoch's validation, for pictures beside the numbers that the loop has logged."""


class WeightedMeans:
    """Means of the loss and of every term over all validation windows of all ranks, summed in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weight: torch.Tensor | float = 0.0

    def update(self, outcome: Outcome, batch: dict[str, torch.Tensor]) -> None:
        for name, value in {"loss": outcome.loss, **outcome.terms}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * outcome.weight
        self._weight = self._weight + outcome.weight

    def compute(self, world: World) -> dict[str, float]:
        names = sorted(self._sums)
        dtype = torch.float32 if world.device.type == "mps" else torch.float64  # MPS has no float64
        totals = torch.tensor([float(self._sums[n]) for n in names] + [float(self._weight)], dtype=dtype, device=world.device)
        *sums, weight = world.all_sum(totals).tolist()
        return {name: total / weight for name, total in zip(names, sums, strict=True)}
