"""The Temporal Fusion Transformer as the training loop takes it, and its folder on disk: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from finetune.engine.task import Outcome, Task
from finetune.engine.tracking import Run
from kronos.errors import InputError
from kronos.weights import WEIGHTS_FILE, load_module, save_module

from .confusion import draw_confusion
from .losses import TargetLoss, TargetLosses, plain_losses, read_stages, read_targets
from .metrics import Composite, TargetMetrics
from .model import TemporalFusionTransformer, TftSizes


class TftTask(Task):
    """Network and losses of many targets. Every argument is a plain value, as YAML and config.json hold them.

    sizes: of `TftSizes` (its `outputs` come from `targets`). targets: {target: loss} in the order of the batch's target columns, as
    `read_targets` takes them, or its result. periods: names of the batch's period numbers, "" for one that no metric is told of.
    uncertainty: learn how targets are balanced. stages: `weights_config.yaml`. composite: `composite_score.yaml`.
    facts: whatever the result's users need besides (column names, codes, scales); saved and kept.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        targets: Mapping[str, Any],
        periods: Sequence[str] = (),
        uncertainty: bool = False,
        stages: Mapping[str, Any] | None = None,
        composite: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        losses = {t: v for t, v in targets.items() if isinstance(v, TargetLoss)} or read_targets(targets)
        self.sizes = TftSizes(**{**sizes, "outputs": {name: loss.outputs for name, loss in losses.items()}})
        self.model = TemporalFusionTransformer(self.sizes)
        self.losses = TargetLosses(losses, read_stages(stages or {}, list(losses)), uncertainty)
        self.composite = Composite.read(composite, losses) if composite else None
        self.periods, self.last_metrics = list(periods), None
        self.say: Callable[[str], None] = print  # where a metric that is missing is told
        self.config: dict[str, Any] = {
            "sizes": self.model.config,
            "targets": plain_losses(losses),
            "periods": list(periods),
            "uncertainty": uncertainty,
            "stages": dict(stages or {}),
            "composite": dict(composite or {}),
            "facts": dict(facts or {}),
        }

    @staticmethod
    def argument_names() -> list[str]:
        return ["sizes", "targets", "periods", "uncertainty", "stages", "composite", "facts"]

    def trained(self) -> nn.Module:
        return self  # the learned uncertainties, if any, are trained too

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        logits = self.model(batch)["logits"]
        loss, weight, terms = self.losses(logits, batch["targets"])
        return Outcome(loss, weight, terms, None if self.training else logits)

    def metrics(self) -> TargetMetrics:
        """A fresh collection, also kept as `last_metrics`: its `confusion` outlives the validation."""
        self.last_metrics = TargetMetrics(self.losses.losses, self.periods, self.composite, self.say)
        return self.last_metrics

    def report(self, run: Run, step: int) -> None:
        """The last validation's confusion matrices, as a picture."""
        found = self.last_metrics.confusion if self.last_metrics else {}
        if whole := {name: counts for name, counts in found.items() if "@" not in name}:
            run.picture("val/confusion", draw_confusion(whole), step)

    def on_epoch(self, epoch: int) -> None:
        self.losses.on_epoch(epoch)

    def save(self, folder: Path) -> None:
        save_module(self, folder)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **{key: json.loads(json.dumps(value)) for key, value in self.config.items() if key != "composite"}}


def load_task(folder: str | Path) -> TftTask:
    """The task saved in `folder`, in evaluation mode on the CPU. Raises InputError or MissingFileError naming file, fault and fix."""
    return load_module(TftTask, folder)


class WarmStart(NamedTuple):
    """What of a checkpoint was taken over: names of weights, and for those left out the reason."""

    loaded: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        told = "".join(f"\n  skipped {name}: {reason}" for name, reason in self.skipped.items())
        return f"warm start: {len(self.loaded)} weights loaded ({', '.join(self.loaded)}), {len(self.skipped)} skipped{told}"


def warm_start(task: TftTask, folder: str | Path) -> WarmStart:
    """Take over every weight of the checkpoint in `folder` that has its name and shape in `task`; heads and columns may differ.

    Raises InputError for a folder without readable weights, or one of which nothing fits.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"warm start: {path} is missing; give the folder of a checkpoint, e.g. runs/.../checkpoints/best")
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise InputError(f"warm start: {path} is damaged ({error}); take another checkpoint") from error
    own, loaded, skipped = task.state_dict(), [], {}
    for name, value in saved.items():
        if name not in own:
            skipped[name] = "not part of this model"
        elif own[name].shape != value.shape:
            skipped[name] = f"{tuple(value.shape)} in the checkpoint, {tuple(own[name].shape)} here"
        elif not value.isfinite().all():
            raise InputError(f"warm start: {name} in {path} is not finite: its training diverged; take another checkpoint")
        else:
            loaded.append(name)
    skipped |= {name: "not in the checkpoint, starts fresh" for name in own if name not in saved}
    if not loaded:
        raise InputError(f"warm start: nothing in {path} fits this model ({len(skipped)} weights differ in name or shape)")
    task.load_state_dict({**own, **{name: saved[name] for name in loaded}})
    return WarmStart(loaded, skipped)
