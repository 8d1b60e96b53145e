"""A folder is written by one process at a time: a lock that the system gives back when its holder ends, however it ends.

The lock is on a small file in the folder, which says who holds it: {"pid", "host", "since", "command"}. The file stays when the lock is
given back: removing it could take another's lock away.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from kronos.errors import InputError
from kronos.files import explained

RUN_LOCK = ".run.lock"  # of a stage's run folder, held by rank 0 while it trains there
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_FAR = 1 << 20  # Windows locks bytes: one far behind the text, which stays readable
_LONGEST = 300  # characters of a command that are told


def hold(folder: Path, name: str = RUN_LOCK) -> IO[str]:
    """Take the lock of a folder that is there; it is held until the file returned is closed, or the process ends.

    Raises InputError naming the holder if another has it, or if the folder cannot be written to. A file system that knows no locks (some
    network disks) goes without.
    """
    path = folder / name
    with explained(path):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  the lock lives as long as the file is open
    if not _taken(file):
        raise _refusal(path, file)
    try:
        with explained(path):
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
    except BaseException:  # a full disk, which closing may complain of once more
        with suppress(OSError):
            file.close()
        raise
    return file


def release(file: IO[str]) -> None:
    """Give a lock back, with nobody named in its file any more. May be called twice."""
    if not file.closed:
        with suppress(OSError):  # a full disk keeps no one from letting go
            file.truncate(0)
        file.close()


def refuse_if_held(folder: Path, name: str = RUN_LOCK) -> None:
    """Raises InputError naming the holder if another has the folder's lock now; takes nothing and makes no file."""
    path = folder / name
    if not path.is_file():
        return
    with explained(path):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    if not _taken(file):
        raise _refusal(path, file)
    file.close()


def _refusal(path: Path, file: IO[str]) -> InputError:
    with file:
        file.seek(0)
        holder = file.read().strip()
    return InputError(f"{path.parent} is being trained in by another run ({_named(holder)}). {_fix(holder)}")


def _taken(file: IO[str]) -> bool:
    """Whether the lock could be taken, or there are none here."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(_FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _UNSUPPORTED
    return True


def _me() -> dict[str, object]:
    command = shlex.join(sys.argv)
    short = command if len(command) <= _LONGEST else f"{command[:_LONGEST]} ..."
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": short}


def _facts(holder: str) -> dict[str, object]:
    """What the file says; nothing where its holder has just begun, or writes right now."""
    try:
        facts = json.loads(holder)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) and {"pid", "host", "since", "command"} <= facts.keys() else {}


def _named(holder: str) -> str:
    facts = _facts(holder)
    if not facts:
        return "not known which: it has just begun"
    return f"pid {facts['pid']} on {facts['host']}, since {facts['since']}: {facts['command']}"


def _fix(holder: str) -> str:
    facts = _facts(holder)
    where = "" if not facts or facts["host"] == socket.gethostname() else f" on {facts['host']}"
    stop = f"stop it (kill {facts['pid']}{where}: it saves, and --resume goes on)" if facts else "stop it"
    return f"Wait for it, {stop}, or give this run a folder of its own (model_paths)"
