"""What the drills share: a tiny training as a child process, what it left behind, and one summary line per kind of fault.

A child is forked from this process, which has imported torch and everything of ours once and computes nothing itself, and runs the real
command file as `__main__`: a round costs the training (about a second), not the imports. Each child is its own session and process group.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COMET_API_KEY", None)

import torch
import yaml
from safetensors.torch import load_file

from finetune.engine import checkpoint
from finetune.engine.files import read_json, read_json_lines
from tests.bars import make_frame

ROOT = Path(__file__).resolve().parents[2]
BOTH, TOKENIZER, PREDICTOR = ("train_sequential.py", "finetune_csv/finetune_tokenizer.py", "finetune_csv/finetune_base_model.py")
STAGES = ("tokenizer", "basemodel")  # folders of the two stages in a run's output
SIZES = {
    "tokenizer": dict(preset="base", d_model=16, n_heads=2, ff_dim=32, n_enc_layers=2, n_dec_layers=2, s1_bits=4, s2_bits=4),
    "predictor": dict(preset="mini", n_layers=1, d_model=16, n_heads=2, ff_dim=32, s1_bits=4, s2_bits=4),
}
LIMIT_S = 240.0  # of a child that takes two seconds alone on a machine: what takes longer on a busy one hangs
_USED = (  # imported by a training as it goes; here, once for all children
    "finetune.after_training",
    "finetune.engine.curves",
    "finetune.pipeline",
    "finetune_csv.config",
    "finetune_csv.pipeline",
    "matplotlib.backends.backend_agg",
    "tensorboard.summary.writer.record_writer",
)


def write_config(folder: Path, *, bars: int = 90, **changes: Any) -> Path:
    """A configuration over two CSVs of `bars` bars with its output in folder/out/run; `changes` are section__key=value."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.csv" for name in ("AAA", "BBB")]
    for number, file in enumerate(files):
        make_frame(bars, seed=number).to_csv(file, index=False)
    config: dict[str, dict[str, Any]] = {
        "data": dict(data_path=[str(file) for file in files], lookback_window=12, predict_window=4, train_ratio=0.7, val_ratio=0.3),
        "training": dict(
            tokenizer_epochs=3,
            basemodel_epochs=3,
            batch_size=16,
            val_batch_size=4,
            log_interval=1,
            num_workers=0,
            checkpoint_every_steps=3,
            tokenizer_learning_rate=1e-3,
            predictor_learning_rate=1e-3,
        ),
        "model_paths": dict(exp_name="run", base_path=str(folder / "out")),
        "model": SIZES,
        "experiment": dict(pre_trained_tokenizer=False, pre_trained_predictor=False),
        "device": dict(device="cpu", cpu_threads=1),
        "forecast": dict(enabled=False),
    }
    for name, value in changes.items():
        section, key = name.split("__")
        config.setdefault(section, {})[key] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def output(config: Path) -> Path:
    """Where the training of `write_config`'s file puts its results."""
    return config.parent / "out" / "run"


# ------------------------------------------------------------------ children


@dataclass
class Ended:
    """How a child ended. code: as the shell has it, negative for the signal that killed it. text: its stdout and stderr."""

    code: int
    seconds: float
    text: str


@dataclass
class Child:
    """A running command."""

    pid: int
    log: Path
    begun: float = field(default_factory=time.monotonic)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; to a child that has ended, nothing happens."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it is over, without taking its exit status."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Its end. Raises Failed, after killing it, if it takes longer than `limit_s`."""
        while not self.ended():
            if time.monotonic() - self.begun > limit_s:
                self.kill()
                os.waitpid(self.pid, 0)
                raise Failed(f"still running after {limit_s:g} s; it said:\n{self.text()[-2000:]}")
            time.sleep(0.003)
        seconds, status = time.monotonic() - self.begun, os.waitpid(self.pid, 0)[1]
        return Ended(os.waitstatus_to_exitcode(status), seconds, self.text())

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Failed(Exception):
    """A promise that was not kept."""


def start(
    arguments: Sequence[str], log: Path, *, before: Callable[[], object] | None = None, environment: dict[str, str] | None = None
) -> Child:
    """Fork a child that runs `python *arguments`, arguments[0] being a file of the project.

    before: called in the child just before the command, to put a fault in its way. environment: added to its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 70  # what a fault of the drill's own looks like
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _command(arguments, before, environment or {})
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _command(arguments: Sequence[str], before: Callable[[], object] | None, environment: dict[str, str]) -> int:
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [str(ROOT / arguments[0]), *arguments[1:]]
    try:
        if before is not None:
            before()
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def run(arguments: Sequence[str], log: Path, *, limit_s: float = LIMIT_S, **more: Any) -> Ended:
    """`start` and wait."""
    return start(arguments, log, **more).wait(limit_s)


def import_once() -> None:
    """Import what the commands use, so that children need not. torch computes nothing here: a fork after that may hang."""
    torch.set_num_threads(1)
    for name in _USED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children would otherwise copy every page that the collector touches


# ------------------------------------------------------------------ what was left behind


def result_of(folder: Path, best: str = "best_model") -> dict[str, Any]:
    """All that must be equal between two runs to one stage's folder: weights and training state to the bit, numbers as logged."""
    newest = checkpoint.newest_last(folder / "checkpoints")
    expect(newest is not None, f"no checkpoint in {folder}")
    weights, state = checkpoint.load_last(newest)
    lines = [{k: v for k, v in line.items() if k != "time_s"} for line in read_json_lines(folder / "metrics.jsonl")]
    kept = {p.name: load_file(p / "model.safetensors") for p in (folder / "checkpoints").iterdir() if (p / "complete.json").exists()}
    chosen = {"weights": load_file(folder / best / "model.safetensors"), "facts": read_json(folder / best / "complete.json")}
    kept = {name: of for name, of in kept.items() if name != "former" and not name.startswith("last-")}
    return {"last": weights, "state": state, "best": chosen, "kept": kept, "metrics": lines}


def results(base: Path, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """`result_of` each stage's folder in `base`."""
    return {stage: result_of(base / stage) for stage in stages}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested results differ; tensors to the bit, NaN equal to NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        return [] if same else [f"{where}: other bits"]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))} only on one side"]
        return [told for key in a for told in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [told for i, (x, y) in enumerate(zip(a, b, strict=True)) for told in differences(x, y, f"{where}[{i}]")]
    return [] if a == b or (a != a and b != b) else [f"{where}: {str(a)[:80]} is not {str(b)[:80]}"]


def leftovers(base: Path) -> list[str]:
    """Files and folders of an unfinished write anywhere under `base`."""
    return sorted(str(p.relative_to(base)) for p in base.rglob("*") if p.name.startswith(".") and not p.name.endswith(".lock"))


def half_files(base: Path) -> list[str]:
    """Files under their final name that cannot be read whole: weights, JSON, marked checkpoints."""
    bad = []
    for path in [p for p in base.rglob("*") if p.is_file() and not p.name.startswith(".") and "former" not in p.parts]:
        try:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".jsonl":
                read_json_lines(path)
        except Exception as error:
            marked = path.parent.name.startswith("last-") and not (path.parent / checkpoint.MARKER).exists()
            bad += [] if marked else [f"{path.relative_to(base)}: {error}"]
    return bad


def expect(holds: object, told: str) -> None:
    """Raises Failed with `told` unless `holds`."""
    if not holds:
        raise Failed(told)


def clear_message(ended: Ended, *codes: int) -> str:
    """The one message of a run that must have ended with one of `codes`. Raises Failed for another code, a traceback, or two messages."""
    errors = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    expect(ended.code in codes, f"exit code {ended.code}, expected {' or '.join(map(str, codes))}:\n{ended.text[-3000:]}")
    expect("Traceback" not in ended.text, f"a traceback:\n{ended.text[-3000:]}")
    expect(len(errors) == 1, f"{len(errors)} messages, expected one:\n{ended.text[-3000:]}")
    return errors[0]


# ------------------------------------------------------------------ rounds


Round = Callable[[int, Path], None]  # (seed, a new folder): one round; raises Failed
_AT_END: list[Callable[[], object]] = []


def at_end(tell: Callable[[], object]) -> None:
    """What else to say under the summary."""
    _AT_END.append(tell)


def main(name: str, kinds: Callable[[Path], dict[str, Round]], describe: str, rounds: int) -> None:
    """The command line of a drill. kinds: given a folder to prepare in, each kind of fault and its round; rounds are dealt in turn."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.drills.{name}", description=describe)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds over all kinds (default {rounds})")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round; a failing round names its own: --rounds 1 --seed S --kind K"
    )
    parser.add_argument("--kind", help="only this kind of fault")
    args = parser.parse_args()
    import_once()
    with tempfile.TemporaryDirectory(prefix=f"drill-{name}-") as folder:
        os.chmod(folder, 0o755)
        known = kinds(Path(folder))
        chosen = {kind: act for kind, act in known.items() if args.kind in (None, kind)}
        if not chosen:
            parser.error(f"--kind {args.kind}: choose one of {', '.join(known)}")
        sys.exit(_rounds(name, chosen, Path(folder), args.rounds, args.seed, bool(args.kind)))


def _rounds(name: str, kinds: dict[str, Round], folder: Path, rounds: int, seed: int, alone: bool) -> int:
    counts, failures, seconds = (dict.fromkeys(kinds, 0) for _ in range(3))
    names = list(kinds)
    for number in range(seed, seed + rounds):
        kind = names[0] if alone else names[number % len(names)]
        place = folder / f"round-{number}"
        place.mkdir()
        place.chmod(0o777)
        begun = time.monotonic()
        try:
            kinds[kind](number, place)
        except Failed as fault:
            failures[kind] += 1
            print(f"FAILED {name} {kind}, seed {number} (--rounds 1 --seed {number} --kind {kind}): {fault}", flush=True)
        counts[kind], seconds[kind] = counts[kind] + 1, seconds[kind] + time.monotonic() - begun
        _remove(place)
    for kind in names:
        print(f"{name} {kind}: {counts[kind]} rounds, {failures[kind]} failures, {seconds[kind]:.1f} s", flush=True)
    for tell in _AT_END:
        tell()
    return int(any(failures.values()))


def _remove(place: Path) -> None:
    """A round's folder goes, whatever the round did to its permissions."""
    for path in [place, *(p for p in place.rglob("*") if p.is_dir() and not p.is_symlink())]:
        with suppress(OSError):
            path.chmod(0o755)
    shutil.rmtree(place, ignore_errors=True)
