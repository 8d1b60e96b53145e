"""Keeps the processes of a federation alive: starts them, starts again what dies, ends them all.

    python -m federated.supervisor FOLDER        (what `deploy.py up` and `join` leave running)

FOLDER/processes.json lists what to run. FOLDER/supervisor.pid and FOLDER/supervisor.json say what runs. Every process carries the folder
in its environment, and the supervisor adopts orphans, so that none is lost however deep Flower starts it: `members` finds them all.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from kronos.errors import InputError

FOLDER_MARK, NAME_MARK = "KRONOS_FEDERATION_FOLDER", "KRONOS_FEDERATION_PROCESS"
SPECS, STATE, PID = FILES = "processes.json", "supervisor.json", "supervisor.pid"
_SETTLED_S = 60.0  # a process that lived this long is no crash loop: the next restart comes at once
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Spec:
    """A process to keep alive. arguments: argv, no shell. environment: besides the supervisor's own. log: receives stdout and stderr."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    log: str
    folder: str


@dataclass
class Child:
    """A process and its history. pause_s: wait before the next start, doubled by each early death."""

    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    restarts: int = -1  # the first start is none
    started: float = 0.0
    pause_s: float = 0.0
    exit_codes: list[int] = field(default_factory=list)


class Supervisor:
    """Runs the processes of one folder until told to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self.stopping = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        _adopt_orphans()
        try:
            while not self.stopping:
                self._read()
                changed = [self._tend(child) for child in self.children]
                if any(changed):
                    self._tell()
                self._bury()
                time.sleep(0.2)
        finally:
            end_all(self.folder, keep={os.getpid()})
            end = time.monotonic() + 2.0
            while psutil.Process().children() and time.monotonic() < end:
                self._bury()
                time.sleep(0.05)
            (self.folder / PID).unlink(missing_ok=True)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _read(self) -> None:
        """Takes up what was added to the list."""
        known = {child.spec.name for child in self.children}
        specs = [Spec(**spec) for spec in json.loads((self.folder / SPECS).read_text())]
        self.children += [Child(spec) for spec in specs if spec.name not in known]

    def _tend(self, child: Child) -> bool:
        """Starts what is not running. Returns whether anything changed."""
        if child.process is None:
            if time.monotonic() >= child.started + child.pause_s:
                self._start(child)
                return True
            return False
        code = child.process.poll()
        if code is None:
            return False
        lived = time.monotonic() - child.started
        child.pause_s = 0.0 if lived > _SETTLED_S else min(_LONGEST_PAUSE_S, max(1.0, 2 * child.pause_s))
        child.exit_codes = [*child.exit_codes, code][-10:]
        child.process, child.started = None, time.monotonic()
        end_all(self.folder, name=child.spec.name, grace_s=2.0)  # its helpers, before a new one meets them
        return True

    def _start(self, child: Child) -> None:
        marks = {FOLDER_MARK: str(self.folder), NAME_MARK: child.spec.name}
        with open(child.spec.log, "ab") as log:
            child.process = subprocess.Popen(
                child.spec.arguments,
                env={**os.environ, **child.spec.environment, **marks},
                cwd=child.spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.restarts += 1
        child.started = time.monotonic()

    def _bury(self) -> None:
        """Reaps adopted processes that have ended; its own it hears of through Popen."""
        own = set() if self.stopping else {child.process.pid for child in self.children if child.process}
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)

    def _tell(self) -> None:
        rows = [
            {
                "name": child.spec.name,
                "pid": child.process.pid if child.process else None,
                "restarts": max(0, child.restarts),
                "exit_codes": child.exit_codes,
            }
            for child in self.children
        ]
        write_json(self.folder / STATE, rows)


def start(folder: Path, specs: list[Spec]) -> None:
    """Writes the list and leaves a supervisor running in the background, with its log in supervisor.log."""
    write_json(folder / SPECS, [asdict(spec) for spec in specs])
    with open(folder / "logs" / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "federated.supervisor", str(folder)],
            env={**os.environ, FOLDER_MARK: str(folder), NAME_MARK: "supervisor"},
            cwd=Path(__file__).resolve().parents[1],  # where the module is found, installed or not
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / PID).write_text(str(process.pid))


def add(folder: Path, specs: list[Spec]) -> None:
    """More processes for the supervisor of this folder. Raises InputError for a name that is taken."""
    present = json.loads((folder / SPECS).read_text())
    if taken := {spec["name"] for spec in present} & {spec.name for spec in specs}:
        raise InputError(f"{', '.join(sorted(taken))} runs in {folder} already; choose another name")
    write_json(folder / SPECS, [*present, *map(asdict, specs)])


def alive(folder: Path) -> bool:
    """Whether a supervisor runs for this folder."""
    return any(_mark(process, NAME_MARK) == "supervisor" for process in members(folder))


def state(folder: Path) -> list[dict[str, object]]:
    """What the supervisor last wrote of each process: name, pid (None while it waits to start again), restarts, exit_codes."""
    path = folder / STATE
    return json.loads(path.read_text()) if path.is_file() else []


def stop(folder: Path, grace_s: float = 15.0) -> None:
    """Ends the supervisor, which ends the rest; what is left after that is ended by force."""
    supervisors = [process for process in members(folder) if _mark(process, NAME_MARK) == "supervisor"]
    for process in supervisors:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _wait_for(supervisors, grace_s)
    end_all(folder)


def members(folder: Path, name: str | None = None) -> list[psutil.Process]:
    """All living processes of the folder (of the process `name` only), however they were started.

    Those whose environment has the mark, and their descendants: Flower's SuperExec hides its environment.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if _mark(process, FOLDER_MARK) == str(folder) and name in (None, _mark(process, NAME_MARK)):
            found[process.pid] = process
            with contextlib.suppress(psutil.Error):
                found |= {below.pid: below for below in process.children(recursive=True) if below.status() != psutil.STATUS_ZOMBIE}
    return list(found.values())


def end_all(folder: Path, *, name: str | None = None, keep: set[int] = frozenset(), grace_s: float = 5.0) -> None:
    """Asks the processes of a folder to end, and kills those that have not after `grace_s`."""
    for final in (False, True):
        processes = [process for process in members(folder, name) if process.pid not in keep]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if final else process.terminate()
        _wait_for(processes, grace_s)


def _wait_for(processes: list[psutil.Process], timeout_s: float) -> None:
    """Until none of them lives. A process that has ended and was not yet reaped by its parent is no longer alive."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and any(_lives(process) for process in processes):
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_json(path: Path, content: object) -> None:
    """Atomically: a reader sees the old or the new."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1))
    draft.replace(path)


def _adopt_orphans() -> None:
    """Linux: what a dead child leaves behind becomes the supervisor's own child. Elsewhere the mark in the environment has to do."""
    if sys.platform == "linux":
        set_child_subreaper = 36  # linux/prctl.h
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _mark(process: psutil.Process, key: str) -> str | None:
    try:
        environment: Mapping[str, str] = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):  # another user's, or gone
        return None
    return environment.get(key)


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1])).run()
