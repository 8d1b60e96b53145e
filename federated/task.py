"""A client's local work: the project's own `fit` on the client's own windows, weights in and out by name.

Both models come down to the same thing: named modules, and stages that train them one after the other (`local_kronos`, `local_tft`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from federated.settings import Settings
from federated.update import Update
from finetune.engine.settings import FitSettings
from finetune.engine.task import Metrics, Outcome, Task
from finetune.engine.trainer import fit
from finetune.engine.windows import Splits
from kronos.errors import InputError

PIECES = "pieces"  # what a client tells: its series are pieces of longer ones, each split in time of its own
_ROUND, _PARTITION = 1_000_003, 7_919  # apart, so that no two clients and rounds share a seed


class Proximal(Task):
    """FedProx (Li et al. 2018, arXiv 1812.06127): any task, with μ/2 · ‖w - w₀‖² in its training loss, w₀ the weights it starts from."""

    def __init__(self, inner: Task, mu: float):
        super().__init__()
        self.inner, self.mu = inner, mu
        self._start = [p.detach().clone() for p in self._weights()]

    def _weights(self) -> list[nn.Parameter]:
        return [p for p in self.inner.trained().parameters() if p.requires_grad]

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        outcome = self.inner(batch)
        if not self.training:
            return outcome
        distance = sum((p - start).square().sum() for p, start in zip(self._weights(), self._start, strict=True))
        penalty = self.mu / 2 * distance
        return outcome._replace(loss=outcome.loss + penalty, terms={**outcome.terms, "proximal": penalty.detach()})

    def trained(self) -> nn.Module:
        return self.inner.trained()

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **self.inner.identity(), "proximal mu": self.mu}

    def metrics(self) -> Metrics:
        return self.inner.metrics()

    def on_epoch(self, epoch: int) -> None:
        self.inner.on_epoch(epoch)


class Node(NamedTuple):
    """Who a client is: its partition of so many, and its own bars, if it has a data-path of its own."""

    partition: int
    partitions: int
    data_path: str = ""


@dataclass
class Weights:
    """The trained weights of a run: parameters of named modules, as float32 arrays named "module.parameter".

    Parameters only: what else a module holds (rotary frequencies, powers of two) follows from its sizes, is the same everywhere, and must
    not get noise. modules: in the order in which they are trained. save: writes them for their users.
    """

    modules: dict[str, nn.Module]
    save: Callable[[Path], None]
    identity: dict[str, Any] = field(default_factory=dict)
    comparable: bool = True  # whether one round's losses can be held against another's

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{key}": p for name, module in self.modules.items() for key, p in module.named_parameters()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of the weights, float32 by name."""
        return {name: p.detach().cpu().numpy().astype(np.float32, copy=True) for name, p in self.parameters().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put weights in place. Raises InputError unless names and shapes are exactly these."""
        own = self.parameters()
        odd = sorted(own.keys() ^ arrays.keys())
        if odd:
            side = "here" if odd[0] in own else "in what was sent"
            raise InputError(
                f"weights do not fit: {len(odd)} names are on one side only, such as {odd[0]!r} ({side}); is model-config the same?"
            )
        for name, p in own.items():
            if tuple(arrays[name].shape) != tuple(p.shape):
                raise InputError(f"weights do not fit: {name!r} is {tuple(arrays[name].shape)} in what was sent and {tuple(p.shape)} here")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(torch.from_numpy(np.array(arrays[name], dtype=np.float32)))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """For the engine's checkpoint writer."""
        return {name: p.detach() for name, p in self.parameters().items()}


@dataclass(frozen=True)
class Stage:
    """One `fit` of a client's round. task: made anew in each round, over the modules as they are then. score: the metric to tell."""

    name: str
    task: Callable[[], Task]
    windows: Splits
    settings: FitSettings
    score: str = ""


@dataclass
class Local:
    """A client ready to work: weights, and the stages that train them on its own windows."""

    settings: Settings
    node: Node
    weights: Weights
    stages: Sequence[Stage]

    def train(self, arrays: Mapping[str, np.ndarray], server_round: int) -> Update:
        """The weights after local work in this round (from 1), which starts from `arrays`. Raises what `fit` raises."""
        self.weights.load(arrays)
        metrics: dict[str, float] = {}
        for stage in self.stages:
            task = stage.task()
            if self.settings.strategy == "fedprox":
                task = Proximal(task, self.settings.proximal_mu)
            seed = local_seed(self.settings.seed, server_round, self.node.partition)
            last = fit(task, stage.windows, replace(stage.settings, seed=seed)).history[-1]
            metrics |= self._named(stage, last, ("train_loss", "val_loss"))
        return Update(self.weights.arrays(), max(len(stage.windows.train) for stage in self.stages), metrics)

    def evaluate(self, arrays: Mapping[str, np.ndarray]) -> Update:
        """Validation metrics of `arrays` on the client's own validation windows; no weights come back."""
        self.weights.load(arrays)
        metrics: dict[str, float] = {}
        for stage in self.stages:  # no epoch is trained: what `score_start` measures is all
            values = fit(stage.task(), stage.windows, replace(stage.settings, epochs=0, score_start=True)).history[-1]
            metrics |= self._named(stage, values, ("val_loss",))
            if stage.score:
                metrics |= _known(stage.score.removeprefix("val_"), values.get(stage.score, math.nan))
        return Update({}, max(len(stage.windows.val) for stage in self.stages), metrics)

    def _named(self, stage: Stage, values: Mapping[str, float], wanted: Sequence[str]) -> dict[str, float]:
        """The last stage's metrics under their own names, those before it with the stage's before them."""
        prefix = "" if stage is self.stages[-1] else f"{stage.name}_"
        return {f"{prefix}{name}": float(values[name]) for name in wanted}


def _known(name: str, value: float) -> dict[str, float]:
    """A metric that some client may lack, as two that all have: means of both give the mean over those that know it."""
    known = math.isfinite(value)
    return {name: float(value) if known else 0.0, f"{name}_known": float(known)}


def local_seed(seed: int, server_round: int, partition: int) -> int:
    """The seed of one client's work in one round; partition 0 in round 1 has the run's own, so that it can be compared with a plain run."""
    return (seed + _ROUND * (server_round - 1) + _PARTITION * partition) % 2**63


def local_settings(base: FitSettings, settings: Settings, batch_size: int = 0) -> FitSettings:
    """The model's own training settings with those of the run-config: a round's work is in memory and knows no former round.

    batch_size: in items of the windows, where these are not single windows.
    """
    return replace(
        base,
        epochs=settings.local_epochs,
        batch_size=batch_size or settings.batch_size,
        learning_rate=settings.learning_rate or base.learning_rate,
        optimiser=settings.optimiser,
        schedule=settings.schedule,
        num_workers=settings.num_workers,
        score_start=False,
        early_stop_patience=0,
        save_last=False,
        checkpoint_every_steps=0,
        checkpoint_every_epochs=0,
        top_k=1,
    )
