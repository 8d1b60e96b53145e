"""Our training as a command runs it, timed from inside: run folder, cached tokens, `fit` with loader, step, checks, log, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from finetune.engine.allocator import freed_memory_kept
from finetune.engine.batches import step_micros
from finetune.engine.distributed import World
from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.settings import FitSettings
from finetune.engine.signals import StopRequest
from finetune.engine.splits import make_splits
from finetune.engine.task import Task
from finetune.engine.tokens import with_cached_tokens
from finetune.engine.tracking import Run
from finetune.engine.trainer import fit
from finetune.engine.windows import Source, Splits
from kronos import Kronos, KronosTokenizer, save_module

from .common import CLOCKS, make_bars, make_panel

EPOCHS = 10  # the filling of the token cache is counted over so many; the public configurations train 20 and 30
RATE = 1e-4
SYMBOLS = 8


@dataclass(frozen=True)
class Work:
    """What is trained on: models and bars in `folder`, where the peer finds them too."""

    folder: Path
    stage: str  # predictor or tokenizer
    lookback: int
    horizon: int
    batch: int
    steps: int  # that are timed; two more come before them
    windows: Splits
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def length(self) -> int:
        return self.lookback + self.horizon + 1


def prepare(
    folder: Path, stage: str, models: tuple[dict, dict], cut: tuple[int, int], batch: int, steps: int, device: torch.device | None = None
) -> Work:
    """Bars for so many steps, and both models from random weights, into `folder`. models: arguments of tokenizer and predictor."""
    torch.manual_seed(0)
    length = sum(cut) + 1
    bars = (length + batch * (steps + 3) // SYMBOLS + 2) * 5 // 4 + length  # 4 in 5 bars to train on
    made = make_bars(SYMBOLS, bars)
    np.savez(folder / "bars.npz", features=made["features"], times=made["times"])
    save_module(KronosTokenizer(**models[0]), folder / "tokenizer")
    save_module(Kronos(**models[1]), folder / "predictor")
    windows = make_splits(make_panel(SYMBOLS, bars), *cut, (0.8, 0.2, 0.0))
    return Work(folder, stage, *cut, batch, steps, windows, device or torch.device("cpu"))


@dataclass
class Seen:
    """One run's figures, seconds per window."""

    step_s: float  # order, loader, step, checks and log
    fill_s: float  # encoding, a tenth of it
    peak_gib: float = 0.0  # of the GPU

    @property
    def total_s(self) -> float:
        return self.step_s + self.fill_s


class _Timer:
    """Looks at the clock when the task is called for the third training step, and again `steps` later."""

    def __init__(self, work: Work, clock: str, watch: Any = None):
        self.work, self.clock, self.watch = work, clock, watch
        self.calls, self.at = 0, []

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        if not module.training:
            return
        self.calls += 1
        if self.calls == 3:
            self._look()
            if self.watch:
                self.watch.start()
        elif self.calls == 3 + self.work.steps:
            if self.watch:
                self.watch.stop()
            self._look()

    def _look(self) -> None:
        self.at.append(now(self.clock, self.work.device))

    @property
    def took_s(self) -> float:
        return self.at[1] - self.at[0]


def now(clock: str, device: torch.device) -> float:
    """The clock, once the device has done everything that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCKS[clock]()


def settings_of(work: Work, **changes: Any) -> FitSettings:
    """Shipped settings but for the sizes; a line is logged once per timed steps."""
    base = FitSettings(epochs=EPOCHS, batch_size=work.batch, learning_rate=RATE, n_val_iter=work.batch, log_interval=work.steps)
    return replace(base, **changes)


def run_once(work: Work, settings: FitSettings, *, cached: bool = True, clock: str = "wall", watch: Any = None) -> Seen:
    """A run of its own from start to summary. watch: started and stopped with the timed steps, e.g. a profiler."""
    task = _task(work)
    timer = _Timer(work, clock, watch)
    task.register_forward_pre_hook(timer)  # not the model: that may be compiled, hooks and all
    world, fill_s = World(device=work.device), 0.0
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
    with (
        TemporaryDirectory() as folder,
        freed_memory_kept(),
        Run.create(Path(folder), config={}, is_main=True, resume=False, name=work.stage) as run,
    ):
        run.say = run.note  # into its file; the terminal shows the benchmark
        ready = work.windows
        if cached and isinstance(task, PredictorTask):
            task.to(work.device)
            begin_s = now(clock, work.device)
            ready = with_cached_tokens(
                ready, task.tokenizer, Path(folder) / "cache", settings, world, StopRequest(), mode="on", say=run.note
            )
            filled = len(ready.train) + len(ready.val)
            fill_s = (now(clock, work.device) - begin_s) / filled / EPOCHS
        fit(task, ready, settings, run, max_steps=work.steps + 3, world=world)
        run.finish({})
    peak = torch.cuda.max_memory_allocated(work.device) / 2**30 if work.device.type == "cuda" else 0.0
    return Seen(timer.took_s / (work.steps * work.batch), fill_s, peak)


def _task(work: Work) -> Task:
    tokenizer = KronosTokenizer.from_pretrained(work.folder / "tokenizer")
    if work.stage == "tokenizer":
        return TokenizerTask(tokenizer, work.lookback)
    return PredictorTask(Kronos.from_pretrained(work.folder / "predictor"), tokenizer, work.lookback)


def loader_s(source: Source, settings: FitSettings, device: torch.device, steps: int = 20) -> float:
    """Seconds per window of order and gathering alone: all that the loader does for a step, wherever it does it."""
    size, world = settings.batch_size, World(device=device)

    def go(count: int) -> None:
        for number in range(count):
            first = number * size % max(1, len(source) - size)
            for micro in step_micros(source, settings, world, 0, first, first + size):
                source.gather(micro.index)

    go(2)
    begin_s = now("wall", device)
    go(steps)
    return (now("wall", device) - begin_s) / (steps * size)


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """`interleaved` for sides that are whole runs, each with warm-up steps of its own: no unmeasured round."""
    seen: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            begin_s = time.monotonic()
            seen[name].append(side())
            print(f"  round {number + 1} of {rounds}, {name}: {time.monotonic() - begin_s:.0f} s", flush=True)
    return seen
