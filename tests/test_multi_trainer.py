"""Many models: the plan, what is done already, the dry run, the report, the commands, and a real run of two models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from bars import make_frame, make_panel

from finetune.config_manager import ConfigManager, list_text
from finetune.data.resampling_settings import panel_settings
from finetune.engine.devices import has_driver
from finetune.engine.files import read_json
from finetune.jobs import plan
from finetune.jobs_costs import memory_gib, too_large, windows_of
from finetune.jobs_machine import Machine, checks, this_machine
from finetune.jobs_questions import wish_by_questions
from finetune.jobs_run import Runner, Slot
from finetune.jobs_session import Wish, plan_text, run_session, session_of
from finetune.jobs_state import RunState
from finetune.multi_report import write_report
from kronos.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CPU = Machine((), 0.0, 2, 8.0)
TINY = {
    "timeframe": {"period": "1h", "source": ["bars.csv"]},
    "data": {"lookback_window": 12, "predict_window": 4, "timezone": "UTC", "train_ratio": 0.6, "val_ratio": 0.2, "test_ratio": 0.2},
    "training": {"epochs": 2, "batch_size": 16, "log_interval": 2, "num_workers": 0},
    "model": {
        "tokenizer": {"d_model": 16, "n_heads": 2, "ff_dim": 32, "n_enc_layers": 2, "n_dec_layers": 2, "s1_bits": 4, "s2_bits": 4},
        "predictor": {"preset": "mini", "d_model": 16, "n_heads": 2, "ff_dim": 32, "n_layers": 1, "s1_bits": 4, "s2_bits": 4},
    },
    "experiment": {"pre_trained": False},
    "device": {"device": "cpu", "cpu_threads": 1},
    "evaluation": {"max_origins": 20, "samples": 5},
    "forecast": {"enabled": False},
}


def models(folder: Path, *names: str, panel: bool = True, **changes) -> ConfigManager:
    """Registered tiny models in `folder`/models, their results in `folder`/out, with bars."""
    (folder / "models").mkdir(exist_ok=True)
    for name in names:
        config = {section: {**TINY.get(section, {}), **changes.get(section, {})} for section in {**TINY, **changes}}
        config["model_paths"] = {"base_path": str(folder / "out"), **changes.get("model_paths", {})}
        (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump(config))
        if panel:
            make_panel(2, 160).save(folder / "out" / name / "data" / "panel")
    return ConfigManager(folder / "models", {})


def plan_of(manager: ConfigManager, *names: str, stage: str = "all", **options):
    return plan([manager.load_config(name) for name in names], stage, **options)


def trained(manager: ConfigManager, name: str, stage: str, state: str = "done", when: float = 1e9) -> None:
    """What a finished (or stopped) stage leaves behind, as far as the plan looks."""
    paths = manager.load_config(name).model_paths
    best = Path(paths.best_model(stage))
    best.mkdir(parents=True, exist_ok=True)
    for file in (best / "complete.json", best / "model.safetensors"):
        file.write_text("{}")
        os.utime(file, (when, when))
    (paths.folder(stage) / "status.json").write_text(json.dumps({"state": state}))


def marks(made) -> dict[str, bool]:
    return {job.name: job.done for job in made.jobs}


def script(name: str, *arguments: str, cwd: Path, env: dict | None = None, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "finetune" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, timeout=timeout, capture_output=True, text=True, **options)


# ---- the graph


def test_each_stage_waits_for_what_it_reads(tmp_path):
    made = plan_of(models(tmp_path, "a", "b"), "a", "b")
    assert [job.name for job in made.jobs] == [f"{m}-{s}" for m in "ab" for s in ("tokenizer", "predictor", "evaluate")]
    assert made.jobs[1].needs == ("a-tokenizer",) and set(made.jobs[2].needs) == {"a-tokenizer", "a-predictor"} and not made.jobs[3].needs
    assert made.problems == ()


def test_a_model_that_starts_from_another_models_weights_waits_for_it(tmp_path):
    manager = models(tmp_path, "b")
    from_b = str(tmp_path / "out" / "b" / "tokenizer" / "best_model")
    models(tmp_path, "a", experiment={"train_tokenizer": False}, model_paths={"finetuned_tokenizer": from_b})
    made = plan_of(manager, "a", "b")
    names = [job.name for job in made.jobs]
    assert "a-tokenizer" not in names and names.index("b-tokenizer") < names.index("a-predictor") and made.problems == ()


def test_models_that_wait_for_each_other_are_refused_with_who_needs_what(tmp_path):
    for name, other in ("ab", "ba"):
        there = str(tmp_path / "out" / other / "basemodel" / "best_model")
        manager = models(
            tmp_path, name, experiment={"pre_trained": False, "pre_trained_predictor": True}, model_paths={"pretrained_predictor": there}
        )
    _replace(tmp_path / "models", "pre_trained: false", "pre_trained_tokenizer: false")
    with pytest.raises(InputError, match="these jobs wait for each other: a-predictor needs b-predictor"):
        plan_of(manager, "a", "b")


def _replace(folder: Path, old: str, new: str) -> None:
    for file in folder.iterdir():
        file.write_text(file.read_text().replace(old, new))


def test_two_models_that_write_to_one_folder_are_refused_with_the_key_to_change(tmp_path):
    manager = models(tmp_path, "a", "b", model_paths={"exp_name": "same"})
    with pytest.raises(InputError, match=r"a and b both write to .*same; give each a folder of its own .model_paths.exp_name"):
        plan_of(manager, "a", "b")


def test_missing_bars_and_a_missing_tokenizer_are_told_with_the_commands_that_make_them(tmp_path):
    manager = models(tmp_path, "a", panel=False)
    told = plan_of(manager, "a", stage="predictor").problems
    assert len(told) == 2 and "prepare_kronos_data.py --config a" in told[0]
    assert "Predictor requires tokenizer" in told[1] and "train_tokenizer_multi.py --config a" in told[1]
    made = plan_of(manager, "a", prepare=True)
    assert made.problems == () and made.jobs[0].name == "a-prepare" and "a-prepare" in made.jobs[1].needs
    with pytest.raises(
        InputError, match=r"there are no prepared bars (?s:.*)\n- with --prepare, multi_model_trainer.py makes these bars itself"
    ):
        run_session(session_of(Wish(("a",), logs=tmp_path / "logs"), manager, CPU))
    assert not (tmp_path / "logs").exists()


def test_bars_that_were_made_with_other_settings_are_to_be_made_again_and_what_was_trained_on_them_too(tmp_path):
    manager = models(tmp_path, "a")
    config = manager.load_config("a")
    manifest = {"settings": panel_settings(config)}
    (config.panel_folder / "manifest.json").write_text(json.dumps(manifest))
    trained(manager, "a", "tokenizer")
    assert plan_of(manager, "a", resume=True).problems == () and not config.needs_panel
    manifest["settings"] |= {"calendar": "XSHG", "missing": "drop"}
    (config.panel_folder / "manifest.json").write_text(json.dumps(manifest))
    told = plan_of(manager, "a").problems[0]
    assert "timeframe.calendar 'XSHG' (now ''); data.missing 'drop' (now 'error'); make them again: " in told and "--config a" in told
    made = plan_of(manager, "a", resume=True, prepare=True)
    assert made.problems == () and made.jobs[0].name == "a-prepare" and not any(marks(made).values())
    assert "otherwise" in list_text(manager)
    assert plan_of(manager, "a", resume=True).jobs[0].done, "only what reads the bars has to wait for them"


def test_the_commands_in_messages_work_in_the_folder_that_the_user_is_in(tmp_path, monkeypatch):
    config = models(tmp_path, "a").load_config("a")
    monkeypatch.chdir(ROOT)
    assert config.prepare_command == f"python {Path('finetune', 'prepare_kronos_data.py')} --config a"
    monkeypatch.chdir(tmp_path)
    for command in (config.prepare_command, config.tokenizer_command, config.train_command):
        assert Path(command.split()[1]).is_file()


# ---- what is done already


def test_resuming_leaves_out_what_is_done_and_starts_the_rest(tmp_path):
    manager = models(tmp_path, "a", "b")
    trained(manager, "a", "tokenizer")
    trained(manager, "b", "tokenizer", state="interrupted")
    made = plan_of(manager, "a", "b", resume=True)
    assert marks(made)["a-tokenizer"] and sum(marks(made).values()) == 1
    assert not any(marks(plan_of(manager, "a", "b")).values()), "without --resume all is made anew"
    assert {job.name for job in made.todo if job.resume} == {"a-predictor", "b-tokenizer"}, "b's predictor is not to go on from old tokens"


def test_what_is_older_than_what_it_was_made_from_is_made_again(tmp_path):
    manager = models(tmp_path, "a")
    trained(manager, "a", "tokenizer", when=2e9)
    trained(manager, "a", "predictor", when=1e9)
    made = plan_of(manager, "a", resume=True)
    assert marks(made) == {"a-tokenizer": True, "a-predictor": False, "a-evaluate": False}
    assert "a-tokenizer is newer" in made.jobs[1].exists and not made.jobs[1].resume
    trained(manager, "a", "predictor", when=3e9)
    assert marks(plan_of(manager, "a", resume=True))["a-predictor"]


def test_other_bars_make_what_was_trained_on_the_former_ones_stale(tmp_path):
    manager = models(tmp_path, "a")
    trained(manager, "a", "tokenizer")
    summary = tmp_path / "out" / "a" / "tokenizer" / "summary.json"
    summary.write_text(json.dumps({"data": {"data": read_json(tmp_path / "out" / "a" / "data" / "panel" / "panel.json")["fingerprint"]}}))
    assert marks(plan_of(manager, "a", resume=True))["a-tokenizer"]
    make_panel(2, 160, seed=7).save(tmp_path / "out" / "a" / "data" / "panel")
    made = plan_of(manager, "a", resume=True)
    assert not made.jobs[0].done and not made.jobs[0].resume and "the bars have changed" in made.jobs[0].exists


# ---- costs and the dry run


def test_the_plan_tells_windows_steps_memory_disk_commands_and_what_exists(tmp_path):
    manager = models(tmp_path, "a", "b")
    trained(manager, "a", "tokenizer")
    text = plan_text(session_of(Wish(mode="parallel", resume=True, overrides=("training.batch_size=8",)), manager, CPU))
    train, val = windows_of(manager.load_config("a"))[0]
    assert f"{train} training and {val} validation windows; {-(-train // 8)} steps × 2 epochs of batch 8" in text
    assert "2 models, 5 jobs to run, 1 done already, parallel: 2 at a time (CPU, 1 of 2 cores each)" in text
    assert "a-tokenizer: done, nothing to do" in text and "a-predictor, after a-tokenizer: new" in text
    assert "train_predictor_multi.py --config a --resume --set training.batch_size=8" in text
    assert "GiB memory" in text and "MiB disk" in text and "GiB free" in text


@pytest.mark.parametrize("sampling", ["rows", "symbols", "sqrt"])
def test_windows_of_the_plan_are_those_that_training_cuts(tmp_path, sampling):
    from finetune.engine.distributed import World

    config = models(tmp_path, "a", data={**TINY["data"], "sampling": sampling, "window_stride": 3}).load_config("a")
    make_panel(3, [160, 90, 60]).save(config.panel_folder)
    cut = config.cut(World(), lambda _: None)[1]
    assert windows_of(config) == ((len(cut.train), len(cut.val)), True)


def test_gpus_of_the_plan_are_dealt_among_workers_and_the_batch_grows_with_them(tmp_path):
    manager = models(tmp_path, "a", "b", device={"device": "auto", "device_id": 3})
    four = Machine(("0", "1", "2", "3"), 80.0, 32, 200.0)
    text = plan_text(session_of(Wish(mode="parallel", workers=2), manager, four))
    assert "2 at a time (GPU 0, 1 | 2, 3)" in text and "torch.distributed.run --standalone --nproc_per_node=2" in text
    assert "epochs of batch 32" in text and "device.device_id=0" in text


def test_a_model_too_large_for_the_machine_gets_advice_with_its_own_numbers(tmp_path):
    config = models(tmp_path, "a", training={"batch_size": 32, "accumulation_steps": 2}).load_config("a")
    session = session_of(Wish(("a",)), ConfigManager(tmp_path / "models", {}), Machine((), 0.0, 2, 0.1))
    told = plan_text(session)
    assert "with batch_size 32, but this machine has 0.1 GiB" in told and "batch_size 16 with accumulation_steps 4" in told
    assert "activation_checkpointing: true" in told
    assert too_large(config, session.costs["a-tokenizer"], 99.0, "x") == ""


@pytest.mark.parametrize(
    ("stage", "size", "batch", "length", "seen_gib"),  # measured: largest resident memory of a process of 2 steps, with 1 thread
    [
        ("predictor", "mini", 32, 101, 0.87),
        ("predictor", "small", 8, 101, 1.19),
        ("predictor", "small", 16, 200, 2.97),
        ("predictor", "base", 4, 101, 2.15),
        ("tokenizer", "mini", 32, 101, 1.07),
    ],
)
def test_estimated_memory_is_near_what_was_measured(tmp_path, stage, size, batch, length, seen_gib):
    paths = {"pretrained_predictor": f"NeoQuasar/Kronos-{size}", "pretrained_tokenizer": "NeoQuasar/Kronos-Tokenizer-base"}
    manager = models(tmp_path, "a", panel=False, experiment={"pre_trained": True}, model_paths=paths)
    config = manager.load_config("a", [f"training.batch_size={batch}", f"data.lookback_window={length - 5}"])
    guess = memory_gib(config, stage, config.parameters(stage), on_gpu=False)
    assert 0.8 * seen_gib < guess < 1.5 * seen_gib, "the measured process had fewer libraries in it: 0.3 GiB less"


def test_twenty_models_are_planned_in_two_seconds(tmp_path):
    manager = models(tmp_path, *(f"m{i:02d}" for i in range(20)))
    began = time.process_time()
    text = plan_text(session_of(Wish(mode="parallel"), manager, CPU))
    assert time.process_time() - began < 2.0 and "20 models, 60 jobs" in text


@pytest.mark.skipif(has_driver(), reason="where a GPU may be, the plan has to ask torch")
def test_a_plan_of_prepared_models_and_every_look_at_configurations_waits_for_neither_torch_nor_pandas(tmp_path):
    """The import of torch alone takes a second: nothing that only reads files may pay it."""
    models(tmp_path, "a")
    trained(ConfigManager(tmp_path / "models", {}), "a", "tokenizer")
    looks = [
        ("multi_model_trainer.py", "--models", "models/a.yaml", "--dry-run", "--resume"),
        ("config_manager.py", "--list-configs"),
        ("config_manager.py", "--show", "model_a_4h"),
        ("config_manager.py", "--diff", "model_a_4h", "model_b_1d"),
        ("config_manager.py", "--validate"),
    ]
    for name, *arguments in looks:
        path = str(ROOT / "finetune" / name)
        code = f"import runpy, sys; sys.argv = {[name, *arguments]!r}\ntry:\n    runpy.run_path({path!r}, run_name='__main__')\nfinally:\n"
        code += "    print(sorted({'torch', 'pandas', 'huggingface_hub', 'matplotlib'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.endswith("[]\n"), (name, arguments, done.stdout, done.stderr)


def test_a_dry_run_writes_nothing_and_unknown_models_and_bad_flags_end_with_2(tmp_path):
    done = script("multi_model_trainer.py", "--models", "model_a_4h", "model_b_1d", "--dry-run", "--mode", "parallel", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model_b_1d-predictor, after model_b_1d-tokenizer: new" in done.stdout and list(tmp_path.iterdir()) == []
    wrong = script("multi_model_trainer.py", "--models", "model_a_4", "--dry-run", cwd=tmp_path)
    assert wrong.returncode == 2 and "model_a_4h" in wrong.stderr and "Traceback" not in wrong.stderr
    with pytest.raises(InputError, match="--max-workers 0 is not"):
        session_of(Wish(workers=0), machine=CPU)


def test_what_is_wrong_with_several_models_comes_in_one_message(tmp_path):
    manager = models(tmp_path, "a", "b", training={"batch_size": 0})
    with pytest.raises(InputError, match=r"(?s)Configuration validation failed:.*a\.yaml.*batch_size.*b\.yaml.*batch_size"):
        session_of(Wish(), manager, CPU)


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
    done = script("quick_start_multi_model.py", *given, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = next((tmp_path / "logs" / "multi_model_training").glob("training_report_*.txt")).read_text()
    assert report.count("done") == 8 and "CRPS skill" in report and "FAILURES" not in report
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
