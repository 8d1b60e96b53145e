"""Updates as 32-bit words whose sum modulo 2^32 is the sum of the numbers, exactly, for the number of clients of the round.

A client's vector: 1 (so the sum counts the vectors), its weight, its count of clipped values, per metric the weighted value and the
weight that stands behind it, then every array's change × weight / max_weight in steps. Changes, not weights, so that the range is small.
A word of a client lies in ±largest with clients × largest < 2^31: the sum cannot overflow. What one word cannot hold takes two, high and
low ("limbs").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kronos.errors import InputError

from .errors import Refused

METRIC_RANGE = 1 << 20  # metrics are losses and scores
HEAD_WORDS, METRIC_WORDS = 5, 4
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scale:
    """How numbers become words. clip: bound of a change, ±. clients: most vectors in a sum. max_weight: 0 for equal weights."""

    clip: float
    clients: int
    max_weight: int

    @property
    def largest(self) -> int:
        """Bound of one client's words, ±."""
        return (2**31 - 1) // self.clients

    @property
    def step(self) -> float:
        """The change that one unit of a word stands for, at full weight."""
        return self.clip / self.largest

    @property
    def limb(self) -> int:
        """Base of two-word numbers, a power of two <= largest."""
        return 1 << (self.largest.bit_length() - 1)

    @property
    def unit_weight(self) -> int:
        """The weight that counts fully."""
        return self.max_weight or 1

    def error_bound(self, count: int, weight: float) -> float:
        """Most that rounding can move the mean of `count` vectors of this total weight: each is off by less than one step."""
        return count * self.step * self.unit_weight / weight


@dataclass(frozen=True)
class Sum:
    """A decoded sum: arrays by name float64 (weighted means), weight (sum), count, clipped (values, all clients), metrics (means)."""

    arrays: dict[str, np.ndarray]
    metrics: dict[str, float]
    weight: int
    count: int
    clipped: int


def range_for(base: Arrays) -> float:
    """A clipping range for one round's change: the largest size of any weight, as a power of two of at least 1.

    A round that moves a value further than the largest weight of the whole model is not fine-tuning; the client refuses then, by name.
    Raises InputError if the model holds NaN or infinite values.
    """
    largest = max((float(np.abs(values).max()) for values in base.values() if values.size), default=0.0)
    if not math.isfinite(largest):
        raise InputError("the global model holds NaN or infinite values: no clipping range fits; resume from an earlier checkpoint")
    return 2.0 ** math.ceil(math.log2(max(largest, 1.0)))


def weight_limit(examples: Iterable[int]) -> int:
    """max_weight for clients with these numbers of examples: the next power of two, which tells less than the largest number."""
    largest = max(examples, default=0)
    if largest < 1:
        raise InputError(f"no client has an example (largest number: {largest}); there is nothing to weigh")
    return 1 << (largest - 1).bit_length()


def encode(
    arrays: Arrays,
    base: Arrays,
    examples: int,
    metrics: Mapping[str, float],
    scale: Scale,
    rng: np.random.Generator,
    max_clipped: float = 0.0,
) -> np.ndarray:
    """One client's vector in clear, [words] uint32. Raises Refused (arrays unlike base's, not finite, out of range; too many examples)."""
    weight = _weight(examples, scale)
    body, clipped = _changes(arrays, base, weight / scale.unit_weight, scale, rng)
    if clipped > max_clipped * max(len(body), 1):
        raise Refused("range", f"{clipped} of {len(body)} values changed by more than ±{scale.clip} (most allowed: {max_clipped:.3%})")
    head = [1, *_limbs(weight, scale), *_limbs(clipped, scale)]
    for name in sorted(metrics):
        value, behind = (metrics[name], weight) if math.isfinite(metrics[name]) else (0.0, 0)  # a metric that is not there counts nothing
        if abs(value) > METRIC_RANGE:
            raise Refused("metric", f"{name} is {value}, beyond ±{METRIC_RANGE}")
        head += [*_limbs(round(value * behind / scale.unit_weight * _metric_units(scale)), scale), *_limbs(behind, scale)]
    return np.concatenate([np.array(head, np.int64).astype(np.uint32), body])


def decode(total: np.ndarray, base: Arrays, names: Sequence[str], scale: Scale) -> Sum:
    """What a sum of vectors says. total [words] uint32, unmasked; names: the metrics', sorted. Raises ValueError if it is no such sum."""
    signed = total.view(np.int32)
    head = [int(word) for word in signed[: HEAD_WORDS + METRIC_WORDS * len(names)]]
    count, weight, clipped = head[0], _number(head[1:3], scale), _number(head[3:5], scale)
    if not (1 <= count <= scale.clients and count <= weight <= count * scale.unit_weight and clipped >= 0):
        raise ValueError(f"the sum says {count} vectors of weight {weight}: its masks did not cancel")
    metrics = {}
    for i, name in enumerate(names):
        words = head[HEAD_WORDS + METRIC_WORDS * i :][:METRIC_WORDS]
        value, behind = _number(words[:2], scale), _number(words[2:], scale)
        if behind:
            metrics[name] = value / _metric_units(scale) * scale.unit_weight / behind
    arrays, at = {}, len(head)
    for name in sorted(base):
        values = signed[at : at + base[name].size].reshape(base[name].shape)
        arrays[name] = base[name].astype(np.float64) + values * (scale.step * scale.unit_weight / weight)
        at += base[name].size
    return Sum(arrays, metrics, weight, count, clipped)


def word_count(base: Arrays, metrics: int) -> int:
    """Length of a vector."""
    return HEAD_WORDS + METRIC_WORDS * metrics + sum(values.size for values in base.values())


def _changes(arrays: Arrays, base: Arrays, share: float, scale: Scale, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Every array's change × share in steps, rounded up or down at random so that the mean is right; and how many were clipped."""
    shapes = {name: values.shape for name, values in arrays.items()}
    if shapes != {name: values.shape for name, values in base.items()}:
        odd = sorted(set(shapes.items()) ^ {(name, values.shape) for name, values in base.items()})
        raise Refused("layout", f"arrays that differ in name or shape from those sent: {odd[:6]}")
    parts, clipped = [], 0
    for name in sorted(arrays):
        change = arrays[name].astype(np.float64).ravel() - base[name].astype(np.float64).ravel()
        if not np.isfinite(change).all():
            raise Refused("not-finite", f"{int((~np.isfinite(change)).sum())} values of {name} are NaN or infinite")
        clipped += int(np.count_nonzero(np.abs(change) > scale.clip))
        steps = np.clip(change, -scale.clip, scale.clip) * (share / scale.step)
        down = np.floor(steps)
        rounded = down + (rng.random(len(steps)) < steps - down)
        parts.append(np.clip(rounded, -scale.largest, scale.largest).astype(np.int64).astype(np.uint32))
    return np.concatenate([np.zeros(0, np.uint32), *parts]), clipped


def _weight(examples: int, scale: Scale) -> int:
    if examples < 1 or (scale.max_weight and examples > scale.max_weight):
        raise Refused("weight", f"{examples} examples; the round takes 1 to {scale.max_weight or 'any number'}")
    return int(examples) if scale.max_weight else 1


def _limbs(number: int, scale: Scale) -> tuple[int, int]:
    high, low = divmod(int(number), scale.limb)
    if abs(high) > scale.largest:
        raise Refused("metric", f"{number} takes more than two words for {scale.clients} clients")
    return high, low


def _number(limbs: Sequence[int], scale: Scale) -> int:
    return limbs[0] * scale.limb + limbs[1]


def _metric_units(scale: Scale) -> float:
    return (scale.largest - 1) * scale.limb / METRIC_RANGE
