"""The one training loop. Tokenizer, predictor, TFT and federated clients are all a call of `fit`."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kronos.errors import InputError

from . import checkpoint
from .advice import cannot_compile, out_of_memory
from .allocator import freed_memory_kept
from .augment import Augmenter
from .balance import Balanced, per_item
from .batches import Micro, plan_epoch, prepared, step_micros, to_device
from .distributed import World
from .errors import Interrupted
from .finite import non_finite_step, non_finite_weights, overflows, suspects, weights_error
from .optimisation import Stepper, StepResult, autocast
from .progress import progress
from .schedule import learning_rate
from .settings import FitSettings
from .signals import StopRequest
from .state import State
from .task import Task
from .tracking import Run
from .windows import Splits, Windows, sample_subset

_MAX_SKIPPED_IN_A_ROW = 100  # fp16 halves its scale at each; after so many it is not the scale


@dataclass
class FitResult:
    """What training came to. `weights` are those of the best epoch, in memory only if `fit` had no run folder."""

    best_score: float | None
    best_epoch: int
    steps: int
    skipped_steps: int
    history: list[dict[str, float]]
    wall_s: float
    weights: dict[str, torch.Tensor] | None = field(default=None, repr=False)


@freed_memory_kept()
def fit(
    task: Task,
    windows: Splits,
    settings: FitSettings,
    run: Run | None = None,
    *,
    max_steps: int | None = None,
    world: World | None = None,
    stop: StopRequest | None = None,
    resume: bool = False,
) -> FitResult:
    """Train `task` on `windows.train`, choose the best epoch on `windows.val`.

    run: folder for checkpoints and logs; None works in memory. max_steps: end after so many optimiser steps.
    world: from `distributed.world()` under torchrun. stop: a signal that ends the run at its next step boundary.
    Raises InputError (non-finite loss, accelerator out of memory, a checkpoint of another run, disk full) and
    Interrupted once `last` is saved.
    """
    world = world or World()
    for name, source in (("training", windows.train), ("validation", windows.val)):
        if len(source) == 0:
            raise InputError(f"the {name} split is empty: with no window there is nothing to train on or to choose the best model by")
    try:
        with StopRequest() if stop is None else nullcontext(stop) as request:
            return _Loop(task, windows, settings, run, world, request, max_steps, resume).run()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(out_of_memory(settings, str(world.device))) from error
    except RuntimeError as error:
        if told := cannot_compile(error):
            raise InputError(told) from error
        if "can't allocate memory" not in str(error):  # torch's CPU allocator has no class of its own for it
            raise
        raise InputError(out_of_memory(settings, str(world.device))) from error


class _Loop:
    def __init__(
        self,
        task: Task,
        windows: Splits,
        settings: FitSettings,
        run: Run | None,
        world: World,
        stop: StopRequest,
        max_steps: int | None,
        resume: bool,
    ):
        self.task, self.settings, self.out, self.world, self.stop = task.to(world.device), settings, run, world, stop
        self.train, self.val = windows.train, sample_subset(windows.val, settings.n_val_iter, settings.seed)
        if settings.panel_on_device:
            self.train.to(world.device)
            self.val.to(world.device)
        self.augmenter = Augmenter(settings.augmentation, settings.seed) if settings.augmentation.active else None
        drawn_from = self.train.source if isinstance(self.train, Balanced) else self.train
        if isinstance(drawn_from, Windows):
            drawn_from.augment = self.augmenter
        self.plan = plan_epoch(self.train, settings, world)
        self.state, self.begin = State(), time.perf_counter()
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.identity = {
            **{f"training {k}": v for k, v in self.train.facts.items()},
            **{f"validation {k}": v for k, v in self.val.facts.items()},
            "seed": settings.seed,
            **task.identity(),
        }
        saved = self._load() if resume and run is not None else None
        if run is not None and not resume and world.is_main:
            checkpoint.set_aside(run.checkpoints)
        self.stepper = Stepper(task, settings, world)
        if saved:
            self.stepper.go_on(saved["optimiser"], saved["scaler"], self.state.skipped)
        rest = max(0, self.plan.per_epoch - self.state.window)  # its steps are counted anew: the effective batch may be another now
        left = (settings.epochs - self.state.epoch - 1) * self.plan.steps - (-rest // self.plan.effective_batch)
        self.total_steps = min(self.state.step + left, 1 << 62 if max_steps is None else max_steps)
        self.unchecked: deque[tuple[StepResult, int, list[Micro]]] = deque()
        self.group: list[Micro] = []  # of the last step
        self.val_trouble = ""  # what is wrong with the validation loss, if it is not finite
        self.interval: torch.Tensor | None = None
        self.asked_to_stop = False

    # ------------------------------------------------------------------ the loop

    def run(self) -> FitResult:
        """Epochs until done; each is steps, then validation, then `last`."""
        s, state = self.settings, self.state
        per_epoch, each = self.plan.per_epoch, per_item(self.train)
        self.bar = progress(
            s.epochs * per_epoch * each,
            (state.epoch * per_epoch + state.window) * each,
            s.log_interval,
            self.world.is_main and self.out is not None,
            type(self.task).__name__.removesuffix("Task").lower(),
            epochs=s.epochs,
            say=self.out and self.out.say,
            note=self.out and self.out.note,
        )
        try:
            if s.score_start and state.step == 0 and not state.history:
                self._score_start()
            while not state.stopped_early and state.epoch < s.epochs and (state.step < self.total_steps or state.window):
                self.task.on_epoch(state.epoch)
                self._train_epoch()
                self._finish_epoch()
        finally:
            self.bar.close()
        if self.out and state.best is None and self.val_trouble:
            raise InputError(f"no epoch had a finite validation loss, so there is no best model; {self.val_trouble}")
        if (told := overflows(state.skipped, state.step)) and self.out:
            self.out.say(told)
        if self.out and state.best is not None and state.best_epoch < 0:
            self.out.say("no epoch beat the starting weights: best_model holds those; lower the learning rate, or give more bars")
        self.world.barrier()  # rank 0 has saved the best weights before anyone reads them
        return FitResult(
            state.best, state.best_epoch, state.step, state.skipped, state.history, time.perf_counter() - self.begin, self.best_weights
        )

    def _score_start(self) -> None:
        """Validate the weights as they came: fine-tuning has to beat them, or they are what is kept as the best."""
        values = self._validate()
        score = self._monitored(values)
        self.state.epoch = -1
        self.state.judge(score, self.settings)
        self._log("val", {k.removeprefix("val_"): v for k, v in values.items()})
        self._save_best(score)
        if self.out:
            self.out.say(f"before training: {self.settings.monitor} {score:.5f}")
        self.state.history.append({"epoch": -1, "step": 0, **values})
        self.state.epoch, self.state.bad_epochs, self.state.plateau_bad = 0, 0, 0  # epochs count from here

    def _best_so_far(self) -> str:
        state = self.state
        if state.best is None:
            return "not finite"
        return f"best {state.best:.5f} " + (f"in epoch {state.best_epoch + 1}" if state.best_epoch >= 0 else "before training")

    def _monitored(self, values: dict[str, float]) -> float:
        if self.settings.monitor not in values:
            raise InputError(f"monitor: '{self.settings.monitor}' is not among the validation metrics {sorted(values)}; name one of them")
        return values[self.settings.monitor]

    def _train_epoch(self) -> None:
        s, state, plan, each = self.settings, self.state, self.plan, per_item(self.train)
        self.task.train()
        if self.augmenter:
            self.augmenter.epoch = state.epoch
        firsts = range(state.window, plan.per_epoch, plan.effective_batch)
        firsts = firsts[: max(0, self.total_steps - state.step)]
        micros = (
            (first, step_micros(self.train, s, self.world, state.epoch, first, min(first + plan.effective_batch, plan.per_epoch)))
            for first in firsts
        )
        for (first, group), batches in prepared(micros, lambda item: [self.train.gather(m.index) for m in item[1]], s.num_workers):
            rate = learning_rate(state.step, self.total_steps, s) * state.plateau_scale
            on_device = [(m, to_device(b, self.world.device)) for m, b in zip(group, batches, strict=True)]
            result = self.stepper.step(on_device, state.step, rate, self.stop.requested)
            taken = min(plan.effective_batch, plan.per_epoch - first)
            state.window, state.step = first + taken, state.step + 1
            self.interval = result.sums.double() if self.interval is None else self.interval + result.sums
            self._inspect(result, group)
            self.bar.update(state.step, taken * each, lambda r=result: float(r.sums[0] / r.sums[-2]), rate, {"epoch": state.epoch})
            if state.step % s.log_interval == 0:
                self._log_training(result, rate)
            if self.asked_to_stop:
                self._interrupt()
            if s.checkpoint_every_steps and state.step % s.checkpoint_every_steps == 0:
                self._save_last()
        self._inspect(None, [])
        if self.asked_to_stop:
            self._interrupt()

    def _finish_epoch(self) -> None:
        """Validate, judge, save the best, save `last`."""
        s, state = self.settings, self.state
        self._flush_interval()
        values = self._validate()
        score = self._monitored(values)
        improved = state.judge(score, s)
        train_loss = state.loss_sum / state.weight_sum if state.weight_sum else math.nan
        state.history.append({"epoch": state.epoch, "step": state.step, "train_loss": train_loss, **values})
        self._log("val", {"train_loss": train_loss, **{k.removeprefix("val_"): v for k, v in values.items()}})
        if self.out and self.world.is_main:
            self.task.report(self.out, state.step)
        if improved:
            self._save_best(score)
        self._keep_epoch(score)
        if self.out:
            self.out.say(
                f"epoch {state.epoch + 1}/{s.epochs}: train loss {train_loss:.5f}, {s.monitor} {score:.5f} "
                + ("(best so far)" if improved else f"({self._best_so_far()})")
            )
        state.epoch, state.window, state.loss_sum, state.weight_sum = state.epoch + 1, 0, 0.0, 0.0
        state.stopped_early = bool(s.early_stop_patience) and state.bad_epochs >= s.early_stop_patience
        if state.stopped_early and self.out:
            self.out.say(f"stopped early: {state.bad_epochs} epochs without improvement of {s.monitor}")
        self._save_last()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Metrics over all validation windows, each rank its share; every rank runs the same number of rounds."""
        self.task.eval()
        metrics, world, losses = self.task.metrics(), self.world, []
        size = self.settings.val_batch_size or self.settings.batch_size
        starts = range(0, len(self.val), size)
        rounds = range(0, len(starts), world.size)
        mine = [(i, i + world.rank < len(starts)) for i in rounds]
        gather = lambda item: self.val.gather(np.arange(*self._val_range(item[0] + world.rank, size, item[1])))  # noqa: E731
        for (i, real), batch in prepared(mine, gather, self.settings.num_workers):
            batch = to_device(batch, world.device)
            with autocast(self.settings, world.device):
                outcome = self.task(batch)
            metrics.update(outcome if real else outcome._replace(weight=0.0), batch)
            losses.append((i + world.rank if real else 0, outcome.loss))
            if i // world.size % 8 == 0 and self._agreed_to_stop():
                self._interrupt()
        values = {f"val_{name}": value for name, value in metrics.compute(world).items()}
        if not math.isfinite(values.get("val_loss", 0.0)):
            bad = [np.arange(*self._val_range(i, size, True)) for i, loss in losses if not loss.isfinite()]
            self.val_trouble = f"step {self.state.step}: the validation loss is not finite. {suspects(self.val, bad, world)}"
            if self.out:
                self.out.say(self.val_trouble)
        return values

    def _val_range(self, number: int, size: int, real: bool) -> tuple[int, int]:
        return (number * size, min(len(self.val), (number + 1) * size)) if real else (0, 1)

    # ------------------------------------------------------------------ watching

    def _inspect(self, result: StepResult | None, group: list[Micro]) -> None:
        """Look at a step's numbers: at once on the CPU, one step late on an accelerator, so that it never waits. None: look at all."""
        if result is not None:
            self.unchecked.append((result, self.state.step, group))
            self.group = group
        keep = 0 if result is None or self.world.device.type == "cpu" else 1
        while len(self.unchecked) > keep:
            old, step, micros = self.unchecked.popleft()
            values, norm = old.sums.tolist(), float(old.norm)
            self.asked_to_stop |= values[-1] > 0
            scaled = self.stepper.scaler.is_enabled()
            if not all(map(math.isfinite, values)) or not (math.isfinite(norm) or scaled):
                windows = suspects(self.train, [m.index for m in micros], self.world)
                raise non_finite_step(step, values[0] / values[-2], norm, windows)
            self.state.skipped = self.stepper.skipped
            if scaled and self.stepper.skipped_in_a_row > _MAX_SKIPPED_IN_A_ROW:
                raise InputError(
                    f"step {step}: fp16 gradients overflowed {_MAX_SKIPPED_IN_A_ROW} times in a row; use amp: bf16 or off, "
                    "or lower the learning rate"
                )

    def _check_weights(self) -> None:
        """Before anything is saved: a step's loss may be finite and its update not."""
        if self.out and (name := non_finite_weights(self.task.trained())):
            raise weights_error(self.state.step, name, suspects(self.train, [m.index for m in self.group], self.world))

    def _agreed_to_stop(self) -> bool:
        """Whether any rank was asked to stop; every rank must call this at the same place."""
        if self.world.size == 1:
            return self.stop.requested
        return bool(self.world.all_sum(torch.tensor([float(self.stop.requested)], device=self.world.device)).item())

    def _interrupt(self) -> None:
        self._inspect(None, [])
        if not self.out:
            raise Interrupted(
                f"stopped by {self.stop.name or 'another rank'} at step {self.state.step}; there is no run folder to go on from"
            )
        self._save_last()
        raise Interrupted(
            f"stopped by {self.stop.name or 'another rank'} at step {self.state.step}, epoch {self.state.epoch + 1}; everything is saved "
            f"in {self.out.checkpoints}. The same command with --resume goes on from there"
        )

    # ------------------------------------------------------------------ logging and saving

    def _log_training(self, result: StepResult, rate: float) -> None:
        totals = self._flush_interval()
        names = ("loss", *result.terms)
        if totals and totals[-2] > 0:
            self._log(
                "train", {**{n: t / totals[-2] for n, t in zip(names, totals, strict=False)}, "lr": rate, "grad_norm": float(result.norm)}
            )

    def _flush_interval(self) -> list[float]:
        """Bring the sums since the last call to the host and into the epoch's totals."""
        totals = self.interval.tolist() if self.interval is not None else []
        if totals:
            self.state.loss_sum, self.state.weight_sum = self.state.loss_sum + totals[0], self.state.weight_sum + totals[-2]
        self.interval = None
        return totals

    def _log(self, split: str, values: dict[str, float]) -> None:
        if self.out:
            self.out.log(self.state.step, self.state.epoch, split, values)

    def _save_best(self, score: float) -> None:
        self._check_weights()
        if self.out is None:
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.task.trained().state_dict().items()}
        elif self.world.is_main:
            checkpoint.save_best(self.out.best, self.task, self._facts(score))

    def _keep_epoch(self, score: float) -> None:
        """Keep every n-th epoch and the top k, beside the best one."""
        s, state = self.settings, self.state
        name = f"best-epoch={state.epoch + 1:02d}"
        in_top = state.enter_top(score, name, s)
        if self.out is None or not self.world.is_main:
            return
        if in_top:
            checkpoint.save_best(self.out.checkpoints / name, self.task, self._facts(score))
            checkpoint.prune(self.out.checkpoints, "best-epoch=*", [entry[1] for entry in state.top])
        if s.checkpoint_every_epochs and (state.epoch + 1) % s.checkpoint_every_epochs == 0:
            checkpoint.save_best(self.out.checkpoints / f"epoch_{state.epoch + 1}", self.task, self._facts(score))

    def _facts(self, score: float) -> dict[str, Any]:
        return {"epoch": self.state.epoch + 1, "step": self.state.step, self.settings.monitor: score}

    def _save_last(self) -> None:
        self._inspect(None, [])  # nothing unseen may be saved over a good checkpoint
        self._check_weights()
        self._flush_interval()
        if self.out is None or not self.settings.save_last or not self.world.is_main:
            return
        state = {
            "state": self.state.as_dict(),
            "identity": self.identity,
            "optimiser": self.stepper.optimiser.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
        }
        checkpoint.save_last(self.out.checkpoints, self.state.step, self.task.trained(), state)

    def _load(self) -> dict[str, Any] | None:
        """Put the newest checkpoint's weights and counters in place; None if there is none yet."""
        assert self.out is not None
        path = checkpoint.newest_last(self.out.checkpoints)
        if path is None:
            self.out.rewind(0, -1)  # killed before its first checkpoint: what it logged will be logged again
            return None
        weights, saved = checkpoint.load_last(path)
        checkpoint.check_identity(path, saved["identity"], self.identity)
        self.task.trained().load_state_dict(weights)
        self.state = State(**saved["state"])
        self.out.rewind(self.state.step, self.state.epoch)
        epochs = self.settings.epochs
        where = f"epoch {self.state.epoch + 1}" if self.state.epoch < epochs else f"all {epochs} epochs are done"
        self.out.say(f"resumed from {path}: {where}, step {self.state.step}")
        return saved
