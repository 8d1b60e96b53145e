"""The peer's Temporal Fusion Transformer (pytorch-forecasting), its training step and its inference, on batches of its own loader.

Runs under the python of an environment that has pytorch-forecasting and nothing of ours: this file imports only what that brings.
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
    names = {k: [f"{k}{i}" for i in range(values.shape[1])] for k, values in (("past", past), ("known", known), ("target", targets))}
    frame = pd.DataFrame(np.hstack([past, known, targets]), columns=[*names["past"], *names["known"], *names["target"]])
    frame["symbol"] = [f"S{i}" for i in series]
    frame["period"] = "1h"
    frame["time_idx"] = frame.groupby("symbol").cumcount()
    data = TimeSeriesDataSet(
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
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps({"load": load, "train": train, "infer": infer}[call.pop("do")](**call)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
