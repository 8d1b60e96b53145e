"""Shamir's secret sharing (CACM 1979) of 32-byte secrets, over the integers modulo the smallest prime above 2^256.

A share is the point's number (2 bytes) and its value (33 bytes). Any `threshold` shares give the secret; fewer fit every secret equally
well.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

PRIME = (1 << 256) + 297
SECRET_BYTES, NUMBER_BYTES, VALUE_BYTES = 32, 2, 33
SHARE_BYTES = NUMBER_BYTES + VALUE_BYTES


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares of `secret` (32 bytes), of which any `threshold` open it."""
    assert len(secret) == SECRET_BYTES and 1 <= threshold <= count < 1 << (8 * NUMBER_BYTES)
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [
        number.to_bytes(NUMBER_BYTES, "big") + _value(polynomial, number).to_bytes(VALUE_BYTES, "big") for number in range(1, count + 1)
    ]


def combine(shares: Iterable[bytes], threshold: int) -> bytes:
    """The secret of at least `threshold` shares. Raises ValueError for too few, doubled or damaged ones."""
    points = {int.from_bytes(share[:NUMBER_BYTES], "big"): int.from_bytes(share[NUMBER_BYTES:], "big") for share in shares}
    if len(points) < threshold or 0 in points:
        raise ValueError(f"{len(points)} different shares cannot open a secret of threshold {threshold}")
    chosen = sorted(points)[:threshold]
    secret = 0
    for x in chosen:  # Lagrange's interpolation at zero
        above = below = 1
        for other in chosen:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        secret = (secret + points[x] * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(polynomial: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value
