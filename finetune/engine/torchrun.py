"""What torchrun hides: it ends with 1 whatever its ranks ended with."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.engine.command import EXIT_FAULT, EXIT_INPUT, EXIT_INTERRUPTED
from finetune.engine.files import read_json

_REPORTED = re.compile(r"^\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)  # in torchrun's report of failed workers
_TAIL_BYTES = 1 << 16


def true_code(
    returned: int, statuses: Sequence[Path], since: float, log: Path | None, say: Callable[[str], Any], *, log_from: int = 0
) -> int:
    """The exit code that torchrun hid: from the newest stage's status.json, else from torchrun's own report in the log.

    returned: torchrun's. since: when the training began, in seconds since 1970; older statuses are of former runs. log_from: where in the
    log, in bytes, its output begins. say: told of ranks that ended in another way than by a message of ours.
    """
    fresh = sorted((path.stat().st_mtime, path) for path in statuses if path.is_file() and path.stat().st_mtime >= since)
    reported = _reported_codes(log, log_from)
    first = [code for code in reported if code != -signal.SIGTERM] or reported  # torchrun terminates the others
    if set(first) - {EXIT_INPUT, EXIT_INTERRUPTED}:
        codes = ", ".join(map(str, dict.fromkeys(first)))
        say(f"a rank ended with exit code {codes}" + (" (a negative number is the signal that killed it)" if min(first) < 0 else ""))
    for _, path in reversed(fresh):
        status = read_json(path) or {}
        if status.get("state") in ("failed", "interrupted") and isinstance(status.get("exit_code"), int):
            return status["exit_code"]
    known = [code for code in reported if code > 0]
    for code in (EXIT_INPUT, EXIT_INTERRUPTED):
        if known and all(one == code for one in known):
            return code
    return EXIT_FAULT if returned in (0, EXIT_INPUT, EXIT_INTERRUPTED) else returned


def _reported_codes(log: Path | None, log_from: int) -> list[int]:
    """Exit codes in the report that torchrun prints last."""
    if log is None or not log.is_file():
        return []
    with open(log, "rb") as file:
        file.seek(max(log_from, log.stat().st_size - _TAIL_BYTES))
        return [int(code) for code in _REPORTED.findall(file.read().decode("utf-8", "replace"))]
