"""Keys of one round, between two clients: X25519 (RFC 7748) for what one seals for another (ChaCha20-Poly1305, RFC 8439) and confirms to
it (HMAC-SHA256, RFC 2104), ECDH on P-256 (NIST SP 800-56A) for masks, as the shares of a private key are numbers modulo that curve's order;
all by HKDF-SHA256 (RFC 5869) bound to run and round."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .errors import Refused

KEY_BYTES, MASK_KEY_BYTES = 32, 33  # public keys, those of masks as compressed points
_FIELD = (1 << 256) - (1 << 224) + (1 << 192) + (1 << 96) - 1  # P-256: y² = x³ - 3x + b modulo this
_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
NONCE_BYTES = 12
LABEL = b"kronos secure aggregation 1 "


@dataclass(frozen=True)
class Binding:
    """What every derived key depends on besides its secret: a key of another run or round is another key."""

    run: int
    round: int

    def derive(self, secret: bytes, purpose: str, *parts: bytes) -> bytes:
        """32 bytes for one purpose; `parts` say between whom."""
        told = b"".join(len(part).to_bytes(4, "big") + part for part in (purpose.encode(), _number(self.run), _number(self.round), *parts))
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=LABEL + told).derive(secret)


def new_private() -> bytes:
    """A fresh private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """The public key of a private one, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """The secret that both sides compute. Raises Refused for a public key that is none, or that makes every secret zero."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise Refused("protocol", f"the public key {public.hex()} is not one") from error


def mask_public_of(private: bytes) -> bytes:
    """The public key of a private one for masks (`shamir.new_secret`), 33 bytes."""
    return _mask_private(private).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def mask_key(binding: Binding, private: bytes, own: bytes, public: bytes, seen: bytes) -> bytes:
    """The key of the mask shared with the owner of `public`: the same from either side, where both were shown the same (`seen`).

    own: the public key of `private`. Raises Refused for a public key that is none.
    """
    return binding.derive(_x_of(private, public), "pairwise mask", *sorted((own, public)), seen)


def is_sum(factor: bytes, point: bytes, other: bytes, public: bytes) -> bool:
    """Whether factor·G is `point` plus or minus other·`public` on P-256 (points compressed, factors 32 bytes). Public numbers only.

    By x alone: those of the sum and of the difference of two points are the roots of one quadratic equation (Brier and Joye 2002).
    """
    try:
        one, two = _x(_mask_public(point)), int.from_bytes(_x_of(other, public), "big")
        sought = _x(_mask_private(factor).public_key())
    except (Refused, ValueError):
        return False
    middle = 2 * ((one + two) * (one * two - 3) + 2 * _B)
    last = (one * two + 3) ** 2 - 4 * _B * (one + two)
    return ((one - two) ** 2 * sought**2 - middle * sought + last) % _FIELD == 0


def _mask_private(private: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())


def _mask_public(public: bytes) -> ec.EllipticCurvePublicKey:
    if len(public) != MASK_KEY_BYTES:
        raise Refused("protocol", f"a public key of {len(public)} bytes; expected {MASK_KEY_BYTES}")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    except ValueError as error:
        raise Refused("protocol", f"the public key {public.hex()} is not one") from error


def _x_of(private: bytes, public: bytes) -> bytes:
    return _mask_private(private).exchange(ec.ECDH(), _mask_public(public))


def _x(public: ec.EllipticCurvePublicKey) -> int:
    return public.public_numbers().x


def seal(binding: Binding, private: bytes, public: bytes, source: int, target: int, plain: bytes, seen: bytes) -> bytes:
    """`plain` for the owner of `public` only, who was shown the same (`seen`), bound to round, sender and receiver: nonce, text, tag."""
    nonce = os.urandom(NONCE_BYTES)
    key, context = _channel(binding, private, public, source, target)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, context + seen)


def unseal(binding: Binding, private: bytes, public: bytes, source: int, target: int, sealed: bytes, seen: bytes) -> bytes:
    """What `seal` was given. Raises Refused if anything about it was changed, or its sender was shown anything else."""
    key, context = _channel(binding, private, public, source, target)
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context + seen)
    except (InvalidTag, ValueError) as error:
        raise Refused("protocol", f"the shares of client {source} do not open") from error


def confirm(binding: Binding, private: bytes, public: bytes, source: int, target: int, seen: bytes) -> bytes:
    """What only `source` can tell `target` (the owner of `public`): that it has seen this. 32 bytes."""
    return _confirmation(binding, private, public, source, target, seen).finalize()


def confirms(tag: bytes, binding: Binding, private: bytes, public: bytes, source: int, target: int, seen: bytes) -> bool:
    """Whether `tag` is `confirm`'s of `source` to `target` for this and nothing else. private: of one of both, public: the other's."""
    try:
        _confirmation(binding, private, public, source, target, seen).verify(tag)
    except InvalidSignature:
        return False
    return True


def _confirmation(binding: Binding, private: bytes, public: bytes, source: int, target: int, seen: bytes) -> HMAC:
    code = HMAC(binding.derive(agree(private, public), "confirmation", _number(source) + _number(target)), SHA256())
    code.update(seen)
    return code


def _channel(binding: Binding, private: bytes, public: bytes, source: int, target: int) -> tuple[bytes, bytes]:
    direction = _number(source) + _number(target)
    return binding.derive(agree(private, public), "sealed shares", direction), LABEL + direction


def _number(value: int) -> bytes:
    return int(value).to_bytes(16, "big", signed=True)
