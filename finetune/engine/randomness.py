"""Random numbers that are a pure function of where training stands, so that ranks, accumulation and resume all agree.

Two tools: a keyed permutation of 0..n-1 that needs no table (the order of windows), and seeds mixed from integers
(dropout, sampled tokens, augmentation). Both rest on the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_ROUNDS = 4


def _mix_array(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64, element by element (wraps around on purpose)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(*parts: int) -> int:
    """One well-mixed 64-bit seed from a few integers; order matters."""
    state = 0
    for part in parts:
        state = (state + _GOLDEN + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a random order of 0..n-1, chosen by `key`, puts each of `positions`.

    A four-round Feistel network over the next even power of two, walked until the value falls below n (cycle walking,
    Black and Rogaway 2002): a bijection with no table, so the order of 20 million windows costs no memory.

    positions: int64 [k], each in 0..n-1. Returns int64 [k].
    """
    positions = np.asarray(positions, dtype=np.int64)
    if n <= 1:
        return np.zeros_like(positions)
    half_bits = np.uint64(((n - 1).bit_length() + 1) // 2)
    half_mask = np.uint64((1 << int(half_bits)) - 1)
    keys = [np.uint64(mix(key, r)) for r in range(_ROUNDS)]

    def feistel(x: np.ndarray) -> np.ndarray:
        left, right = x >> half_bits, x & half_mask
        for k in keys:
            left, right = right, left ^ (_mix_array(right + k) & half_mask)
        return (left << half_bits) | right

    out = feistel(positions.astype(np.uint64))
    outside = np.flatnonzero(out >= n)
    while outside.size:
        walked = feistel(out[outside])
        out[outside] = walked
        outside = outside[walked >= n]
    return out.astype(np.int64)


def reseed(*parts: int) -> None:
    """Seed torch's default generators (every device) from a few integers, e.g. (seed, optimiser step, global micro-batch)."""
    torch.manual_seed(mix(*parts) >> 1)  # manual_seed takes at most 63 bits


def numpy_generator(*parts: int) -> np.random.Generator:
    return np.random.default_rng(mix(*parts))
