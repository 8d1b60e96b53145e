"""A short round of the drill on malformed input; `python -m tests.drills.malformed --rounds 5000` is the long one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kronos.errors import InputError
from tests.drills import common, isolated, malformed
from tests.drills.common import Failed
from tests.drills.isolated import judge

ROOT = Path(__file__).resolve().parents[1]


def drill(name: str, *flags: str) -> None:
    """A process of its own: what forked commands print must not go into pytest's capture."""
    command = [sys.executable, "-m", f"tests.drills.{name}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    common.import_once()
    return malformed.kinds(tmp_path_factory.mktemp("malformed"))


@pytest.mark.parametrize("kind", malformed.KINDS[:-1])
def test_malformed_input_gives_one_message_or_a_right_answer(kinds, kind, tmp_path):
    for number in range(5):
        seed = number * len(malformed.KINDS) + malformed.KINDS.index(kind)
        (tmp_path / str(seed)).mkdir()
        kinds[kind](seed, tmp_path / str(seed))


def test_so_do_the_commands():
    drill("malformed", "--kind", "command", "--rounds", "3", "--seed", "6")


def refuse(message: str):
    raise InputError(message)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (lambda: {}["x"], "KeyError"),
        (lambda: os.kill(os.getpid(), 11), "SIGSEGV"),
        (lambda: Path("here").write_text("x"), "did what it may not: open"),
        (lambda: os.system("true"), "did what it may not: os.system"),
        (lambda: refuse("x" * 10_000), "a message of 10,000 characters"),
        (lambda: bytearray(300 << 20) and None, "took 3.. MiB of memory"),
        (lambda: bytearray(2 << 30), "MemoryError"),
        (lambda: sum(iter(int, 1)), "hangs: more than 1 s of processor time"),
    ],
)
def test_the_judge_sees(case, told, tmp_path):
    with pytest.raises(Failed, match=told):
        judge(case, tmp_path / "case", cpu_s=1)


def test_the_judge_sees_a_reader_that_waits_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "WALL_LIMIT_S", 0.3)
    with pytest.raises(Failed, match="hangs: still there"):
        judge(lambda: time.sleep(60), tmp_path / "case")


def test_the_judge_lets_an_answer_and_a_message_pass_and_control_characters_are_shown(tmp_path):
    assert judge(lambda: Path("../out/file").write_text("x") and "well", tmp_path / "a").told == "well"
    assert judge(lambda: refuse("a \x1b[2J bell"), tmp_path / "b").told == "a \\x1b[2J bell"
