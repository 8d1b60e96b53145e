"""One of two gloo ranks dies or hangs: the other one ends in time without saving, and the run goes on from the last checkpoint.

"dead": kill -9 of a random rank at a random moment. "hung": SIGSTOP instead, so that only `distributed.timeout_s` can end the wait.
"torchrun": `torchrun --max-restarts=3` with one or two kills; the restarted workers resume by themselves, every other round on the folder
of a former run that must not be continued. Each ends with the bits of an undisturbed run on two ranks, and no kill costs more than one
checkpoint interval. "hung, restarted": the same under torchrun with SIGSTOP. "TFT, torchrun": either, for the TFT, which must go on in the
run folder that it began.
"""

from __future__ import annotations

import faulthandler
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.drills import common
from tests.drills.common import BOTH, ROOT, Child, Failed, Round, differences, expect, start
from tests.drills.kill import COMMANDS, tft_config
from tests.ranks import free_port

INTERVAL, LAST = 3, 18  # optimiser steps between two checkpoints, and of each stage
LIMIT_S = 6.0  # distributed.timeout_s
LAUNCH_LIMIT_S = {signal.SIGKILL: 120.0, signal.SIGSTOP: 20.0}  # under torchrun, whose workers import for themselves, far apart if busy
TFT, TFT_SCRIPT = COMMANDS[3], "tft/train_multi_tft.py"
TFT_EPOCH, TFT_LAST = 4, 16  # optimiser steps of an epoch, and of the run
SLACK_S = 10.0  # on top of it: noticing, telling and ending; at least, for a busy machine takes as long as it takes to train
_CHANGES: dict[str, Any] = dict(training__batch_size=8, training__checkpoint_every_steps=INTERVAL)
_FORMER = dict(training__tokenizer_learning_rate=3e-3, training__predictor_learning_rate=3e-3)
_BEGIN = re.compile(r"(tokenizer|predictor|tft): [\d,]+ parameters on ")
_STEP, _RESUMED = re.compile(r"(?:tokenizer|predictor|tft) step (\d+),"), re.compile(r"resumed from .*, step (\d+)$")


def _config(folder: Path, **changes: Any) -> Path:
    return common.write_config(folder, **{**_CHANGES, "distributed__timeout_s": LIMIT_S, **changes})


def _tft_config(folder: Path, **changes: Any) -> Path:
    return tft_config(folder, n_train_iter=16 * 2 * TFT_EPOCH, max_epochs=TFT_LAST // TFT_EPOCH, checkpoint_every_steps=INTERVAL, **changes)


def _two(config: Path, folder: Path, *flags: str, script: str = BOTH) -> list[Child]:
    """Both ranks as children of this process."""
    port = str(free_port())
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for r in range(2)]
    command = [script, "--config", str(config), *flags]
    return [start(command, folder / f"log-{r['RANK']}", environment=r, before=faulthandler.enable) for r in ranks]


def _both_done(children: Sequence[Child]) -> None:
    for ended in [child.wait(120) for child in children]:
        expect(ended.code == 0, f"a rank ended with {ended.code}:\n{ended.text[-3000:]}")


def starts(text: str, stage: str) -> list[tuple[int, int]]:
    """(step it began at, last step it told) of each start of a stage, from what rank 0 said."""
    found: list[tuple[int, int]] = []
    running = ""
    for line in text.splitlines():
        if told := _BEGIN.match(line):
            running = told[1]
            found += [(0, 0)] if running == stage else []
        elif running == stage and (told := _RESUMED.search(line)):
            found[-1] = (int(told[1]), int(told[1]))
        elif running == stage and (told := _STEP.match(line)):
            found[-1] = (found[-1][0], int(told[1]))
    return found


def _check_repeats(text: str, stages: Sequence[str] = ("tokenizer", "predictor")) -> None:
    for stage in stages:
        found = starts(text, stage)
        for (_, reached), (began, _) in pairwise(found):
            expect(reached - began <= INTERVAL, f"{stage}: step {reached} was reached, and it went on from step {began}")


def _equal(whole: dict[str, Any], base: Path, text: str) -> None:
    told = differences(whole, common.results(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}\n{text[-2500:]}")
    expect(not common.leftovers(base), f"left behind: {common.leftovers(base)}")
    _check_repeats(text)


def lost(whole: dict[str, Any], duration: float, number: signal.Signals, seed: int, folder: Path) -> None:
    """Kill or stop one rank; the other ends alone, and a new start of both goes on."""
    draw = random.Random(seed)
    config = _config(folder)
    children = _two(config, folder)
    at_s, victim = draw.uniform(0.1, 0.95) * duration, draw.randrange(2)
    time.sleep(at_s)
    children[victim].kill(number)
    begun, other = time.monotonic(), children[1 - victim]
    late = children[victim].ended() and number == signal.SIGSTOP
    while not other.ended() and time.monotonic() - begun < LIMIT_S + max(SLACK_S, duration):
        time.sleep(0.02)
    waited = time.monotonic() - begun
    hung = not other.ended()
    children[victim].kill()
    if hung:
        other.kill(signal.SIGABRT)
    first = children[victim].wait(120)
    ended = other.wait(120)
    expect(not hung, f"rank {1 - victim} still hung {waited:.1f} s after rank {victim} was hit at {at_s:.2f} s:\n{ended.text[-3000:]}")
    expect(late or first.code in (0, -signal.SIGKILL), f"rank {victim} ended with {first.code}")
    if first.code != 0 and not late:  # it was hit before it had ended
        trained = f"predictor step {LAST}," in children[0].text()  # then rank 1 has nothing left to do, and rank 0 only pictures
        expect(ended.code != 0 or trained, f"rank {1 - victim} ended with 0 without the other:\n{children[0].text()[-2000:]}")
    expect("everything is saved" not in ended.text, f"saved after a rank was lost:\n{ended.text[-2000:]}")
    expect(not common.half_files(common.output(config)), f"half files: {common.half_files(common.output(config))}")
    _both_done(_two(config, folder, "--resume"))
    _equal(whole, common.output(config), (folder / "log-0").read_text(errors="replace"))


def _workers(agent: psutil.Process, script: str) -> list[psutil.Process]:
    found = []
    for process in agent.children():
        with suppress(psutil.Error):  # it has just ended
            found += [process] if any(script in part for part in process.cmdline()) else []
    return found


def restarted(whole: dict[str, Any], former: Path, number: signal.Signals, seed: int, folder: Path) -> None:
    """Under torchrun; which rank and after which step is drawn."""
    draw = random.Random(seed)
    config = _config(folder, distributed__timeout_s=LAUNCH_LIMIT_S[number])
    base = common.output(config)
    over_former = draw.random() < 0.5
    if over_former:
        shutil.copytree(former, base)
    text = _launched(BOTH, config, folder / "log", draw, number, ("tokenizer", "predictor"), LAST)
    _equal(whole, base, text)


def tft_restarted(whole: Any, seed: int, folder: Path) -> None:
    """The TFT under torchrun; one rank is killed, or hangs."""
    draw = random.Random(seed)
    number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
    config, base = _tft_config(folder, distributed={"timeout_s": LAUNCH_LIMIT_S[number]}), folder / "runs"
    text = _launched(TFT_SCRIPT, config, folder / "log", draw, number, ("tft",), TFT_LAST)
    told = differences(whole, TFT.results_of(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}\n{text[-2500:]}")
    begun = [run for run in base.iterdir() if (run / "checkpoints").exists()]
    expect(len(begun) == 1, f"it began anew in {sorted(run.name for run in begun)}\n{text[-2500:]}")
    expect(not common.leftovers(base), f"left behind: {common.leftovers(base)}")
    _check_repeats(text, ("tft",))


def _launched(script: str, config: Path, log: Path, draw: random.Random, number: signal.Signals, stages: Sequence[str], last: int) -> str:
    """Train two ranks under torchrun, hit one after a drawn step of a drawn stage, once or twice; what was said. Raises Failed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    command = [*torchrun, str(ROOT / script), "--config", str(config)]
    with open(log, "w") as out:
        agent = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        for kill in range(draw.choice((1, 1, 2)) if number == signal.SIGKILL else 1):
            stage, step, victim = draw.choice(stages), draw.randint(0, last - 1), draw.randrange(2)
            _await_step(log, stage, step, agent)
            if workers := sorted(_workers(agent, script), key=lambda p: p.pid):
                workers[victim % len(workers)].send_signal(number)
            time.sleep(0.5 * (kill + 1))
        code = agent.wait(400)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired) as error:
        raise Failed(f"torchrun still runs after 400 s:\n{log.read_text()[-3000:]}") from error
    finally:
        for process in [*(agent.children(recursive=True) if agent.is_running() else []), agent]:
            process.kill() if process.is_running() else None
    text = log.read_text(errors="replace")
    expect(code == 0, f"torchrun ended with {code}:\n{text[-4000:]}")
    return text


def _await_step(log: Path, stage: str, step: int, agent: psutil.Process, limit_s: float = 60) -> None:
    """Return once `stage` has told of `step` or of a later one, or the command ended."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until and agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE:
        if any(reached >= step for _, reached in starts(log.read_text(errors="replace"), stage)):
            return
        time.sleep(0.01)


def kinds(folder: Path) -> dict[str, Round]:
    """The undisturbed runs, then the rounds."""
    runs: dict[str, Path] = {}
    duration = 0.0
    for name, changes in (("whole", {}), ("former", _FORMER)):
        begun = time.monotonic()
        config = _config(folder / name, **changes)
        _both_done(_two(config, folder / name))
        runs[name], duration = common.output(config), time.monotonic() - begun
    whole = common.results(runs["whole"])

    @cache
    def tft() -> Any:
        _both_done(_two(_tft_config(folder / "tft"), folder / "tft", script=TFT_SCRIPT))
        return TFT.results_of(folder / "tft" / "runs")

    return {
        "dead": lambda seed, place: lost(whole, duration, signal.SIGKILL, seed, place),
        "hung": lambda seed, place: lost(whole, duration, signal.SIGSTOP, seed, place),
        "torchrun": lambda seed, place: restarted(whole, runs["former"], signal.SIGKILL, seed, place),
        "hung, restarted": lambda seed, place: restarted(whole, runs["former"], signal.SIGSTOP, seed, place),
        "TFT, torchrun": lambda seed, place: tft_restarted(tft(), seed, place),
    }


if __name__ == "__main__":
    common.main("ranks", kinds, __doc__ or "", 40)
