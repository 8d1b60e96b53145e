"""train_kaggle.sh as a user runs it: flags, what is missing, devices, dry run, the chain on one and two processes, signals, exit codes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bars import make_frame
from ranks import environment
from test_pipeline import SIZES

from finetune.data import build_panel
from finetune.data.kaggle_test_rows import TestRows
from finetune.engine import progress
from finetune.engine.torchrun import true_code
from finetune_csv import launching
from finetune_csv.config import CsvConfig
from finetune_csv.launching import plan_launch
from finetune_csv.rehearsal import span
from kronos.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train_kaggle.sh"
CONFIGS = [ROOT / "configs" / f"kaggle_config{name}.yaml" for name in ("", "_stage1", "_stage3")]


def make_data(folder: Path) -> None:
    """A folder as preprocessing leaves it: three tickers of 150 days, and the rows of test.csv."""
    frames = {}
    for number in range(3):
        frames[f"T{number}"] = make_frame(150, seed=number)
        frames[f"T{number}"]["timestamps"] = pd.bdate_range("2020-01-01", periods=150)
    build_panel(frames, timezone="America/New_York").save(folder / "panel")
    symbols = list(frames)
    TestRows(symbols, symbols, np.full(3, np.datetime64("2020-08-01").astype(int), np.int32)).save(folder / "test.parquet")


def write_config(folder: Path, **training) -> Path:
    config = {
        "data": {"data_path": "kaggle_data/panel", "lookback_window": 12, "predict_window": 1, "train_ratio": 0.6, "val_ratio": 0.4},
        "training": {"epochs": 1, "batch_size": 8, "n_train_iter": 64, "n_val_iter": 16, "log_interval": 4, "num_workers": 0, **training},
        "model_paths": {"exp_name": "small", "base_path": "out"},
        "model": SIZES,
        "experiment": {"pre_trained": False, "name": "small"},
        "device": {"use_cuda": False},
        "forecast": {"enabled": False},
        "evaluation": {"samples": 4, "max_origins": 12, "max_series": 2},
    }
    path = folder / "kaggle.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def place(tmp_path):
    """A configuration with its data beside it, and another folder to work in."""
    make_data(tmp_path / "settings" / "kaggle_data")
    (tmp_path / "work").mkdir()
    write_config(tmp_path / "settings")
    return tmp_path / "work"


def surroundings() -> dict[str, str]:
    return {**environment(), "PYTHON": sys.executable}


def script(*flags, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, flags)], cwd=cwd, env=surroundings(), capture_output=True, text=True, timeout=timeout
    )


# ---- flags


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_help_names_every_flag_that_the_script_takes(tmp_path):
    done = script("--help", cwd=tmp_path)
    labels = re.findall(r"^ {8}([-a-z| ]+)\)", SCRIPT.read_text().split("\nparse() {")[1].split("esac")[0], re.MULTILINE)
    taken = set(re.findall(r"--[a-z-]+", " ".join(labels)))
    assert done.returncode == 0 and len(taken) == 11 and taken <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--frobnicate"], "unknown flag --frobnicate"),
        (["extra"], "unknown flag extra"),
        (["--multi-gpu", "many"], "many is not a number of GPUs"),
        (["--multi-gpu", "0"], "0 is not a number of GPUs"),
        (["--num-gpus"], "--num-gpus needs a number"),
        (["--dist-backend", "mpi"], "choose gloo or nccl"),
        (["--config"], "--config needs a value"),
        (["--set", "--resume"], "--set needs KEY=VALUE"),
    ],
)
def test_a_mistake_in_the_flags_is_one_message_with_exit_code_2(tmp_path, flags, told):
    done = script(*flags, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_without_python_or_torch_the_message_says_what_to_install(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(getattr(sys, "_base_executable", sys.executable))} -S -E -I "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(["bash", str(SCRIPT)], cwd=tmp_path, env={**surroundings(), "PYTHON": str(bare)}, capture_output=True, text=True)
    assert done.returncode == 2 and "lacks torch" in done.stderr and "pip install" in done.stderr


def test_data_that_is_not_preprocessed_yet_says_which_command_makes_it(tmp_path):
    done = script(cwd=tmp_path)  # the shipped configuration, from a folder that holds nothing
    assert done.returncode == 2 and "kaggle_data/panel is not there" in done.stderr
    assert f"{ROOT}/finetune_csv/kaggle_data_preprocess.py --train train.csv --test test.csv --out kaggle_data" in done.stderr
    assert not list(tmp_path.iterdir())


# ---- devices


def configured(*overrides: str) -> CsvConfig:
    return CsvConfig.load(None, ["data.data_path=arch:sp500", *overrides], {})


def test_gpus_that_are_there_are_used_and_it_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H200")
    short = plan_launch(configured(), "8")
    assert short.processes == 2 and "8 GPUs were asked for, 2 are here" in short.notes[0] and not short.overrides
    assert plan_launch(configured(), "all", "gloo").overrides == ["distributed.backend=gloo"]
    assert plan_launch(configured("device.device=cpu"), "3").processes == 3


def test_without_a_gpu_the_processes_work_on_the_cpu_by_gloo(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = plan_launch(configured(), "4", "nccl")
    assert found.processes == 4 and found.overrides == ["device.device=cpu", "distributed.backend=gloo"]
    assert "no GPU is here: 4 processes on the CPU" in found.notes[0]
    assert plan_launch(configured("device.use_cuda=false"), "all").processes == 1
    with pytest.raises(InputError, match="number of processes"):
        plan_launch(configured(), "x")


def test_the_time_torchrun_waits_for_saving_is_raised_where_it_can_be(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for able in (True, False):
        monkeypatch.setattr(launching, "takes_shutdown_timeout", lambda able=able: able)
        assert bool(plan_launch(configured(), "2").torchrun) == able


def test_progress_shows_how_busy_the_gpu_is_where_nvml_is_there(monkeypatch):
    assert progress.gpu_use() == ""
    for name, value in (("is_available", True), ("is_initialized", True), ("utilization", 93), ("max_memory_allocated", 2**30)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(progress, "_has_nvml", lambda: True)
    lines: list[str] = []
    progress.progress(10, 0, 1, True, "x", say=lines.append).update(1, 5, 1.0, 1e-3)
    assert lines[0].endswith("GPU 93 %, peak 1.0 GiB")

    def slice_of_a_gpu():
        raise type("NVMLError_NotSupported", (Exception,), {})()

    monkeypatch.setattr(torch.cuda, "utilization", slice_of_a_gpu)
    assert progress.gpu_use() == ""


# ---- exit codes that torchrun hides


def report_of(*codes: int) -> str:
    return "".join(f"  rank      : {rank}\n  exitcode  : {code} (pid: 1{rank})\n" for rank, code in enumerate(codes))


@pytest.mark.parametrize(
    "status, log, code, told",
    [
        ({"state": "interrupted", "exit_code": 75}, "", 75, ""),
        ({"state": "failed", "exit_code": 2}, report_of(-15, 2), 2, ""),
        ({"state": "running", "exit_code": None}, report_of(-15, -9), 1, "exit code -9"),
        (None, report_of(2, 2), 2, ""),
        (None, report_of(2, -15), 2, ""),
        (None, report_of(1, -15), 1, "exit code 1"),
        (None, "nothing", 1, ""),
    ],
)
def test_the_true_exit_code_comes_from_the_status_else_from_torchruns_report(tmp_path, status, log, code, told):
    began, path, lines = tmp_path / "began", tmp_path / "status.json", []
    began.touch()
    (tmp_path / "train.log").write_text(log)
    if status:
        path.write_text(json.dumps(status))
    assert true_code(1, [path], began.stat().st_mtime, tmp_path / "train.log", lines.append) == code
    assert told in "".join(lines) and bool(lines) == bool(told)


def test_a_status_of_a_former_run_tells_nothing(tmp_path):
    path, began = tmp_path / "status.json", tmp_path / "began"
    path.write_text('{"state": "failed", "exit_code": 2}')
    time.sleep(0.05)
    began.touch()
    assert true_code(1, [path], began.stat().st_mtime, None, print) == 1


# ---- runs


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_dry_run_tells_windows_steps_and_time_and_writes_nothing(place):
    before = tree(place.parent)
    done = script("--config", "../settings/kaggle.yaml", "--dry-run", "--multi-gpu", 2, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("64 windows per epoch of") == 2 and done.stdout.count("effective batch 16, 4 steps per epoch") == 2
    assert re.search(r"predictor: [\d,]+ parameters", done.stdout) and re.search(r"in all about [\d.]+ s, measured on cpu", done.stdout)
    assert tree(place.parent) == before


def test_lengths_of_time_are_for_people():
    assert [span(s) for s in (0.25, 190, 19_200, 400_000)] == ["0.2 s", "3 min 10 s", "5 h 20 min", "4.6 days"]


@pytest.mark.slow
def test_from_another_folder_the_chain_ends_with_models_predictions_and_a_log(place):
    done = script("--config", "../settings/kaggle.yaml", "--set", "training.log_interval=2", "model_paths.exp_name=a b", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (place / "out" / "a b" / "logs").glob("train_*.log")
    assert "tokenizer step 2" in log.read_text() and f"log: out/a b/logs/{log.name}" in done.stdout
    for stage in ("tokenizer", "basemodel"):
        assert (place / "out" / "a b" / stage / "best_model" / "complete.json").is_file() and f"out/a b/{stage}/best_model" in done.stdout
    (told,) = re.findall(r"^next: (.*)", done.stdout, re.MULTILINE)
    command = shlex.split(told)
    assert command[0] == "python"
    inference = subprocess.run([sys.executable, *command[1:]], cwd=place, env=surroundings(), capture_output=True, text=True, timeout=120)
    assert inference.returncode == 0, inference.stderr
    assert pd.read_csv(place / "predictions.csv")["ID"].tolist() == ["T0", "T1", "T2"] and (place / "predictions_report.md").is_file()


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_both_stages(place):
    done = script("--config", "../settings/kaggle.yaml", "--multi-gpu", 2, "--dist-backend", "gloo", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((place / "out" / "small" / "basemodel" / "summary.json").read_text())
    assert (summary["world_size"], summary["effective_batch"]) == (2, 16)


@pytest.mark.parametrize("code, told", [(1, "training failed: exit code 1. To go on from the last checkpoint"), (75, "Go on with")])
def test_a_killed_or_stopped_training_says_how_to_go_on_with_the_path_as_called(tmp_path, code, told):
    (tmp_path / "a b").mkdir()
    text = SCRIPT.read_text().removesuffix('main "$@"\n')
    (tmp_path / "a b" / "train_kaggle.sh").write_text(f"{text}log=some.log\nreport {code}\n")
    done = subprocess.run(["bash", "a b/train_kaggle.sh"], cwd=tmp_path, env=surroundings(), capture_output=True, text=True)
    assert told in done.stderr and r"bash a\ b/train_kaggle.sh --resume and the same flags" in done.stderr


@pytest.mark.slow
def test_failing_ranks_end_with_their_own_exit_code_and_the_logs_path(place):
    missing = ["experiment.pre_trained=true", "model_paths.pretrained_tokenizer=/no/where", "model_paths.pretrained_predictor=/no/where"]
    done = script("--config", "../settings/kaggle.yaml", "--num-gpus", 2, "--set", *missing, cwd=place)
    (log,) = (place / "out" / "small" / "logs").glob("train_*.log")
    assert done.returncode == 2 and "/no/where" in done.stdout and f"(exit code 2). Log: out/small/logs/{log.name}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sent, whole_group", [(signal.SIGTERM, False), (signal.SIGINT, True)], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_reaches_the_training_which_saves_and_resumes(place, sent, whole_group):
    write_config(place.parent / "settings", epochs=25)
    flags = ["--config", "../settings/kaggle.yaml", "--skip-basemodel"]
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *flags],
        cwd=place,
        env=surroundings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    saved = place / "out" / "small" / "tokenizer" / "best_model" / "complete.json"
    for _ in range(1200):
        if saved.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    subprocess.run(["kill", f"-{sent.value}", "--", f"-{process.pid}" if whole_group else str(process.pid)], check=True)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "everything is saved" in out and f"Go on with: bash {SCRIPT} --resume" in err  # the log has the farewell, too
    assert json.loads((saved.parents[1] / "status.json").read_text())["state"] == "interrupted"
    if whole_group:
        return
    done = script(*flags, "--resume", cwd=place)
    assert done.returncode == 0 and "resumed from" in done.stdout and "--skip-tokenizer" in done.stdout


# ---- the shipped configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_load_and_speak_two_languages(path):
    config, text = CsvConfig.load(path, (), {}), path.read_text(encoding="utf-8")
    assert config.data.sampling == "sqrt" and config.evaluation.top_p == 1.0
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 300
    commented = re.findall(r"\b(?:schedule|warmup_ratio|div_factor|min_lr_ratio|plateau_factor|plateau_patience)\b", text)
    assert set(commented) <= set(type(config.training).model_fields)
    for key in ("early_stop_patience", "activation_checkpointing", "amp", "adam_weight_decay", "schedule", "warmup_ratio"):
        assert key in yaml.safe_load(text)["training"]


def test_the_shipped_values_are_the_guides():
    standard, quick, fine = (CsvConfig.load(path, (), {}) for path in CONFIGS)
    data, training = standard.data, standard.training
    assert (data.lookback_window, data.predict_window, data.max_context, data.clip, data.ratios) == (256, 1, 512, 5.0, (0.9, 0.1, 0.0))
    assert (training.tokenizer_epochs, training.basemodel_epochs, training.batch_size, training.num_workers) == (20, 15, 32, 4)
    assert (training.tokenizer_learning_rate, training.predictor_learning_rate, training.accumulation_steps) == (2e-4, 4e-5, 1)
    assert quick.training.tokenizer_epochs < training.tokenizer_epochs and quick.training.n_train_iter < training.n_train_iter
    assert fine.training.predictor_learning_rate < training.predictor_learning_rate
    assert fine.training.tokenizer_learning_rate < training.tokenizer_learning_rate
    assert len({config.model_paths.base_save_path for config in (standard, quick, fine)}) == 3
