"""Runs a plan's jobs as processes: some at a time, each with its own GPUs or threads, log, time limit and exit code."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from finetune.engine.command import EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED
from finetune.engine.signals import StopRequest
from finetune.engine.torchrun import true_code
from finetune.jobs import Job
from finetune.jobs_state import BLOCKED, DONE, FAILED, INTERRUPTED, RUNNING, WAITING, RunState
from kronos.files import explained

GRACE_S = 300.0  # to save after SIGTERM: a step and a checkpoint of a large model
_POLL_S = 0.1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TORCHRUN = "] failed (exitcode: "  # in the line that begins torchrun's account
_STOPPED = (FAILED, INTERRUPTED, BLOCKED)  # states that leave those who wait without what they need


@dataclass(frozen=True)
class Slot:
    """What one worker has for itself. threads: of the CPU, per process; 0: torch's choice."""

    gpus: tuple[str, ...] = ()
    threads: int = 0


def slots(mode: str, workers: int, gpus: Sequence[str], cores: int) -> list[Slot]:
    """One slot per job that may run at a time: as many GPUs each as go evenly (at least one: more workers queue), or a share of the cores.

    The share depends on the number of workers only, not on that of the jobs: a job computes the same beside others and alone.
    """
    if mode == "sequential":
        return [Slot(tuple(gpus), cores // len(gpus) or 1 if gpus else 0)]
    if not gpus:
        return [Slot((), max(1, cores // workers))] * workers
    count = min(workers, len(gpus))
    each = len(gpus) // count
    return [Slot(tuple(gpus[i * each : (i + 1) * each]), max(1, cores // (count * each))) for i in range(count)]


def command_of(job: Job, slot: Slot) -> list[str]:
    """The whole command of a job in a slot: under torchrun where it gets several GPUs."""
    ranks = len(slot.gpus) if job.ranks and job.on_gpu else 1
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    changes = list(job.overrides)
    if slot.threads and not slot.gpus and not 0 < job.cpu_threads <= slot.threads:
        changes.append(f"device.cpu_threads={slot.threads}")
    return [*start, *job.command, *(["--resume"] if job.resume else []), *(["--set", *changes] if changes else [])]


def environment_of(job: Job, slot: Slot) -> dict[str, str]:
    """Variables of a job's process, in place of the trainer's own."""
    gpus = slot.gpus if job.ranks else slot.gpus[:1]
    set_here = {"CUDA_VISIBLE_DEVICES": ",".join(gpus) if job.on_gpu else "", "PYTHONUNBUFFERED": "1"}
    if slot.threads:
        set_here["OMP_NUM_THREADS"] = str(slot.threads)
    set_here["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(GRACE_S))  # torchrun kills ranks that take longer to save; its default is 30 s
    return {**os.environ, **set_here}


class Watcher(Protocol):
    """Shows what happens."""

    def changed(self, job: Job, state: str, reason: str) -> None: ...
    def said(self, text: str) -> None: ...
    def tick(self) -> None: ...


@dataclass
class _Worker:
    """A job that runs."""

    job: Job
    slot: Slot
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float  # monotonic
    wall: float  # seconds since 1970
    log_from: int  # where in the log its output begins, in bytes
    stop_at: float | None = None  # monotonic: when it is killed
    why: str = ""  # why it was asked to stop


class Runner:
    """Runs jobs until all are done, failed or blocked, or until a signal asks to stop."""

    def __init__(
        self,
        jobs: Sequence[Job],
        places: Sequence[Slot],
        state: RunState,
        watcher: Watcher,
        *,
        time_limit_s: float = 0.0,
        grace_s: float = GRACE_S,
        keep_open: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> None:
        """time_limit_s: of each job; 0: none. grace_s: from SIGTERM to SIGKILL. keep_open: descriptors that workers inherit (locks)."""
        self.jobs, self.free, self.state, self.watcher = list(jobs), list(places), state, watcher
        self.time_limit_s, self.grace_s, self.keep_open, self.cwd = time_limit_s, grace_s, tuple(keep_open), cwd
        self.active: list[_Worker] = []
        self.stopping = False

    def run(self) -> int:
        """Returns 0 if all are done, 75 if interrupted, else 1. Whatever happens, no worker outlives this call."""
        with StopRequest() as stop:
            try:
                while True:
                    self._reap()
                    if stop.requested and not self.stopping:
                        self._stop_all(stop.name)
                    self._enforce()
                    if not self.stopping:
                        self._start_ready()
                    self.watcher.tick()
                    if not self.active:
                        break
                    time.sleep(_POLL_S)
            finally:
                self._end_all()
        return self._exit_code()

    def _exit_code(self) -> int:
        states = {self.state.of(job.name) for job in self.jobs}
        if states <= {DONE}:
            return EXIT_DONE
        return EXIT_FAULT if FAILED in states and not self.stopping else EXIT_INTERRUPTED

    # ------------------------------------------------------------------ starting

    def _start_ready(self) -> None:
        for job in self.jobs:
            if self.state.of(job.name) != WAITING:
                continue
            lost = [need for need in job.needs if self.state.of(need) in _STOPPED]
            if lost:
                self._change(job, BLOCKED, f"needs {lost[0]}, which is {self.state.of(lost[0])}")
            elif self.free and all(self.state.of(need) == DONE for need in job.needs):
                self._start(job, self.free.pop(0))

    def _start(self, job: Job, slot: Slot) -> None:
        command, path = command_of(job, slot), self.state.log(job)
        attempts = self.state.jobs[job.name]["attempts"] + 1
        with explained(path):
            log = open(path, "ab" if attempts > 1 else "wb")  # noqa: SIM115  closed when the job has ended
            gpus = f"  CUDA_VISIBLE_DEVICES={','.join(slot.gpus)}" if slot.gpus else ""
            log.write(f"$ {' '.join(command)}{gpus}  # {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            log_from = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment_of(job, slot),
            cwd=self.cwd,
            **_apart(self.keep_open),
        )
        self.active.append(_Worker(job, slot, process, log, time.monotonic(), time.time(), log_from))
        where = f"GPU {', '.join(slot.gpus)}" if slot.gpus and job.on_gpu else "CPU"
        self._change(job, RUNNING, where, attempts=attempts, pid=process.pid, command=command, gpus=list(slot.gpus), threads=slot.threads)

    # ------------------------------------------------------------------ ending

    def _reap(self) -> None:
        for worker in [one for one in self.active if one.process.poll() is not None]:
            self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        self.active.remove(worker)
        worker.log.close()
        _kill_group(worker.process)  # ranks or threads that outlived their leader
        self.free.insert(0, worker.slot)
        told: list[str] = []
        code = self._true_code(worker, told)
        state, reason = self._judged(worker, code, told)
        seconds = self.state.jobs[worker.job.name]["seconds"] + time.monotonic() - worker.started
        self._change(worker.job, state, reason, code=code, seconds=round(seconds, 1), pid=None)

    def _true_code(self, worker: _Worker, told: list[str]) -> int:
        """torchrun ends with 1 whatever its ranks ended with: then the stage's status.json knows, or torchrun's report in the log.

        told: takes what is to be said of ranks.
        """
        code = worker.process.returncode
        if code != EXIT_FAULT:
            return code
        status, log = worker.job.folder / "status.json", self.state.log(worker.job)
        return true_code(code, [status], worker.wall, log, told.append, log_from=worker.log_from)

    def _judged(self, worker: _Worker, code: int, told: Sequence[str]) -> tuple[str, str]:
        if code == EXIT_DONE:
            return DONE, ""
        if worker.why and worker.why != "stopping":
            return FAILED, worker.why
        if worker.why or code == EXIT_INTERRUPTED:
            killed = code == -signal.SIGKILL
            return INTERRUPTED, "killed: it did not save in time" if killed else "saved: --resume goes on from there"
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            hint = ": killed from outside, or the machine ran out of memory" if code == -signal.SIGKILL else ""
            advice = f"; against that: {worker.job.memory_advice}" if hint and worker.job.memory_advice else ""
            return FAILED, f"{name}{hint}{advice}"
        killed = next((text for text in told if "signal" in text), "")
        return FAILED, killed or last_words(self.state.log(worker.job)) or f"exit code {code}"

    def _stop_all(self, name: str) -> None:
        self.stopping = True
        for worker in self.active:
            self._ask(worker, "stopping")
        if self.active:
            names = ", ".join(worker.job.name for worker in self.active)
            self.watcher.said(f"{name}: waiting until {names} saved, {self.grace_s:.0f} s at most; --resume goes on from there")

    def _ask(self, worker: _Worker, why: str) -> None:
        if worker.stop_at is None:
            worker.why, worker.stop_at = why, time.monotonic() + self.grace_s
            worker.process.terminate()  # the leader only: torchrun passes it on to its ranks

    def _enforce(self) -> None:
        now = time.monotonic()
        for worker in self.active:
            if self.time_limit_s and now - worker.started > self.time_limit_s and worker.stop_at is None:
                limit = f"its time limit of {self.time_limit_s:g} s"
                self.watcher.said(f"{worker.job.name} is at {limit}: waiting until it saved, {self.grace_s:.0f} s at most")
                self._ask(worker, f"stopped at {limit}; --resume goes on from what it had saved")
            if worker.stop_at is not None and now > worker.stop_at:
                _kill_group(worker.process)

    def _end_all(self) -> None:
        """Nothing runs on, even if the trainer itself fails (a full disk, a fault of ours)."""
        for worker in self.active:
            self._ask(worker, "stopping")
        while self.active:
            self._enforce()
            for worker in [one for one in self.active if one.process.poll() is not None]:
                self.active.remove(worker)
                worker.log.close()
                _kill_group(worker.process)
            time.sleep(_POLL_S)

    def _change(self, job: Job, state: str, reason: str = "", **facts: Any) -> None:
        self.state.set(job, state, reason=reason, **facts)
        self.watcher.changed(job, state, reason)


def last_lines(log: Path, count: int = 20) -> list[str]:
    """The last lines of a log that say something; torchrun's own account of how its ranks ended, a page long, does not."""
    if not log.is_file():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 14)))
        lines = file.read().decode("utf-8", "replace").splitlines()
    begun = [at for at, line in enumerate(lines) if line.startswith("$ ")]  # a log goes on where a job is tried again
    ended = next((at for at in range(begun[-1] if begun else 0, len(lines)) if _TORCHRUN in lines[at]), len(lines))
    return [line.rstrip() for line in lines[:ended] if line.strip()][-count:]


def last_words(log: Path) -> str:
    """The line of a log that most likely says why its job failed: the last "error: ..." or exception, else the last line."""
    lines = [line for line in last_lines(log) if not line.startswith("$ ")]
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or [""])[-1][:500]


def _apart(keep_open: Sequence[int]) -> dict[str, Any]:
    """How a worker is started in a process group of its own: Ctrl-C in the terminal reaches the trainer only, which asks its workers."""
    if os.name != "posix":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True, "pass_fds": keep_open, "preexec_fn": _dies_with_parent if _LIBC else None}


def _dies_with_parent() -> None:
    """In the child, before it becomes its program: a trainer that is killed takes its workers with it, and they save."""
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """A worker and everything that it started."""
    if os.name != "posix":
        process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
