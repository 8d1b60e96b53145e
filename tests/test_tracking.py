"""The run folder: numbers survive kills and resumes, runs do not mix, and trouble elsewhere never stops a run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.engine import comet, provenance, tracking
from finetune.engine.curves import draw_curves
from finetune.engine.errors import Interrupted
from finetune.engine.files import read_json, read_json_lines
from finetune.engine.tracking import CometSettings, Run
from kronos.errors import InputError

CONFIG = {"training": {"seed": 1, "batch_size": 4}, "pretrained_tokenizer": "hub/id"}


def create(folder: Path, **changes) -> Run:
    options = {"config": CONFIG, "is_main": True, "resume": False, "name": "tokenizer"}
    return Run.create(folder, **{**options, **changes})


def train(run: Run, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.log(step, 0, "train", {"loss": 1 / step, "lr": 1e-3})
    run.log(last, 0, "val", {"loss": 2 / last})


def board(run: Run) -> list[int]:
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_a_run_leaves_metrics_events_curves_config_status_and_summary(tmp_path, capsys):
    with create(tmp_path / "run", logs=tmp_path / "logs") as run:
        run.say("begins")
        train(run, 1, 3)
        assert read_json(run.folder / "status.json")["state"] == "running"
        run.finish({"best": 0.5, "fingerprint": "abc"})
    lines = read_json_lines(run.folder / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (2, "train"), (3, "train"), (3, "val")]
    assert lines[1].keys() == {"step", "epoch", "split", "time_s", "loss", "lr"}
    assert board(run) == [1, 2, 3]
    assert png_size(run.folder / "curves.png") == (1200, 700)
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == CONFIG
    status, summary = read_json(run.folder / "status.json"), read_json(run.folder / "summary.json")
    assert (status["state"], status["exit_code"]) == ("done", 0)
    assert (summary["best"], summary["fingerprint"], summary["state"]) == (0.5, "abc", "done")
    assert summary["versions"].keys() >= {"python", "torch", "numpy", "pandas", "kronos-trainer"}
    assert summary["wall_time_s"] > 0
    assert capsys.readouterr().out == "begins\n"
    assert (tmp_path / "logs" / "tokenizer.log").read_text().endswith("  begins\n")


def test_other_ranks_write_nothing_and_print_nothing(tmp_path, capsys):
    run = create(tmp_path / "run", is_main=False, comet=CometSettings())
    with run:
        run.say("x")
        run.log(1, 0, "train", {"loss": 1.0})
        run.rewind(0)
        run.status("interrupted")
        run.finish({})
    assert run.checkpoints == tmp_path / "run" / "checkpoints"
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_metrics_stay_valid_json_when_a_number_is_not_finite(tmp_path):
    with create(tmp_path) as run:
        run.log(1, 0, "train", {"loss": float("nan"), "norm": float("inf")})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is None
    assert line["norm"] is None


def test_a_new_run_does_not_mix_with_the_former_one_and_removes_nothing_that_is_not_its_own(tmp_path):
    with create(tmp_path) as run:
        train(run, 1, 5)
        run.finish({})
    others = [tmp_path / "tensorboard" / "mine.txt", tmp_path / "logs" / "basemodel.log", tmp_path / "notes.md"]
    for other in others:
        other.write_text("kept")
    with create(tmp_path) as run:
        assert not (tmp_path / "summary.json").exists()
        assert not (tmp_path / "curves.png").exists()
        train(run, 1, 2)
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 2]
    assert board(run) == [1, 2]
    assert [other.read_text() for other in others] == ["kept"] * 3


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_goes_on_in_the_same_files(tmp_path):
    with create(tmp_path) as run:
        train(run, 1, 7)
    with create(tmp_path, resume=True) as run:
        run.rewind(4)
        train(run, 5, 6)
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 6]
    assert board(run) == [1, 2, 3, 4, 5, 6]


def test_wall_time_adds_up_over_resumes_also_after_a_kill(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    with create(tmp_path) as run:
        now[0] += 50
        train(run, 1, 9)
    (tmp_path / "status.json").unlink()  # as good as killed: only the metrics tell how long it ran
    now[0] = 0.0  # another process, another clock
    with create(tmp_path, resume=True) as run:
        run.rewind(2)
        now[0] += 7
        run.finish({})
    assert read_json(tmp_path / "summary.json")["wall_time_s"] == pytest.approx(57)
    with create(tmp_path, resume=True) as run:  # the status alone tells too
        assert run.wall_time_s == pytest.approx(57)
    with create(tmp_path) as run:
        assert run.wall_time_s == 0


def test_after_kill_minus_nine_every_logged_line_is_there_and_the_torn_one_is_dropped_on_resume(tmp_path):
    script = (
        "import sys; from pathlib import Path; from finetune.engine.tracking import Run\n"
        f"run = Run.create(Path({str(tmp_path)!r}), config={{}}, is_main=True, resume=False, name='x')\n"
        "for step in range(1, 10**9):\n    run.log(step, 0, 'train', {'loss': 1.0})\n    print(step, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    told = 0
    while told < 20:
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told += len(process.communicate()[0].split())  # each step is printed after it was logged
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 99, "lo')
    with create(tmp_path, resume=True, name="x") as run:
        run.log(10**9, 0, "train", {"loss": 2.0})
    *steps, last = [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert steps in (list(range(1, told + 1)), list(range(1, told + 2)))
    assert last == 10**9


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (Interrupted("stopped"), "interrupted", 75),
        (KeyboardInterrupt(), "interrupted", 130),
        (InputError("bad"), "failed", 2),
        (ZeroDivisionError(), "failed", 1),
    ],
)
def test_how_a_run_failed_is_in_its_status_and_log(tmp_path, error, state, code):
    with pytest.raises(type(error)), create(tmp_path) as run:
        run.log(1, 0, "train", {"loss": 1.0})
        raise error
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["exit_code"]) == (state, code)
    assert type(error).__name__ in (tmp_path / "logs" / "tokenizer.log").read_text()


def test_a_status_that_was_set_before_the_failure_stays(tmp_path):
    with pytest.raises(Interrupted), create(tmp_path) as run:
        run.status("interrupted", step=7)
        raise Interrupted("x")
    assert read_json(tmp_path / "status.json")["step"] == 7


def test_secrets_do_not_reach_the_config_file(tmp_path):
    config = {"comet": {"api_key": "s3cret", "project": "p"}, "hub_token": "s3cret", "tokenizer": "kept", "list": [{"password": "s3cret"}]}
    create(tmp_path, config=config).close()
    assert "s3cret" not in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"comet": {"project": "p"}, "tokenizer": "kept", "list": [{}]}


def test_a_run_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file stands where a folder is needed"):
        create(tmp_path / "file")


def test_without_tensorboard_one_line_says_so_and_metrics_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with create(tmp_path) as run:
        train(run, 1, 3)
    assert capsys.readouterr().out.count("TensorBoard is not installed") == 1
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 4
    assert not (tmp_path / "tensorboard").exists()


def test_curves_are_drawn_with_one_epoch_with_no_validation_with_nothing_and_for_both_stages(tmp_path):
    line = {"step": 10, "epoch": 0, "split": "train", "loss": -0.03, "lr": 0.0}
    runs = {
        "one": [line, {**line, "split": "val"}],
        "no validation": [{**line, "step": step, "loss": 1 / step} for step in range(1, 60)],
        "not finite": [{**line, "loss": None}],
        "nothing": [],
    }
    for name, lines in runs.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        draw_curves(tmp_path / "curves.png", {name: tmp_path / f"{name}.jsonl"})
        assert png_size(tmp_path / "curves.png") == (1200, 700)
    draw_curves(tmp_path / "both.png", {name: tmp_path / f"{name}.jsonl" for name in ("one", "missing")})
    assert png_size(tmp_path / "both.png") == (2400, 700)
    assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_git_state_is_of_the_checkout_that_tracks_the_file_and_of_no_other(tmp_path):
    ours = tmp_path / "ours.py"
    ours.write_text("1")
    assert provenance.git_state(ours) is None
    git(tmp_path, "init")
    assert provenance.git_state(ours) is None
    git(tmp_path, "add", "ours.py")
    git(tmp_path, "commit", "-m", "x")
    assert provenance.git_state(ours) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    ours.write_text("2")
    assert provenance.git_state(ours)["dirty"] is True
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "installed.py").write_text("")
    assert provenance.git_state(tmp_path / "venv" / "installed.py") is None


# ---------------------------------------------------------------- Comet


def test_without_comet_ml_one_line_says_so_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with create(tmp_path, comet=CometSettings()) as run:
        train(run, 1, 2)
        run.finish({})
    assert capsys.readouterr().out.splitlines() == [
        "Comet: use_comet is on but comet_ml is not installed (pip install comet-ml); this run is not sent to Comet"
    ]


@pytest.mark.parametrize("key", [None, "Fake0Key1Fake2Key3Fake4Key5"])
def test_comet_without_key_or_network_keeps_an_archive_says_one_line_waits_for_nothing_and_hides_the_key(tmp_path, key):
    """In a process of its own, as comet_ml reads its settings once; with its input closed, so that a prompt would fail."""
    pytest.importorskip("comet_ml")
    script = (
        "import sys; from pathlib import Path; from finetune.engine.tracking import CometSettings, Run\n"
        "for resume in (False, True):\n"
        f"    with Run.create(Path({str(tmp_path)!r}) / 'run', config={{'seed': 1, 'api_key': 'Fake0Key1'}}, is_main=True, resume=resume,\n"
        "            name='tokenizer', comet=CometSettings()) as run:\n"
        "        run.log(1, 0, 'train', {'loss': 0.25, 'lr': 1e-3, 'bad': float('nan')})\n"
        "        run.finish({})"
    )
    # port 9 of this machine: nobody listens there, so the test never leaves it
    environment = {**os.environ, "COMET_URL_OVERRIDE": "http://127.0.0.1:9/clientlib/", "HOME": str(tmp_path), "COMET_API_KEY": key or ""}
    begin = time.monotonic()
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert time.monotonic() - begin < 30
    lines = done.stdout.splitlines()
    assert len(lines) == 2  # one for each of the two runs
    assert all(("cannot be reached" if key else "no API key") in line and "comet upload" in line for line in lines)
    archives = list((tmp_path / "run" / "logs").glob("*.zip"))
    assert len(archives) == 2
    experiment = read_json(tmp_path / "run" / "logs" / "tokenizer.comet.json")["experiment_key"]
    assert all(archive.name.startswith(experiment) for archive in archives)  # the resumed run goes on with the same experiment
    messages = zipfile.ZipFile(archives[0]).read("messages.json").decode()
    for expected in ("train/loss", "0.25", "train/lr", "seed"):
        assert expected in messages
    assert "train/bad" not in messages
    assert_nowhere(tmp_path, "Fake0Key1")


def assert_nowhere(folder: Path, secret: str) -> None:
    for path in folder.rglob("*"):
        if path.suffix == ".zip":
            archive = zipfile.ZipFile(path)
            assert all(secret.encode() not in archive.read(name) for name in archive.namelist()), path
        elif path.is_file():
            assert secret.encode() not in path.read_bytes(), path


class Experiment:
    """Stands in for comet_ml's experiment where its service misbehaves."""

    def __init__(self, end=lambda: None):
        self.end, self.logged = end, []

    def log_metrics(self, values, **_):
        self.logged.append(values)
        raise ConnectionError("service is down")


def test_when_comets_service_fails_in_the_middle_one_line_says_so_and_nothing_is_sent_any_more():
    said, experiment = [], Experiment()
    log = comet.CometLog(experiment, said.append)
    for step in range(3):
        log.log(step, 0, "train", {"loss": 1.0})
    log.end()
    assert len(experiment.logged) == 1
    assert len(said) == 1
    assert "service is down" in said[0]


def test_ending_comet_is_bounded_in_time(monkeypatch):
    monkeypatch.setattr(comet, "END_LIMIT_S", 0.2)
    said: list[str] = []
    begin = time.monotonic()
    comet.CometLog(Experiment(end=lambda: time.sleep(60)), said.append).end()
    assert time.monotonic() - begin < 30
    assert "given up" in said[0]


ended = threading.Event()


def refuse_key(online: bool) -> None:
    raise ValueError("The given API key 'Fake0Key1' is invalid")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (lambda online: time.sleep(0.4) or Experiment(end=ended.set), "did not answer within"),
        (refuse_key, "refused (The given API key '<API key>'"),
        (lambda online: type("Dead", (), {"alive": False}), "is the API key right?"),
    ],
    ids=["hangs", "refuses", "hands out a dead one"],
)
def test_a_server_that_answers_but_makes_no_experiment_costs_a_bounded_time_and_the_key_is_not_told(monkeypatch, start, reason):
    library = type("comet_ml", (), {"get_config": staticmethod(lambda name: "Fake0Key1" if name == "comet.api_key" else "http://server/")})
    monkeypatch.setitem(sys.modules, "comet_ml", library)
    monkeypatch.setattr(comet, "_answers", lambda server: True)
    monkeypatch.setattr(comet, "START_LIMIT_S", 0.2)
    experiment, told = comet._start_online(library, start)
    assert experiment is None
    assert reason in told
    assert "Fake0Key1" not in told
    if "did not answer" in reason:
        assert ended.wait(5)  # an experiment that comes too late is not left open
