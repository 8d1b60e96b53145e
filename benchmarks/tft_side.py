"""Our half of `benchmarks.tft_rows`, in a process of its own so that its memory is its own: a table to windows, windows to batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from finetune.engine.batches import step_micros
from finetune.engine.distributed import World
from finetune.engine.settings import FitSettings
from tft.long_tables import table_to_panel
from tft.windows import SplitRule, TftWindows, make_windows

from .common import timed
from .high_water import peak_of
from .peer import serve

_state: dict[str, Any] = {}
BLOCK = 32  # windows of a block where rows are shared


def load(path: str, threads: int, encoder: int) -> int:
    """The table of `path` as a frame; returns its bytes."""
    torch.set_num_threads(threads)
    with np.load(path) as saved:
        past, known, targets, series = saved["past"], saved["known"], saved["targets"], saved["series"]
    names = {k: [f"{k}{i}" for i in range(v.shape[1])] for k, v in (("past", past), ("known", known), ("target_", targets))}
    frame = pd.DataFrame(np.hstack([past, known, targets]), columns=[*names["past"], *names["known"], *names["target_"]])
    position = frame.groupby(series).cumcount().to_numpy()
    frame["symbol"] = pd.Categorical.from_codes(series, [f"S{i}" for i in range(series.max() + 1)])
    frame["period"] = pd.Categorical(["1h"] * len(frame))
    frame["time"] = pd.to_datetime(pd.Timestamp("2020-01-01").value + position * 3_600 * 10**9)
    _state.update(frame=frame, names=names, encoder=encoder)
    return int(frame.memory_usage(deep=True).sum())


def build(clock: str, lagged: bool = False) -> list[float]:
    """[seconds, bytes at most held beside the frame] from the frame to windows that can be gathered. lagged: past targets are inputs."""
    _state.pop("windows", None)
    begin_s = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    begin = begin_s()
    _state["windows"], peak = peak_of(lambda: _windows(_state["names"]["target_"] if lagged else ()))
    return [begin_s() - begin, peak]


def _windows(past_targets: list[str] | tuple[str, ...]) -> TftWindows:
    names = _state["names"]
    panel = table_to_panel(_state["frame"], kinds=dict.fromkeys(names["known"], "known"))
    how = dict(targets=names["target_"], real_targets=names["target_"], past_targets=past_targets, encoder=_state["encoder"])
    return make_windows(panel, {}, **how, horizon=5, rule=SplitRule(test_ratio=0.0), say=lambda _: None)


def batches(n: int, size: int, clock: str, shared: bool = False) -> float:
    """Seconds per window: the order, the cut, labels and codes, as the training loop asks for them, for `n` batches of `size`."""
    splits = _state["windows"].in_blocks(BLOCK) if shared else _state["windows"].splits
    size, each = (size // BLOCK, BLOCK) if shared else (size, 1)
    settings, world = FitSettings(batch_size=size), World()

    def some() -> None:
        for first in range(0, n * size, size):
            for micro in step_micros(splits.train, settings, world, 0, first, first + size):
                splits.train.gather(micro.index)

    return timed(some, n * size * each, clock)


if __name__ == "__main__":
    serve({"load": load, "build": build, "batches": batches})
