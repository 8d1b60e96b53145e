"""What the user sets for secure aggregation, and what follows from it for a number of clients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kronos.errors import InputError

MIN_CLIENTS = 3  # of two clients, each knows the other's update from the mean; clients enforce this too
MIN_SURVIVORS = 2  # in a sum, unless the owner of a client wants more of them: federated/consent.py


@dataclass(frozen=True)
class SecureSettings:
    """Settings of secure rounds. Raises InputError for values that cannot hold.

    threshold: share of the asked clients that must be left at every stage, and of a client's share holders that open its secrets; more
        than one half, for with less a lying server could collect both kinds of share. Two thirds bear the loss of a third.
    min_clients: fewer asked than this is refused (at least 3).
    neighbours: masks are shared with this many clients (even; None: with all, the right choice below about a hundred clients).
    clip_range: bound of every value's change in one round, ±; None: from the arrays sent (`encoding.range_for`).
    weights: "examples" (weighted mean; the sum of the examples becomes known, none of the terms) or "equal" (differential privacy).
    max_weight: the most examples any client has; needed for "examples". From a table of counts: `encoding.weight_limit`.
    max_clipped: share of a client's values that may lie beyond clip_range, counted and reported; more is refused.
    max_refused: share of the asked clients that may refuse because of range or weight; more halts the round.
    max_error: bound on the mean's error from rounding, checked before (equal weights) and after (those that came) each round.
    """

    threshold: float = 2 / 3
    min_clients: int = MIN_CLIENTS
    neighbours: int | None = None
    clip_range: float | None = None
    weights: str = "examples"
    max_weight: int | None = None
    max_clipped: float = 0.0
    max_refused: float = 0.2
    max_error: float = 2e-5

    def __post_init__(self) -> None:
        even = self.neighbours is None or (self.neighbours >= 2 and self.neighbours % 2 == 0)
        limit = self.max_weight is not None and 1 <= self.max_weight < 1 << 40
        for name, holds, expected in (
            ("threshold", 0.5 < self.threshold <= 1, "more than 0.5 and at most 1"),
            ("min_clients", self.min_clients >= MIN_CLIENTS, f"at least {MIN_CLIENTS}: the mean of two tells each the other's update"),
            ("neighbours", even, "an even number of at least 2, or none for all"),
            (
                "clip_range",
                self.clip_range is None or 0 < self.clip_range < math.inf,
                "a positive number, or none to take it from the model",
            ),
            ("weights", self.weights in ("examples", "equal"), "examples or equal"),
            ("max_weight", limit or self.weights == "equal", "the most examples that any client has (weights: examples)"),
            ("max_clipped", 0 <= self.max_clipped < 1, "a share from 0 to less than 1"),
            ("max_refused", 0 <= self.max_refused < 1, "a share from 0 to less than 1"),
            ("max_error", self.max_error > 0, "a positive number"),
        ):
            if not holds:
                raise InputError(f"secure aggregation: {name} is {getattr(self, name)!r}; expected {expected}")

    def quorum(self, clients: int) -> int:
        """How many of `clients` must be left at each stage: the smallest number of updates that a mean can hold."""
        return max(MIN_SURVIVORS, clients // 2 + 1, math.ceil(self.threshold * clients - 1e-9))

    def share_threshold(self, clients: int) -> int:
        """How many shares open a secret when `clients` are asked."""
        return self.quorum(clients if self.neighbours is None else min(self.neighbours + 1, clients))
