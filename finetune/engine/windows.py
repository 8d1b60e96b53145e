"""Windows: fixed-length cuts of a Panel, gathered by the batch without any per-sample Python.

A window of `lookback + horizon + extra_rows` rows starts inside one unbroken stretch of one series and never leaves it.
Kronos takes one extra row because a decoder's targets are its inputs shifted by one (spec, "Training").
Which windows belong to a split is kept as runs of consecutive starts, a few numbers per series, however many windows there are.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from .randomness import permute

STD_FLOOR = 1e-5  # added to the standard deviation, as in the published forecaster
_BLOCK = 8192  # positions permuted together: at small batches numpy's call overhead would cost more than the windows themselves


class Source(Protocol):
    """What the loop needs of anything that makes batches: windows themselves, a subset of them, their cached tokens."""

    facts: dict[str, Any]  # plain values that tell these windows from any others; a resumed run must have the same

    def __len__(self) -> int: ...
    def to(self, device: torch.device) -> None: ...
    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]: ...
    def stamps(self, index: np.ndarray) -> torch.Tensor: ...
    def describe(self, index: np.ndarray) -> list[str]: ...


class Splits(NamedTuple):
    """Training, validation and test windows of one panel; `test` may be empty."""

    train: Source
    val: Source
    test: Source


class Store:
    """The panel's big arrays as tensors, shared by its splits: memory-mapped on the host, or moved once to the accelerator."""

    def __init__(self, panel: Any):
        self.panel, self.features, self.stamps = panel, as_tensor(panel.features), as_tensor(panel.stamps)

    def to(self, device: torch.device) -> None:
        """Move to an accelerator whose free memory takes it with room to spare, so that batches are gathered there."""
        if fits(device, self.features, self.stamps):
            self.features, self.stamps = self.features.to(device), self.stamps.to(device)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the same memory, also over a read-only map, which torch warns of: nobody here writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def fits(device: torch.device, *tensors: torch.Tensor) -> bool:
    """Whether the tensors take at most a quarter of a CUDA device's free memory; never on other devices, where moving gains nothing."""
    size = sum(t.numel() * t.element_size() for t in tensors)
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 4


class Windows:
    """All windows of one split. Index i, 0 ≤ i < len, names the same window for ever.

    lookback, horizon: bars before and after the forecast origin. normalise: "lookback" z-scores every column with the
    lookback's own mean and population standard deviation and clips (Kronos); "none" leaves raw values (TFT).
    """

    def __init__(
        self,
        store: Store,
        name: str,
        starts: np.ndarray,
        counts: np.ndarray,
        *,
        lookback: int,
        horizon: int,
        extra_rows: int = 1,
        stride: int = 1,
        normalise: str = "lookback",
        clip: float = 5.0,
    ):
        self.store, self.name = store, name
        self.lookback, self.horizon, self.length = lookback, horizon, lookback + horizon + extra_rows
        self.stride, self.normalise, self.clip = stride, normalise, clip
        self.run_starts = np.asarray(starts, np.int64)
        self.first_of_run = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # index of each run's first window, and the end
        self.augment: Callable[[dict, np.ndarray], None] | None = None
        self.facts = {
            "data": store.panel.fingerprint,
            "lookback": lookback,
            "horizon": horizon,
            "rows per window": self.length,
            "stride": stride,
            "normalisation": normalise,
            "clip": clip,
            "number of windows": len(self),
            "window starts": _digest(self.run_starts.tobytes() + self.first_of_run.tobytes()),
        }

    def __len__(self) -> int:
        return int(self.first_of_run[-1])

    @property
    def panel(self) -> Any:
        return self.store.panel

    def to(self, device: torch.device) -> None:
        self.store.to(device)

    def start_rows(self, index: np.ndarray) -> np.ndarray:
        """First row in the panel of each window. index: int64 [B]; returns int64 [B]. Raises IndexError beyond the end."""
        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"window index {index.min()}..{index.max()} outside 0..{len(self) - 1} of split '{self.name}'")
        run = np.searchsorted(self.first_of_run, index, side="right") - 1
        return self.run_starts[run] + (index - self.first_of_run[run]) * self.stride

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """A batch: `x` [B, T, F] float32 (normalised as configured), `stamps` [B, T, 5] uint8, and with normalisation
        `loc`, `scale` [B, 1, F] so that x * scale + loc gives the raw values back (where nothing was clipped)."""
        store = self.store
        rows = torch.from_numpy(self.start_rows(index)).to(store.features.device)
        batch = {"x": cut_rows(store.features, rows, self.length), "stamps": cut_rows(store.stamps, rows, self.length)}
        if self.normalise == "lookback":
            batch["loc"], batch["scale"] = zscore_lookback_(batch["x"], self.lookback, self.clip)
        if self.augment is not None:
            self.augment(batch, index)
            batch["x"].clamp_(-self.clip, self.clip)
        return batch

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        """Only the time features of a batch: [B, T, 5] uint8."""
        return cut_rows(self.store.stamps, torch.from_numpy(self.start_rows(index)).to(self.store.stamps.device), self.length)

    def describe(self, index: np.ndarray) -> list[str]:
        """Symbol and time span of each window, for messages."""
        panel, spans = self.panel, []
        for row in self.start_rows(index).tolist():
            symbol = panel.series[int(np.searchsorted(panel.offsets, row, side="right")) - 1].symbol
            first, last = (np.datetime64(int(panel.times[r]), "ns").astype("datetime64[s]") for r in (row, row + self.length - 1))
            spans.append(f"{symbol} {first}..{last}")
        return spans


class Subset:
    """A fixed choice of another source's windows, e.g. the same n validation windows every epoch."""

    def __init__(self, source: Source, chosen: np.ndarray):
        self.source, self.chosen = source, np.asarray(chosen, np.int64)
        self.facts = {**source.facts, "number of windows": len(self), "subset": _digest(self.chosen.tobytes())}

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: torch.device) -> None:
        self.source.to(device)

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return self.source.gather(self.chosen[index])

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        return self.source.stamps(self.chosen[index])

    def describe(self, index: np.ndarray) -> list[str]:
        return self.source.describe(self.chosen[index])


def sample_subset(source: Source, n: int, seed: int) -> Source:
    """`n` windows spread over `source`, the same ones for the same seed, in time order; all of them if n is 0 or too large."""
    if n <= 0 or n >= len(source):
        return source
    return Subset(source, np.sort(permute(np.arange(n), len(source), seed)))


def epoch_order(source: Source, per_epoch: int, epoch: int, seed: int, first: int, last: int) -> np.ndarray:
    """Window indices at positions first..last-1 of an epoch's random order. int64 [last - first].

    Epochs read one endless stream: pass after pass over all windows, each pass a fresh permutation. So an epoch of
    all windows sees each exactly once, and shorter epochs go on where the last one ended until all have been seen.
    """
    n, pieces = len(source), []
    position, stop = epoch * per_epoch + first, epoch * per_epoch + last
    while position < stop:
        number, within = divmod(position, n)
        block, inside = divmod(within, _BLOCK)
        pieces.append(_block_order(n, _pass_key(seed, number), block)[inside : inside + stop - position])
        position += len(pieces[-1])
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


@lru_cache(maxsize=4)
def _block_order(n: int, key: int, number: int) -> np.ndarray:
    """The windows at positions number·_BLOCK.. of one pass over n. Kept, since the steps of an epoch walk through a block together."""
    return permute(np.arange(number * _BLOCK, min(n, (number + 1) * _BLOCK)), n, key)


def _pass_key(seed: int, number: int) -> int:
    return (seed << 20) ^ number


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def cut_rows(rows: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Copy `length` consecutive rows from each start: one memory copy per window, through an overlapping view.

    rows [N, C], starts [B] → [B, length, C]
    """
    n, columns = rows.shape
    view = rows.as_strided((n - length + 1, length * columns), (columns, 1))
    return view.index_select(0, starts).view(len(starts), length, columns)


def zscore_lookback_(x: torch.Tensor, lookback: int, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise x [B, T, F] in place by the mean and population std of its first `lookback` rows, clip to ±clip.

    Returns loc, scale [B, 1, F]. The future never enters the statistics (fault 5). The first row is subtracted before
    anything else, so that a constant column of huge numbers (a volume of 1e9) gives exactly 0 in float32.
    """
    base = x[:, :1].clone()
    x -= base
    mean = x[:, :lookback].mean(1, keepdim=True)
    x -= mean
    scale = x[:, :lookback].square().mean(1, keepdim=True).sqrt_().add_(STD_FLOOR)
    x /= scale
    x.clamp_(-clip, clip)
    return base + mean, scale
