"""The peer's Temporal Fusion Transformer (pytorch-forecasting), its training step and its inference, on batches of its own loader.

Runs under the python of an environment that has pytorch-forecasting and nothing of ours: this file imports only what that brings and
its neighbour `high_water`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from high_water import peak_of  # beside this file, which is run as a script
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data.encoders import MultiNormalizer, NaNLabelEncoder, TorchNormalizer
from pytorch_forecasting.metrics import MAE, MultiLoss

warnings.filterwarnings("ignore")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_state: dict[str, Any] = {}


def load(path: str, threads: int, hidden: int, continuous: int, heads: int, encoder: int, batch: int, count: int, dropout: float) -> int:
    """Data set, model and `count` batches of the rows in `path`; returns the number of parameters."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with np.load(path) as saved:
        past, known, targets, series = saved["past"], saved["known"], saved["targets"], saved["series"]
    frame, names = _frame(past, known, targets, series)
    data = _data_set(frame, names, encoder)
    model = TemporalFusionTransformer.from_dataset(
        data,
        hidden_size=hidden,
        attention_head_size=heads,
        hidden_continuous_size=continuous,
        dropout=dropout,
        lstm_layers=1,
        loss=MultiLoss([MAE() for _ in names["target"]]),
        output_size=[1] * len(names["target"]),
        log_interval=-1,
    )
    loader = iter(data.to_dataloader(train=True, batch_size=batch, num_workers=0))
    _state.update(model=model, optimiser=torch.optim.Adam(model.parameters(), lr=1e-3), batches=[next(loader) for _ in range(count)])
    return sum(p.numel() for p in model.parameters())


def load_table(path: str, threads: int, encoder: int) -> int:
    """The table of `path` as a frame, for `build`; returns its bytes."""
    torch.set_num_threads(threads)
    with np.load(path) as saved:
        frame, names = _frame(saved["past"], saved["known"], saved["targets"], saved["series"])
    _state.update(frame=frame, names=names, encoder=encoder)
    return int(frame.memory_usage(deep=True).sum())


def build(clock: str) -> list[float]:
    """[seconds, bytes at most held beside the frame] from the frame to a data set."""
    _state.pop("data", None)
    begin = CLOCKS[clock]()
    _state["data"], peak = peak_of(lambda: _data_set(_state["frame"], _state["names"], _state["encoder"]))
    return [CLOCKS[clock]() - begin, peak]


def batches(n: int, size: int, clock: str) -> float:
    """Seconds per window of `n` batches of the shuffled loader, in this process (workers share the same cores)."""
    loader = iter(_state["data"].to_dataloader(train=True, batch_size=size, num_workers=0))
    begin = CLOCKS[clock]()
    for _ in range(n):
        next(loader)
    return (CLOCKS[clock]() - begin) / (n * size)


def _frame(past: np.ndarray, known: np.ndarray, targets: np.ndarray, series: np.ndarray) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    names = {k: [f"{k}{i}" for i in range(values.shape[1])] for k, values in (("past", past), ("known", known), ("target", targets))}
    frame = pd.DataFrame(np.hstack([past, known, targets]), columns=[*names["past"], *names["known"], *names["target"]])
    frame["symbol"] = pd.Categorical.from_codes(series, [f"S{i}" for i in range(series.max() + 1)])
    frame["period"] = pd.Categorical(["1h"] * len(frame))
    frame["time_idx"] = frame.groupby(series).cumcount()
    return frame, names


def _data_set(frame: pd.DataFrame, names: dict[str, list[str]], encoder: int) -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        frame,
        time_idx="time_idx",
        target=names["target"],
        group_ids=["symbol"],
        max_encoder_length=encoder,
        min_encoder_length=encoder,
        max_prediction_length=1,
        static_categoricals=["symbol", "period"],
        time_varying_unknown_reals=names["past"],
        time_varying_known_reals=names["known"],
        categorical_encoders={name: NaNLabelEncoder(add_nan=True) for name in ("symbol", "period")},
        target_normalizer=MultiNormalizer([TorchNormalizer(method="identity") for _ in names["target"]]),
        scalers=dict.fromkeys((*names["past"], *names["known"])),
    )


def train(n: int, clock: str) -> float:
    """Seconds per step: forward, loss, backward, clipping, Adam. The loader is not counted against the peer."""
    model, optimiser, batches = _state["model"].train(), _state["optimiser"], _state["batches"]
    begin = CLOCKS[clock]()
    for i in range(n):
        x, y = batches[i % len(batches)]
        loss = model.loss(model(x)["prediction"], y)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.item()
    return (CLOCKS[clock]() - begin) / n


@torch.no_grad()
def infer(n: int, clock: str) -> float:
    """Seconds per forward pass in evaluation mode, without loader and without `predict()`'s bookkeeping."""
    model, batches = _state["model"].eval(), _state["batches"]
    begin = CLOCKS[clock]()
    for i in range(n):
        model(batches[i % len(batches)][0])
    return (CLOCKS[clock]() - begin) / n


def main() -> None:
    """Answer JSON lines until the pipe is closed; what the peer prints does not go into the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    functions = {"load": load, "train": train, "infer": infer, "load_table": load_table, "build": build, "batches": batches}
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(functions[call.pop("do")](**call)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
