"""Which updates are let into the mean. Runs before any strategy: Flower's mean passes on anything, its median still a NaN.

A sign-flipped update of honest size looks like any other here; against that there are median, trimmed-mean and krum (`enough_clients`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from federated.privacy import Arrays, difference, norm_of
from federated.update import Update
from kronos.errors import InputError


@dataclass(frozen=True)
class Rules:
    """What an update must keep to.

    max_norm: largest norm of the change, None for no limit; with clipping on clients, `noise_bound` of the clipping norm and the noise.
    max_change: largest change of a single weight. max_examples: more samples than this is a bid for the whole mean, None for no limit.
    """

    max_norm: float | None = None
    max_change: float = 1e4
    max_examples: int | None = None


def accept(update: Update, base: Arrays, rules: Rules) -> str | None:
    """None if the update may enter the mean, else why not. base: the global weights by name that the client started from."""
    if isinstance(update.examples, bool) or not isinstance(update.examples, int) or update.examples < 1:
        return f"num-examples {update.examples!r}: expected a whole number of at least 1"
    if rules.max_examples is not None and update.examples > rules.max_examples:
        return f"num-examples {update.examples} above the {rules.max_examples} that its partition can have"
    for name, value in update.metrics.items():
        if not math.isfinite(value):
            return f"metric {name!r} is {value}"
    for name, array in update.arrays.items():
        if np.asarray(array).dtype.kind != "f":
            return f"array {name!r} is of type {np.asarray(array).dtype}, expected float32"
    try:
        deltas = difference(update.arrays, base)
    except ValueError as error:
        return str(error)
    return _too_large(deltas, rules)


def _too_large(deltas: Arrays, rules: Rules) -> str | None:
    for name, delta in deltas.items():
        largest = float(np.max(np.abs(delta), initial=0.0))
        if not math.isfinite(largest):
            return f"array {name!r} holds values that are not finite"
        if largest > rules.max_change:
            return f"array {name!r} changed by {largest:.3g}, above {rules.max_change:g}"
    norm = norm_of(deltas)
    if rules.max_norm is not None and norm > rules.max_norm:
        return f"the change has norm {norm:.3g}, above {rules.max_norm:.3g}"
    return None


def outliers(updates: Mapping[int, Update], base: Arrays, factor: float = 10.0) -> dict[int, str]:
    """Of updates by client that `accept` let pass, those whose change is more than `factor` times the round's median, with the reason.

    Catches what is huge beside the others while small beside the weights. Needs three clients: of two nobody can say which is odd.
    """
    if len(updates) < 3:
        return {}
    norms = {client: norm_of(difference(update.arrays, base)) for client, update in updates.items()}
    middle = float(np.median(list(norms.values())))
    limit = factor * middle
    return {
        client: f"the change has norm {norm:.3g}, {norm / middle:.0f} times the median of the round (limit {factor:g} times)"
        for client, norm in norms.items()
        if middle > 0 and norm > limit
    }


def noise_bound(clip: float, deviation: float, size: int) -> float:
    """The norm that a clipped update of `size` numbers plus noise of this deviation exceeds less than once in 10⁹.

    Laurent and Massart 2000, lemma 1.
    """
    tail = 21.0  # e⁻²¹ < 10⁻⁹
    return clip + deviation * math.sqrt(size + 2 * math.sqrt(size * tail) + 2 * tail)


def version_mismatch(client: str, expected: str) -> str | None:
    """None if the client's version is the expected one (or none is expected), else the reason to refuse it."""
    if not expected or client == expected:
        return None
    return f"client-version {client!r}, expected {expected!r}: update that client, or set expected-version"


def enough_clients(strategy: str, clients: int, malicious: int, *, secure: bool = False) -> None:
    """Raises InputError where median, trimmed-mean or krum cannot bound `malicious` of `clients`, or cannot see single updates.

    Median and trimmed mean need an honest majority, 2f + 1 clients; krum 2f + 3 (Blanchard et al. 2017, proposition 1).
    """
    need = {"median": 2 * malicious + 1, "trimmed-mean": 2 * malicious + 1, "krum": 2 * malicious + 3}.get(strategy)
    if need is None:
        return
    if secure:
        raise InputError(
            f"strategy={strategy} needs single updates and secure=true hides them: choose one of the two; "
            "what bounds secure updates is clipping on clients (dp-max-norm)"
        )
    if clients < need:
        raise InputError(f"strategy={strategy} withstands {malicious} bad clients from {need} clients on; this run has {clients}")
