"""Processes that a benchmark starts: alone, or several as the ranks of one gloo world."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from kronos.errors import InputError

from .common import ROOT


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would set; nothing for a world of one."""
    if size == 1:
        return {}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_ranks(module: str, arguments: Sequence[str], size: int, environment: dict[str, str] | None = None, timeout_s: float = 900) -> None:
    """Run `python -m benchmarks.<module> *arguments` on `size` ranks and wait for all. Raises InputError, with its error, if one fails."""
    port, base = free_port(), environment or dict(os.environ)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            cwd=ROOT,
            env={**base, **rank_environment(r, size, port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(size)
    ]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=timeout_s)
            if process.returncode:
                raise InputError(f"benchmarks.{module} {' '.join(arguments)} failed:\n{error}")
    finally:
        for process in ranks:
            process.kill()
