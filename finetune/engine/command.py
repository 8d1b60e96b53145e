"""What every command shares: its arguments, and how it ends. A command is

    def main() -> None:
        parser = command_parser("Fine-tune ...", ["python train_sequential.py --config C.yaml"])
        common_arguments(parser)
        ...

    if __name__ == "__main__":
        run_command(main)

Exit codes: 0 done; 2 the user's input; 75 interrupted and resumable; 130 Ctrl-C; 141 the reader of our output went away; 1 a fault of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from finetune.engine.errors import InputError, Interrupted, LostRank

EXIT_DONE, EXIT_FAULT, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_CTRL_C, EXIT_BROKEN_PIPE = 0, 1, 2, 75, 130, 141


class _Parser(argparse.ArgumentParser):
    """Mistakes in flags end like every other mistake in the input: one message, from one rank, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def command_parser(description: str, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser whose --help ends with examples. Flags cannot be shortened: a shortened one would change its meaning with every new flag."""
    epilog = "examples:\n" + "".join(f"  {example}\n" for example in examples) if examples else None
    return _Parser(description=description, epilog=epilog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)


def common_arguments(parser: argparse.ArgumentParser, config: str | None = None, *, resume: bool = True) -> None:
    """Adds --config, --set and --resume; `args.config`, `args.overrides` (a list for `load_config`) and `args.resume`.

    config: the file to use without --config; None makes the flag required. resume: False for a command with nothing to resume.
    """
    shown = f" (default: {config})" if config else ""
    parser.add_argument("--config", metavar="FILE", type=_of_project, default=config, required=config is None, help=f"YAML file{shown}")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change keys, e.g. --set training.batch_size=16 data.data_path='[a.csv, b.csv]'; wins over environment variables and the file",
    )
    if resume:
        parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")


def _of_project(text: str) -> str:
    """The file as named, or, from another folder, the project's own of that name (configs/demo.yaml)."""
    own = Path(__file__).resolve().parents[2] / text
    return str(own) if not Path(text).exists() and own.is_file() else text


def to_paste(script: str, *words: str | Path) -> str:
    """The line that runs a script of this project (tft/predict.py) from the current folder, its words quoted where they need it."""
    root = Path(__file__).resolve().parents[2]
    return f"python {shlex.join([script if Path.cwd() == root else str(root / script), *map(str, words)])}"


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and ends the process with its exit code. What the user can mend is one message on stderr that begins with "error: "."""
    try:
        code = _ended(main)
        sys.stdout.flush()  # here, where a reader that went away can still be handled
    except InputError as error:
        code = _tell(f"error: {error}", EXIT_INPUT)
    except Interrupted as stop:
        code = _tell(str(stop), EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        code = _tell("stopped by Ctrl-C", EXIT_CTRL_C)
    except BrokenPipeError:
        code = EXIT_BROKEN_PIPE if _silence(sys.stdout) else _fault()  # some other pipe broke: that is ours
    except LostRank as lost:
        _write(f"[rank {os.environ.get('RANK', '0')}] error: {lost}")  # each rank its own: rank 0 may be the one that is gone
        code = EXIT_FAULT
    except Exception:
        code = _fault()
    sys.exit(code)


def _ended(main: Callable[[], int | None]) -> int | str | None:
    try:
        return main() or EXIT_DONE
    except SystemExit as end:  # argparse after --help
        return end.code


def _fault() -> int:
    """Prints the traceback; each rank its own, for a fault may be one rank's alone."""
    rank = os.environ.get("RANK")
    _write((f"[rank {rank}] " if rank else "") + traceback.format_exc().rstrip())
    return EXIT_FAULT


def _tell(message: str, code: int) -> int:
    """Says why the command ends, on one rank of many. The others leave it to torchrun's report, in case theirs is the only message."""
    if os.environ.get("RANK") in (None, "0"):
        _write(message)
    elif report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        with suppress(OSError), open(report, "w", encoding="utf-8") as file:  # the exit code matters more than the report
            json.dump({"message": details}, file)
    return code


def _write(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> bool:
    """Whether the reader of `stream` went away; if so, what is left goes nowhere and the interpreter ends without complaining."""
    try:
        stream.write("\n")  # only a write tells: the one that failed has emptied the buffer
        stream.flush()
        return False
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
