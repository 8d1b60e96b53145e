"""Pieces of work of growing size for `benchmarks.cost_laws`, each in a process of its own that was forked after the imports.

A process prepares its piece and then does it whenever it is asked: the first time its peak memory is measured, then its time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch

from finetune.data.config import CsvDataSection
from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.engine.batches import Micro, step_micros
from finetune.engine.distributed import World
from finetune.engine.optimisation import Stepper
from finetune.engine.settings import FitSettings
from finetune.engine.splits import make_splits
from kronos import Kronos, KronosPredictor, KronosTokenizer
from kronos.errors import InputError
from kronos.presets import predictor_arguments, tokenizer_arguments

from .common import HORIZON, LOOKBACK, make_bars, make_panel, timed
from .high_water import peak_of
from .ranks import make_task

Work = Callable[[], object]
RATIOS = (0.8, 0.2, 0.0)


@dataclass(frozen=True)
class Law:
    """What grows, and how much more it may cost. make(n, folder) prepares the work of size n in an empty folder.

    time, memory: the largest exponent that passes; memory None: not fitted, since next to nothing is held.
    """

    what: str
    grows: str
    sizes: tuple[int, ...]
    make: Callable[[int, Path], Work]
    time: float
    memory: float | None = None


def _csv_folder(symbols: int, bars: int, folder: Path) -> CsvDataSection:
    """CSVs of so many symbols; the section that names them."""
    made = make_bars(symbols, bars)
    times = pd.to_datetime(made["times"])
    folder.mkdir()
    for i, features in enumerate(made["features"]):
        pd.DataFrame(features, columns=list(KRONOS_NAMES)).assign(timestamps=times).to_csv(folder / f"S{i:04d}.csv", index=False)
    return CsvDataSection(data_path=[str(folder)], lookback_window=LOOKBACK, predict_window=HORIZON)


def _read(symbols: int, bars: int, folder: Path) -> Work:
    _csv_folder(1, 200, folder / "few").load(say=lambda _: None)  # what the first reading of all imports is not counted
    section = _csv_folder(symbols, bars, folder / "bars")
    return lambda: section.load(say=lambda _: None)


def _saved(bars: int, folder: Path) -> Path:
    return make_panel(20, bars).save(folder)


def _open(bars: int, folder: Path) -> Work:
    saved = _saved(bars, folder)
    return lambda: [Panel.open(saved) for _ in range(20)]


def _verify(bars: int, folder: Path) -> Work:
    panel = Panel.open(_saved(bars, folder))
    return panel.verify


def _split(symbols: int, bars: int) -> Work:
    panel = make_panel(symbols, bars)
    return lambda: make_splits(panel, LOOKBACK, HORIZON, RATIOS, say=lambda _: None)


def _gather(bars: int, lookback: int, batches: int) -> Work:
    """Batches of 256 windows made ready, in the order of an epoch."""
    source = make_splits(make_panel(20, bars), lookback, HORIZON, RATIOS, say=lambda _: None).train
    settings, world, size = FitSettings(batch_size=256), World(), 256

    def gather() -> None:
        for first in range(0, batches * size, size):
            for micro in step_micros(source, settings, world, 0, first, first + size):
                source.gather(micro.index)

    return gather


def _step(context: int) -> Work:
    """One optimiser step of the mini predictor on 4 windows of tokens. Gradients and optimiser state are there before."""
    stepper = Stepper(make_task("predictor", "mini").train(), FitSettings(batch_size=4), World())

    def step(tokens: int) -> None:
        ids = torch.randint(1024, (2, 4, tokens + 1), generator=torch.Generator().manual_seed(0))
        batch = {"s1": ids[0], "s2": ids[1], "stamps": torch.zeros(4, tokens + 1, 5, dtype=torch.uint8)}
        stepper.step([(Micro(np.arange(4), 0, True), batch)], 0, 1e-4, stop=False)

    step(8)
    return lambda: step(context)


def _forecast(context: int, horizon: int) -> Work:
    """One forecast by the mini model, from DataFrame to DataFrame, four paths."""
    torch.manual_seed(0)
    model, tokenizer = Kronos(**predictor_arguments("mini")).eval(), KronosTokenizer(**tokenizer_arguments("2k")).eval()
    predictor = KronosPredictor(model, tokenizer, "cpu", max_context=2048)
    made = make_bars(1, context + horizon)
    frame, times = pd.DataFrame(made["features"][0], columns=list(KRONOS_NAMES)), pd.Series(pd.to_datetime(made["times"]))

    def forecast(context: int, horizon: int) -> None:
        past, ahead = slice(0, context), slice(context, context + horizon)
        predictor.predict(frame[past], times[past], times[ahead], horizon, sample_count=4, verbose=False, seed=0)

    forecast(8, 2)
    return lambda: forecast(context, horizon)


LAWS = {
    "read-symbols": Law(
        "CSVs to a panel", "symbols (files) of 1,000 bars", (20, 40, 80, 140, 200), lambda n, f: _read(n, 1000, f), 1.1, 1.1
    ),
    "read-bars": Law(
        "CSVs to a panel", "bars of each of 10 symbols", (2000, 4000, 8000, 14000, 20000), lambda n, f: _read(10, n, f), 1.1, 1.1
    ),
    "open": Law(
        "20 openings of a panel", "bars of each of 20 symbols", (5000, 10000, 20000, 35000, 50000), lambda n, f: _open(n, f / "panel"), 0.1
    ),
    "verify": Law(
        "a panel read and checked",
        "bars of each of 20 symbols",
        (5000, 10000, 20000, 35000, 50000),
        lambda n, f: _verify(n, f / "panel"),
        1.1,
    ),
    "split-symbols": Law("splits", "symbols of 500 bars", (400, 800, 1600, 2800, 4000), lambda n, f: _split(n, 500), 1.1, 1.1),
    "split-bars": Law("splits", "bars of each of 50 symbols", (5000, 10000, 20000, 35000, 50000), lambda n, f: _split(50, n), 1.1, 1.1),
    "gather-bars": Law(
        "batches made ready, 40 x 256 windows",
        "bars of each of 20 symbols",
        (5000, 10000, 20000, 35000, 50000),
        lambda n, f: _gather(n, 90, 40),
        0.1,
    ),
    "gather-context": Law(
        "batches made ready, 40 x 256 windows", "bars of lookback", (128, 192, 256, 384, 512), lambda n, f: _gather(5000, n, 40), 1.1
    ),
    "train-context": Law("training step, mini, 4 windows", "tokens of context", (128, 192, 256, 384, 512), lambda n, f: _step(n), 1.4, 1.1),
    "forecast-context": Law(
        "forecast, mini, 24 bars, 4 paths", "bars of context", (128, 192, 256, 384, 512), lambda n, f: _forecast(n, 24), 1.1, 1.1
    ),
    "forecast-horizon": Law(
        "forecast, mini, 256 bars of context, 4 paths", "bars ahead", (16, 24, 32, 48, 64), lambda n, f: _forecast(256, n), 1.1, 1.1
    ),
}


class Piece:
    """A process that has prepared the work of one size. Call it for seconds; `peak` is bytes. Use it in a `with` block."""

    def __init__(self, name: str, n: int, folder: Path, threads: int, clock: str):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.laws"])  # so that each process has the imports, and nothing else, behind it
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, n, folder, threads, clock))
        self.process.start()
        theirs.close()
        self.what, self.peak = f"{name} {n}", 0

    def __call__(self) -> float:
        """Seconds. The first call measures memory instead and comes back with them too."""
        try:
            self.pipe.send(None)
            seconds, peak = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise InputError(f"{self.what} broke down; its own error stands above") from error
        self.peak = max(self.peak, peak)
        return seconds

    def __enter__(self) -> Piece:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pipe.close()
        self.process.join(timeout=60)


def _serve(pipe: Any, name: str, n: int, folder: Path, threads: int, clock: str) -> None:
    torch.set_num_threads(threads)
    folder.mkdir()
    work, first = LAWS[name].make(n, folder), True
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        if first:
            seconds, peak = peak_of(lambda: timed(work, 1, clock))
        else:
            seconds, peak = timed(work, 1, clock), 0
        first = False
        pipe.send((seconds, peak))
