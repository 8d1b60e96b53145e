"""Mask streams: the ChaCha20 key stream (RFC 8439) read as little-endian 32-bit words.

One key makes one stream in its life (keys are fresh in every round), so the nonce is zero. The whole 256-bit key matters: there is no
seed in between that could be searched.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

CHUNK_WORDS = 1 << 18  # 1 MiB at a time: a mask never stands in memory as a whole
NONCE = bytes(16)


def add_stream(words: np.ndarray, key: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (-1) the stream of `key` to `words` [N] uint32 in place, modulo 2^32."""
    assert words.dtype == np.uint32 and sign in (1, -1)
    stream = Cipher(ChaCha20(key, NONCE), mode=None).encryptor()
    zeros = bytes(4 * min(CHUNK_WORDS, len(words)))
    change = np.add if sign == 1 else np.subtract
    for start in range(0, len(words), CHUNK_WORDS):
        part = words[start : start + CHUNK_WORDS]
        change(part, np.frombuffer(stream.update(zeros[: 4 * len(part)]), "<u4"), out=part)


def stream_words(key: bytes, count: int) -> np.ndarray:
    """The first `count` words of the stream of `key`, [count] uint32."""
    words = np.zeros(count, np.uint32)
    add_stream(words, key, 1)
    return words
