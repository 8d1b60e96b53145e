"""From a CSV to checkpoints, curves and a picture, as a user runs it: the commands, their exit codes, their messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from bars import make_frame
from ranks import environment, free_port
from safetensors.torch import load_file

from finetune.after_training import draw_forecast
from finetune.engine.config import resolved
from finetune.pipeline import prepared, run_stage
from finetune_csv.config import CsvConfig
from finetune_csv.pipeline import stages_of
from kronos import load_predictor, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "tokenizer": {
        "preset": "base",
        "d_model": 16,
        "n_heads": 2,
        "ff_dim": 32,
        "n_enc_layers": 2,
        "n_dec_layers": 2,
        "s1_bits": 4,
        "s2_bits": 4,
    },
    "predictor": {"preset": "mini", "n_layers": 1, "d_model": 16, "n_heads": 2, "ff_dim": 32, "s1_bits": 4, "s2_bits": 4},
}


def write_config(folder: Path, data=None, **changes) -> Path:
    """A small configuration over two CSVs of 100 bars; `changes` are section_key=value."""
    if data is None:
        for name in ("AAA", "BBB"):
            make_frame(100, seed=len(name) + ord(name[0])).to_csv(folder / f"{name}.csv", index=False)
        data = [str(folder / "AAA.csv"), str(folder / "BBB.csv")]
    config = {
        "data": {"data_path": data, "lookback_window": 12, "predict_window": 4, "train_ratio": 0.7, "val_ratio": 0.2, "test_ratio": 0.1},
        "training": {
            "tokenizer_epochs": 2,
            "basemodel_epochs": 2,
            "batch_size": 16,
            "log_interval": 5,
            "num_workers": 0,
            "seed": 1,
            "tokenizer_learning_rate": 1e-3,
            "predictor_learning_rate": 1e-3,
        },
        "model_paths": {"exp_name": "small", "base_path": str(folder / "out")},
        "model": SIZES,
        "experiment": {"pre_trained_tokenizer": False, "pre_trained_predictor": False},
        "forecast": {"samples": 3},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        config.setdefault(section, {})[name] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_all(config: CsvConfig, **options) -> list[str]:
    with prepared(config, stages_of(config), **options) as job:
        trained = list(job.models)
        for stage in trained:
            run_stage(job, stage)
        draw_forecast(job)
    return trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = CsvConfig.load(write_config(folder))
    run_all(config)
    return folder, config


def test_everything_the_issue_promises_is_there_afterwards(whole):
    folder, _ = whole
    base = folder / "out" / "small"
    for stage in ("tokenizer", "basemodel"):
        run = base / stage
        assert {p.name for p in (run / "best_model").iterdir()} >= {"config.json", "model.safetensors", "complete.json"}
        for name in ("metrics.jsonl", "curves.png", "config.yaml", "summary.json", "status.json"):
            assert (run / name).stat().st_size > 0, name
        assert list((run / "tensorboard").iterdir())
        summary = json.loads((run / "summary.json").read_text())
        assert summary["versions"]["torch"] and summary["data"]["data"] and summary["wall_time_s"] > 0 and summary["windows"]["train"] > 0
        assert json.loads((run / "status.json").read_text())["exit_code"] == 0
    assert (base / "forecast.png").stat().st_size > 10_000
    assert {p.name for p in (base / "logs").iterdir()} >= {"tokenizer.log", "predictor.log"}
    assert (
        load_tokenizer(base / "tokenizer" / "best_model").config["s1_bits"],
        load_predictor(base / "basemodel" / "best_model").config["d_model"],
    ) == (4, 16)


def test_the_same_configuration_gives_the_same_weights_again(whole, tmp_path):
    folder, config = whole
    again = CsvConfig.load(folder / "config.yaml", [f"model_paths.base_path={tmp_path}"])
    run_all(again)
    for stage in ("tokenizer", "predictor"):
        a, b = (load_file(c.model_paths.best_model(stage) / "model.safetensors") for c in (config, again))
        assert all((a[k] == b[k]).all() for k in a)


def test_the_resolved_configuration_can_be_run_again(whole):
    folder, config = whole
    written = folder / "out" / "small" / "tokenizer" / "config.yaml"
    assert resolved(CsvConfig.load(written)) == resolved(config)


def test_skip_existing_leaves_finished_stages_alone_and_trains_the_missing_one(whole):
    _, config = whole
    before = {s: (config.model_paths.best_model(s) / "model.safetensors").stat().st_mtime_ns for s in ("tokenizer", "predictor")}
    assert run_all(config, skip_existing=True) == []
    (config.model_paths.best_model("predictor") / "complete.json").unlink()
    assert run_all(config, skip_existing=True) == ["predictor"]
    after = {s: (config.model_paths.best_model(s) / "model.safetensors").stat().st_mtime_ns for s in ("tokenizer", "predictor")}
    assert before["tokenizer"] == after["tokenizer"] and before["predictor"] < after["predictor"]


def test_fine_tuning_starts_from_the_named_weights_with_other_dropout(whole, tmp_path):
    folder, config = whole
    tuned = CsvConfig.load(
        folder / "config.yaml",
        [
            f"model_paths.base_path={tmp_path}",
            "experiment.pre_trained=true",
            "training.epochs=1",
            "model.dropout=0.3",
            f"model_paths.pretrained_tokenizer={config.model_paths.best_model('tokenizer')}",
            f"model_paths.pretrained_predictor={config.model_paths.best_model('predictor')}",
        ],
    )
    with prepared(tuned, stages_of(tuned)) as job:
        assert job.models["predictor"].config["ffn_dropout_p"] == 0.3
        start = load_file(config.model_paths.best_model("tokenizer") / "model.safetensors")
        assert all((job.models["tokenizer"].state_dict()[k] == v).all() for k, v in start.items())


def command(*arguments, cwd=ROOT, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600, **options
    )


def test_the_commands_work_from_any_folder_one_stage_each(tmp_path):
    config = write_config(tmp_path)
    first = command(ROOT / "finetune_csv" / "finetune_base_model.py", "--config", config, cwd=tmp_path)
    assert first.returncode == 2 and "Predictor requires tokenizer" in first.stderr and "Traceback" not in first.stderr
    assert not (tmp_path / "out" / "small" / "basemodel").exists()
    for name in ("finetune_tokenizer.py", "finetune_base_model.py"):
        done = command(ROOT / "finetune_csv" / name, "--config", config, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "small" / "basemodel" / "best_model" / "complete.json").is_file()


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 60) -> None:
    for _ in range(int(seconds * 20)):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)


def start(config: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train_sequential.py"), "--config", str(config), *flags],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_exits_75_starts_no_further_stage_and_resume_ends_with_the_same_bits(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changes = dict(training__tokenizer_epochs=12, forecast__enabled=False)
    config = write_config(tmp_path / "a", **changes)
    process = start(config)
    base = tmp_path / "a" / "out" / "small"
    wait_for(base / "tokenizer" / "best_model" / "complete.json", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "--resume" in err and "Traceback" not in err, (out, err)
    assert json.loads((base / "tokenizer" / "status.json").read_text())["state"] == "interrupted"
    assert not (base / "basemodel").exists()
    out, err = (resumed := start(config, "--resume")).communicate(timeout=120)
    assert resumed.returncode == 0 and "resumed from" in out, err
    undisturbed = CsvConfig.load(write_config(tmp_path / "b", **changes))
    run_all(undisturbed)
    for stage in ("tokenizer", "basemodel"):
        a, b = (load_file(tmp_path / side / "out" / "small" / stage / "best_model" / "model.safetensors") for side in "ab")
        assert all((a[k] == b[k]).all() for k in a), stage


def test_killed_outright_it_resumes_to_the_same_bits(tmp_path):
    for side in "ab":
        (tmp_path / side).mkdir()
    changes = dict(training__tokenizer_epochs=3, training__basemodel_epochs=20, training__checkpoint_every_steps=3, forecast__enabled=False)
    config = write_config(tmp_path / "a", **changes)
    base = tmp_path / "a" / "out" / "small"
    for moment in ("tokenizer/best_model/complete.json", "basemodel/best_model/complete.json"):
        process = start(config, "--resume")
        wait_for(base / moment, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert start(config, "--resume").communicate(timeout=120) and (base / "basemodel" / "summary.json").is_file()
    run_all(CsvConfig.load(write_config(tmp_path / "b", **changes)))
    for stage in ("tokenizer", "basemodel"):
        a, b = (load_file(tmp_path / side / "out" / "small" / stage / "best_model" / "model.safetensors") for side in "ab")
        assert all((a[k] == b[k]).all() for k in a), stage


def test_two_ranks_under_torchrun_train_the_whole_pipeline(tmp_path):
    config = write_config(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            f"--master_port={free_port()}",
            "--master_addr=127.0.0.1",
            str(ROOT / "train_sequential.py"),
            "--config",
            str(config),
        ],
        env={**environment(), "DIST_BACKEND": "gloo"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cpu × 2" in done.stdout and done.stdout.count("epoch 1/2") == 2  # one line per stage: rank 0's
    summary = json.loads((tmp_path / "out" / "small" / "basemodel" / "summary.json").read_text())
    assert summary["world_size"] == 2 and summary["effective_batch"] == 32


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(data__data_path=["nowhere.csv"]), "nowhere.csv"),
        (dict(data__train_ratio=0.99, data__val_ratio=0.01, data__test_ratio=0.0), "val split has no window"),
        (dict(data__lookback_window=400), "no series has the 405 rows"),
        (dict(experiment__pre_trained_tokenizer=True, model_paths__pretrained_tokenizer="nobody/nothing"), "nobody/nothing"),
        (dict(model_paths__base_path="/proc/nowhere"), "/proc/nowhere"),
        (dict(device__device="cuda"), "cuda"),
    ],
)
def test_a_mistake_is_one_message_with_exit_code_2_and_nothing_half_written(tmp_path, changes, told):
    config = write_config(tmp_path, **changes)
    done = command(ROOT / "train_sequential.py", "--config", config)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and told in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not list((tmp_path / "out").rglob("metrics.jsonl"))


def test_the_demo_in_small_ends_with_its_picture(tmp_path):
    """The 40-second version of `python train_sequential.py`; the whole demo runs in .ci/run."""
    done = command(
        ROOT / "train_sequential.py",
        "--set",
        f"model_paths.base_path={tmp_path}",
        "training.epochs=1",
        "training.n_train_iter=640",
        "training.n_val_iter=128",
        "forecast.samples=5",
        "training.log_interval=5",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "forecast.png").stat().st_size > 20_000
    assert str(tmp_path / "demo") in done.stdout.splitlines()[-1]
