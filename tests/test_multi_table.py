"""How a multi-model run is shown: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from multi_tiny import job

from finetune.jobs_state import RunState
from finetune.jobs_table import Display, LiveTable, Work, progress_of


def metrics(folder: Path, *lines: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "torn')


def test_progress_is_read_from_the_runs_own_numbers_and_never_from_a_former_run(tmp_path):
    train = [{"step": step, "epoch": 0, "split": "train", "time_s": 10.0 + step / 10, "loss": 5.0 - step / 100} for step in (10, 20, 30)]
    metrics(tmp_path, *train, {"step": 40, "epoch": 0, "split": "val", "time_s": 20.0, "loss": 4.0})
    seen = progress_of(tmp_path, 0.0, Work(40, 3, 64))
    assert (seen.epoch, seen.loss, seen.val_loss) == (1.0, 4.7, 4.0)
    assert seen.per_s == pytest.approx(20 * 64 / 2) and seen.left_s == pytest.approx(80 * 20 / 40)
    assert progress_of(tmp_path, 0.0, Work(0, 3, 64)).left_s == pytest.approx(80 * 20 / 40), "the first epoch tells how long one is"
    assert progress_of(tmp_path, 0.0, Work(90, 3, 64)).epoch == 1.0, "and corrects what a plan could only guess"
    assert progress_of(tmp_path, time.time() + 60, None).loss is None and progress_of(tmp_path / "none", 0.0, None).epoch is None


def test_without_a_terminal_there_is_a_line_per_change_and_per_half_minute(tmp_path):
    one, now, stream = job(tmp_path, "a"), [1000.0], io.StringIO()
    state = RunState(tmp_path / "run", [one])
    shown = Display([one], state, {one.name: Work(40, 3, 64)}, stream=stream, clock=lambda: now[0])
    state.set(one, "running")
    shown.changed(one, "running", "CPU")
    metrics(one.folder, {"step": 20, "epoch": 0, "split": "train", "time_s": 20.0, "loss": 2.5})
    for _ in range(70):
        now[0] += 1.0
        shown.tick()
    state.set(one, "done")
    shown.changed(one, "done", "")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and "\x1b" not in stream.getvalue()
    assert "a-tokenizer: running (CPU); log: " in lines[0] and "a-tokenizer: done after 01:10" in lines[3]
    assert "epoch 0.50/3, loss 2.5000" in lines[1] and "left 01:40" in lines[1]


def test_in_a_terminal_the_table_is_redrawn_in_place_and_failures_scroll_above_it(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60"), monkeypatch.setenv("LINES", "24")
    jobs, stream = [job(tmp_path, "a"), job(tmp_path, "b" * 80)], io.StringIO()
    state = RunState(tmp_path / "run", jobs)
    shown = LiveTable(jobs, state, {}, stream=stream)
    shown.tick()
    state.set(jobs[0], "failed")
    shown.changed(jobs[0], "failed", "no bars")
    text = stream.getvalue()
    assert text.count("\x1b[4F\x1b[J") == 1, "four lines are taken back before the failure is told"
    assert "0 of 2 done; 00:0" in text.split("\x1b[4F")[0] and "0 of 2 done, 1 failed; 00:0" in text.split("\x1b[J")[1]
    assert "failed (no bars)" in text.split("\x1b[J")[1].splitlines()[0]
    assert max(len(line) for line in text.split("\x1b[J")[0].splitlines()) < 60 + len("\x1b[2m\x1b[0m"), "no line wraps"


def test_a_table_of_more_jobs_than_lines_shows_those_that_run(tmp_path, monkeypatch):
    monkeypatch.setenv("LINES", "10"), monkeypatch.setenv("COLUMNS", "100")
    jobs, stream = [job(tmp_path, f"m{i:02d}") for i in range(40)], io.StringIO()
    state = RunState(tmp_path / "run", jobs)
    state.jobs["m33-tokenizer"]["state"] = "running"
    LiveTable(jobs, state, {}, stream=stream).tick()
    assert "m33-tokenizer" in stream.getvalue() and "35 jobs more" in stream.getvalue() and stream.getvalue().count("\n") <= 9
