"""The terms of one round, as the server tells them and each client checks them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .encoding import Scale
from .errors import Refused
from .settings import MIN_CLIENTS

STAGES = ("setup", "share_keys", "check_shares", "masked_input", "agree", "unmask")
SETUP, SHARE_KEYS, CHECK_SHARES, MASKED_INPUT, AGREE, UNMASK = STAGES


@dataclass(frozen=True)
class Terms:
    """run, round: what the masks are bound to. clients: how many were asked. threshold: shares that open a secret.

    neighbours: how many clients each shares masks with; 0: all, and all must be shown one list of keys.
    clip, max_weight (0: equal weights), max_clipped: see SecureSettings. seed: of the rounding, which hides nothing and may be known.
    """

    run: int
    round: int
    clients: int
    threshold: int
    neighbours: int
    clip: float
    max_weight: int
    max_clipped: float
    seed: int

    def told(self) -> dict[str, Any]:
        """As fields of a request."""
        return asdict(self)

    @classmethod
    def heard(cls, told: Mapping[str, Any]) -> Terms:
        """The terms in a request. Raises Refused if a client may not agree to them."""
        try:
            terms = cls(**{f.name: told[f.name] for f in fields(cls)})
            whole = {"clip": int | float, "max_clipped": int | float}
            numbers = all(isinstance(getattr(terms, f.name), whole.get(f.name, int)) for f in fields(cls))
        except KeyError as error:
            raise Refused("protocol", f"the round's terms lack {error}") from error
        holds = (
            numbers
            and terms.clients >= MIN_CLIENTS
            and 2 <= terms.threshold <= terms.clients
            and 0 < terms.clip < math.inf
            and min(terms.neighbours, terms.max_weight) >= 0
            and 0 <= terms.max_clipped < 1
            and min(terms.run, terms.round, terms.seed) >= 0
        )
        if not holds:
            raise Refused("protocol", f"terms nobody may agree to: {terms}")
        return terms

    def digest(self, *shown: bytes) -> bytes:
        """32 bytes that are the same for clients who heard the same terms and were shown the same besides, and for nobody else."""
        parts = (json.dumps(asdict(self), sort_keys=True).encode(), *shown)
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()

    @property
    def scale(self) -> Scale:
        """How this round's numbers become words."""
        return Scale(self.clip, self.clients, self.max_weight)
