"""What a multi-model run remembers: its state file, written whole after every change, and the locks on the folders it trains in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from finetune.engine.files import ensure_writable_folder, read_json, write_json
from finetune.engine.locks import hold, release
from finetune.jobs import Job

LOGS = Path("logs", "multi_model_training")
STATE, LOCK = "state.json", ".trainer.lock"
WAITING, RUNNING, DONE, FAILED, INTERRUPTED, BLOCKED = "waiting", "running", "done", "failed", "interrupted", "blocked"


class RunState:
    """{logs}/{run}/state.json: {"run", "pid", "started", "mode", "workers", "jobs": {name: {"state", "code", "reason", "seconds"}}}."""

    def __init__(self, folder: Path, jobs: Sequence[Job], *, mode: str = "sequential", workers: int = 1, resume: bool = False) -> None:
        """Raises InputError if the folder cannot be written to."""
        self.folder = ensure_writable_folder(folder)
        before = (read_json(folder / STATE) or {}).get("jobs", {}) if resume else {}
        self.jobs: dict[str, dict[str, Any]] = {job.name: self._first(job, before.get(job.name, {})) for job in jobs}
        self._facts = {"run": folder.name, "pid": os.getpid(), "started": _now(), "mode": mode, "workers": workers}
        self._write()

    def _first(self, job: Job, before: dict[str, Any]) -> dict[str, Any]:
        same = {"model": job.model, "stage": job.stage, "needs": list(job.needs), "folder": str(job.folder), "log": str(self.log(job))}
        earlier = {"seconds": before.get("seconds", 0.0), "attempts": before.get("attempts", 0)}
        state, reason = (DONE, "was there already") if job.done else (WAITING, "")
        return {**same, **earlier, "state": state, "code": 0 if job.done else None, "reason": reason}

    def log(self, job: Job) -> Path:
        """Where a job's output goes."""
        return self.folder / f"{job.name}.log"

    def set(self, job: Job, state: str, **facts: Any) -> None:
        """A change of one job's state, on disk before this returns."""
        self.jobs[job.name].update(state=state, updated=_now(), **facts)
        self._write()

    def of(self, name: str) -> str:
        return self.jobs[name]["state"]

    def _write(self) -> None:
        write_json(self.folder / STATE, {**self._facts, "jobs": self.jobs})


def new_folder(logs: Path = LOGS) -> Path:
    """A folder for a run that begins now: its name sorts by time."""
    name = time.strftime("%Y%m%d-%H%M%S")
    taken = sum(1 for _ in logs.glob(f"{name}*")) if logs.is_dir() else 0
    return logs / (f"{name}-{taken + 1}" if taken else name)


def folder_to_resume(jobs: Iterable[Job], logs: Path = LOGS) -> Path | None:
    """The folder of the newest run, if it was about the same jobs: there their logs and times go on. None otherwise."""
    newest = max((path.parent for path in logs.glob(f"*/{STATE}")), default=None)
    if newest is None:
        return None
    known = (read_json(newest / STATE) or {}).get("jobs", {})
    return newest if all(job.name in known for job in jobs) else None


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[list[IO[str]]]:
    """Holds these folders against a second trainer while the block runs. Raises InputError, naming who holds one of them.

    The workers inherit the locks: if the trainer is killed, its folders stay taken until its last worker has ended.
    """
    held: list[IO[str]] = []
    try:
        for folder in sorted(set(folders)):
            held.append(hold(ensure_writable_folder(folder), LOCK))
        yield held
    finally:
        for file in held:
            release(file)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
