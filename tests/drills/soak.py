"""A long stay: train, draw, evaluate and forecast in a loop, in one process; memory flat within 2 %, no more files or threads.

    python -m tests.drills.soak --minutes 60

"commands": what train_sequential.py does with forecast and evaluation, into the same folder over and over. "forecasts": the forecaster
that it made, asked again and again. Memory is the kernel's count of resident pages after each loop, as it is: nothing is collected or
given back for the reading; those of no file are judged on their own as well, for the kernel may drop a file's unasked. After the first
tenth, in which libraries load and fill their caches, the median over the last third of the loops is compared with that over the first
third, and so is the highest reading of each; what the first loop held is told, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.after_training import draw_forecast, score_forecasts
from finetune.pipeline import prepared, run_stage
from finetune_csv.config import CsvConfig
from finetune_csv.pipeline import stages_of
from kronos import KronosPredictor, load_predictor, load_tokenizer
from tests.bars import make_frame
from tests.drills import common
from tests.drills.common import Failed, expect

GROWTH = 0.02  # of resident memory
_WARM = 0.1  # share of the loops that is not judged, three at least


@dataclass
class Sample:
    """What a process holds after a loop. own_mib: resident memory of no file. files: in its output folder; handles: open ones."""

    loop: int
    rss_mib: float
    own_mib: float
    handles: int
    threads: int
    files: int


def _sample(loop: int, folder: Path) -> Sample:
    resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    page_mib = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    tasks = len(os.listdir("/proc/self/task"))  # those of C libraries too
    return Sample(
        loop,
        resident * page_mib,
        (resident - of_files) * page_mib,
        len(os.listdir("/proc/self/fd")),
        max(tasks, threading.active_count()),
        sum(1 for path in folder.rglob("*") if path.is_file()),
    )


def _commands(folder: Path) -> Iterator[None]:
    """Train both stages, draw, evaluate: again and again into one folder."""
    extra = dict(forecast__enabled=True, forecast__samples=4, evaluation__enabled=True, evaluation__max_origins=10, evaluation__samples=8)
    path = common.write_config(folder, training__tokenizer_epochs=1, training__basemodel_epochs=1, training__num_workers=2, **extra)
    while True:
        config = CsvConfig.load(path)
        with prepared(config, stages_of(config)) as job:
            for stage in job.models:
                run_stage(job, stage)
            draw_forecast(job)
            score_forecasts(job)
        yield


def _forecasts(folder: Path) -> Iterator[None]:
    """Train once, then forecast: a batch of series of changing lengths, with samples and quantiles."""
    next(_commands(folder))
    base = folder / "out" / "run"
    forecaster = KronosPredictor(
        load_predictor(base / "basemodel" / "best_model"), load_tokenizer(base / "tokenizer" / "best_model"), "cpu", 64
    )
    number = 0
    while True:
        number += 1
        frames = [make_frame(40 + (number + i) % 5, seed=i) for i in range(4)]
        for horizon in (4, 8):
            same = [frame.iloc[-40:].reset_index(drop=True) for frame in frames]
            times = [frame["timestamps"] for frame in same]
            forecaster.predict_batch(same, times, None, horizon, sample_count=4, verbose=False, seed=number, quantiles=(0.1, 0.9))
        yield


KINDS: dict[str, Callable[[Path], Iterator[None]]] = {"commands": _commands, "forecasts": _forecasts}


def _stay(kind: str, folder: Path, seconds: float, loops: int, writing: int) -> None:
    """In the child: loop and tell of each loop."""
    until, work, loop = time.monotonic() + seconds, KINDS[kind](folder), 0
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  what is said 10,000 times
    while loop < loops or (not loops and time.monotonic() < until):
        next(work)
        loop += 1
        os.write(writing, json.dumps(asdict(_sample(loop, folder))).encode() + b"\n")


def stay(kind: str, folder: Path, *, seconds: float = 0, loops: int = 0) -> list[Sample]:
    """Loop for so many seconds, or so often, in a child. Raises Failed if it fails."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(reading)
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            _stay(kind, folder, seconds, loops, writing)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading) as pipe:
        samples = [Sample(**json.loads(line)) for line in pipe]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    expect(code == 0, f"{kind} ended with {code} after {len(samples)} loops:\n{(folder / 'log').read_text()[-3000:]}")
    return samples


def check(samples: list[Sample]) -> str:
    """What was seen, in words. Raises Failed where something grew."""
    judged = samples[max(3, int(len(samples) * _WARM)) :]
    third = max(1, len(judged) // 3)
    expect(len(judged) >= 2, f"{len(samples)} loops are too few to judge")

    def before_and_after(value: Callable[[Sample], float]) -> tuple[float, float]:
        return statistics.median(map(value, judged[:third])), statistics.median(map(value, judged[-third:]))

    told, memory, grown = [], [], 0.0
    for kind, name in (("resident", "rss_mib"), ("of no file", "own_mib")):
        middle = before_and_after(lambda one, name=name: getattr(one, name))
        highest = [max(getattr(one, name) for one in part) for part in (judged[:third], judged[-third:])]
        more = [late / early - 1 for early, late in (middle, highest)]
        grown = max(grown, *more)
        memory.append(f"{kind} {middle[0]:.1f} -> {middle[1]:.1f} MiB ({more[0]:+.2%}; highest {highest[1]:.1f}, {more[1]:+.2%})")
    for name in ("handles", "threads", "files"):
        first, last = before_and_after(lambda one, name=name: getattr(one, name))
        expect(last <= first, f"{name}: {first:g} became {last:g} in {len(judged)} loops")
        told.append(f"{name} {last:g}")
    seen = f"{len(samples)} loops, {', '.join([*memory, *told])}; the first loop held {samples[0].rss_mib:.1f} MiB"
    expect(grown <= GROWTH, f"memory grew: {seen}")
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="over all kinds (default 2; the promise is of 60)")
    parser.add_argument("--rounds", type=int, default=0, help="so many loops of each kind instead")
    parser.add_argument("--seed", type=int, default=0, help="nothing is drawn here; taken as every drill takes it")
    parser.add_argument("--kind", choices=list(KINDS), help="only this kind")
    args = parser.parse_args()
    common.import_once()
    chosen, failures = [kind for kind in KINDS if args.kind in (None, kind)], 0
    for kind in chosen:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="drill-soak-") as folder:
            try:
                told = check(stay(kind, Path(folder), seconds=args.minutes * 60 / len(chosen), loops=args.rounds))
            except Failed as fault:
                failures, told = failures + 1, f"FAILED: {fault}"
        print(f"soak {kind}: {told}, {time.monotonic() - begun:.1f} s", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
