"""Runs a Python file on several gloo ranks of this machine, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank: int = 0, size: int = 1, port: int = 0) -> dict[str, str]:
    ranks = (
        {}
        if size == 1
        else {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", **ranks}


def run_ranks(arguments: list[str], size: int, timeout_s: float = 120) -> list[subprocess.CompletedProcess]:
    """Run `python *arguments` on `size` ranks and wait for all of them."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, *arguments], env=environment(r, size, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for r in range(size)
    ]
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=timeout_s)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return done
