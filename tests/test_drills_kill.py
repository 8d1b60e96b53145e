"""A short round of the kill drill, and what it taught: one act of beginning anew, logs without repeats, panels without leftovers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bars import make_panel

from finetune.data.panel import Panel
from finetune.engine import beginning
from finetune.engine.beginning import goes_on
from finetune.engine.distributed import World
from finetune.engine.files import read_json, read_json_lines
from finetune.engine.tracking import Run

ROOT = Path(__file__).resolve().parents[1]


def drill(name: str, *flags: str, limit_s: float = 300) -> None:
    done = subprocess.run([sys.executable, "-m", f"tests.drills.{name}", *flags], cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 failures" in done.stdout


@pytest.mark.slow
def test_killed_anywhere_every_command_resumes_to_the_same_bits():
    drill("kill", "--rounds", "4", "--seed", "1")


def checkpoint(folder: Path, number: int = 3) -> None:
    place = folder / "checkpoints" / f"last-{number:08d}"
    place.mkdir(parents=True)
    (place / "complete.json").write_text("{}")


@pytest.fixture
def two(tmp_path):
    runs = [tmp_path / name for name in ("tokenizer", "basemodel")]
    for run in runs:
        checkpoint(run)
    return runs


def aside(run: Path) -> bool:
    return (run / "checkpoints" / "former").is_dir()


def test_beginning_anew_puts_the_checkpoints_of_all_stages_aside_and_resuming_none(tmp_path, two):
    assert goes_on(tmp_path, two, resume=True, world=World()) and not any(map(aside, two))
    assert not goes_on(tmp_path, two, resume=False, world=World()) and all(map(aside, two))


def test_what_a_killed_beginning_left_undone_is_done_before_resuming(tmp_path, two, monkeypatch):
    done = []

    def die_on_second(folder):
        if done:
            raise KeyboardInterrupt
        done.append(folder)
        os.replace(folder / "last-00000003", folder / "former")

    with monkeypatch.context() as patch:
        patch.setattr(beginning, "set_aside", die_on_second)
        with pytest.raises(KeyboardInterrupt):
            goes_on(tmp_path, two, resume=False, world=World())
    assert aside(two[0]) and not aside(two[1])
    assert goes_on(tmp_path, two, resume=True, world=World()) and all(map(aside, two))
    checkpoint(two[1])
    assert goes_on(tmp_path, two, resume=True, world=World())
    assert (two[1] / "checkpoints" / "last-00000003").is_dir(), "done once, not at every resume"


def test_restarted_workers_go_on_from_what_their_own_launch_began_and_from_nothing_older(tmp_path, two, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not goes_on(tmp_path, two, resume=False, world=World()), "killed before it began: the former run is not this launch's"
    assert all(map(aside, two))
    checkpoint(two[0], 1)
    assert goes_on(tmp_path, two, resume=False, world=World())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert not goes_on(tmp_path, two, resume=False, world=World())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not goes_on(tmp_path, two, resume=False, world=World()), "a first start is no restart"


def test_a_validation_logged_just_before_the_kill_is_in_the_log_once_after_resuming(tmp_path):
    def create(resume):
        return Run.create(tmp_path, config={}, is_main=True, resume=resume, name="test")

    with create(False) as run:
        run.log(3, 0, "train", {"loss": 1.0})
        run.log(3, 0, "val", {"loss": 1.0})
    with create(True) as run:
        run.rewind(3, 0)  # the checkpoint of step 3 was saved before that validation
        run.log(3, 0, "val", {"loss": 1.0})
    assert [line["split"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == ["train", "val"]


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_panel_writer_left_is_swept_and_a_panel_that_lost_its_place_comes_back(tmp_path):
    panel = make_panel(2, 30)
    target = panel.save(tmp_path / "panel")
    gone = dead_pid()
    os.rename(target, tmp_path / f".panel.old-{gone}")  # killed between the two renames
    (tmp_path / f".panel.new-{gone}").mkdir()
    (tmp_path / f".panel.new-{os.getppid()}").mkdir()  # of a writer that lives
    with pytest.raises(ZeroDivisionError):
        from finetune.data.panel_store import FolderWriter

        with FolderWriter(target):
            raise ZeroDivisionError
    assert Panel.open(target).fingerprint == panel.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".panel.new-{os.getppid()}", "panel"]


def test_a_panel_writer_killed_at_any_operation_leaves_a_panel_or_none_and_nothing_after_the_next(tmp_path):
    panel, other = make_panel(2, 30), make_panel(2, 30, seed=1)
    target = panel.save(tmp_path / "panel")
    for number in range(1, 40):
        pid = os.fork()
        if not pid:
            seen = [0]

            def hook(event, args, seen=seen, number=number):
                if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and str(tmp_path) in str(args[0]):
                    seen[0] += 1
                    if seen[0] == number:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            other.save(target)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if target.exists():
            assert Panel.open(target).fingerprint in (panel.fingerprint, other.fingerprint)
        panel.save(target)
        assert [p.name for p in tmp_path.iterdir()] == ["panel"] and Panel.open(target).fingerprint == panel.fingerprint
        if code == 0:
            break
    assert code == 0 and number > 5 and read_json(target / "panel.json")
