"""Two models trained side by side against one after the other, the same work; and how soon the plan for 20 models is there.

Models of the demo's size on random bars, tokenizer and predictor each, every job a process of its own as multi_model_trainer.py starts it.
--threads: of each job; the demo has 1. With 2 a job that runs alone has both cores, side by side one each. Beside the ratio stands what the
machine itself allows: two processes that share nothing, doing the same sums, side by side against one after the other (0.50: two whole
cores; more: two threads of one core, or one path to memory, or other work on the machine).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from finetune.config_manager import ConfigManager
from finetune.engine.command import run_command
from finetune.engine.files import read_json, write_text
from finetune.engine.yaml_text import to_yaml
from finetune.jobs_run import Runner
from finetune.jobs_session import Wish, session_of
from finetune.jobs_state import RunState
from finetune.jobs_table import Display
from kronos.errors import InputError

from .common import HORIZON, LOOKBACK, ROOT, Report, Row, begin, end, make_panel, parser_for

NAME = "multi_model"
REACH_RATIO, REACH_PLAN_S = 0.75, 2.0
_BITS = {"s1_bits": 6, "s2_bits": 6}
_DEMO = {"d_model": 64, "n_heads": 4, "ff_dim": 128, **_BITS}  # as configs/demo.yaml
_SUMS = """
import time, torch
torch.set_num_threads(1)
layer, x = torch.nn.Linear(64, 64), torch.ones(64 * 101, 64)
print("ready", flush=True)
input()
began = time.perf_counter()
for _ in range(300):
    layer(x).sum().backward()
print(time.perf_counter() - began)
"""


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, train both ways in turn, compare."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--windows", type=int, default=1600, help="training windows of an epoch (default: 1600)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each stage (default: 1)")
    parser.add_argument("--rounds", type=int, default=2, help="both ways in turn, this often (default: 2)")
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as temporary:
        seconds: dict[str, list[float]] = {"sequential": [], "parallel": []}
        manager = _models(Path(temporary), 2, args.windows, args.epochs, args.threads)
        allowed = []
        for number in range(args.rounds):
            allowed.append(share_allowed())
            for mode in seconds:
                seconds[mode].append(_train(manager, mode, Path(temporary, "logs", f"{mode}-{number}"), report))
        middle = {mode: statistics.median(values) for mode, values in seconds.items()}
        ratio = middle["parallel"] / middle["sequential"]
        report.details["seconds"] = {mode: ", ".join(f"{value:.1f}" for value in values) for mode, values in seconds.items()}
        seen = f"{ratio:.2f} ({middle['parallel']:.1f} s against {middle['sequential']:.1f} s)"
        report.details["share that the machine allows"] = f"{statistics.median(allowed):.2f}"
        report.rows.append(Row("two models on 2 workers, share of the sequential time", f"<= {REACH_RATIO}", seen, ratio <= REACH_RATIO))
        _plan(Path(temporary), report, max(3, args.rounds))
    return end(report, args)


def _models(folder: Path, count: int, windows: int, epochs: int, threads: int) -> ConfigManager:
    """Registered models with bars of their own."""
    for number in range(count):
        name = f"m{number:02d}"
        config = {
            "timeframe": {"period": "5min", "source": ["none"]},
            "data": {"lookback_window": LOOKBACK, "predict_window": HORIZON, "train_ratio": 0.8, "val_ratio": 0.2},
            "training": {"epochs": epochs, "batch_size": 64, "n_train_iter": windows, "n_val_iter": windows // 10, "num_workers": 1},
            "model": {
                "tokenizer": {**_DEMO, "preset": "base", "n_enc_layers": 3, "n_dec_layers": 3},
                "predictor": {**_DEMO, "preset": "mini", "n_layers": 3},
            },
            "model_paths": {"base_path": str(folder / "out")},
            "experiment": {"pre_trained": False},
            "device": {"device": "cpu", "cpu_threads": threads},
            "forecast": {"enabled": False},
            "evaluation": {"enabled": False},
        }
        write_text(folder / f"models{count}" / f"{name}.yaml", to_yaml(config))
        make_panel(4, 2500, seed=number).save(folder / "out" / name / "data" / "panel")
    return ConfigManager(folder / f"models{count}", {})


def _train(manager: ConfigManager, mode: str, folder: Path, report: Report) -> float:
    """Train all of them from the start; seconds. Raises InputError, with the log, if one fails."""
    paths = tuple(str(path) for path in manager.paths.values())
    session = session_of(Wish(paths, mode=mode, workers=2), manager)
    state = RunState(folder, session.plan.jobs)
    began = time.perf_counter()
    code = Runner(session.plan.jobs, session.slots, state, Display(session.plan.jobs, state, {})).run()
    took = time.perf_counter() - began
    if code:
        raise InputError(f"a job failed: {[facts['reason'] for facts in state.jobs.values() if facts['reason']]}")
    report.details[f"seconds of the jobs, {mode}"] = {
        name: facts["seconds"] for name, facts in read_json(folder / "state.json")["jobs"].items()
    }
    return took


def share_allowed() -> float:
    """Time of two independent processes side by side over that of both one after the other; work of a small model's kind, 1 thread each."""
    alone, beside = _sums_s(1), _sums_s(2)
    return max(beside) / (2 * alone[0])


def _sums_s(count: int) -> list[float]:
    """Seconds that each of so many processes takes for the same sums, all begun at once."""
    ones = [subprocess.Popen([sys.executable, "-c", _SUMS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for one in ones:
        assert one.stdout is not None and one.stdout.readline(), "a child of a few lines ended early"
    for one in ones:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    return [float(one.communicate()[0]) for one in ones]


def _plan(folder: Path, report: Report, rounds: int) -> None:
    """The plan of 20 models, each with its panel, as a user waits for it: a whole process. The best of `rounds`."""
    paths = [str(path) for path in _models(folder, 20, 0, 30, 1).paths.values()]
    command = [sys.executable, str(ROOT / "finetune" / "multi_model_trainer.py"), "--dry-run", "--mode", "parallel", "--models", *paths]
    seen = []
    for _ in range(rounds):
        began, before = time.perf_counter(), os.times()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        took, after = time.perf_counter() - began, os.times()
        if not done.stdout.startswith("20 models, 40 jobs"):
            raise InputError(f"the plan failed: {done.stderr or done.stdout}")
        cpu = after.children_user - before.children_user + after.children_system - before.children_system
        seen.append((cpu, took))  # the first is not changed by what else the machine does
    cpu, took = min(seen)
    told = f"{cpu:.2f} s of CPU, {took:.2f} s by the clock"
    report.rows.append(Row("plan of 20 models × 2 stages, whole process", f"< {REACH_PLAN_S:g} s", told, cpu < REACH_PLAN_S))


if __name__ == "__main__":
    run_command(lambda: main() and None)
