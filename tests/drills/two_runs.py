"""Two runs on one output folder: one trains, the others are refused and told by whom, and the one is none the worse for it.

"second": while one trains, another command starts in its folder: the same, --resume, one stage alone, --skip-existing. "under": the
tokenizer is asked for again under the predictor that is trained with it. "race": several start at the same moment. "killed", "stopped": the
first is killed with SIGKILL, and the next may begin at once; it is only suspended (SIGSTOP), and still holds its folder. A run that trains
ends with the bits of an undisturbed one.
"""

from __future__ import annotations

import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.engine.files import read_json
from tests.drills import common
from tests.drills.common import Child, Ended, Failed, Round, differences, expect

_REFUSED = re.compile(r"error: (\S+) is being trained in by another run \((.+)\)\. ")
LATER = (  # commands that start while another trains
    [common.BOTH],
    [common.BOTH, "--resume"],
    [common.BOTH, "--skip-existing"],
    [common.BOTH, "--skip-basemodel"],
    [common.TOKENIZER],
    [common.TOKENIZER, "--resume"],
)


def _config(folder: Path) -> Path:
    """A training whose second stage lasts long enough for another command to come in the middle of it."""
    return common.write_config(folder, training__basemodel_epochs=10)


def _start(command: list[str], config: Path, log: Path) -> Child:
    return common.start([command[0], "--config", str(config), *command[1:]], log)


def _training(child: Child, base: Path, draw: random.Random) -> None:
    """Wait until one of a run's stages trains, and a random while longer."""
    until, stage = time.monotonic() + 60, draw.choice(common.STAGES)
    while not (base / stage / "metrics.jsonl").exists():
        expect(not child.ended() and time.monotonic() < until, f"the first run did not begin:\n{child.text()[-2000:]}")
        time.sleep(0.002)
    time.sleep(draw.random() * 0.4)


def _refused(ended: Ended, base: Path, pids: set[int], told_who: bool = True) -> None:
    """Whether a run was refused in the one way that is right."""
    told = common.clear_message(ended, 2)
    found = _REFUSED.match(told)
    expect(found and Path(found[1]).parent == base, f"refused for another reason: {told}")
    named = re.search(r"pid (\d+) on \S+, since \d{4}-\d\d-\d\dT", found[2])
    expect(not told_who or named, f"it is not said by whom: {told}")
    expect(not named or int(named[1]) in pids, f"pid {named and named[1]} is none of {pids}: {told}")


def _whole(of: dict[str, Any], ended: Ended, base: Path) -> None:
    expect(ended.code == 0, f"the run that trains ended with {ended.code}:\n{ended.text[-3000:]}")
    told = differences(of, common.results(base))
    expect(not told, f"not the bits of an undisturbed run: {told[:5]}")
    for stage in common.STAGES:
        expect((read_json(base / stage / "status.json") or {}).get("state") == "done", f"{stage} is not done")
    expect(not common.leftovers(base), f"left behind: {common.leftovers(base)}")


def second(of: dict[str, Any], seed: int, place: Path, stop: bool = False) -> None:
    """One trains (or, `stop`, is suspended while it does), and another command comes."""
    draw = random.Random(seed)
    config = _config(place)
    base = common.output(config)
    first = _start([common.BOTH], config, place / "first.log")
    _training(first, base, draw)
    if stop:
        first.kill(signal.SIGSTOP)
    try:
        late = _start(draw.choice(LATER), config, place / "second.log").wait()
        if late.code == 0 and first.ended():  # the first was through before the second looked
            expect(first.wait().code == 0, "the first failed")
            return
        _refused(late, base, {first.pid})
    except Failed:
        first.kill()
        raise
    finally:
        first.kill(signal.SIGCONT)
    _whole(of, first.wait(), base)


def under(of: dict[str, Any], seed: int, place: Path) -> None:
    """While the predictor is trained, nobody trains its tokenizer again."""
    config = _config(place)
    base = common.output(config)
    first = _start([common.BOTH], config, place / "first.log")
    while not (base / common.STAGES[1] / "metrics.jsonl").exists():
        expect(not first.ended(), f"the first run did not get so far:\n{first.text()[-2000:]}")
        time.sleep(0.002)
    first.kill(signal.SIGSTOP)
    try:
        late = _start([common.TOKENIZER], config, place / "second.log").wait()
    finally:
        first.kill(signal.SIGCONT)
    ended = first.wait()
    _refused(late, base, {first.pid})
    _whole(of, ended, base)


def race(of: dict[str, Any], seed: int, place: Path) -> None:
    """Up to four at once: at most one trains, and it trains undisturbed; the others say so and change nothing."""
    draw = random.Random(seed)
    config = _config(place)
    base = common.output(config)
    children = []
    for number in range(draw.randrange(2, 5)):
        children.append(_start([common.BOTH], config, place / f"{number}.log"))
        time.sleep(draw.choice((0, 0, 0.01, 0.1)))
    ended = [child.wait(120) for child in children]
    pids = {child.pid for child in children}
    through = [one for one in ended if one.code == 0]
    for one in ended:
        if one.code != 0:
            _refused(one, base, pids, told_who=False)  # the other may not have written its name yet
    expect(through, "nobody trained:\n" + "\n".join(one.text[-300:] for one in ended))
    _whole(of, through[-1], base)


def killed(of: dict[str, Any], seed: int, place: Path) -> None:
    """A killed run's folder is free at once, though its name is still written there."""
    draw = random.Random(seed)
    config = _config(place)
    base = common.output(config)
    first = _start([common.BOTH], config, place / "first.log")
    _training(first, base, draw)
    first.kill()
    first.wait()
    again = [common.BOTH, "--resume"] if draw.random() < 0.5 else [common.BOTH]
    _whole(of, _start(again, config, place / "second.log").wait(), base)


def kinds(folder: Path) -> dict[str, Round]:
    """One undisturbed run, then the rounds."""
    config = _config(folder / "undisturbed")
    ended = _start([common.BOTH], config, folder / "undisturbed" / "log").wait()
    expect(ended.code == 0, f"the undisturbed run ended with {ended.code}:\n{ended.text[-2000:]}")
    of = common.results(common.output(config))
    acts: dict[str, Callable[[dict[str, Any], int, Path], None]] = {
        "second": second,
        "stopped": lambda of, seed, place: second(of, seed, place, stop=True),
        "under": under,
        "race": race,
        "killed": killed,
    }
    return {kind: lambda seed, place, act=act: act(of, seed, place) for kind, act in acts.items()}


if __name__ == "__main__":
    try:
        common.main("two_runs", kinds, __doc__ or "", 40)
    except Failed as fault:
        sys.exit(f"two_runs: {fault}")
