"""What data-parallel training costs on networks that are not here: a timeline of buckets as measured. For `benchmarks.communication`.

Buckets of gradients are all-reduced one after another; bucket k can start when the backward pass has come to the share r_k of itself
(measured) and takes

    t_k = latency + 2 (n - 1) / n x bytes_k / bandwidth          (ring all-reduce over n ranks; bandwidth: what each rank sends per second)

What is not done when the backward pass ends is waited for: `exposed_s`. The computation of b windows takes F b / (peak x MFU), F as
`benchmarks.model_flops` counts it; one third of it is the forward pass, two thirds the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BACKWARD = 2 / 3  # of the computation


@dataclass(frozen=True)
class Network:
    """What links the ranks. bandwidth_gbs: gigabytes per second that each rank sends while all do; latency_us: of one all-reduce."""

    name: str
    ranks: int
    bandwidth_gbs: float
    latency_us: float

    def seconds(self, size: float) -> float:
        """An all-reduce of `size` bytes."""
        return self.latency_us * 1e-6 + 2 * (self.ranks - 1) / self.ranks * size / (self.bandwidth_gbs * 1e9)


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together. ready: share of the backward pass after which they do; size: bytes."""

    ready: float
    size: float


def exposed_s(buckets: Sequence[Bucket], backward_s: float, network: Network) -> float:
    """Seconds that a step waits for its all-reduces after the backward pass."""
    end = 0.0
    for bucket in buckets:
        end = max(end, bucket.ready * backward_s) + network.seconds(bucket.size)
    return max(0.0, end - backward_s)


def share_exposed(buckets: Sequence[Bucket], compute_s: float, network: Network) -> float:
    """Share of a step in which it only waits."""
    waited = exposed_s(buckets, compute_s * BACKWARD, network)
    return waited / (compute_s + waited)


def smallest_batch(buckets: Sequence[Bucket], s_per_window: float, network: Network, share: float) -> int:
    """The fewest windows per rank and optimiser step with which at most `share` of it is waiting. s_per_window: of computation."""
    fits = lambda batch: share_exposed(buckets, batch * s_per_window, network) <= share  # noqa: E731
    high = 1
    while not fits(high):
        high *= 2
    low = high // 2  # does not fit, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Union of intervals, as disjoint ones in order."""
    out: list[tuple[float, float]] = []
    for first, last in sorted(spans):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


def length(spans: Sequence[tuple[float, float]]) -> float:
    """Of the union of intervals."""
    return math.fsum(last - first for first, last in merged(spans))


def common_length(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> float:
    """Of what two unions of intervals share."""
    return length(a) + length(b) - length([*a, *b])
