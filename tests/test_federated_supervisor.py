"""The supervisor, on processes that are not Flower's: what dies comes back, what should end ends, however it was started."""

import os
import signal
import sys
import time

import psutil
import pytest

from federated import supervisor
from federated.certificates import private_folder
from federated.supervisor import Spec
from kronos.errors import InputError

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PARENT = [
    sys.executable,
    "-c",
    f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True); time.sleep(600)",
]


@pytest.fixture
def folder(tmp_path):
    private_folder(tmp_path / "logs")
    yield tmp_path
    supervisor.stop(tmp_path, grace_s=3)


def _spec(folder, name, arguments) -> Spec:
    return Spec(name, arguments, {}, str(folder / "logs" / f"{name}.log"), str(folder))


def _soon(condition, timeout_s: float = 20.0):
    end = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return result


def _row(folder, name) -> dict:
    return next((row for row in supervisor.state(folder) if row["name"] == name), {})


def test_a_killed_process_is_started_again_and_counted(folder):
    supervisor.start(folder, [_spec(folder, "one", SLEEPER)])
    first = _soon(lambda: _row(folder, "one").get("pid"))
    os.kill(first, signal.SIGKILL)
    second = _soon(lambda: _row(folder, "one").get("pid") not in (None, first) and _row(folder, "one"))
    assert second["restarts"] == 1
    assert second["exit_codes"] == [-signal.SIGKILL]
    supervisor.add(folder, [_spec(folder, "two", SLEEPER)])
    assert _soon(lambda: _row(folder, "two").get("pid"))
    with pytest.raises(InputError, match="two runs"):
        supervisor.add(folder, [_spec(folder, "two", SLEEPER)])


def test_a_process_that_cannot_live_is_started_ever_more_rarely(folder):
    supervisor.start(folder, [_spec(folder, "crash", [sys.executable, "-c", "raise SystemExit(3)"])])
    _soon(lambda: _row(folder, "crash").get("restarts", 0) >= 1)
    began = time.monotonic()
    assert set(_row(folder, "crash")["exit_codes"]) == {3}
    _soon(lambda: _row(folder, "crash")["restarts"] >= 2)
    assert time.monotonic() - began > 1.5


def test_stopping_ends_even_a_stubborn_grandchild_in_a_session_of_its_own(folder):
    supervisor.start(folder, [_spec(folder, "family", PARENT)])
    members = _soon(lambda: (found := supervisor.members(folder)) and len(found) == 3 and found)
    time.sleep(0.3)  # until the grandchild ignores SIGTERM
    supervisor.stop(folder)
    assert not [process for process in members if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not supervisor.alive(folder)


def test_a_folder_is_told_from_another_whose_name_it_begins(folder, tmp_path_factory):
    supervisor.start(folder, [_spec(folder, "one", SLEEPER)])
    _soon(lambda: _row(folder, "one").get("pid"))
    assert not supervisor.members(folder.with_name(folder.name + "0"))
    assert len(supervisor.members(folder)) == 2
