"""How commands end: one message and a documented exit code for what users did, a traceback for our faults, silence on other ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.engine.command import command_parser, common_arguments, run_command, to_paste
from finetune.engine.errors import InputError, Interrupted, MissingFileError


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)


def ending(main) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "told"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(InputError("c.yaml, line 3: batch_size is 0")), 2, "error: c.yaml, line 3: batch_size is 0\n"),
        (raising(MissingFileError("c.yaml does not exist")), 2, "error: c.yaml does not exist\n"),
        (raising(Interrupted("saved; go on with --resume")), 75, "saved; go on with --resume\n"),
        (raising(KeyboardInterrupt()), 130, "stopped by Ctrl-C\n"),
        (raising(SystemExit(0)), 0, ""),
    ],
)
def test_each_way_to_end_has_its_code_and_its_one_message(main, code, told, capsys):
    assert ending(main) == code
    assert capsys.readouterr() == ("", told)


def test_a_fault_of_ours_ends_with_1_and_its_traceback(capsys):
    assert ending(raising(RuntimeError("broken"))) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and told.endswith("RuntimeError: broken\n")


def test_a_broken_pipe_that_is_not_our_output_is_a_fault(capsys):
    assert ending(raising(BrokenPipeError("to a worker"))) == 1
    assert "BrokenPipeError: to a worker" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(InputError("wrong"), 2), (Interrupted("stopped"), 75), (KeyboardInterrupt(), 130)])
def test_other_ranks_end_alike_and_silently(error, code, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert ending(raising(error)) == code
    assert capsys.readouterr() == ("", "")


def test_a_message_that_only_another_rank_has_reaches_torchruns_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert ending(raising(InputError("GPU 1 is full"))) == 2
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "error: GPU 1 is full"
    assert capsys.readouterr().err == ""


def test_a_fault_on_another_rank_tells_whose_it_is(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert ending(raising(RuntimeError("broken"))) == 1
    assert capsys.readouterr().err.startswith("[rank 3] Traceback")


@pytest.mark.parametrize("lines", [1, 100_000], ids=["before the last flush", "while it prints"])
def test_a_reader_that_goes_away_is_no_fault(lines):
    script = f"from finetune.engine.command import run_command\nrun_command(lambda: [print(i) for i in range({lines})] and 0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def parse(*flags: str, config: str | None = "demo.yaml"):
    parser = command_parser("Fine-tune on bars.", ["python train.py --config C.yaml", "python train.py --set training.batch_size=16"])
    common_arguments(parser, config)
    return parser.parse_args(flags)


def test_keys_are_set_by_one_flag_with_several_values_or_by_several_flags():
    args = parse("--set", "a.b=1", "c.d=[1, 2]", "--resume", "--set", "e.f=-3")
    assert (args.overrides, args.resume, args.config) == (["a.b=1", "c.d=[1, 2]", "e.f=-3"], True, "demo.yaml")
    assert parse().overrides == [] and not parse().resume
    assert parse("--set", "a.b=1").overrides == ["a.b=1"], "a former call must not leave its values behind"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config"], "error: argument --config: expected one argument; see"),
        (["--sett", "a=1"], "error: unrecognized arguments: --sett a=1; see"),
        (["--conf", "x"], "error: unrecognized arguments: --conf x; see"),
    ],
)
def test_mistaken_flags_end_like_any_other_mistake(flags, told, capsys):
    assert ending(lambda: parse(*flags)) == 2
    assert capsys.readouterr().err.startswith(told)


def test_without_a_default_the_configuration_must_be_named(capsys):
    assert ending(lambda: parse(config=None)) == 2
    assert "the following arguments are required: --config" in capsys.readouterr().err


def test_help_ends_with_examples(capsys):
    assert ending(lambda: parse("--help")) == 0
    told = capsys.readouterr().out
    assert "examples:\n  python train.py --config C.yaml\n  python train.py --set training.batch_size=16\n" in told
    assert "(default: demo.yaml)" in told


def test_the_command_that_a_message_proposes_can_be_pasted_from_any_folder_whatever_its_files_are_called(tmp_path, monkeypatch):
    (tmp_path / "my data.yaml").write_text("data: {data_path: nothing.csv}\n")
    monkeypatch.chdir(tmp_path)
    line = to_paste("tft/indicating.py", "--config", tmp_path / "my data.yaml").replace("python", sys.executable, 1)
    ended = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert ended.returncode == 2 and "my data.yaml: features.use is missing" in ended.stderr
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    assert to_paste("tft/predict.py", "--run", "runs/a") == "python tft/predict.py --run runs/a"
