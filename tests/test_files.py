"""Atomic files: the old one or the new one, never half of each, and errors that say what to do."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.engine import files
from finetune.engine.files import (
    LineFile,
    atomic_path,
    ensure_writable_folder,
    read_json,
    read_json_lines,
    remove_leftovers,
    write_bytes,
    write_json,
    write_text,
    write_with,
)
from kronos.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(number: int):
    def refusing(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return refusing


def test_a_written_file_holds_the_new_content_and_nothing_else_is_left_in_its_folder(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "first\n")
    write_bytes(tmp_path / "new" / "a.txt", "zwölf\n".encode())
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "zwölf\n"
    assert names(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_when_the_disk_refuses_at_any_step_the_former_file_survives_and_the_error_names_path_and_fix(tmp_path, monkeypatch, step, number):
    target = tmp_path / "last.json"
    write_text(target, "former")
    monkeypatch.setattr(files.os, step, refuse(number))
    with pytest.raises(InputError) as told:
        write_text(target, "new")
    assert str(target) in str(told.value)
    assert "choose" in str(told.value)
    assert target.read_text() == "former"
    assert names(tmp_path) == ["last.json"]


def test_a_failing_writer_leaves_the_former_file_and_no_temporary_one_and_its_own_error_passes(tmp_path):
    write_text(tmp_path / "a.bin", "former")

    def writer(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        write_with(tmp_path / "a.bin", writer)
    assert (tmp_path / "a.bin").read_text() == "former"
    assert names(tmp_path) == ["a.bin"]


def test_a_file_that_the_writer_reads_and_misses_is_not_blamed_on_the_target(tmp_path):
    with pytest.raises(FileNotFoundError) as told:
        write_with(tmp_path / "out.txt", lambda _: Path("/nowhere/input.txt").read_text())
    assert not isinstance(told.value, InputError)


@pytest.mark.parametrize(
    "message",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors 0.8
        "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598",  # torch.save, torch 2.13
    ],
)
def test_a_full_disk_that_a_library_reports_in_words_is_recognised(tmp_path, message):
    with pytest.raises(InputError, match="full"), atomic_path(tmp_path / "model.safetensors"):
        raise RuntimeError(message)


def test_a_file_in_a_folders_place_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    for make in (ensure_writable_folder, lambda path: write_text(path / "a.txt", "")):
        with pytest.raises(InputError, match="a file stands where a folder is needed"):
            make(tmp_path / "taken")
        with pytest.raises(InputError, match="a file stands where a folder is needed"):
            make(tmp_path / "taken" / "below")


def test_a_writable_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    assert ensure_writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path / "a" / "b") == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        ensure_writable_folder(tmp_path)


def test_json_stays_valid_for_numbers_and_types_that_json_does_not_know(tmp_path):
    value = {"loss": float("nan"), "best": np.float32(0.5), "n": np.int64(3), "all": np.array([1.0, np.inf])}
    value |= {"where": Path("x"), 1: (True, None)}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "loss": None, "best": 0.5, "n": 3, "all": [1.0, None], "where": "x", "1": [True, None],
    }  # fmt: skip
    assert read_json(tmp_path / "a.json")["n"] == 3


def test_reading_json_gives_none_without_a_file_and_names_a_damaged_one(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"half\.json is damaged"):
        read_json(tmp_path / "half.json")


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', '{"step": 3, "lo\n', "\0\0\0\0", '{"step": 3}\0\0'])
def test_a_torn_last_line_is_left_out_and_an_earlier_damaged_one_is_named(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + tail)
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        read_json_lines(path)
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_a_line_file_appends_and_what_was_written_is_there_before_it_is_closed(tmp_path):
    first, second = LineFile(tmp_path / "log"), LineFile(tmp_path / "log")
    first.line("one")
    second.line("zwölf")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\nzwölf\n"
    for lines in (first, second, second):
        lines.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_line_on_a_full_disk_is_an_error_that_names_the_file():
    lines = LineFile("/dev/full")
    with pytest.raises(InputError, match="cannot write /dev/full: the disk is full"):
        lines.line("a line")
    lines.close()


def test_temporary_files_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    script = (
        "import os, signal; from finetune.engine.files import write_with\n"
        f"write_with({str(tmp_path / 'model.safetensors')!r}, lambda p: (p.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode != 0
    assert len(names(tmp_path)) == 1
    for kept in (".hidden", "notes.tmp", ".env.12.txt", "model.safetensors"):
        (tmp_path / kept).write_text("")
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == [".env.12.txt", ".hidden", "model.safetensors", "notes.tmp"]
    assert remove_leftovers(tmp_path / "not there") == 0


def test_leftovers_in_a_folder_that_has_become_read_only_are_one_message(tmp_path, monkeypatch):
    """Root may write everywhere, so the system's answer is given by hand; the disk drill has it for real (seed 9101, read-only)."""
    (tmp_path / ".probe.12.tmp").write_text("")

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match="cannot write to folder"):
        remove_leftovers(tmp_path)
