"""The peer's forecasts, by its own KronosPredictor, with weights and bars that ours saved. Runs in a child process (`benchmarks.peer`)."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from model.kronos import Kronos, KronosPredictor, KronosTokenizer  # the peer's

from benchmarks.common import timed
from benchmarks.peer import serve

_state: dict[str, Any] = {}


def load(folder: str, threads: int, device: str = "cpu") -> bool:
    """Load the pair of one size."""
    torch.set_num_threads(threads)
    _state["device"] = device
    _state["model"] = Kronos.from_pretrained(f"{folder}/predictor").eval()
    _state["tokenizer"] = KronosTokenizer.from_pretrained(f"{folder}/tokenizer").eval()
    return True


def bars(path: str, lookback: int, horizon: int, series: int) -> bool:
    """Read bars (columns open ... amount, timestamps) and cut `series` windows of lookback and horizon out, one after another."""
    frame = pd.read_csv(path, parse_dates=["timestamps"])
    parts = [frame.iloc[i * (lookback + horizon) :][: lookback + horizon].reset_index(drop=True) for i in range(series)]
    _state["past"] = [part[:lookback].drop(columns="timestamps") for part in parts]
    _state["times"] = [part["timestamps"][:lookback] for part in parts]
    _state["future"] = [part["timestamps"][lookback:].reset_index(drop=True) for part in parts]
    return True


def _predict(max_context: int, horizon: int, **options: Any) -> list[pd.DataFrame]:
    forecaster = KronosPredictor(_state["model"], _state["tokenizer"], device=_state["device"], max_context=max_context)
    future = [times[:horizon] for times in _state["future"]]
    return forecaster.predict_batch(_state["past"], _state["times"], future, horizon, verbose=False, **options)


def seconds(max_context: int, horizon: int, samples: int, clock: str) -> float:
    """Seconds of one call."""
    return timed(lambda: _predict(max_context, horizon, sample_count=samples), clock=clock)


def greedy(max_context: int, horizon: int) -> list[list[list[float]]]:
    """Forecasts of the likeliest token at every step, [series, horizon, 6]."""
    return [frame.to_numpy().tolist() for frame in _predict(max_context, horizon, sample_count=1, top_k=1, top_p=1.0)]


if __name__ == "__main__":
    serve({"load": load, "bars": bars, "seconds": seconds, "greedy": greedy})
