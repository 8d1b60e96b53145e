"""Work in a folder that is finished or leaves no trace: one run at a time, stopped by signals; after kill -9 the next run cleans up."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from finetune.engine.errors import Interrupted
from finetune.engine.signals import StopRequest
from kronos.errors import InputError
from kronos.files import explained

WORK, LOCK = ".kaggle_work", ".kaggle_lock"
_EVERY_S = 2.0


@contextmanager
def workplace(out: Path) -> Iterator[tuple[Path, StopRequest]]:
    """(an empty hidden folder inside `out`, the signals seen): the folder is removed at the end, however the block ends.

    What a killed run left is removed at the start. Raises InputError if `out` cannot be written, or another run works there.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    work, lock = out / WORK, out / LOCK
    with explained(out, "cannot write to folder"):
        out.mkdir(parents=True, exist_ok=True)
    refusal = "another run is preprocessing into this folder; wait for it, or give another --out"
    with StopRequest() as stop, only_one(out, LOCK, refusal):
        try:
            with explained(out, "cannot write to folder"):
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
            yield work, stop
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                lock.unlink()
            for folder in made:  # those that we made and nothing came into
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def only_one(folder: Path, lock: str, refusal: str) -> Iterator[None]:
    """Hold the lock file `lock` of a folder that exists; the system gives it up when the process ends, in whatever way.

    Raises InputError: `folder: refusal` where another run holds it, or the folder cannot be written.
    """
    with explained(folder, "cannot write to folder"):
        handle = open(folder / lock, "a")  # noqa: SIM115  held until the end
    with handle:
        _hold(handle, f"{folder}: {refusal}")
        yield


def _hold(handle: Any, refusal: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once there would find the other's open files in the way
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(refusal) from None


def go_on(stop: StopRequest, out: Path) -> None:
    """Raises Interrupted if a signal came."""
    if stop.requested:
        raise Interrupted(f"stopped by {stop.name}: {out} is as it was before; run the same command to start over")


@dataclass
class Pace:
    """Tells how far one part of the work is: a line that is rewritten in a terminal, else a line now and then."""

    what: str
    stop: StopRequest
    out: Path
    say: Callable[[str], Any]
    begin_s: float = field(default_factory=time.perf_counter)
    last_s: float = field(default_factory=time.perf_counter)

    def at(self, rows: int, share: float) -> None:
        """`rows` are done, `share` (0 to 1) of this part. Raises Interrupted if a signal came."""
        go_on(self.stop, self.out)
        now = time.perf_counter()
        if now - self.last_s < _EVERY_S or not rows:
            return
        self.last_s, took_s = now, now - self.begin_s
        left = f", about {took_s / share - took_s:.0f} s left" if share > 0.005 else ""
        text = f"{self.what}: {rows:,} rows ({share:.0%}), {rows / took_s:,.0f} rows/s{left}"
        if self.say is print and sys.stdout.isatty():
            print(f"\r{text:<100}", end="\n" if share >= 1 else "", flush=True)
        else:
            self.say(text)

    def done(self, rows: int) -> float:
        """Say the end of this part; returns the seconds it took."""
        took_s = time.perf_counter() - self.begin_s
        start = "\r" if self.say is print and sys.stdout.isatty() else ""
        self.say(f"{start}{f'{self.what}: {rows:,} rows in {took_s:.1f} s':<{100 if start else 0}}")
        return took_s


def peak_mb() -> float:
    """Most memory this process has held at once, in MB."""
    status = Path("/proc/self/status")  # Linux; getrusage would include the peak of whoever started us
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def warn_of_disk(out: Path, needed: int, say: Callable[[str], Any]) -> None:
    """Say if less than `needed` bytes are free where `out` is; an estimate is no reason to refuse."""
    free = shutil.disk_usage(out).free
    if free < needed:
        say(f"warning: {os.fspath(out)} has {free / 1e9:.1f} GB free, and about {needed / 1e9:.1f} GB will be needed while it is made")
