"""Shamir's secret sharing (CACM 1979) of 32-byte secrets, over the integers modulo the order of the curve P-256 (NIST SP 800-186), so
that a secret may be a private key of that curve and `proofs` can tie its shares to the public one.

A share is the point's number (2 bytes) and its value (32 bytes). Any `threshold` shares give the secret; fewer fit every secret equally
well.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
NUMBER_BYTES, VALUE_BYTES = 2, 32
SHARE_BYTES = NUMBER_BYTES + VALUE_BYTES


def new_secret() -> bytes:
    """A fresh secret, 32 bytes, from 1 to ORDER - 1."""
    return packed(1 + secrets.randbelow(ORDER - 1))


def polynomial(secret: bytes, threshold: int) -> list[int]:
    """`threshold` coefficients, lowest first, at random but for the secret, which is the value at 0."""
    start = int.from_bytes(secret, "big")
    assert len(secret) == VALUE_BYTES and start < ORDER and threshold >= 1
    return [start, *(secrets.randbelow(ORDER) for _ in range(threshold - 1))]


def shares_of(coefficients: Sequence[int], count: int) -> list[bytes]:
    """The shares with the numbers 1 to `count`."""
    assert len(coefficients) <= count < 1 << (8 * NUMBER_BYTES)
    return [number.to_bytes(NUMBER_BYTES, "big") + packed(value_at(coefficients, number)) for number in range(1, count + 1)]


def combine(shares: Iterable[bytes], threshold: int) -> bytes:
    """The secret of at least `threshold` shares. Raises ValueError for too few or doubled ones; a damaged one gives another secret."""
    points = {int.from_bytes(share[:NUMBER_BYTES], "big"): int.from_bytes(share[NUMBER_BYTES:], "big") for share in shares}
    if len(points) < threshold or 0 in points:
        raise ValueError(f"{len(points)} different shares cannot open a secret of threshold {threshold}")
    chosen = sorted(points)[:threshold]
    secret = 0
    for x in chosen:  # Lagrange's interpolation at zero
        above = below = 1
        for other in chosen:
            if other != x:
                above, below = above * other % ORDER, below * (other - x) % ORDER
        secret = (secret + points[x] * above * pow(below, -1, ORDER)) % ORDER
    return packed(secret)


def value_at(coefficients: Sequence[int], x: int) -> int:
    """A polynomial's value, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % ORDER
    return value


def packed(number: int) -> bytes:
    """As 32 bytes."""
    return number.to_bytes(VALUE_BYTES, "big")
