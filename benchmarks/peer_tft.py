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
    model = _model(data, len(names["target"]), hidden, continuous, heads, dropout)
    loader = iter(data.to_dataloader(train=True, batch_size=batch, num_workers=0))
    _state.update(model=model, optimiser=torch.optim.Adam(model.parameters(), lr=1e-3), batches=[next(loader) for _ in range(count)])
    return sum(p.numel() for p in model.parameters())


def _model(data: TimeSeriesDataSet, targets: int, hidden: int, continuous: int, heads: int, dropout: float) -> TemporalFusionTransformer:
    return TemporalFusionTransformer.from_dataset(
        data,
        hidden_size=hidden,
        attention_head_size=heads,
        hidden_continuous_size=continuous,
        dropout=dropout,
        lstm_layers=1,
        loss=MultiLoss([MAE() for _ in range(targets)]),
        output_size=[1] * targets,
        log_interval=-1,
    )


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


def _data_set(frame: pd.DataFrame, names: dict[str, list[str]], encoder: int, group: str = "symbol") -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        frame,
        time_idx="time_idx",
        target=names["target"],
        group_ids=[group],
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


def open_real(path: str, threads: int, encoder: int) -> int:
    """A data set of the real rows in `path`, for `fit_real`; returns its windows. Each unbroken stretch of rows is a group."""
    torch.set_num_threads(threads)
    with np.load(path) as saved:
        frame, names = _frame(saved["past"], saved["known"], saved["labels"], saved["stretch"])
        for k, name in enumerate(("symbol", "period")):
            frame[name] = pd.Categorical([f"{name}{code}" for code in saved["static"][:, k]])
        frame["stretch"] = [f"{number:09d}" for number in saved["stretch"]]  # sorted as text, they keep the order of the rows
    data = _data_set(frame, names, encoder, "stretch")
    at = np.full(len(frame), -1)  # window by its last encoder row
    at[data.index["index_start"].to_numpy() + encoder - 1] = np.arange(len(data))
    _state.update(data=data, names=names, at=at)
    return len(data)


def fit_real(
    seed: int,
    train: list[int],
    val: list[int],
    rates: list[float],
    classes: list[bool],
    sizes: dict[str, Any],
    optimiser: dict[str, Any],
    clip: float,
    batch: int,
    answers: str,
) -> list[float]:
    """Train on the windows of these last encoder rows, a learning rate per batch; [CPU seconds without the loader, parameters].

    answers: where outputs [n, K], labels [n, K] and the sum over each window's inputs are saved for the windows of `val`.
    """
    torch.manual_seed(seed)
    model = _model(_state["data"], len(classes), *(sizes[name] for name in ("hidden", "continuous", "heads", "dropout"))).train()
    adam, seconds = torch.optim.AdamW(model.parameters(), **optimiser), 0.0
    for rate, (x, (labels, _)) in zip(rates, _batches_of(train, batch), strict=True):
        begin = time.process_time()
        adam.param_groups[0]["lr"] = rate
        loss = sum(map(_loss, model(x)["prediction"], labels, classes))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        adam.step()
        seconds += time.process_time() - begin
    np.savez(answers, **_answers(model.eval(), val, batch))
    return [seconds, sum(p.numel() for p in model.parameters())]


def _batches_of(rows: list[int], batch: int) -> Any:
    """Its own loader, windows in the given order."""
    order = _state["at"][rows]
    assert (order >= 0).all(), "a window that the data set does not have"
    return _state["data"].to_dataloader(batch_size=batch, num_workers=0, sampler=order.tolist(), shuffle=False, drop_last=False)


def _loss(prediction: torch.Tensor, labels: torch.Tensor, a_class: bool) -> torch.Tensor:
    """Mean loss of one target, prediction [B, 1, 1], labels [B, 1]: that of the side it is compared with."""
    work = torch.nn.functional.binary_cross_entropy_with_logits if a_class else torch.nn.functional.smooth_l1_loss
    return work(prediction[:, :, 0], labels)


@torch.no_grad()
def _answers(model: TemporalFusionTransformer, rows: list[int], batch: int) -> dict[str, np.ndarray]:
    outputs, wanted, sums = [], [], []
    past = len(_state["names"]["past"])
    for x, (labels, _) in _batches_of(rows, batch):
        outputs.append(torch.cat([part[:, :, 0] for part in model(x)["prediction"]], 1))
        wanted.append(torch.cat(labels, 1))
        known = [k for k, name in enumerate(_state["data"].reals) if name in _state["names"]["known"]]
        assert len(known) + past == x["encoder_cont"].shape[2]
        sums.append(x["encoder_cont"].double().sum((1, 2)) + x["decoder_cont"][..., known].double().sum((1, 2)))
    return {"outputs": torch.cat(outputs).numpy(), "labels": torch.cat(wanted).numpy(), "sums": torch.cat(sums).numpy()}


def main() -> None:
    """Answer JSON lines until the pipe is closed; what the peer prints does not go into the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    functions = {"load": load, "train": train, "infer": infer, "load_table": load_table, "build": build, "batches": batches}
    functions |= {"open_real": open_real, "fit_real": fit_real}
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(functions[call.pop("do")](**call)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
