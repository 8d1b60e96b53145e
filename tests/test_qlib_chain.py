"""The four Qlib commands as a user runs them, on a small synthetic store: the whole chain, restarts, folds, two ranks, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from qlib_bars import small_store

from finetune import qlib_data_preprocess, qlib_test
from finetune.one_stage import train_one
from kronos.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
data:
  qlib_data_path: {store}
  instrument: all
  dataset_path: data
  dataset_begin_time: "2021-01-04"
  dataset_end_time: "2021-12-03"
  train_time_range: ["2021-01-04", "2021-06-30"]
  val_time_range: ["2021-06-21", "2021-09-15"]
  test_time_range: ["2021-09-08", "2021-11-19"]
  lookback_window: 21
  predict_window: 4
training: {{epochs: 1, batch_size: 32, n_train_iter: 128, n_val_iter: 64, log_interval: 2, num_workers: 0, seed: 3}}
model_paths: {{save_path: models}}
model:
  tokenizer: {{preset: base, d_model: 16, n_heads: 2, ff_dim: 16, n_enc_layers: 2, n_dec_layers: 2, s1_bits: 4, s2_bits: 4}}
  predictor: {{preset: mini, n_layers: 1, d_model: 16, n_heads: 2, ff_dim: 16, s1_bits: 4, s2_bits: 4}}
experiment: {{pre_trained: false, name: tiny chain}}
device: {{cpu_threads: 1}}
backtest:
  backtest_time_range: ["2021-09-20", "2021-11-19"]
  n_symbol_hold: 4
  n_symbol_drop: 1
  hold_thresh: 1
  benchmark: equal
  interval_draws: 200
  backtest_result_path: results
exchange: {{limit_threshold: null, trade_unit: 0}}
"""
COMMANDS = {
    "qlib_data_preprocess.py": qlib_data_preprocess.main,
    "train_tokenizer.py": lambda: train_one("tokenizer", "", "", "finetune.config:QlibConfig"),
    "train_predictor.py": lambda: train_one("predictor", "", "", "finetune.config:QlibConfig"),
    "qlib_test.py": qlib_test.main,
}
WEIGHTS = "checkpoints/best_model/model.safetensors"


def command(folder, script, *arguments, code=0, config="c.yaml"):
    """Run one of the commands in a folder; what it said."""
    given = [sys.executable, str(ROOT / "finetune" / script), "--config", config, *arguments]
    done = subprocess.run(given, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which the four commands have run, and what they said."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "c.yaml").write_text(CONFIG.format(store=small_store()))
    said = [command(folder, script) for script in ("qlib_data_preprocess.py", "train_tokenizer.py", "train_predictor.py")]
    return folder, [*said, command(folder, "qlib_test.py", "--device", "cpu")]


@pytest.fixture
def refusal(chain, monkeypatch):
    """What a command of this process says of a mistake; a process of its own takes seconds to start."""

    def refusal(script, *arguments):
        monkeypatch.chdir(chain[0])
        monkeypatch.setattr(sys, "argv", [script, "--config", "c.yaml", *arguments])
        with pytest.raises(InputError) as error:
            COMMANDS[script]()
        return str(error.value)

    return refusal


def test_the_four_commands_leave_panels_weights_forecasts_and_a_report(chain):
    folder, said = chain
    models, results = folder / "models", folder / "results" / "finetune_backtest_demo"
    for path in (
        *(folder / "data" / "manifest.json", folder / "data" / "train" / "panel.json", models / "finetune_tokenizer_demo" / WEIGHTS),
        *(models / "finetune_predictor_demo" / name for name in (WEIGHTS, "summary.json", "curves.png")),
        *(models / "logs" / "predictor.log", results / "forecasts" / "manifest.json"),
        *(results / "performance_plot.png", results / "positions" / "mean.csv"),
    ):
        assert path.is_file(), path
    found = json.loads((results / "backtest_results.json").read_text())
    assert set(found["signals"]) == {"last", "mean", "max", "min", "median", "prob_up", "risk_adjusted"}
    assert set(found["baselines"]) == {"momentum_20", "reversal_5"}
    assert found["verdict"] in said[3] and "information ratio" in found["verdict"]
    assert found["scores"]["mean"]["4"]["days"] > 20 and found["settings"]["backtest"]["n_symbol_hold"] == 4
    report = (results / "analysis_report.txt").read_text()
    assert "RankIC" in report and "Before you believe it" in report
    assert not (folder / "mlruns").exists() and "gym" not in "".join(said).lower()


def test_a_second_run_takes_the_forecasts_that_are_there_and_says_so(chain):
    folder, _ = chain
    before = (folder / "results/finetune_backtest_demo/backtest_results.json").read_text()
    said = command(folder, "qlib_test.py", "--set", "backtest.signal=last")
    assert "forecasts were there" in said
    after = json.loads((folder / "results/finetune_backtest_demo/backtest_results.json").read_text())
    assert set(after["signals"]) == {"last"}
    assert after["signals"]["last"]["days"] == json.loads(before)["signals"]["last"]["days"]


def test_forecasts_reach_the_last_day_of_the_test_range_and_start_after_validation(chain):
    folder, _ = chain
    positions = pd.read_csv(folder / "results/finetune_backtest_demo/positions/last.csv")
    assert positions["datetime"].max() == "2021-11-19" and positions["datetime"].min() == "2021-09-20"


def test_training_again_goes_on_from_the_checkpoint_or_starts_anew(chain, tmp_path):
    folder, _ = chain
    said = command(folder, "train_tokenizer.py", "--set", "model_paths.save_path=again")
    assert "epoch 1/1" in said
    assert (
        "nothing left to do" in (done := command(folder, "train_tokenizer.py", "--resume", "--set", "model_paths.save_path=again"))
        or "epoch" in done
    )
    first, second = (folder / place / "finetune_tokenizer_demo" / WEIGHTS for place in ("models", "again"))
    assert first.read_bytes() == second.read_bytes(), "the same seed gives the same weights"


@pytest.mark.parametrize(
    ("script", "flags", "told"),
    [
        ("qlib_data_preprocess.py", ["data.qlib_data_path=nowhere"], "there is no folder"),
        ("qlib_data_preprocess.py", ["data.qlib_data_path=models"], "is not a Qlib store"),
        ("qlib_data_preprocess.py", ["data.instrument=csi9000"], "has no pool 'csi9000'; it has all, few"),
        ("qlib_data_preprocess.py", ["data.test_time_range=['2025-01-01', '2025-06-01']"], "test_time_range"),
        ("qlib_data_preprocess.py", ["data.val_time_range=['2021-06-01', '2021-09-15']"], "lies in data.train_time_range"),
        ("train_tokenizer.py", ["data.dataset_path=elsewhere"], "python finetune/qlib_data_preprocess.py"),
        ("train_tokenizer.py", ["data.lookback_window=20"], "data.lookback_window was 21 and is 20"),
        ("train_predictor.py", ["model_paths.save_path=untrained"], "python finetune/train_tokenizer.py"),
        ("qlib_test.py", ["model_paths.save_path=new"], "train it first (python finetune/train_tokenizer.py --config c.yaml --set"),
        ("qlib_test.py", ["backtest.benchmark=SH000300"], "SH000300"),
        ("qlib_test.py", ["backtest.n_symbol_hold=50"], "backtest.n_symbol_hold is 50; hold at most 12"),
        ("qlib_test.py", ["backtest.backtest_time_range=['2021-09-01', '2021-11-19']"], "signal 'of every possible forecast'"),
        ("qlib_test.py", ["backtest.backtest_time_range=['2031-01-01', '2031-03-01']"], "backtest_time_range"),
    ],
)
def test_mistakes_are_told_before_anything_long_begins(refusal, script, flags, told):
    assert told in refusal(script, "--set", *flags)


@pytest.mark.parametrize(("flag", "told"), [("gpu", "--device gpu: give cpu, cuda, cuda:0"), ("cuda:7", "device: 'cuda'")])
def test_a_device_that_is_not_there_is_told(refusal, flag, told):
    assert told in refusal("qlib_test.py", "--device", flag)


def test_models_trained_on_other_bars_than_the_panels_are_refused_before_they_forecast(chain, refusal):
    other = ["data.dataset_path=later", "data.train_time_range=['2021-01-04', '2021-05-31']"]
    command(chain[0], "qlib_data_preprocess.py", "--set", *other)
    assert "was trained on other bars than those of later/train" in refusal("qlib_test.py", "--set", *other)


def test_a_store_that_changed_since_is_noticed(chain, refusal):
    bars = next(small_store().glob("features/sh600000/close.day.bin"))
    before = bars.stat()
    os.utime(bars, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        assert "has changed since the panels were made" in refusal("qlib_test.py")
    finally:
        os.utime(bars, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_too_many_folds_are_refused_with_the_number_that_fits(refusal):
    assert "allow 2 to 2 folds" in refusal("qlib_test.py", "--folds", "9")


def test_a_mistake_ends_the_command_with_one_message_and_exit_code_2(chain):
    said = command(chain[0], "qlib_test.py", "--set", "data.qlib_data_path=nowhere", code=2)
    assert said.startswith("error: ") and "Traceback" not in said


@pytest.mark.slow
def test_walking_forward_trains_and_tests_every_fold_on_later_bars_and_joins_them(chain, tmp_path):
    folder, _ = chain
    asked = ["qlib_test.py", "--folds", "2", "--set", "backtest.signal=mean", "backtest.backtest_save_folder_name=walk"]
    said = command(folder, *asked)
    place = folder / "results/walk/walk_forward_2"
    results = [json.loads((place / part / "backtest_results.json").read_text()) for part in (".", "fold_1", "fold_2")]
    assert "2 folds walking forward" in results[0]["title"] and any(note.startswith("fold 2, test") for note in results[0]["notes"])
    whole, first, second = (result["signals"]["mean"] for result in results)
    assert first["first"] == whole["first"] and second["last"] == whole["last"] and first["last"] < second["first"]
    assert first["days"] + second["days"] == whole["days"]
    (one,), (two,) = ([*(folder / "models").glob(f"fold_{n}-*/finetune_predictor_demo/{WEIGHTS}")] for n in (1, 2))
    assert one.read_bytes() != two.read_bytes()
    assert "skipped" in command(
        folder, "qlib_test.py", "--folds", "2", "--set", "backtest.signal=mean", "backtest.backtest_save_folder_name=walk"
    )
    assert said.count("fold 1 of 2") == 1


@pytest.mark.slow
def test_two_ranks_train_on_the_panels_and_a_stopped_training_resumes(chain, tmp_path):
    folder, _ = chain
    script = str(ROOT / "finetune" / "train_tokenizer.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, "--config", "c.yaml"]
    place = ["--set", "model_paths.save_path=ranks", "training.batch_size=16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *place], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "ranks/finetune_tokenizer_demo/summary.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_forecasting_that_was_stopped_continues(chain):
    folder, _ = chain
    given = [sys.executable, str(ROOT / "finetune" / "qlib_test.py"), "--config", "c.yaml", "--set"]
    given += ["backtest.backtest_save_folder_name=stopped", "inference.sample_count=400", "inference.series_at_once=1"]
    running = subprocess.Popen(given, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    parts = folder / "results" / "stopped" / "forecasts"
    until = time.monotonic() + 120
    while not list(parts.glob("part-*.npy")) and time.monotonic() < until and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    if running.returncode == -signal.SIGKILL:
        assert "forecasts were there" in command(folder, "qlib_test.py", "--set", *given[5:])
