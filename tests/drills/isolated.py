"""One case of bad input in a child process of its own: how it ended, what it wrote and where, how long and how much memory it took.

A reader may crash the interpreter, hang in C, or fill the memory; only another process can say so of it. A case may write to `out` in its
folder and nowhere else: an audit hook stops and notes every other write, every program it starts and every connection it opens.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kronos.errors import InputError
from tests.drills.common import Failed, expect

CPU_LIMIT_S = 5  # of its own processor time, so that a busy machine makes no hang of a slow reader
WALL_LIMIT_S = 45
MEMORY_MIB = 1024  # beyond what the process had before
LONGEST_MESSAGE = 6000  # characters: a person reads it
ALLOWED_MIB, PER_INPUT_MIB = 256, 45  # what a reader may take: so much, and so much more per MiB that it reads
_OUT_OF_MEMORY = re.compile("MemoryError|[Uu]nable to allocate|malloc of|bad_alloc|[Oo]ut of memory|can't allocate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate", "os.utime")
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.bind", "ctypes.dlopen")


@dataclass(frozen=True)
class Verdict:
    """How a case ended. kind: "accepted", or "refused" with our own message. seconds: of processor time. told: message or answer."""

    kind: str
    told: str
    seconds: float
    peak_mib: float


def judge(case: Callable[[], Any], place: Path, *, cpu_s: int = CPU_LIMIT_S, memory_mib: int = MEMORY_MIB) -> Verdict:
    """Run `case` in a child with `place` (made if missing): its working folder, home and temporary folder are canaries in there.

    Raises Failed for anything but an answer or one InputError: another exception, a wrong answer (the case raises Failed), a crash, a
    hang, a blow-up of memory, or a write outside place/out.
    """
    for name in ("out", "home", "tmp", "cwd"):
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / "canary").write_text("sings")
    before = _outside(place)
    reading, writing = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _child(case, place, writing, cpu_s, memory_mib)
    os.close(writing)
    answer = _answer(reading, began)
    if answer is None:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    code, seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    expect(answer is not None, f"hangs: still there after {WALL_LIMIT_S} s, with {seconds:.1f} s of processor time")
    expect(code != -signal.SIGXCPU, f"hangs: more than {cpu_s} s of processor time")
    expect(answer, f"the process died ({signal.Signals(-code).name if code < 0 else code})")
    found = json.loads(answer)
    expect(not found["elsewhere"], f"did what it may not: {'; '.join(found['elsewhere'][:5])}")
    changed = _outside(place) ^ before
    expect(not changed, f"touched files outside its folder: {sorted(changed)[:5]}")
    expect(found["kind"] in ("accepted", "refused"), f"{found['kind']}: {found['told'][-3000:]}")
    _check_message(found["kind"], found["told"])
    allowed = ALLOWED_MIB + PER_INPUT_MIB * _input_mib(place)
    expect(found["peak_mib"] <= allowed, f"took {found['peak_mib']:.0f} MiB of memory, where {allowed:.0f} are allowed")
    expect(not _OUT_OF_MEMORY.search(found["told"]), f"asked for more memory than it may have: {found['told'][:500]}")
    return Verdict(found["kind"], found["told"], seconds, found["peak_mib"])


def aside(work: Callable[[], Any]) -> None:
    """Do `work` in a forked child, so that nothing is computed in this process. Raises Failed with its traceback if it fails."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        told = b""
        try:
            work()
        except BaseException:
            told = traceback.format_exc().encode()
        finally:
            os.write(writing, told)
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    expect(not told and status == 0, f"could not be made (status {status}):\n{told.decode()}")


def _input_mib(place: Path) -> float:
    files = [path for name in ("in", "out") for path in (place / name).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / (1 << 20)


def _check_message(kind: str, told: str) -> None:
    if kind == "refused":
        expect(told.strip(), "an empty message")
        expect(len(told) <= LONGEST_MESSAGE, f"a message of {len(told):,} characters: {told[:200]} ...")
        odd = [character for character in told if not character.isprintable() and character != "\n"]
        expect(not odd, f"a message with control characters {set(odd)}, which a terminal obeys: {told[:300]!r}")


def _answer(reading: int, began: float) -> bytes | None:
    """What the child said, b"" if it died, None if it hangs."""
    pieces = []
    while (left := began + WALL_LIMIT_S - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            piece = os.read(reading, 1 << 16)
            if not piece:
                os.close(reading)
                return b"".join(pieces)
            pieces.append(piece)
    os.close(reading)
    return None


def _child(case: Callable[[], Any], place: Path, writing: int, cpu_s: int, memory_mib: int) -> None:
    noted: list[str] = []
    found: dict[str, Any] = {"kind": "fault", "told": ""}
    try:
        _settle(place, cpu_s)
        allowed = _confined(place, noted)
        _limit_memory(memory_mib)
        start = _peak_mib()
        try:
            found = {"kind": "accepted", "told": str(case() or "")}
        except InputError as error:
            found = {"kind": "refused", "told": str(error)}
        except Failed as error:
            found = {"kind": "wrong", "told": str(error)}
        except BaseException:
            found = {"kind": "fault", "told": traceback.format_exc()}
        allowed.clear()
        found["peak_mib"] = _peak_mib() - start
    finally:
        with suppress(OSError):
            told = json.dumps({**found, "elsewhere": noted}).encode()
            while told:
                told = told[os.write(writing, told) :]
        os._exit(0)


def _settle(place: Path, cpu_s: int) -> None:
    """Home, temporary and working folder of the child are canaries; what it prints goes nowhere."""
    sys.dont_write_bytecode = True
    pa.allocate_buffer(1)  # with the first one Arrow reserves a gigabyte of addresses: here, before they are limited
    faulthandler.disable()  # a crash is told by its signal
    os.environ.update(HOME=str(place / "home"), TMPDIR=str(place / "tmp"))
    os.chdir(place / "cwd")
    sys.stdout = sys.stderr = io.StringIO()
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory(memory_mib: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _confined(place: Path, noted: list[str]) -> list[str]:
    """From here on this process may change files in place/out only. Returns the list of guarded folders: cleared, nothing is guarded."""
    guarded = [os.path.realpath(place / "out")]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if guarded and (what := _forbidden(event, arguments, guarded[0])):
            noted.append(what)
            raise PermissionError(1, what)

    sys.addaudithook(watch)
    return guarded


def _forbidden(event: str, arguments: tuple[Any, ...], out: str) -> str:
    """What an audit event does that it may not, or nothing."""
    if event in _RUNS:
        return f"{event} {str(arguments)[:200]}"
    paths: tuple[Any, ...] = ()
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        paths = arguments[:1]
    elif event in _CHANGES:
        paths = arguments[:2] if event in ("os.rename", "os.symlink", "os.link") else arguments[:1]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((out + os.sep, "/dev/null", "/dev/shm/")) and real != out:
                return f"{event} {real[:300]!r}"
    return ""


def _outside(place: Path) -> set[tuple[str, int, int]]:
    """Everything in a case's folder apart from `out`, by name, size and time of its last change."""
    found = set()
    for folder, names, files in os.walk(place):
        if Path(folder) == place:
            names[:] = [name for name in names if name != "out"]
        for name in [*names, *files]:
            facts = os.lstat(os.path.join(folder, name))
            found.add((os.path.relpath(os.path.join(folder, name), place), facts.st_size if name in files else 0, facts.st_mtime_ns))
    return found
