"""Shares that show that they belong together: whoever is dealt one checks it at once, and whoever is handed one later checks it again.

The dealer of the polynomial f draws another, g, of the same degree, and publishes
    hashes        of each holder's number, f and g there: what it dealt is fixed from here on
    point         for a private key only: g(0)·G on the curve P-256, G its base point
    coefficients  of c·f + g, with the challenge c drawn by a hash of all that stands before it
The holder of f(x) computes g(x) = (c·f + g)(x) - c·f(x) and compares the hash. Shares that fit lie on one polynomial of that degree but for
a chance of 1 in 2^256 for each challenge and set of holders tried, for only one c makes others fit; g is used once and uniform, so that
c·f + g says nothing of f (Baghery, "Π: A Unified Framework for Computational Verifiable Secret Sharing", IACR ePrint 2023/1669, with hashes
as commitments; the challenge by Fiat and Shamir). That f(0) is the private key is Schnorr's identification: (c·f + g)(0)·G is the point
plus c times the public key, compared by their x alone, hence up to the key's sign, on which no mask hangs (Renes and Smith, "qDSA", 2017).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from . import keys, shamir

HASH_BYTES = 32
LABEL = b"kronos secure aggregation 1 shares "


@dataclass(frozen=True)
class Proof:
    """What a dealer publishes, read. context: what it is bound to: of which secret of which client, in which round."""

    context: bytes
    hashes: Sequence[bytes]
    challenge: int
    coefficients: Sequence[int]

    @classmethod
    def read(cls, data: bytes, threshold: int, context: bytes, public: bytes = b"") -> Proof:
        """Of secrets of this threshold; public: the key (`keys.MASK_KEY_BYTES`) whose private half was shared, b"" for another secret.

        Raises ValueError for what is no such proof.
        """
        length = len(data) - len(public) - threshold * shamir.VALUE_BYTES  # a point is as long as a public key
        if length < threshold * HASH_BYTES or length % HASH_BYTES:
            raise ValueError(f"a proof of {len(data)} bytes for a threshold of {threshold}")
        start, tail = data[: length + len(public)], data[length + len(public) :]
        hashes = [data[at : at + HASH_BYTES] for at in range(0, length, HASH_BYTES)]
        coefficients = [int.from_bytes(tail[at : at + shamir.VALUE_BYTES], "big") for at in range(0, len(tail), shamir.VALUE_BYTES)]
        if max(coefficients) >= shamir.ORDER:
            raise ValueError("a proof whose numbers are out of range")
        challenge = _challenge(context, start, public)
        if public and not keys.is_sum(shamir.packed(coefficients[0]), start[length:], shamir.packed(challenge), public):
            raise ValueError("a proof of shares of another key than the public one")
        return cls(context, hashes, challenge, coefficients)

    def fits(self, share: bytes, number: int) -> bool:
        """Whether `share` is what its dealer gave to the holder of this number, and belongs to the others."""
        if len(share) != shamir.SHARE_BYTES or not 1 <= number <= len(self.hashes):
            return False
        value = int.from_bytes(share[shamir.NUMBER_BYTES :], "big")
        blind = (shamir.value_at(self.coefficients, number) - self.challenge * value) % shamir.ORDER
        right = int.from_bytes(share[: shamir.NUMBER_BYTES], "big") == number and value < shamir.ORDER
        return right and _hash(self.context, share, blind) == self.hashes[number - 1]


def deal(secret: bytes, threshold: int, count: int, context: bytes, public: bytes = b"") -> tuple[list[bytes], bytes]:
    """`count` shares of a secret, of which any `threshold` open it, and their proof. context, public: see `Proof.read`."""
    polynomial, blind = shamir.polynomial(secret, threshold), shamir.polynomial(shamir.new_secret(), threshold)
    shares = shamir.shares_of(polynomial, count)
    start = b"".join(_hash(context, share, shamir.value_at(blind, number)) for number, share in enumerate(shares, 1))
    if public:
        start += keys.mask_public_of(shamir.packed(blind[0]))
    challenge = _challenge(context, start, public)
    sums = [(challenge * own + other) % shamir.ORDER for own, other in zip(polynomial, blind, strict=True)]
    return shares, start + b"".join(map(shamir.packed, sums))


def _hash(context: bytes, share: bytes, blind: int) -> bytes:
    return hashlib.sha256(LABEL + len(context).to_bytes(4, "big") + context + share + shamir.packed(blind)).digest()


def _challenge(context: bytes, start: bytes, public: bytes) -> int:
    told = b"".join(len(part).to_bytes(4, "big") + part for part in (context, start, public))
    return 1 + int.from_bytes(hashlib.sha512(LABEL + b"challenge " + told).digest(), "big") % (shamir.ORDER - 1)
