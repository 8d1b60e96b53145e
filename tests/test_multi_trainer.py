"""Many models: the report, quick start, and a real run of two models."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from bars import make_frame
from multi_tiny import CPU, models, script

from finetune.engine.files import read_json
from finetune.jobs_machine import Machine, checks, this_machine
from finetune.jobs_questions import wish_by_questions
from finetune.jobs_run import Runner, Slot
from finetune.jobs_session import Wish, session_of
from finetune.jobs_state import RunState
from finetune.multi_picture import draw_report
from finetune.multi_report import write_report

# ---- the report


def test_the_report_sets_models_side_by_side_and_tells_failures_with_the_last_lines_of_their_log(tmp_path):
    manager = models(tmp_path, *(f"m{i}" for i in range(5)))
    session = session_of(Wish(), manager, CPU)
    state = RunState(tmp_path / "logs" / "run", session.plan.jobs)
    bad = session.plan.jobs[0]
    state.log(bad).write_text("$ python x\nreading\nerror: no space\n")
    state.set(bad, "failed", reason="error: no space", code=2, seconds=61.0, attempts=1)
    run_folder = tmp_path / "out" / "m1" / "tokenizer"
    run_folder.mkdir(parents=True)
    lines = [{"step": s, "epoch": 0, "split": "train", "time_s": 1.0, "loss": 3.0 / s} for s in (1, 2, 3)]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state.set(session.plan.jobs[3], "done")
    evaluation = tmp_path / "out" / "m1" / "evaluation" / "evaluation.json"
    evaluation.parent.mkdir()
    skill = {"overall": 0.1, "low": 0.05, "high": 0.2}
    verdict = {"sentences": ["m1 is better than drift."], "crps": "better than", "best_baseline": "drift"}
    evaluation.write_text(json.dumps({"verdict": verdict, "skill": {"drift": skill}}))
    assert "not evaluated" in write_report(session.plan.configs, state, tmp_path / "logs").read_text().split("m1:")[1].splitlines()[0]
    state.set(next(job for job in session.plan.jobs if job.name == "m1-evaluate"), "done")
    text = write_report(session.plan.configs, state, tmp_path / "logs").read_text()
    assert "m1: m1 is better than drift." in text and "m0-tokenizer  failed   01:01  1" in text
    assert "m0-tokenizer: error: no space (exit code 2)" in text and "    reading\n    error: no space" in text
    assert any("m0" in line and "m3" in line and "m4" not in line for line in text.splitlines()), "four side by side"
    numbers = read_json(tmp_path / "logs" / "training_report_run.json")
    assert numbers["skill"]["m1"]["overall"] == 0.1 and numbers["models"]["m4"]["lookback"] == 12
    assert (tmp_path / "logs" / "training_report_run.png").stat().st_size > 10_000


def test_what_failed_before_and_is_there_now_does_not_keep_its_former_reason(tmp_path):
    manager = models(tmp_path, "a")
    first = session_of(Wish(), manager, CPU).plan.jobs[0]
    RunState(tmp_path / "run", [first]).set(first, "failed", reason="error: no space", code=1)
    again = RunState(tmp_path / "run", [replace(first, done=True)], resume=True)
    assert (again.of(first.name), again.jobs[first.name]["reason"]) == ("done", "was there already")


def test_the_report_tells_what_the_macro_report_found_or_why_there_is_none(tmp_path):
    manager = models(tmp_path, "a", "b", "c", report={"macro": True})
    session = session_of(Wish(), manager, CPU)
    state = RunState(tmp_path / "logs" / "run", session.plan.jobs)
    regimes = {name: {"sentence": f"{name} is as it was."} for name in ("trend", "volatility")}
    for name, numbers in (("a", {"regimes": regimes}), ("b", {"left_out": "too few bars"}), ("c", {"regimes": regimes})):
        folder = tmp_path / "out" / name / "evaluation"
        folder.mkdir(parents=True)
        (folder / "macro.json").write_text(json.dumps(numbers))
        if name != "c":  # its report is a former run's
            state.set(next(job for job in session.plan.jobs if job.name == f"{name}-evaluate"), "done")
    told = write_report(session.plan.configs, state, tmp_path / "logs").read_text().split("SEASONS AND REGIMES\n")[1].split("\n\n")[0]
    picture = tmp_path / "out" / "a" / "evaluation" / "macro.png"
    assert told.strip() == f"a: trend is as it was. volatility is as it was. Picture: {picture}\nb: left out: too few bars."


def test_a_picture_of_twenty_models_has_room_for_all_of_them(tmp_path):
    curve = {"train_epoch": [0.5, 1.0], "train": [2.0, 1.5], "val_epoch": [1.0], "val": [1.4]}
    skill = {"overall": 0.1, "low": 0.0, "high": 0.2, "baseline": "drift"}
    sizes = []
    for count in (2, 20):
        names = [f"model_{number:02d}" for number in range(count)]
        jobs = {f"{name}-tokenizer": {"state": "failed" if name == "model_01" else "done"} for name in names}
        curves = {name: {"tokenizer": curve, "predictor": curve} for name in names}
        draw_report(tmp_path / "x.png", {"run": "r", "curves": curves, "skill": dict.fromkeys(names, skill), "jobs": jobs})
        sizes.append(struct.unpack(">II", (tmp_path / "x.png").read_bytes()[16:24]))
    assert sizes[0][0] == sizes[1][0] == 1600 and sizes[1][1] - sizes[0][1] == 18 * 34 + 3 * 24


# ---- quick start


def test_the_machine_is_checked_and_what_is_low_is_marked(tmp_path):
    found = list(checks(Machine((), 0.0, 2, 0.5), tmp_path / "not" / "there"))
    assert any(not fine and "0.5 GiB memory" in told for fine, told in found) and any("no GPU" in told for _, told in found)
    assert this_machine().cores >= 1


def test_quick_start_asks_until_it_understands_and_flags_are_not_asked_again(tmp_path, monkeypatch, capsys):
    manager = models(tmp_path, "a", "b", "c")
    answers = iter(["9", "1, c", "tok", "sideways", "seq", "no"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    wish = wish_by_questions(Wish(mode="parallel"), manager)
    assert (wish.models, wish.stage, wish.mode, wish.resume) == (("a", "c"), "tokenizer", "sequential", False)
    assert "there is no 9" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert wish_by_questions(Wish(("a",), stage="predictor", resume=True), manager).models == ("a",)


def test_quick_start_without_a_terminal_and_without_yes_says_so(tmp_path):
    done = script("quick_start_multi_model.py", cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "--yes" in done.stderr


# ---- for real


@pytest.mark.slow
def test_quick_start_prepares_trains_two_models_side_by_side_evaluates_and_reports(tmp_path):
    make_frame(400).to_csv(tmp_path / "bars.csv", index=False)
    models(tmp_path, "a", "b", panel=False, timeframe={"period": "2h", "source": [str(tmp_path / "bars.csv")]})
    given = ("--yes", "--mode", "parallel", "--models", *(str(tmp_path / "models" / f"{name}.yaml") for name in "ab"))
    done = script("quick_start_multi_model.py", *given, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = next((tmp_path / "logs" / "multi_model_training").glob("training_report_*.txt")).read_text()
    assert report.count("done") == 8 and "CRPS skill" in report and "WHAT FAILED" not in report
    again = script("quick_start_multi_model.py", *given, "--resume", cwd=tmp_path)
    assert again.returncode == 0 and "all of it is done already" in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killing_one_worker_leaves_the_others_weights_as_they_are_without_it(tmp_path):
    weights = {}
    for place, names in (("alone", ["b"]), ("beside", ["a", "b"])):
        manager = models(tmp_path / place if (tmp_path / place).mkdir() is None else tmp_path, *names)
        paths = tuple(str(manager.path_of(name)) for name in names)
        wish = Wish(paths, stage="tokenizer", mode="parallel", overrides=("training.epochs=6",), logs=tmp_path / place / "logs")
        session = session_of(wish, manager, CPU)
        state = RunState(tmp_path / place / "logs" / "run", session.plan.jobs)
        code = Runner(session.plan.jobs, session.slots, state, KillsA(state)).run()
        assert code == (1 if "a" in names else 0)
        weights[place] = (tmp_path / place / "out" / "b" / "tokenizer" / "best_model" / "model.safetensors").read_bytes()
    assert state.jobs["a-tokenizer"]["code"] == -9 and state.of("b-tokenizer") == "done"
    assert weights["alone"] == weights["beside"]


class KillsA:
    """Kills model a's worker as soon as it has logged a step."""

    def __init__(self, state: RunState):
        self.state = state

    def changed(self, *_: object) -> None: ...
    def said(self, text: str) -> None: ...

    def tick(self) -> None:
        facts = self.state.jobs.get("a-tokenizer", {})
        if facts.get("pid") and Path(facts["folder"], "metrics.jsonl").is_file():
            os.kill(facts["pid"], signal.SIGKILL)


def test_one_slot_runs_the_jobs_of_a_session_in_the_order_of_its_plan(tmp_path):
    session = session_of(Wish(), models(tmp_path, "a", "b"), CPU)
    assert session.slots == [Slot()] and [job.model for job in session.plan.jobs] == ["a"] * 3 + ["b"] * 3
