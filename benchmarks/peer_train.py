"""The peer's training, loader and all, as its trainers have it: its Dataset under a DataLoader with workers, the body of its loop,
OneCycleLR, a printed line now and then. Runs in a child process; on a GPU too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from model.kronos import Kronos, KronosTokenizer  # the peer's
from torch.utils.data import DataLoader

from benchmarks.common import CLOCKS
from benchmarks.peer import serve
from benchmarks.peer_loader import csv_set, qlib_set

_state: dict[str, Any] = {}
Batch = tuple[torch.Tensor, torch.Tensor]


def load(folder: str, stage: str, kind: str, threads: int, rate: float, device: str, lookback: int, horizon: int) -> int:
    """Data set over `folder`/bars.npz (kind: csv or qlib) and the model of `stage` that ours saved in `folder`. Returns its samples."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with np.load(f"{folder}/bars.npz") as saved:
        features, times = saved["features"], saved["times"]
    make = {"csv": csv_set, "qlib": qlib_set}[kind]
    data = make(Path(folder), features, times, 100_000, lookback, horizon)
    tokenizer = KronosTokenizer.from_pretrained(f"{folder}/tokenizer").eval().to(device)
    model = tokenizer if stage == "tokenizer" else Kronos.from_pretrained(f"{folder}/predictor").to(device)
    model.train()
    extra = {} if stage == "tokenizer" else {"betas": (0.9, 0.95)}
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, **extra)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=100_000, pct_start=0.03, div_factor=10)
    steps = {"tokenizer": _tokenizer_step, "predictor": _predictor_step}
    _state.update(data=data, tokenizer=tokenizer, model=model, optimiser=optimiser, scheduler=scheduler)
    _state.update(device=torch.device(device), step=steps[stage])
    return len(data)


def _to_device(batch: Batch) -> Batch:
    x, stamps = (part.to(_state["device"], non_blocking=True) for part in batch)
    return x, stamps


def _update(loss: torch.Tensor, max_norm: float) -> float:
    _state["optimiser"].zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(_state["model"].parameters(), max_norm=max_norm)
    _state["optimiser"].step()
    _state["scheduler"].step()
    return loss.item()


def _predictor_step(batch: Batch) -> float:
    model, (x, stamps) = _state["model"], batch
    with torch.no_grad():
        s1, s2 = _state["tokenizer"].encode(x, half=True)
    logits = model(s1[:, :-1], s2[:, :-1], stamps[:, :-1, :])
    loss, _, _ = model.head.compute_loss(logits[0], logits[1], s1[:, 1:], s2[:, 1:])
    return _update(loss, 3.0)


def _tokenizer_step(batch: Batch) -> float:
    x, _ = batch
    (coarse, full), quantiser_loss, _, _ = _state["model"](x)
    return _update((F.mse_loss(coarse, x) + F.mse_loss(full, x) + quantiser_loss) / 2, 2.0)


def train(batch: int, steps: int, workers: int, clock: str) -> float:
    """Seconds per window over `steps` steps with its own loader, after one that is not counted. The clock cpu leaves its workers out."""
    pin = _state["device"].type == "cuda"
    loader = DataLoader(_state["data"], batch_size=batch, shuffle=True, num_workers=workers, pin_memory=pin, drop_last=True)
    batches = iter(loader)
    _state["step"](_to_device(next(batches)))
    begin_s = _now(clock)
    for number in range(steps):
        loss = _state["step"](_to_device(next(batches)))
        if number + 1 == steps:
            print(f"Step {number + 1}/{len(loader)}, LR {_state['optimiser'].param_groups[0]['lr']:.6f}, Loss: {loss:.4f}")
    return (_now(clock) - begin_s) / (steps * batch)


def train_ready(batch: int, steps: int, clock: str) -> float:
    """Seconds per window over `steps` steps on a batch that lies on the device already, after one that is not counted."""
    ready = _to_device(next(iter(DataLoader(_state["data"], batch_size=batch, shuffle=True, num_workers=0, drop_last=True))))
    _state["step"](ready)
    begin_s = _now(clock)
    for _ in range(steps):
        _state["step"](ready)
    return (_now(clock) - begin_s) / (steps * batch)


def _now(clock: str) -> float:
    if _state["device"].type == "cuda":
        torch.cuda.synchronize(_state["device"])
    return CLOCKS[clock]()


if __name__ == "__main__":
    serve({"load": load, "train": train, "train_ready": train_ready})
