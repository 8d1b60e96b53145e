"""The disk fills up, or may no longer be written to, at any moment: one message, exit code 2, nothing lost, and --resume goes on.

"tmpfs": a real file system of a drawn size. "inodes": one with room for so many files. "full at": the file system is filled to the last
page before the n-th operation on a file. "cache": the token cache, which is memory-mapped, lies on a file system with room for a part of
it: without room that was set aside, the write to a page that has none would end the process (SIGBUS). "limit": no file may grow beyond a
drawn size (ulimit -f). "read-only": all output folders lose their write permission before the n-th operation. Mounting needs root or user
namespaces; where there are neither, only the last two run.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.engine.checkpoint import load_last
from finetune.engine.files import read_json
from finetune.engine.places import newest_last
from tests.drills import common
from tests.drills.common import STAGES, Failed, Round, differences, expect
from tests.drills.kill import COMMANDS, Command, Reference, at_operation, reference

_INSIDE = "KRONOS_DRILL_MOUNTS"  # set in the private mount namespace: 1 if mounting works there
_PAGE = 4096
_UNTOLD = "could not be written whole, most likely the disk or your quota is full"  # torch.save hides the reason
_FULL, _LIMITED, _DENIED = ("disk is full", _UNTOLD), ("larger than allowed", _UNTOLD), ("permission denied",)
_ROOM = "16m"  # enough for everything


def _mount(target: Path, *options: str) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(target)], check=True, capture_output=True)


def _umount(target: Path) -> None:
    subprocess.run(["umount", "-l", str(target)], check=True, capture_output=True)


def _check_failed(ended: common.Ended, base: Path, told: tuple[str, ...]) -> None:
    """One message of the right kind, no status that claims to run, and all that was complete can be read."""
    message = common.clear_message(ended, 2)
    expect(any(part in message or part in ended.text for part in told), f"the message names another reason: {message}")
    expect(not common.half_files(base), f"half files: {common.half_files(base)}")
    for stage in STAGES:
        state = (read_json(base / stage / "status.json") or {}).get("state")
        expect(state != "running", f"{stage}/status.json still says running; the message was: {message}")
        if newest := newest_last(base / stage / "checkpoints"):
            load_last(newest)


def _goes_on(of: Reference, arguments: list[str], base: Path, log: Path) -> None:
    ended = common.run([*arguments, "--resume"], log)
    expect(ended.code == 0, f"--resume ended with {ended.code}:\n{ended.text[-3000:]}")
    told = differences(of.results, of.command.results_of(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}\n{ended.text[-2000:]}")
    expect(not common.leftovers(base), f"left behind: {common.leftovers(base)}")


def _one(of: Reference, folder: Path, told: tuple[str, ...], fault: Callable[[], object] | None, mend: Callable[[], object]) -> None:
    """Train with the fault, check, take it away, resume."""
    arguments, base = of.command.arguments(folder), of.command.base(folder)
    ended = common.run(arguments, folder / "log", before=fault)
    if ended.code != 0:  # else the fault came too late to matter
        _check_failed(ended, base, told)
    mend()
    _goes_on(of, arguments, base, folder / "log-2")


def small(of: Reference, options: Callable[[random.Random], str], room: str, seed: int, folder: Path) -> None:
    """A file system that is too small from the start."""
    out = folder / "out"
    _mount(out, options(random.Random(seed)))
    try:
        _one(of, folder, _FULL, None, lambda: _mount(out, "remount", room))
    finally:
        _umount(out)


def filled(of: Reference, seed: int, folder: Path) -> None:
    """A file system that is filled at some moment."""
    out, moment = folder / "out", random.Random(seed).randint(1, of.operations)
    ballast = out / "ballast"

    def fill() -> None:
        handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        with suppress(OSError):
            while True:
                os.write(handle, bytes(_PAGE))

    _mount(out, f"size={_ROOM}")
    try:
        _one(of, folder, _FULL, lambda: at_operation(of.command.base(folder), moment, fill), lambda: ballast.unlink(missing_ok=True))
    finally:
        _umount(out)


def cache(of: Reference, seed: int, folder: Path) -> None:
    """A file system that has no room for all tokens of the predictor's windows."""
    arguments, base = of.command.arguments(folder, of.tokenizer), of.command.base(folder)
    whole = of.command.base(folder.parent / "reference-cache" / "whole") / STAGES[1] / "cache"
    pages = sum(path.stat().st_size for path in whole.rglob("ids.npy")) // _PAGE
    place = base / STAGES[1] / "cache"
    place.mkdir(parents=True)
    _mount(place, f"size={random.Random(seed).randint(1, pages - 1) * _PAGE}")
    try:
        ended = common.run(arguments, folder / "log")
        expect(ended.code != -signal.SIGBUS, "SIGBUS")
        _check_failed(ended, base, _FULL)
        _mount(place, "remount", f"size={_ROOM}")
        _goes_on(of, arguments, base, folder / "log-2")
    finally:
        _umount(place)


def _cached(command: Command) -> Command:
    """With windows enough for a cache of many pages, in one epoch's time."""

    def arguments(folder: Path, tokenizer: Path | None = None, **changes: Any) -> list[str]:
        more = dict(bars=500, training__basemodel_epochs=2, training__batch_size=64, training__cache_tokens="on")
        return command.arguments(folder, tokenizer, **more, **changes)

    return replace(command, arguments=arguments, former={})


def limited(of: Reference, seed: int, folder: Path) -> None:
    """A limit on the size of each file; above what the log of the command itself needs."""
    size = random.Random(seed).randint(16_000, 100_000)
    _one(of, folder, _LIMITED, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), lambda: None)


def read_only(of: Reference, seed: int, folder: Path) -> None:
    """The output folders lose their write permission."""
    base, moment = of.command.base(folder), random.Random(seed).randint(1, of.operations)

    def folders(mode: int) -> None:
        for path in sorted([base, *(p for p in base.rglob("*") if p.is_dir())], reverse=True) if base.exists() else []:
            path.chmod(mode)

    def fault() -> None:
        _without_privileges()
        at_operation(base, moment, lambda: folders(0o555))

    _one(of, folder, _DENIED, fault, lambda: folders(0o755))


def _without_privileges() -> None:
    """Root, too, then obeys permissions: all capabilities of this process are given up."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def kinds(folder: Path) -> dict[str, Round]:
    """One undisturbed run of both stages, then the rounds."""
    of = reference(COMMANDS[0], folder)
    used = sum(-(-p.stat().st_size // _PAGE) + 1 for p in of.command.base(folder / "whole").rglob("*"))
    files = sum(1 for _ in of.command.base(folder / "whole").rglob("*"))
    made: dict[str, Round] = {}

    @functools.cache
    def cached() -> Reference:
        tokenizer = of.command.base(folder / "whole") / STAGES[0] / "best_model"
        return reference(_cached(COMMANDS[2]), folder / "reference-cache", tokenizer)

    if os.environ.get(_INSIDE) == "1":
        made["tmpfs"] = lambda seed, place: small(of, lambda draw: f"size={draw.randint(1, used) * _PAGE}", f"size={_ROOM}", seed, place)
        made["inodes"] = lambda seed, place: small(of, lambda draw: f"nr_inodes={draw.randint(2, files)}", "nr_inodes=10000", seed, place)
        made["full at"] = lambda seed, place: filled(of, seed, place)
        made["cache"] = lambda seed, place: cache(cached(), seed, place)
    made["limit"] = lambda seed, place: limited(of, seed, place)
    made["read-only"] = lambda seed, place: read_only(of, seed, place)
    return made


def _in_private_mounts(arguments: list[str]) -> None:
    """Start this program again where its mounts are seen by nobody else and end with it."""
    flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    trial = ["unshare", *flags, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    works = shutil.which("unshare") and subprocess.run(trial, capture_output=True).returncode == 0
    environment: dict[str, Any] = {**os.environ, _INSIDE: "1" if works else "0"}
    if not works:
        print("disk: mounting is not allowed here (no root, no user namespaces): only limit and read-only are drilled", flush=True)
    start = ["unshare", *flags, *arguments] if works else arguments
    os.execvpe(start[0], start, environment)


if __name__ == "__main__":
    if _INSIDE not in os.environ:
        _in_private_mounts([sys.executable, "-m", "tests.drills.disk", *sys.argv[1:]])
    try:
        common.main("disk", kinds, __doc__ or "", 100)
    except Failed as fault:
        sys.exit(f"disk: {fault}")
