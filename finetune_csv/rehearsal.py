"""A training's cost before it is paid: windows, steps, parameters, and the hours, measured on a few real steps. Leaves nothing behind."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune.engine.balance import distinct
from finetune.engine.batches import plan_epoch
from finetune.engine.distributed import World
from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.places import Stage
from finetune.engine.progress import peak_gib
from finetune.engine.settings import FitSettings
from finetune.engine.task import Task
from finetune.engine.trainer import fit
from finetune.engine.windows import Splits
from finetune.pipeline import Job, prepared, remaining, tokenizer_of
from finetune_csv.config import CsvConfig
from kronos import load_tokenizer

_MEASURE_S = 6.0  # of steps, and as much of validation
_SLOW_S = 15.0  # one step and one validation batch that take longer are enough to tell from
_FORWARD_SHARE = 0.25  # of a step and a validation batch together: forward once of four times, the backward pass being two
Say = Callable[[str], Any]


@dataclass(frozen=True)
class StageCost:
    """One stage of a training, as planned and as measured. steps: of one epoch. step_s, val_s: of one step and one validation batch."""

    stage: Stage
    parameters: int
    windows: int
    per_epoch: int
    steps: int
    epochs: int
    effective_batch: int
    val_windows: int
    val_rounds: int
    validations: int
    step_s: float
    val_s: float
    measured_steps: int

    @property
    def total_s(self) -> float:
        return self.epochs * self.steps * self.step_s + self.validations * self.val_rounds * self.val_s


def rehearse(
    config_file: str, overrides: Sequence[str], stages: Sequence[Stage], processes: int, *, skip_existing: bool = False, say: Say = print
) -> list[StageCost]:
    """Say what training `stages` with a configuration would cost, and return it. Runs a few steps on the configuration's device.

    With several processes one of them is measured, alone, with a CPU thread as torchrun gives each. Raises what training itself would
    raise for the same input.
    """
    real = CsvConfig.load(config_file, overrides)
    if skip_existing or real.experiment.skip_existing:
        stages = remaining(real, stages, say)
    with tempfile.TemporaryDirectory(prefix="kronos-dry-run-") as folder:
        elsewhere = [*overrides, f"model_paths.base_save_path={folder}"]
        if processes > 1 and not real.device.cpu_threads:
            elsewhere.append("device.cpu_threads=1")
        with prepared(CsvConfig.load(config_file, elsewhere), stages) as job:
            costs = [_cost(replace(job, config=real), stage, processes, say) for stage in stages]
    for cost in costs:
        _tell(cost, say)
    how = f"measured on {job.world.device}" + (f" with one of {processes} processes" if processes > 1 else "")
    say(f"in all about {span(sum(cost.total_s for cost in costs))}, {how}; early stopping may end it sooner. Nothing was written")
    return costs


def _cost(job: Job, stage: Stage, processes: int, say: Say) -> StageCost:
    config, device = job.config, job.world.device
    pretrained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    settings = config.training.fit_settings(stage, str(device), config.device.panel_on_device)
    task = _task(job, stage)
    plan = plan_epoch(job.windows.train, settings, World(0, processes, device))
    val = min(settings.n_val_iter or len(job.windows.val), len(job.windows.val))
    rounds = math.ceil(math.ceil(val / (settings.val_batch_size or settings.batch_size)) / processes)
    say(f"{stage}: measuring a few steps on {device} ...")
    step_s, val_s, steps = measure(task, job.windows, settings, job.world)
    return StageCost(
        stage=stage,
        parameters=sum(p.numel() for p in task.trained().parameters()),
        windows=distinct(job.windows.train),
        per_epoch=plan.per_epoch,
        steps=plan.steps,
        epochs=settings.epochs,
        effective_batch=plan.effective_batch,
        val_windows=val,
        val_rounds=rounds,
        validations=settings.epochs + (settings.score_start and pretrained),
        step_s=step_s,
        val_s=val_s,
        measured_steps=steps,
    )


def _task(job: Job, stage: Stage) -> Task:
    lookback = job.windows.train.facts["lookback"]
    if stage == "tokenizer":
        return TokenizerTask(job.models["tokenizer"], lookback)
    tokenizer = job.models["tokenizer"] if "tokenizer" in job.models else load_tokenizer(tokenizer_of(job))
    return PredictorTask(job.models["predictor"], tokenizer, lookback, job.config.training.teacher_forcing)


def measure(task: Task, windows: Splits, settings: FitSettings, world: World) -> tuple[float, float, int]:
    """(seconds of an optimiser step, seconds of a validation batch, steps measured), as differences of short runs of the loop itself.

    So that what a run costs once, building the optimiser and waking up the device, counts in neither.
    """
    alone = World(device=world.device)
    batch = settings.batch_size * settings.accumulation_steps

    def run_s(steps: int, batches: int) -> float:
        short = replace(
            settings,
            epochs=1,
            n_train_iter=steps * batch,
            n_val_iter=batches * (settings.val_batch_size or settings.batch_size),
            score_start=False,
        )
        return fit(task, windows, short, world=alone).wall_s

    first = run_s(1, 1)
    if first > _SLOW_S:
        return first * (1 - _FORWARD_SHARE), first * _FORWARD_SHARE, 1
    base = run_s(1, 1)
    more = max(3, min(50, int(_MEASURE_S / base)))
    steps_s, val_s = run_s(1 + more, 1) - base, run_s(1, 1 + more) - base
    return max(steps_s, 1e-6) / more, max(val_s, 1e-6) / more, more


def _tell(cost: StageCost, say: Say) -> None:
    say(
        f"{cost.stage}: {cost.parameters:,} parameters; {cost.per_epoch:,} windows per epoch of {cost.windows:,}, effective batch "
        f"{cost.effective_batch:,}, {cost.steps:,} steps per epoch × {cost.epochs} epochs = {cost.steps * cost.epochs:,} steps; "
        f"{cost.val_windows:,} validation windows after each"
    )
    memory = f", peak {peak_gib():.1f} GiB" if torch.cuda.is_available() else ""
    say(
        f"{cost.stage}: {1000 * cost.step_s:,.3g} ms per step ({cost.effective_batch / cost.step_s:,.0f} windows/s), "
        f"{1000 * cost.val_s:,.3g} ms per validation batch, over {cost.measured_steps} of each{memory}: about {span(cost.total_s)}"
    )


def span(seconds: float) -> str:
    """A length of time for people: "5 h 20 min", "3 min 10 s"."""
    minutes = seconds / 60
    if minutes >= 60 * 48:
        return f"{minutes / 60 / 24:,.1f} days"
    if minutes >= 60:
        return f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
    return f"{minutes // 1:.0f} min {seconds % 60:.0f} s" if minutes >= 1 else f"{seconds:.1f} s"
