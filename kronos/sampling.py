"""Drawing tokens: temperature, top-k and top-p together, and random numbers that belong to (seed, series, sample, step)."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kronos.errors import InputError

_CHUNK = 16  # rows drawn at once on a CPU: their tables stay in the second-level cache
_UNIFORM_BITS = 52
_COLDEST = 1e-30  # logits divided by it fit into float32; what is colder draws the likeliest all the same
_LARGEST = 1 - 2.0**-_UNIFORM_BITS  # times any float64 total this stays below that total, so that some token is always beyond it


def is_whole(value: Any) -> bool:
    """Whether a setting is a whole number, numpy's too; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature > 0; keep the top_k likeliest (0: all), then of those the smallest set that exceeds probability top_p."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("temperature T", self.temperature), ("top_p", self.top_p)):
            if not isinstance(value, Real):
                raise InputError(f"{name} is {value!r}: it must be a number")
        if not 0 < self.temperature < float("inf"):
            raise InputError(
                f"temperature T is {self.temperature!r}: it must be above 0 (for the likeliest token at every step use top_k=1)"
            )
        if not is_whole(self.top_k) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}: it must be a whole number, 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p!r}: it must be above 0 and at most 1 (1: no limit)")


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [..., V] with everything outside top-k, and then outside top-p of what is left, at -inf. The input stays as it is.

    A token stays while the probability of those before it, in descending order, is at most top_p (so the likeliest always stays).
    Tokens tied with the last one kept stay too: the choice never hangs on how a sort breaks ties.
    """
    size = logits.shape[-1]
    limit = min(top_k, size) if top_k > 0 else size
    if limit == size and top_p >= 1:
        return logits
    best = logits.topk(limit, -1).values
    if top_p < 1:
        p = best.softmax(-1)
        kept = (p.cumsum(-1) - p <= top_p).sum(-1, keepdim=True)
        cutoff = best.gather(-1, kept - 1)
    else:
        cutoff = best[..., -1:]
    return logits.masked_fill(logits < cutoff, float("-inf"))


def draw(logits: Tensor, uniforms: Tensor, how: Sampling) -> Tensor:
    """One token per row: logits [..., V] and uniforms [...] in [0, 1) -> ids [...] int64. The same uniform gives the same token."""
    if logits.device.type == "cpu":
        return _draw_on_cpu(logits, uniforms, how)
    return _draw_in_torch(logits, uniforms, how)


def _draw_in_torch(logits: Tensor, uniforms: Tensor, how: Sampling) -> Tensor:
    """Without a wait for the accelerator."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / max(how.temperature, _COLDEST)
    filtered = filter_logits(scaled, how.top_k, how.top_p)
    cumulative = filtered.to(wide).softmax(-1).cumsum(-1)
    threshold = uniforms.to(wide).unsqueeze(-1) * cumulative[..., -1:]
    picked = torch.searchsorted(cumulative, threshold, right=True)
    # In float32 (MPS) the product may round up to the total: then the last possible token, never a filtered one.
    return picked.minimum((cumulative < cumulative[..., -1:]).sum(-1, keepdim=True)).squeeze(-1)


def _draw_on_cpu(logits: Tensor, uniforms: Tensor, how: Sampling) -> Tensor:
    """The same in numpy: at the few rows of a generation step half the time of torch, whose sort alone takes longer."""
    rows = logits.detach().reshape(-1, logits.shape[-1])
    rows = (rows.float() if rows.dtype.itemsize < 4 else rows).numpy()
    numbers = np.minimum(uniforms.detach().reshape(-1, 1).numpy(), _LARGEST)
    picked = [_pick(rows[i : i + _CHUNK], numbers[i : i + _CHUNK], how) for i in range(0, len(rows), _CHUNK)]
    return torch.from_numpy(picked[0] if len(picked) == 1 else np.concatenate(picked)).view(logits.shape[:-1])


def _pick(logits: np.ndarray, uniforms: np.ndarray, how: Sampling) -> np.ndarray:
    """Logits [N, V] and uniforms [N, 1] -> tokens [N]. Probabilities are float64 and not normalised."""
    count, size = logits.shape
    p = np.subtract(logits, logits.max(1, keepdims=True), dtype=np.float64)
    if how.temperature != 1:
        p /= max(how.temperature, _COLDEST)
    np.exp(p, out=p)
    limit = min(how.top_k, size) if how.top_k > 0 else size
    if limit < size or how.top_p < 1:
        best = np.sort(p, 1)[:, size - limit :]  # ascending
        upto = _running_sums(best)
        first = (upto >= upto[:, -1:] * (1 - how.top_p)).argmax(1)  # the last that stays, descending: beyond it is at most top_p of all
        p *= p >= best[np.arange(count), first][:, None]
    upto = _running_sums(p)
    return (upto > uniforms * upto[:, -1:]).argmax(1)


def _running_sums(p: np.ndarray) -> np.ndarray:
    """Along each row; in torch, five times as fast as numpy."""
    return torch.from_numpy(p).cumsum(1).numpy()


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit. Whole arrays of uint64, arithmetic modulo 2^64."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def uniforms(seed: int, series: np.ndarray, samples: np.ndarray, steps: int) -> np.ndarray:
    """Random numbers in [0, 1), float64 [series, samples, steps, 2] (the last for the coarse and the fine token).

    Each is a pure function of (seed, series key, sample number, step): batch, order and number of processes do not matter.
    series: uint64 keys [B]; samples: sample numbers [S].
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    h = np.full((1, 1, 1, 1), int(seed) % 2**64, dtype=np.uint64)
    axes = (series.astype(np.uint64)[:, None, None, None], samples.astype(np.uint64)[:, None, None])
    for part in (*axes, np.arange(steps, dtype=np.uint64)[:, None], np.arange(2, dtype=np.uint64)):
        h = _mix(_mix(h) + golden + part)
    return (h >> np.uint64(64 - _UNIFORM_BITS)).astype(np.float64) * 2.0**-_UNIFORM_BITS
