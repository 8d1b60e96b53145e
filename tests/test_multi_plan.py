"""Many models: the plan, what is done already, costs, the dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bars import make_frame, make_panel
from multi_tiny import CPU, ROOT, TINY, marks, models, plan_of, script, trained

from finetune.config_manager import ConfigManager, list_text
from finetune.data.resampling_settings import panel_settings
from finetune.data.resampling_source import prepare
from finetune.engine.devices import has_driver
from finetune.engine.files import read_json
from finetune.jobs import plan
from finetune.jobs_costs import memory_gib, too_large, windows_of
from finetune.jobs_machine import Machine
from finetune.jobs_session import Wish, plan_text, run_session, session_of
from kronos.errors import InputError

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
    assert plan_of(manager, "a", prepare=True).problems == (
        f"a: bars.csv: there is no such file or folder (from {Path.cwd()}); check timeframe.source (or KRONOS_DATA_PATH)",
    )
    make_frame(50).to_csv(tmp_path / "models" / "bars.csv", index=False)
    made = plan_of(manager, "a", prepare=True)
    assert made.problems == () and made.jobs[0].name == "a-prepare" and "a-prepare" in made.jobs[1].needs
    with pytest.raises(
        InputError, match=r"there are no prepared bars (?s:.*)\n- with --prepare, multi_model_trainer.py makes these bars itself"
    ):
        run_session(session_of(Wish(("a",), logs=tmp_path / "logs"), manager, CPU))
    assert not (tmp_path / "logs").exists()


def test_weights_to_start_from_that_are_not_there_are_told_before_anything_starts(tmp_path):
    gone = str(tmp_path / "gone")
    paths = {"pretrained_tokenizer": "./nowhere", "pretrained_predictor": gone}
    manager = models(tmp_path, "a", experiment={"pre_trained": True}, model_paths=paths)
    told = plan_of(manager, "a").problems
    assert len(told) == 2 and "model_paths.pretrained_tokenizer (or KRONOS_TOKENIZER_PATH): there is no folder" in told[0]
    assert f"KRONOS_PREDICTOR_PATH): there is no folder '{gone}'" in told[1] and "a hub id such as NeoQuasar/Kronos-mini" in told[1]
    Path(gone).mkdir()
    Path(gone, "config.json").touch()
    assert f"KRONOS_PREDICTOR_PATH): folder '{gone}' has no model.safetensors; give one" in plan_of(manager, "a").problems[1]
    Path(gone, "model.safetensors").touch()
    assert len(plan_of(manager, "a").problems) == 1
    assert plan([manager.load_config("a", ["model_paths.pretrained_tokenizer=NeoQuasar/Kronos-Tokenizer-2k"])]).problems == ()


def test_bars_that_were_made_with_other_settings_are_to_be_made_again_and_what_was_trained_on_them_too(tmp_path):
    manager = models(tmp_path, "a")
    make_frame(50).to_csv(tmp_path / "models" / "bars.csv", index=False)
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
    assert "bars are there, but timeframe.calendar 'XSHG' (now '')" in made.jobs[0].exists
    assert "otherwise" in list_text(manager)
    assert plan_of(manager, "a", resume=True).jobs[0].done, "only what reads the bars has to wait for them"


def test_bars_whose_files_have_grown_are_made_again_with_prepare_and_mentioned_without(tmp_path, monkeypatch):
    bars = tmp_path / "models" / "bars.csv"
    manager = models(tmp_path, "a", "b", panel=False)
    make_frame(200).to_csv(bars, index=False)
    for name in "ab":
        prepare(manager.load_config(name), say=lambda _: None)
    trained(manager, "a", "tokenizer")
    quiet = session_of(Wish(resume=True, prepare=True), manager, CPU)
    assert marks(quiet.plan)["a-tokenizer"] and "a-prepare" not in marks(quiet.plan)
    with monkeypatch.context() as patched:
        patched.setattr("finetune.data.source_facts._digest", lambda path: pytest.fail("files that stayed as they were are not read"))
        plan_of(manager, "a", prepare=True)
    os.utime(bars, (1, 1))
    assert "a-prepare" not in marks(plan_of(manager, "a", prepare=True)), "the same content, copied anew, makes no work"
    make_frame(220).to_csv(bars, index=False)
    make_frame(220).to_csv(tmp_path / "models" / "more.csv", index=False)
    (tmp_path / "models" / "b.yaml").write_text((tmp_path / "models" / "b.yaml").read_text().replace("- bars.csv", "- more.csv"))
    grown = plan_of(manager, "a", resume=True, prepare=True)
    assert grown.jobs[0].exists == "bars are there, but files of timeframe.source are changed (bars): made anew"
    assert not any(marks(grown).values())
    told = plan_text(session_of(Wish(resume=True), manager, CPU))
    assert "note: a: files of timeframe.source are changed (bars) since its bars were made; --prepare makes them again" in told
    assert "note: b: files of timeframe.source are new (more), gone (bars) since its bars were made" in told
    assert plan_of(manager, "a", resume=True).problems == (), "what was made may be trained on"
    bars.unlink()
    assert plan_of(manager, "a", resume=True, prepare=True).problems == (), "bars that were made may outlive their source"


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


def test_an_evaluation_is_done_when_all_of_its_reports_are_there_and_newer_than_the_predictor(tmp_path):
    manager = models(tmp_path, "a", report={"macro": True}, evaluation={"enabled": False})
    trained(manager, "a", "tokenizer", when=1e9)
    trained(manager, "a", "predictor", when=2e9)
    folder = tmp_path / "out" / "a" / "evaluation"
    folder.mkdir()
    (folder / "macro.json").write_text("{}")
    os.utime(folder / "macro.json", (1.5e9, 1.5e9))
    assert "a-predictor is newer" in plan_of(manager, "a", resume=True).jobs[-1].exists
    os.utime(folder / "macro.json", (3e9, 3e9))
    assert plan_of(manager, "a", resume=True).todo == []
    both = plan([manager.load_config("a", ["evaluation.enabled=true"])], resume=True)
    assert [job.name for job in both.todo] == ["a-evaluate"], "one of two reports is not all"


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


@pytest.mark.parametrize(("name", "period"), [("bars.csv", "1h"), ("bars.csv.gz", "4h")])
def test_windows_of_bars_that_are_not_made_yet_are_reckoned_from_the_sizes_of_their_files(tmp_path, name, period):
    manager = models(tmp_path, "a", panel=False, timeframe={"period": period, "source": [name]})
    make_frame(3000).to_csv(tmp_path / "models" / name, index=False)
    config = manager.load_config("a")
    (train, val), counted = windows_of(config)
    assert not counted and "about" in plan_text(session_of(Wish(prepare=True), manager, CPU))
    prepare(config, say=lambda _: None)
    known = windows_of(config)
    assert known[1] and (train, val) == pytest.approx(known[0], rel=0.05)


def test_windows_of_files_that_do_not_show_their_period_are_left_open(tmp_path):
    manager = models(tmp_path, "a", panel=False)
    file = tmp_path / "models" / "bars.csv"
    for frame in (make_frame(20).iloc[::-1], make_frame(20).assign(timestamps=range(20)), make_frame(1), make_frame(1).iloc[:0]):
        frame.to_csv(file, index=False)
        assert windows_of(manager.load_config("a")) == (None, False)
    file.write_bytes(b"\x1f\x8b not text")
    assert windows_of(manager.load_config("a")) == (None, False)


def test_a_damaged_or_vanished_source_file_ends_no_plan(tmp_path):
    folder = tmp_path / "models" / "bars"
    manager = models(tmp_path, "a", panel=False, timeframe={"period": "1h", "source": ["bars"]})
    folder.mkdir()
    packed = folder / "one.csv.gz"
    make_frame(2000).to_csv(packed, index=False)
    prepare(manager.load_config("a"), say=lambda _: None)
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    (folder / "folder.csv").mkdir()
    damaged = bytearray(packed.read_bytes())
    damaged[40:80] = b"\xff" * 40  # within what is packed
    packed.write_bytes(damaged)
    config = manager.load_config("a")
    assert plan_of(manager, "a", resume=True, prepare=True).problems == () and config.changed_source == ""
    with pytest.raises(InputError, match=r"gone\.csv: timeframe\.source .* cannot be read \(No such file or directory\)"):
        prepare(config, say=lambda _: None)
    (folder / "gone.csv").unlink()
    with pytest.raises(InputError, match=r"folder\.csv: timeframe\.source .* cannot be read \(Is a directory\)"):
        prepare(config, say=lambda _: None)
    (folder / "folder.csv").rmdir()
    for also in (None, folder / "gone.csv"):
        if also:
            also.symlink_to(tmp_path / "nowhere.csv")
        bare = models(tmp_path, "b", panel=False, timeframe={"period": "1h", "source": ["bars"]})
        assert windows_of(bare.load_config("b")) == (None, False)


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
    assert [bool(job.memory_advice) for job in session.plan.jobs] == [True, True, False], "and a job that is killed is told the same"
    assert session.plan.jobs[0].memory_advice.startswith("batch_size 16 with accumulation_steps 4 (same effective batch)")
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
    for one in (lambda: session_of(Wish(("a",)), manager, CPU), lambda: manager.load_config("a")):
        with pytest.raises(InputError, match=r"^Configuration validation failed:\n- .*a\.yaml, line \d+: training\.batch_size is 0"):
            one()
