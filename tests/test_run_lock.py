"""A folder has one writer: whoever comes second is refused and told who is there; a killed run lets go by itself."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from multi_tiny import models, script
from test_pipeline import write_config

from finetune.engine import locks
from finetune.engine.locks import RUN_LOCK, hold, refuse_if_held, release
from finetune.engine.tracking import Run
from finetune.pipeline import prepared
from finetune_csv.config import CsvConfig
from kronos.errors import InputError

HOLDER = (
    "import sys, time; from pathlib import Path; from finetune.engine.locks import hold; f = hold(Path(sys.argv[1]))\n"
    "print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def run_in(folder: Path, **options) -> Run:
    return Run.create(folder, **{**dict(config={"a": 1}, is_main=True, resume=False, name="tokenizer"), **options})


def test_the_second_is_told_the_firsts_number_machine_beginning_and_command(tmp_path, other):
    with pytest.raises(InputError) as refused:
        hold(tmp_path)
    told = str(refused.value)
    assert f"{tmp_path} is being trained in by another run (pid {other.pid} on {socket.gethostname()}, since 20" in told
    assert str(tmp_path) in told.split("since")[1] and f"kill {other.pid}" in told and "folder of its own" in told
    with pytest.raises(InputError, match=f"pid {other.pid}"):
        refuse_if_held(tmp_path)


def test_a_run_that_was_killed_has_let_go(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == other.pid, "its file is still there"
    release(hold(tmp_path))
    assert (tmp_path / RUN_LOCK).read_text() == ""


def test_looking_takes_nothing_and_makes_no_file(tmp_path):
    refuse_if_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
    release(hold(tmp_path))
    refuse_if_held(tmp_path)
    release(hold(tmp_path))


def test_a_second_run_in_a_run_folder_is_refused_and_touches_nothing_of_the_first(tmp_path):
    with run_in(tmp_path) as first:
        first.log(1, 0, "train", {"loss": 1.0})
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for resume in (False, True):
            with pytest.raises(InputError, match="is being trained in by another run"):
                run_in(tmp_path, resume=resume, config={"a": 2})
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with run_in(tmp_path, resume=True):
        pass


def test_a_run_that_could_not_begin_or_has_finished_lets_the_folder_go(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file stands where a folder is needed"):
        run_in(tmp_path / "run", logs=tmp_path / "file" / "logs")
    run = run_in(tmp_path / "run")
    run.finish({})
    refuse_if_held(tmp_path / "run")


def test_further_ranks_take_no_lock(tmp_path):
    with run_in(tmp_path), run_in(tmp_path, is_main=False):
        pass


def test_where_the_disk_knows_no_locks_training_goes_on_without(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuses)
    with run_in(tmp_path), run_in(tmp_path):
        pass


def test_every_pipeline_refuses_a_folder_in_use_before_it_loads_anything(tmp_path):
    config = CsvConfig.load(write_config(tmp_path))
    for stage, stages in (("tokenizer", ["tokenizer"]), ("predictor", ["predictor"]), ("tokenizer", ["predictor"])):
        folder = config.model_paths.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder)
        with pytest.raises(InputError, match=f"{folder} is being trained in"), prepared(config, stages):
            pass
        release(lock)


def test_two_direct_trainings_of_one_model_at_once_are_refused_with_exit_code_2(tmp_path):
    manager = models(tmp_path, "a")
    folder = manager.load_config("a").model_paths.folder("tokenizer")
    folder.mkdir(parents=True)
    lock = hold(folder)
    done = script("train_tokenizer_multi.py", "--config", str(tmp_path / "models" / "a.yaml"), cwd=tmp_path)
    assert done.returncode == 2 and f"pid {os.getpid()}" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (folder / "config.yaml").exists()
    release(lock)


def test_a_run_under_way_is_found_by_the_next_and_frees_the_folder_when_it_is_killed(tmp_path):
    models(tmp_path, "a", training={"epochs": 2000, "batch_size": 16, "num_workers": 0})
    command = [sys.executable, str(Path(locks.__file__).parents[1] / "train_tokenizer_multi.py"), "--config", "models/a.yaml"]
    folder = tmp_path / "out" / "a" / "tokenizer"
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (folder / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(InputError, match=rf"pid {process.pid} .*train_tokenizer_multi\.py --config models/a\.yaml"):
            refuse_if_held(folder)
    finally:
        process.kill()
        process.wait()
    refuse_if_held(folder)
