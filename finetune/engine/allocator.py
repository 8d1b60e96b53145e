"""Memory that a step frees is kept for the next one.

glibc gives every large block back to the system as it is freed, and the system hands out each page anew, zeroed, at its first write: a
step of the predictor's mini size took 50,000 such page faults, an eighth of its time on a CPU; kept, it takes none.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt's parameters, see malloc.h
_NEVER = -1  # memory at the heap's end is not given back
_LARGEST = 1 << 30  # bytes; a block of this size still has pages of its own
_USUAL_MMAP, _USUAL_TRIM = 32 << 20, 64 << 20  # bytes; where glibc's own thresholds end up after a block of that size was freed

_depth = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with this process; at the end it is given back. Does nothing without glibc. May be nested."""
    global _depth
    libc = _glibc()
    if libc and _depth == 0:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST) or libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)  # some versions take 32 MiB at most
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if libc and _depth == 0:
            libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
            libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
            libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
