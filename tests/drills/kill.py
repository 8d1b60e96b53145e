"""`kill -9` at random moments of every training command, then `--resume`: it must succeed and end with the bits of an undisturbed run.

Two kinds. "moment": from outside, at a random time within a phase (starting, training, validation, saving, between stages, ending) that
is drawn first, so that short phases are hit as often as long ones. "file": at the n-th operation on a file of the output folder, whichever
it is. Every third round kills the resumed run as well, up to three times; every other one begins anew on the folder of a former run.
"""

from __future__ import annotations

import importlib
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from finetune.engine.places import newest_last
from tests.drills import common
from tests.drills.common import BOTH, PREDICTOR, STAGES, TOKENIZER, Child, Failed, Round, differences, expect, start

PHASES = ("starting", "training", "validation", "saving", "between", "ending")
_OPERATIONS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"})


@dataclass
class Command:
    """A training command under drill.

    arguments: (folder, tokenizer or None, **changes) writes a configuration into the folder and gives the command line without --resume.
    stages: the run folders that it fills below `base`. former: changes that make another run of the same bars; none: there is no such
    round. resume: (folder, arguments) gives the command line that goes on. results: of its `base`, what must be equal to the bit.
    """

    name: str
    arguments: Callable[..., list[str]]
    stages: Sequence[str]
    base: Callable[[Path], Path] = lambda folder: folder / "out" / "run"
    former: dict[str, Any] = field(default_factory=dict)
    resume: Callable[[Path, list[str]], list[str]] = lambda folder, arguments: [*arguments, "--resume"]
    results: Callable[[Path], Any] | None = None

    swept: Callable[[Path], Path] = lambda base: base  # where nothing may be left behind: not in a run that was given up

    def results_of(self, base: Path) -> Any:
        return self.results(base) if self.results else common.results(base, self.stages)


def _kronos(name: str, script: str, stages: Sequence[str]) -> Command:
    def arguments(folder: Path, tokenizer: Path | None = None, **changes: Any) -> list[str]:
        if tokenizer and script == TOKENIZER:  # goes on from trained weights, which are scored first
            changes |= dict(model_paths__pretrained_tokenizer=str(tokenizer), experiment__pre_trained_tokenizer=True)
        if tokenizer and script == PREDICTOR and not (target := folder / "out" / "run" / "tokenizer" / "best_model").exists():
            shutil.copytree(tokenizer, target)
        return [script, "--config", str(common.write_config(folder, **changes))]

    other = dict(training__tokenizer_learning_rate=3e-3, training__predictor_learning_rate=3e-3)
    return Command(name, arguments, stages, former=other)


def tft_config(folder: Path, **changes: Any) -> Path:
    """A configuration of a tiny TFT beside its data; its runs lie in folder/runs."""
    from tests.tft_data import write_config

    folder.mkdir(parents=True, exist_ok=True)
    return write_config(folder, rows=60, **{"max_epochs": 4, "n_train_iter": 64, "log_interval": 1, "checkpoint_every_steps": 3, **changes})


def _tft_runs(base: Path) -> list[Path]:
    """Runs with a checkpoint, the newest last; every start that is no resume makes a run folder of its own."""
    found = [(newest.stat().st_mtime_ns, run) for run in base.glob("*") if (newest := newest_last(run / "checkpoints"))]
    return [run for _, run in sorted(found)]


COMMANDS = [  # whatever trains through finetune.engine.trainer.fit can be added here
    _kronos("both stages", BOTH, STAGES),  # the first one: its tokenizer is what the others get
    _kronos("tokenizer", TOKENIZER, STAGES[:1]),
    _kronos("predictor", PREDICTOR, STAGES[1:]),
    Command(
        "TFT",
        lambda folder, tokenizer=None, **changes: ["tft/train_multi_tft.py", "--config", str(tft_config(folder, **changes))],
        (),
        lambda folder: folder / "runs",
        resume=lambda folder, arguments: ["tft/train_resume.py", *arguments[1:]] if _tft_runs(folder / "runs") else arguments,
        results=lambda base: common.result_of(_tft_runs(base)[-1], best="checkpoints/best"),
        swept=lambda base: _tft_runs(base)[-1],
    ),
]


class Watched:
    """Memory shared with a child that tells its phase, and how many times that was entered before: (phase, number)."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    def install(self, record: Path | None = None) -> None:
        """In the child: follow the loop from now on. record: a file for one line (phase, number, time) per change."""
        from finetune.engine import checkpoint, tracking, trainer

        counts: Counter[int] = Counter()
        file = open(record, "a") if record else None  # noqa: SIM115  as long as the child

        def enter(phase: int) -> None:
            counts[phase] += 1
            self._shared[:8] = struct.pack("ii", phase, counts[phase])
            if file:
                print(phase, counts[phase], time.monotonic(), file=file, flush=True)

        def follow(owner: Any, name: str, phase: int, after: int | None = None) -> None:
            former = getattr(owner, name)

            def watched(*args: Any, **more: Any) -> Any:
                before = struct.unpack("ii", self._shared[:8])[0]
                enter(phase)
                done = former(*args, **more)
                enter(before if after is None else after)
                return done

            setattr(owner, name, watched)

        enter(0)
        follow(trainer._Loop, "_train_epoch", 1)
        follow(trainer._Loop, "_validate", 2)
        for name in ("save_last", "save_best"):
            follow(checkpoint, name, 3)
        follow(tracking.Run, "finish", 5, after=4)

    def now(self) -> tuple[int, int]:
        return struct.unpack("ii", self._shared[:8])


@dataclass
class Reference:
    """The undisturbed run of a command: its results, when each phase was entered and left, and how many file operations it made."""

    command: Command
    tokenizer: Path | None
    results: dict[str, Any]
    former: Path
    timeline: dict[int, list[tuple[int, float]]]  # phase: (number, duration)
    operations: int


def at_operation(base: Path, number: int, act: Callable[[], object], tell: Path | None = None) -> None:
    """In a child: just before operation `number` on a file below `base`, `act` once. tell: a file that holds the count so far."""
    below, seen = f"{base}{os.sep}", [0]
    told = os.open(tell, os.O_WRONLY | os.O_CREAT) if tell else -1

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS or not isinstance(args[0], str | os.PathLike) or not os.fspath(args[0]).startswith(below):
            return
        seen[0] += 1
        if told >= 0:
            os.pwrite(told, b"%012d" % seen[0], 0)
        if seen[0] == number:
            act()

    sys.addaudithook(hook)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_whole(command: Command, folder: Path, tokenizer: Path | None, **changes: Any) -> None:
    arguments = command.arguments(folder, tokenizer, **changes)
    watched, base = Watched(), command.base(folder)

    def before() -> None:
        watched.install(folder / "timeline")
        at_operation(base, 0, _die, tell=folder / "operations")

    ended = common.run(arguments, folder / "log", before=before)
    expect(ended.code == 0, f"the undisturbed run ended with {ended.code}:\n{ended.text[-3000:]}")


def reference(command: Command, folder: Path, tokenizer: Path | None = None) -> Reference:
    """Train undisturbed, and another run that rounds find as the former one."""
    whole, former = folder / "whole", folder / "former"
    _run_whole(command, whole, tokenizer)
    if command.former:
        _run_whole(command, former, tokenizer, **command.former)
    entered = [(int(p), int(n), float(t)) for p, n, t in map(str.split, (whole / "timeline").read_text().splitlines())]
    timeline: dict[int, list[tuple[int, float]]] = {}
    for (phase, number, begun), (_, _, left) in zip(entered, [*entered[1:], (0, 0, entered[-1][2] + 0.02)], strict=True):
        timeline.setdefault(phase, []).append((number, left - begun))
    results = command.results_of(command.base(whole))
    return Reference(command, tokenizer, results, command.base(former), timeline, int((whole / "operations").read_text()))


def _killed_at_moment(of: Reference, arguments: list[str], log: Path, draw: random.Random, lands: Counter[str]) -> Child | None:
    """Start and kill at a random time within a random phase; None if it had ended by then."""
    phase = draw.choice(sorted(of.timeline))
    number, duration = draw.choice(of.timeline[phase])
    wait_s, watched = draw.random() * duration, Watched()
    child = start(arguments, log, before=watched.install)
    while not child.ended() and (now := watched.now()) != (phase, number) and not (now[0] == phase and now[1] > number):
        time.sleep(0.0001)
    time.sleep(wait_s)
    lands[PHASES[watched.now()[0]]] += 1
    child.kill()
    return child


def _killed_at_operation(of: Reference, arguments: list[str], log: Path, draw: random.Random, lands: Counter[str]) -> Child | None:
    deadly, watched = draw.randint(1, of.operations), Watched()

    def before() -> None:
        watched.install()
        at_operation(of.command.base(Path(arguments[2]).parent), deadly, _die)

    child = start(arguments, log, before=before)
    while not child.ended():
        time.sleep(0.002)
    lands[PHASES[watched.now()[0]]] += 1
    return child


def one_round(of: Reference, how: Callable[..., Child | None], lands: Counter[str], seed: int, folder: Path) -> None:
    """Kill once or several times, resume, compare."""
    draw = random.Random(seed)
    command, base, log = of.command, of.command.base(folder), folder / "log"
    over_former = bool(command.former) and draw.random() < 0.5
    if over_former:
        shutil.copytree(of.former, base)
    arguments = command.arguments(folder, of.tokenizer)
    begun = False
    for attempt in range(1 + (draw.randint(1, 3) if draw.random() < 1 / 3 else 0)):
        child = how(of, command.resume(folder, arguments) if attempt else arguments, log, draw, lands)
        code = child.wait().code
        expect(code in (0, -signal.SIGKILL), f"attempt {attempt + 1} ended with {code}:\n{child.text()[-3000:]}")
        expect(not common.half_files(base), f"half files: {common.half_files(base)}")
        begun = begun or any((base / stage / "checkpoints" / "former").exists() for stage in command.stages) or not over_former
    ended = common.run(command.resume(folder, arguments), log)
    expect(ended.code == 0, f"--resume ended with {ended.code}:\n{ended.text[-3000:]}")
    told = differences(of.results, command.results_of(base))
    if told and not begun:  # killed before it began: the former run is all there and was resumed, which had nothing left to do
        told = differences(command.results_of(of.former), command.results_of(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}\n{ended.text[-2000:]}")
    swept = command.swept(base)
    expect(not common.leftovers(swept), f"left behind: {common.leftovers(swept)}")


def kinds(folder: Path) -> dict[str, Round]:
    """Each command × each kind of moment."""
    importlib.import_module("tft.train_run")  # as in `import_once`, and only here
    made: dict[str, Round] = {}
    lands: Counter[str] = Counter()

    @cache
    def of(number: int) -> Reference:
        tokenizer = of(0).command.base(folder / "reference-0" / "whole") / STAGES[0] / "best_model" if number else None
        return reference(COMMANDS[number], folder / f"reference-{number}", tokenizer)

    for number, command in enumerate(COMMANDS):
        for kind, how in (("moment", _killed_at_moment), ("file", _killed_at_operation)):

            def act(seed: int, place: Path, number: int = number, how: Any = how) -> None:
                one_round(of(number), how, lands, seed, place)

            made[f"{command.name}, {kind}"] = act
    common.at_end(lambda: print("kill: kills landed in " + ", ".join(f"{name} {lands[name]}" for name in PHASES)))
    return made


if __name__ == "__main__":
    try:
        common.main("kill", kinds, __doc__ or "", 50)
    except Failed as fault:
        sys.exit(f"kill: {fault}")
