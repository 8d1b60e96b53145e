"""The peer (a public checkout of upstream) runs in a child process of its own: only there is its folder on Python's path.

The parent sends one JSON line per call, {"do": name, ...}, and reads one JSON line back, so that both sides can be timed in
turns on the same machine. A peer module (`benchmarks.peer_loader` and so on) calls `serve` with the functions it offers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from kronos.errors import InputError, MissingFileError

from .common import ROOT


class Peer:
    """A child running `python -m benchmarks.<module>` with the checkout and its sub-folders importable. Use it in a `with` block."""

    def __init__(self, checkout: Path, module: str, *folders: str):
        if not (checkout / "model" / "kronos.py").is_file():
            raise MissingFileError(f"--peer {checkout}: there is no model/kronos.py in it; give a checkout of the public Kronos repository")
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}"],
            cwd=ROOT,
            env=peer_environment(checkout, *folders),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Have the child do something; returns its answer. Raises InputError if it broke down (its traceback is on stderr)."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise InputError(
                f"the peer broke down in {self.module}.{do}; its own error stands above. It needs its requirements (einops) installed here"
            )
        return json.loads(answer)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=120)  # its loader's workers end first; a busy machine takes its time


def peer_environment(checkout: Path, *folders: str) -> dict[str, str]:
    """This process's environment with the checkout, its `folders` and this repository on PYTHONPATH."""
    checkout = checkout.resolve()
    places = [str(checkout / folder) for folder in folders] + [str(checkout), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def serve(functions: dict[str, Callable[..., Any]]) -> None:
    """The child's end: answer until the parent closes the pipe. What upstream prints goes to stderr's place, not into the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(functions[call.pop("do")](**call)) + "\n")
        answers.flush()
