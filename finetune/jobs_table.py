"""How a multi-model run is shown: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from finetune.jobs import Job
from finetune.jobs_state import BLOCKED, DONE, FAILED, INTERRUPTED, RUNNING, WAITING, RunState

LINE_S, REDRAW_S = 30.0, 0.5
_TAIL_BYTES = 1 << 14
_COLOURS = {RUNNING: "36", DONE: "32", FAILED: "31", INTERRUPTED: "33", BLOCKED: "33", WAITING: "2"}
_COLUMNS = ("job", "state", "epoch", "loss", "windows/s", "time", "left")


@dataclass(frozen=True)
class Work:
    """How much a training job has to do, as the plan counts it. steps: of an epoch, 0 where that is not known. batch: windows per step."""

    steps: int
    epochs: int
    batch: int


@dataclass(frozen=True)
class Progress:
    """Where a training job is, from its metrics.jsonl; None where that does not say."""

    epoch: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    per_s: float | None = None
    left_s: float | None = None


def progress_of(folder: Path, since: float, work: Work | None) -> Progress:
    """Read the end of {folder}/metrics.jsonl. since: lines of a file older than this (seconds since 1970) are a former run's."""
    lines = _tail(folder / "metrics.jsonl", since)
    if not lines:
        return Progress()
    last = lines[-1]
    step, time_s = last["step"], last["time_s"]
    train = [line for line in lines if line.get("split") == "train"]
    losses = [line.get("loss", line.get("train_loss")) for line in lines if line.get("split") == "train"]
    val = [line["loss"] for line in lines if line.get("split") == "val" and line.get("loss") is not None]
    per_s = left_s = None
    if work and len(train) > 1 and train[-1]["time_s"] > train[0]["time_s"]:
        per_s = (train[-1]["step"] - train[0]["step"]) * work.batch / (train[-1]["time_s"] - train[0]["time_s"])
    ends = [line["step"] / (line["epoch"] + 1) for line in lines if line.get("split") == "val" and line["step"] > 0]
    steps = ends[-1] if ends else work.steps if work else 0  # a plan made before the bars were could only guess
    if work and steps and step > 0:
        left_s = max(0, steps * work.epochs - step) * time_s / step  # with validation, checkpoints and the start counted in
    epoch = step / steps if steps else None
    return Progress(epoch, losses[-1] if losses else last.get("train_loss"), val[-1] if val else None, per_s, left_s)


def _tail(path: Path, since: float) -> list[dict[str, Any]]:
    """The last whole lines; a torn one is left out."""
    try:
        facts = path.stat()
        if facts.st_mtime < since:
            return []
        with open(path, "rb") as file:
            file.seek(max(0, facts.st_size - _TAIL_BYTES))
            raw = file.read().split(b"\n")
    except OSError:  # not there yet
        return []
    lines = []
    for text in raw[1 if facts.st_size > _TAIL_BYTES else 0 : -1]:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict) and {"step", "epoch", "time_s"} <= line.keys()]


class Display:
    """Plain lines: one per change of state, and one per running job every half minute."""

    def __init__(
        self,
        jobs: Sequence[Job],
        state: RunState,
        work: Mapping[str, Work],
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.jobs, self.state, self.work = list(jobs), state, work
        self.stream, self.clock = stream or sys.stdout, clock
        self.began: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def changed(self, job: Job, state: str, reason: str) -> None:
        """A job's state has changed."""
        now = self.clock()
        if state == RUNNING:
            self.began[job.name] = self._told[job.name] = now
        took = f" after {tqdm.format_interval(now - self.began[job.name])}" if state != RUNNING and job.name in self.began else ""
        text = f"{job.name}: {state}{took}{f' ({reason})' if reason else ''}"
        self.said(f"{text}; log: {self.state.log(job)}" if state in (RUNNING, FAILED) else text)

    def said(self, text: str) -> None:
        """A line for the user."""
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=self.stream, flush=True)

    def tick(self) -> None:
        """Called often; says something now and then."""
        now = self.clock()
        for job in self.jobs:
            if self.state.of(job.name) == RUNNING and now - self._told.get(job.name, now) >= LINE_S:
                self._told[job.name] = now
                names = dict(zip(_COLUMNS, self.cells(job), strict=True))
                facts = [f"{name} {value}" for name, value in names.items() if value and name not in ("job", "state")]
                self.said(f"{job.name}: " + (", ".join(facts) or "running"))

    def close(self) -> None:
        """Nothing more is shown."""

    def cells(self, job: Job) -> tuple[str, ...]:
        """One row of the table."""
        facts, work = self.state.jobs[job.name], self.work.get(job.name)
        state, seconds = facts["state"], facts["seconds"]
        if state == RUNNING:
            seconds += self.clock() - self.began.get(job.name, self.clock())
        seen = progress_of(job.folder, self.began.get(job.name, float("inf")), work) if state != WAITING else Progress()
        epoch = "" if seen.epoch is None else f"{seen.epoch:.2f}" + (f"/{work.epochs}" if work else "")
        loss = "" if seen.loss is None else f"{seen.loss:.4f}"
        if seen.val_loss is not None:
            loss = f"{loss} (val {seen.val_loss:.4f})".strip()
        rate = "" if seen.per_s is None or state != RUNNING else f"{seen.per_s:,.0f}" if seen.per_s >= 10 else f"{seen.per_s:.2g}"
        left = tqdm.format_interval(seen.left_s) if seen.left_s is not None and state == RUNNING else ""
        return job.name, state, epoch, loss, rate, tqdm.format_interval(seconds) if seconds else "", left


class LiveTable(Display):
    """A table redrawn in place; changes that need words (failures) scroll by above it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._height, self._drawn_at, self._since = 0, 0.0, self.clock()

    def said(self, text: str) -> None:
        self._erase()
        super().said(text)
        self._draw()

    def changed(self, job: Job, state: str, reason: str) -> None:
        if state in (FAILED, INTERRUPTED, BLOCKED):
            super().changed(job, state, reason)
            return
        if state == RUNNING:
            self.began[job.name] = self.clock()
        self._redraw()

    def tick(self) -> None:
        if self.clock() - self._drawn_at >= REDRAW_S:
            self._redraw()

    def close(self) -> None:
        """Leaves the table as it is now."""
        self._redraw()

    def _redraw(self) -> None:
        self._erase()
        self._draw()

    def _erase(self) -> None:
        if self._height:
            self.stream.write(f"\x1b[{self._height}F\x1b[J")
            self._height = 0

    def _draw(self) -> None:
        self._drawn_at = self.clock()
        size = shutil.get_terminal_size()
        rows = [self.cells(job) for job in self._shown(max(1, size.lines - 4))]
        widths = [max(len(row[i]) for row in [_COLUMNS, *rows]) for i in range(len(_COLUMNS))]
        lines = [
            self._line(_COLUMNS, widths, size.columns, "1"),
            *(self._line(row, widths, size.columns, _COLOURS[row[1]]) for row in rows),
        ]
        if len(rows) < len(self.jobs):
            lines.append(f"... and {len(self.jobs) - len(rows)} jobs more")
        lines.append(self._line([self._summary()], [0], size.columns, "2"))
        self.stream.write("".join(line + "\n" for line in lines))
        self.stream.flush()
        self._height = len(lines)

    def _summary(self) -> str:
        """How far the whole of it is."""
        count = Counter(self.state.of(job.name) for job in self.jobs)
        told = [f"{count[DONE]} of {len(self.jobs)} done"]
        told += [f"{count[state]} {state}" for state in (RUNNING, FAILED, INTERRUPTED, BLOCKED) if count[state]]
        return f"{', '.join(told)}; {tqdm.format_interval(self.clock() - self._since)}; logs in {self.state.folder}"

    def _shown(self, room: int) -> list[Job]:
        """All jobs, or the ones that matter now where they do not fit."""
        if len(self.jobs) <= room:
            return self.jobs
        order = (RUNNING, FAILED, INTERRUPTED, WAITING, BLOCKED, DONE)
        chosen = sorted(self.jobs, key=lambda job: order.index(self.state.of(job.name)))[: room - 1]
        return [job for job in self.jobs if job in chosen]

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int], columns: int, colour: str) -> str:
        text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        return f"\x1b[{colour}m{text[: max(1, columns - 1)]}\x1b[0m"


def display(jobs: Sequence[Job], state: RunState, work: Mapping[str, Work]) -> Display:
    """The one that suits where stdout goes."""
    return (LiveTable if sys.stdout.isatty() else Display)(jobs, state, work)
