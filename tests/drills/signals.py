"""SIGTERM, SIGINT and SIGHUP at random moments, twice in a row, and a terminal that closes: saved once, no half file, exit code 75.

"one", "two": one signal, or two of any kind up to 30 ms apart. "terminal": the command runs in a real terminal that is closed under it.
"pictured": a signal after training, while the forecast is drawn or the evaluation made, ends it there; --resume makes them.
"nohup": SIGHUP is ignored from the start, as `nohup` does, and training goes on. Every stopped run is resumed to the bits of an
undisturbed one. A signal before the command listens ends it as the system does, with nothing begun.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import signal
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from finetune.engine.checkpoint import load_last
from finetune.engine.files import read_json
from finetune.engine.places import newest_last
from tests.drills import common
from tests.drills.common import STAGES, Child, Ended, Failed, Round, differences, expect, start
from tests.drills.kill import COMMANDS, PHASES, Reference, Watched, reference

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UNHEARD = {-signal.SIGTERM, -signal.SIGHUP, 130}  # the command had not begun to listen, or no longer listens
_AFTER = re.compile(r"stopped by \w+ (while the forecast was drawn|during the evaluation); training is done and saved")
_SAVED = re.compile(r"stopped by (\w+) at step (\d+), epoch \d+; everything is saved")


def _await(of: Reference, watched: Watched, child: Child, draw: random.Random, idle: Callable[[], object] = lambda: None) -> str:
    """Wait for a random moment within a random phase; which one it was."""
    phase = draw.choice(sorted(of.timeline))
    number, duration = draw.choice(of.timeline[phase])
    while not child.ended() and (now := watched.now()) != (phase, number) and not (now[0] == phase and now[1] > number):
        idle()
        time.sleep(0.0002)
    until = time.monotonic() + draw.random() * duration
    while time.monotonic() < until:
        idle()
        time.sleep(0.0002)
    return PHASES[watched.now()[0]]


def _check_stopped(of: Reference, ended: Ended, base: Path, phase: str, silent: bool = False) -> None:
    """What must be true of a run that was asked to stop. silent: nobody can read what it said."""
    newest = [path for stage in STAGES if (path := newest_last(base / stage / "checkpoints"))]
    expect(not common.half_files(base), f"half files: {common.half_files(base)}")
    expect(not common.leftovers(base), f"left behind: {common.leftovers(base)}")
    expect("Traceback" not in ended.text, f"a traceback (in phase {phase}):\n{ended.text[-3000:]}")
    if ended.code in _UNHEARD:
        expect(phase in ("starting", "ending"), f"code {ended.code} in phase {phase}:\n{ended.text[-2000:]}")
        expect(phase == "ending" or not newest, f"code {ended.code}, but checkpoints are there: {newest}")
        return
    expect(ended.code in (0, 75), f"code {ended.code} (in phase {phase}):\n{ended.text[-3000:]}")
    states = [(read_json(base / stage / "status.json") or {}).get("state") for stage in STAGES]
    expect("running" not in states and "failed" not in states, f"the states are {states}, code {ended.code}")
    if ended.code == 75 and not silent:
        told = _SAVED.findall(ended.text)
        before = "before the" in ended.text or "while encoding tokens" in ended.text  # between the stages, where all is saved already
        expect(len(told) == (0 if before else 1), f"{len(told)} times told that it saved:\n{ended.text[-2000:]}")
        if told:
            step = load_last(newest[-1])[1]["state"]["step"]
            expect(step == int(told[0][1]), f"step {told[0][1]} was told, {newest[-1]} holds step {step}")


def _resumes(of: Reference, arguments: list[str], base: Path, log: Path) -> None:
    ended = common.run([*arguments, "--resume"], log)
    expect(ended.code == 0, f"--resume ended with {ended.code}:\n{ended.text[-3000:]}")
    told = differences(of.results, common.results(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}\n{ended.text[-2000:]}")


def signalled(of: Reference, count: int, lands: Counter[str], seed: int, folder: Path) -> None:
    """`count` signals of random kinds, the second up to 30 ms after the first."""
    draw, watched = random.Random(seed), Watched()
    arguments, base, log = of.command.arguments(folder), of.command.base(folder), folder / "log"
    child = start(arguments, log, before=watched.install)
    phase = _await(of, watched, child, draw)
    lands[phase] += 1
    for _ in range(count):
        child.kill(draw.choice(SIGNALS))
        time.sleep(draw.random() * 0.03)
    _check_stopped(of, child.wait(), base, phase)
    _resumes(of, arguments, base, log)


def _check_pictured(ended: Ended, waited_s: float, late: bool, codes: Counter[int]) -> None:
    """What must be true of a command that was signalled after training. late: its report was there before; codes: gains how it ended."""
    codes[ended.code] += 1
    expect("Traceback" not in ended.text, f"a traceback:\n{ended.text[-3000:]}")
    expect(ended.code in {0, 75, *_UNHEARD}, f"code {ended.code}:\n{ended.text[-2000:]}")
    if ended.code == 75:
        expect(_AFTER.search(ended.text), f"it does not say what was stopped:\n{ended.text[-1000:]}")
        expect(waited_s < 10, f"it went on for {waited_s:.1f} s")
    if ended.code == 0:
        expect(late or waited_s < 1, f"the signal was not heard: it went on for {waited_s:.1f} s and made all:\n{ended.text[-1000:]}")


def _check_heard(codes: Counter[int], enough: int = 3) -> None:
    """Over a drill of `enough` rounds or more some must have been stopped: signals that are ignored would otherwise pass one by one."""
    expect(codes[75] or codes.total() < enough, f"pictured: none of {codes.total()} rounds ended with 75; the codes were {dict(codes)}")


def pictured(lasts_s: float, of: Reference, codes: Counter[int], seed: int, folder: Path) -> None:
    """A signal, or two, at a moment after training. lasts_s: how long picture and evaluation take undisturbed."""
    draw = random.Random(seed)
    arguments, base, log = of.command.arguments(folder), of.command.base(folder), folder / "log"
    child = start(arguments, log)
    while not child.ended() and not (base / STAGES[-1] / "summary.json").exists():
        time.sleep(0.002)
    time.sleep(draw.random() * lasts_s)
    late = (base / "evaluation" / "report.md").exists()
    sent = time.monotonic()
    for _ in range(draw.choice((1, 2))):
        child.kill(draw.choice(SIGNALS))
        time.sleep(draw.random() * 0.03)
    ended = child.wait()
    _check_pictured(ended, time.monotonic() - sent, late, codes)
    expect(not common.half_files(base), f"half files: {common.half_files(base)}")
    expect(not common.leftovers(base), f"left behind: {common.leftovers(base)}")
    _resumes(of, arguments, base, log)
    for made in ("forecast.png", "evaluation/evaluation.json", "evaluation/report.md"):
        expect((base / made).is_file(), f"{made} was not made by --resume")


def ignored(of: Reference, lands: Counter[str], seed: int, folder: Path) -> None:
    """SIGHUP under nohup."""
    draw, watched = random.Random(seed), Watched()
    arguments, base, log = of.command.arguments(folder), of.command.base(folder), folder / "log"

    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        watched.install()

    child = start(arguments, log, before=before)
    lands[_await(of, watched, child, draw)] += 1
    child.kill(signal.SIGHUP)
    ended = child.wait()
    expect(ended.code == 0, f"nohup, and yet it ended with {ended.code}:\n{ended.text[-2000:]}")
    told = differences(of.results, common.results(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}")


def terminal(of: Reference, lands: Counter[str], seed: int, folder: Path) -> None:
    """The terminal that the command runs in is closed: SIGHUP, and nothing can be written there any more."""
    draw, watched = random.Random(seed), Watched()
    arguments, base, log = of.command.arguments(folder), of.command.base(folder), folder / "log"
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    name = os.ttyname(theirs)

    def before() -> None:
        os.close(ours)
        os.close(theirs)
        screen = os.open(name, os.O_RDWR)
        fcntl.ioctl(screen, termios.TIOCSCTTY, 0)  # the session's own terminal: closing it sends SIGHUP
        for stream in (0, 1, 2):
            os.dup2(screen, stream)
        os.close(screen)
        watched.install()

    child = start(arguments, log, before=before)

    def read() -> None:
        with suppress(BlockingIOError):
            try:
                os.read(ours, 1 << 16)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EAGAIN):  # EIO: the other side has not opened it yet, or has ended
                    raise

    phase = _await(of, watched, child, draw, read)
    lands[phase] += 1
    os.close(ours)
    os.close(theirs)
    _check_stopped(of, child.wait(), base, phase, silent=True)
    _resumes(of, arguments, base, log)


def kinds(folder: Path) -> dict[str, Round]:
    """One undisturbed run of both stages, then the rounds."""
    of = reference(COMMANDS[0], folder)

    @cache
    def drawn() -> tuple[float, Reference]:
        short = dict(training__tokenizer_epochs=1, training__basemodel_epochs=1, forecast__enabled=True, forecast__samples=4)
        scored = dict(evaluation__enabled=True, evaluation__max_origins=20, evaluation__samples=8)
        command = replace(COMMANDS[0], arguments=lambda place, _=None: COMMANDS[0].arguments(place, **short, **scored), former={})
        made = reference(command, folder / "pictured")
        base = command.base(folder / "pictured" / "whole")
        trained_s, ended_s = ((base / name).stat().st_mtime for name in (f"{STAGES[-1]}/summary.json", "evaluation/report.md"))
        return ended_s - trained_s, made

    lands: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    common.at_end(lambda: print("signals: they landed in " + ", ".join(f"{name} {lands[name]}" for name in PHASES)))
    common.at_end(lambda: _check_heard(codes))
    return {
        "one": lambda seed, place: signalled(of, 1, lands, seed, place),
        "two": lambda seed, place: signalled(of, 2, lands, seed, place),
        "terminal": lambda seed, place: terminal(of, lands, seed, place),
        "pictured": lambda seed, place: pictured(*drawn(), codes, seed, place),
        "nohup": lambda seed, place: ignored(of, lands, seed, place),
    }


if __name__ == "__main__":
    try:
        common.main("signals", kinds, __doc__ or "", 40)
    except Failed as fault:
        sys.exit(f"signals: {fault}")
