"""Valid files made invalid: what a bad disk, a cut connection, an editor and a liar do to them. Every change follows from the seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

_NUMBER = re.compile(rb"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_]{2,}")
_ODD_NUMBERS = (b"0", b"-1", b"1e999", b"-1e-999", b"nan", b"inf", b"-inf", b"9" * 40, b"1.8e308", b"0x10", b"1,5", b"--3")
_ODD_BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"\n\n",
    b"\r",
    b",,,",
    b"\x1b[2J",
    b"\xe2\x80\xa8",
    b"{",
    b"]",
    b": ",
    b"\t",
)
_LENGTHS = (0, 1, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)


def drawn(strategy: SearchStrategy[Any], number: int) -> Any:
    """One example of a strategy, the same for the same number: the last of a few, for the first ones are the simplest there are."""
    found: list[Any] = []

    @seed(number)
    @settings(max_examples=6, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def take(value: Any) -> None:
        found.append(value)

    take()
    return found[-1]


def _at(draw: random.Random, data: bytes, whole: bool = False) -> int:
    """A place in the data, half of the time near its beginning, where headers are."""
    end = len(data) if whole or draw.random() < 0.5 else min(len(data), 200)
    return draw.randrange(end) if end else 0


def _piece(draw: random.Random, data: bytes) -> slice:
    start = _at(draw, data)
    return slice(start, start + min(len(data) - start, draw.choice((1, 4, 8, 64, 512, 4096))))


def flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if changed:
            changed[_at(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut_off(draw: random.Random, data: bytes) -> bytes:
    return data[: _at(draw, data, whole=True)]


def leave_out(draw: random.Random, data: bytes) -> bytes:
    piece = _piece(draw, data)
    return data[: piece.start] + data[piece.stop :]


def repeat(draw: random.Random, data: bytes) -> bytes:
    piece = _piece(draw, data)
    return data[: piece.stop] + data[piece] * draw.choice((1, 1, 3, 50)) + data[piece.stop :]


def exchange(draw: random.Random, data: bytes) -> bytes:
    first, second = sorted((_piece(draw, data), _piece(draw, data)), key=lambda piece: piece.start)
    if first.stop > second.start:
        return flip_bits(draw, data)
    return data[: first.start] + data[second] + data[first.stop : second.start] + data[first] + data[second.stop :]


def insert(draw: random.Random, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + (draw.choice(_ODD_BYTES) if draw.random() < 0.8 else draw.randbytes(draw.choice((1, 16, 300)))) + data[at:]


def zero(draw: random.Random, data: bytes) -> bytes:
    piece = _piece(draw, data)
    return data[: piece.start] + bytes(len(data[piece])) + data[piece.stop :]


def lie_about_length(draw: random.Random, data: bytes) -> bytes:
    """Another 4- or 8-byte number, little end first, at the beginning or somewhere."""
    size, at = draw.choice((4, 8)), draw.choice((0, 0, 4, 8, _at(draw, data, whole=True)))
    lie = (draw.choice(_LENGTHS) % (1 << 8 * size)).to_bytes(size, "little")
    return data[:at] + lie + data[at + size :]


def change_number(draw: random.Random, data: bytes) -> bytes:
    """Another number where one is written in digits."""
    found = list(_NUMBER.finditer(data[: 1 << 16]))
    if not found:
        return flip_bits(draw, data)
    chosen = draw.choice(found[:20] if draw.random() < 0.3 else found)
    new = draw.choice(_ODD_NUMBERS) if draw.random() < 0.6 else str(draw.choice(_LENGTHS)).encode()
    return data[: chosen.start()] + new + data[chosen.end() :]


def change_word(draw: random.Random, data: bytes) -> bytes:
    """A word of the file in the place of another."""
    found = list(_WORD.finditer(data[: 1 << 16]))
    if len(found) < 2:
        return flip_bits(draw, data)
    chosen, other = draw.sample(found, 2)
    return data[: chosen.start()] + draw.choice((other[0], b"", b"null", b"[]", b"true", b"\xc3\xa9")) + data[chosen.end() :]


KINDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(flip_bits, cut_off, leave_out, repeat, exchange, insert, zero, lie_about_length),
    *(change_number, change_number, change_word),
)


def mutated(draw: random.Random, data: bytes) -> bytes:
    """`data` after one to three changes; now and then nothing of it is left."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(KINDS)(draw, data)
    return data if draw.random() < 0.98 else draw.choice((b"", draw.randbytes(200), b"\0" * 1000))
