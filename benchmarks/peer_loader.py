"""The peer's two data sets (CSV and Qlib trainer) behind its own kind of DataLoader. Runs in the child of `benchmarks.peer`."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from benchmarks.common import HORIZON, LOOKBACK, timed
from benchmarks.peer import serve

NAMES = ("open", "high", "low", "close", "volume", "amount")
_state: dict[str, Any] = {}


def load(folder: str, threads: int, kinds: list[str], per_epoch: int) -> dict[str, int]:
    """Make the data sets of `kinds` (csv, qlib) over the bars in `folder`/bars.npz. Returns how many samples each says it has."""
    torch.set_num_threads(threads)
    with np.load(f"{folder}/bars.npz") as saved:
        features, times = saved["features"], saved["times"]
    makers = {"csv": csv_set, "qlib": qlib_set}
    _state.update({kind: makers[kind](Path(folder), features, times, per_epoch) for kind in kinds})
    return {kind: len(_state[kind]) for kind in kinds}


def csv_set(
    folder: Path, features: np.ndarray, times: np.ndarray, per_epoch: int, lookback: int = LOOKBACK, horizon: int = HORIZON
) -> Dataset:
    """All symbols one after another in one file with times that go on: the form its CSV trainer reads (its windows then cross symbols)."""
    from finetune_base_model import CustomKlineDataset

    frame = pd.DataFrame(features.reshape(-1, 6), columns=NAMES)
    step = int(times[1] - times[0])
    frame.insert(0, "timestamps", pd.to_datetime(times[0] + step * np.arange(len(frame))))
    frame.to_csv(folder / "bars.csv", index=False)
    return CustomKlineDataset(
        str(folder / "bars.csv"), "train", lookback_window=lookback, predict_window=horizon, train_ratio=0.8, val_ratio=0.2, test_ratio=0.0
    )


def qlib_set(
    folder: Path, features: np.ndarray, times: np.ndarray, per_epoch: int, lookback: int = LOOKBACK, horizon: int = HORIZON
) -> Dataset:
    """A pickled dictionary of frames: the form its Qlib trainer reads. per_epoch: its n_train_iter."""
    import dataset

    index = pd.DatetimeIndex(pd.to_datetime(times), name="datetime")
    names = ("open", "high", "low", "close", "vol", "amt")
    with open(folder / "train_data.pkl", "wb") as file:
        pickle.dump({f"S{i:04d}": pd.DataFrame(bars, index=index, columns=names) for i, bars in enumerate(features)}, file)
    published = dataset.Config

    def configured() -> Any:
        config = published()
        config.dataset_path, config.n_train_iter = str(folder), per_epoch
        config.lookback_window, config.predict_window = lookback, horizon
        return config

    dataset.Config = configured
    return dataset.QlibDataset("train")


def batches(kind: str, size: int, n: int, clock: str) -> float:
    """Seconds per window over `n` batches, in this process (num_workers 0)."""
    loader = iter(DataLoader(_state[kind], batch_size=size, shuffle=True, drop_last=True, num_workers=0))
    next(loader)
    return timed(lambda: [next(loader) for _ in range(n)], n * size, clock)


def epoch(world: int, workers: int, size: int) -> dict[str, int]:
    """One epoch on every rank, each with a loader of its own as its trainer makes it. Returns windows drawn and how many of them differ."""
    data, seen, drawn = _state["qlib"], set(), 0
    for rank in range(world):
        sampler = DistributedSampler(data, num_replicas=world, rank=rank, shuffle=True)
        loader = DataLoader(data, batch_size=size, sampler=sampler, num_workers=workers, drop_last=True)
        sampler.set_epoch(0)
        data.set_epoch_seed(rank)  # its trainer: epoch * 10000 + rank
        for x, stamps in loader:
            drawn += len(x)
            seen.update(
                hashlib.blake2b(a.numpy().tobytes() + b.numpy().tobytes(), digest_size=16).digest() for a, b in zip(x, stamps, strict=True)
            )
    return {"drawn": drawn, "distinct": len(seen)}


if __name__ == "__main__":
    serve({"load": load, "batches": batches, "epoch": epoch})
