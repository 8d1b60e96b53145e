"""Differential privacy of the model that leaves a round: clipping, Gaussian noise, and what they are worth as (ε, δ).

The unit is the client: two federations are neighbours when one client's update of a round is replaced by "no change" (who was
asked and who answered is public, so the number of survivors n is too). All clients weigh the same, whatever their samples: then
one client moves the sum of the clipped updates by at most C (`clip`), and noise of standard deviation z·C on the sum is a Gaussian
mechanism of noise multiplier z.

    server   The server adds N(0, (σC)²) to the sum: z = σ. It sees every update bare (or, with secure aggregation, the bare sum):
             this protects from those who get the model, not from the server.
    client   Each client adds N(0, (σC)²) to its own update before upload: z = σ even against a server that reads every update.
    client and secure aggregation
             Nobody sees one update, so the noise is shared: each client adds N(0, (σC)²/m), m the minimum of survivors. The sum of
             n ≥ m survivors carries N(0, (σC)²·n/m): z = σ·√(n/m), which is what the accountant counts. Clients that collude with
             the server know their own noise: against t of them z = σ·√((n − t)/m).

What ε does not cover: losses and numbers of samples (sent as they are, or summed by secure aggregation), and the rounding of the
noise to floating point and to the steps of secure aggregation. No amplification by sampling is claimed: Flower draws a fixed number
of clients, not each by a coin of its own.
Sources: McMahan et al. 2018 (arXiv 1710.06963); Mironov 2012 on floating point; Kairouz et al. 2021 (arXiv 2102.06387) on shared noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kronos.errors import InputError

Arrays = Mapping[str, np.ndarray]
_PLD_STEPS = 50_000  # grid points of the privacy loss: ε is exact to about 1e-4 of itself, at a cost that does not grow with ε


class Noise(Protocol):
    """A source of standard normal numbers; a numpy Generator is one."""

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray: ...


class SystemNoise:
    """Standard normal numbers from the operating system's generator.

    The run's seed is known to the server: noise drawn from it could be drawn again and subtracted. So real noise never has a seed,
    and a run with privacy cannot be repeated to the bit.
    """

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray:
        """float64 of shape `size`, by Box and Muller from 53 random bits each."""
        count = math.prod(size)
        half = (count + 1) // 2
        bits = np.frombuffer(os.urandom(16 * half), dtype=np.uint64) >> np.uint64(11)
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1): the logarithm is finite
        radius, angle = np.sqrt(-2.0 * np.log(uniform[:half])), 2.0 * np.pi * uniform[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(size)


@dataclass(frozen=True)
class Mechanism:
    """Clipping and noise of one run. clip: C, the largest norm of an update over all its arrays together. sigma: σ, the noise multiplier.

    mode: "client" or "server", who adds the noise; clipping is always the client's, and with server noise in clear the server's again
    (`clipped`). Raises InputError for settings that protect nothing.
    """

    clip: float
    sigma: float
    mode: str = "client"

    def __post_init__(self) -> None:
        if self.mode not in ("client", "server"):
            raise InputError(f"dp-mode={self.mode!r}: expected client or server")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise InputError(f"dp-sigma={self.sigma}: expected 0 (clipping without noise) or more, such as 1.0")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise InputError(f"dp-max-norm={self.clip}: privacy needs a norm above 0 to clip updates to, such as 1.0")

    def on_client(self, update: Arrays, base: Arrays, rng: Noise, share: float = 1.0) -> dict[str, np.ndarray]:
        """The weights to upload: base + clipped(update − base) + noise of standard deviation σ·C·share. All float32, by name.

        share: `noise_share(...)`. In server mode only clips. Raises ValueError for values that are not finite: they have no norm to clip.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share of the noise {share}: expected above 0 and at most 1")
        deltas = _scaled_down(update, base, self.clip)
        if self.mode == "client" and self.sigma > 0:  # before the one rounding to float32, which could double a step of large weights
            deltas = {name: delta + self.sigma * self.clip * share * rng.standard_normal(delta.shape) for name, delta in deltas.items()}
        return _moved(base, deltas)

    def on_server(self, mean: Arrays, survivors: int, rng: Noise) -> dict[str, np.ndarray]:
        """The mean of `survivors` equally weighted clients with noise of standard deviation σ·C / survivors; unchanged in client mode."""
        if survivors < 1:
            raise ValueError(f"survivors {survivors}: expected at least 1")
        if self.mode == "client" or self.sigma == 0:
            return dict(mean)
        return _noisy(mean, self.sigma * self.clip / survivors, rng)

    def noise_share(self, *, secure: bool, minimum_survivors: int) -> float:
        """The part of σ·C that each client adds: all where the server sees single updates, 1/√m where only the sum of m or more."""
        if minimum_survivors < 1:
            raise ValueError(f"minimum of survivors {minimum_survivors}: expected at least 1")
        return 1.0 / math.sqrt(minimum_survivors) if secure else 1.0

    def noise_multiplier(self, *, secure: bool, minimum_survivors: int, survivors: int) -> float:
        """z of a round that `survivors` clients finished. Raises ValueError for fewer than the minimum: the promise would be broken."""
        if survivors < minimum_survivors:
            raise ValueError(f"{survivors} survivors, fewer than the minimum {minimum_survivors} that the noise was shared for")
        shared = secure and self.mode == "client"
        return self.sigma * math.sqrt(survivors / minimum_survivors) if shared else self.sigma


@dataclass
class Accountant:
    """Adds up the privacy loss of the rounds. sigma: the noise multiplier a round has at least. delta: δ at which ε is told.

    target_epsilon: the budget (`dp-epsilon`), 0 for none: then ε is told and nothing stops.
    multipliers: z of every round so far; all there is to save for a resumed run.
    By dp_accounting's privacy loss distributions: tight, and rounded up.
    """

    sigma: float
    delta: float
    target_epsilon: float = 0.0
    multipliers: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise InputError(f"dp-delta={self.delta}: expected between 0 and 1, far below 1 / number of clients, such as 1e-5")
        if not (math.isfinite(self.target_epsilon) and self.target_epsilon >= 0):
            raise InputError(f"dp-epsilon={self.target_epsilon}: expected the budget, such as 8.0, or 0 for none")
        if self.target_epsilon and not self.allows_next():
            raise InputError(
                f"dp-epsilon={self.target_epsilon:g}: with dp-sigma={self.sigma:g} "
                f"{'the first' if not self.multipliers else 'one more'} round would spend ε = {self.epsilon_with(self.sigma):.3g} "
                f"at δ = {self.delta:g}; raise dp-sigma or the budget"
            )

    @property
    def epsilon(self) -> float:
        """ε spent so far at δ; infinite once a round had no noise."""
        return epsilon_of(self.multipliers, self.delta)

    def epsilon_with(self, multiplier: float, rounds: int = 1) -> float:
        """ε spent if `rounds` more rounds of this noise multiplier came."""
        return epsilon_of([*self.multipliers, *[multiplier] * rounds], self.delta)

    def epsilon_after(self, rounds: int) -> float:
        """ε after `rounds` more rounds in which no more clients survive than must: what to print before a run."""
        return self.epsilon_with(self.sigma, rounds)

    def allows_next(self, multiplier: float | None = None) -> bool:
        """Whether one more round stays within the budget; multiplier: its z at worst (default: sigma, only the minimum survives)."""
        return not self.target_epsilon or self.epsilon_with(self.sigma if multiplier is None else multiplier) <= self.target_epsilon

    def rounds_left(self, limit: int = 100_000) -> int | None:
        """How many more rounds the budget allows at sigma, at most `limit`; None without a budget."""
        if not self.target_epsilon:
            return None
        low, high = 0, 1
        while high <= limit and self.epsilon_after(high) <= self.target_epsilon:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon_after(middle) <= self.target_epsilon else (low, middle)
        return min(low, limit)

    def spend(self, multiplier: float) -> float:
        """Counts a round that took place with noise multiplier z; returns ε so far. It counts even if its result is thrown away."""
        if multiplier < self.sigma:
            raise ValueError(f"a round with noise multiplier {multiplier}, below the promised {self.sigma}")
        self.multipliers.append(float(multiplier))
        return self.epsilon


def epsilon_of(multipliers: Sequence[float], delta: float) -> float:
    """ε at δ of Gaussian mechanisms with these noise multipliers, one after another, each chosen knowing the results before it.

    Together they are worth one Gaussian with 1/z² = Σ 1/zᵢ² (Dong et al., arXiv 1905.02383, corollary 3.3); dp_accounting makes ε of it.
    """
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    if not multipliers:
        return 0.0
    if min(multipliers) <= 0:
        return math.inf
    mu = math.sqrt(sum(z**-2 for z in multipliers))
    loss = mu * mu / 2 + 10 * mu  # the privacy loss is N(μ²/2, μ²)
    accountant = PLDAccountant(value_discretization_interval=max(1e-5, loss / _PLD_STEPS))
    accountant.compose(GaussianDpEvent(1 / mu))
    return float(accountant.get_epsilon(delta))


def clipped(update: Arrays, base: Arrays, clip: float) -> dict[str, np.ndarray]:
    """base + (update − base) scaled down to a norm of at most `clip`, the norm over all arrays together. float32 by name.

    Raises ValueError for other names or shapes than the base's, and for values that are not finite.
    """
    return _moved(base, _scaled_down(update, base, clip))


def _scaled_down(update: Arrays, base: Arrays, clip: float) -> dict[str, np.ndarray]:
    """The change, float64, with a norm of at most `clip`."""
    deltas = difference(update, base)
    norm = norm_of(deltas)
    if not math.isfinite(norm):
        raise ValueError("an update with values that are not finite cannot be clipped")
    scale = min(1.0, clip / norm) if norm > 0 else 1.0
    return {name: scale * delta for name, delta in deltas.items()}


def _moved(base: Arrays, deltas: Arrays) -> dict[str, np.ndarray]:
    return {name: (base[name] + delta).astype(np.float32) for name, delta in deltas.items()}


def difference(update: Arrays, base: Arrays) -> dict[str, np.ndarray]:
    """update − base by name, float64. Raises ValueError for other names or shapes."""
    if update.keys() != base.keys():
        raise ValueError(f"arrays {sorted(update.keys() ^ base.keys())[:3]} are in the update or in the base, not in both")
    for name, array in update.items():
        if np.shape(array) != np.shape(base[name]):
            raise ValueError(f"array {name!r} has shape {np.shape(array)}, the base has {np.shape(base[name])}")
    return {name: np.asarray(update[name], np.float64) - np.asarray(base[name], np.float64) for name in sorted(update)}


def norm_of(arrays: Arrays) -> float:
    """The Euclidean norm over all arrays together."""
    return math.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values()))


def _noisy(arrays: Arrays, deviation: float, rng: Noise) -> dict[str, np.ndarray]:
    """Added in float64, rounded once: float32 noise would be coarser where weights are large."""
    return {
        name: (np.asarray(arrays[name], np.float64) + deviation * rng.standard_normal(np.shape(arrays[name]))).astype(np.float32)
        for name in sorted(arrays)
    }
