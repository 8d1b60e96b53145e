"""What `train_kaggle.sh` asks before it starts processes, and after they ended: is all there, how many, where to, what came of it."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finetune.data.panel_store import is_panel_folder
from finetune.engine.places import Stage
from finetune_csv.config import CsvConfig
from kronos.errors import InputError, MissingFileError

ROOT = Path(__file__).resolve().parents[1]
_SAVE_S = 300  # torchrun kills workers that take longer than this to save after a signal; its own default is 30 s


@dataclass
class Launch:
    """How to start a training. overrides: for --set. torchrun: flags for it. notes: what the user should know."""

    processes: int
    overrides: list[str] = field(default_factory=list)
    torchrun: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_launch(config: CsvConfig, wanted: str, backend: str = "") -> Launch:
    """Processes and backend for `wanted` processes: "1", "8", or "all" for one per GPU.

    With fewer GPUs than asked for, those there are used; with none, as many processes work on the CPU. Raises InputError for a device that
    is named in the configuration and not there.
    """
    if wanted != "all" and not (wanted.isdecimal() and int(wanted) > 0):
        raise InputError(f"--processes {wanted} is not a number of processes; give 1 or more, or all")
    device = config.device
    gpus = torch.cuda.device_count() if device.use_cuda and device.device in ("auto", "cuda") else 0
    asked = gpus or 1 if wanted == "all" else int(wanted)
    found = Launch(min(asked, gpus) if gpus else asked)
    if backend:
        found.overrides.append(f"distributed.backend={backend}")
    if found.processes == 1:
        found.notes.append(f"1 process on {_named(device.pick())}")
        if gpus and asked > 1:
            found.notes.append(f"{asked} GPUs were asked for, 1 is here")
        return found
    if gpus:
        short = f"{asked} GPUs were asked for, {gpus} are here: " if gpus < asked else ""
        found.notes.append(f"{short}{found.processes} processes, one per GPU ({torch.cuda.get_device_name(0)})")
    else:
        why = "no GPU is here" if device.use_cuda and device.device != "cpu" else "the configuration asks for the CPU"
        found.notes.append(f"{why}: {asked} processes on the CPU, by gloo, sharing {os.cpu_count()} cores")
        found.overrides = ["device.device=cpu", "distributed.backend=gloo"]
    if takes_shutdown_timeout():
        found.torchrun.append(f"--shutdown-timeout={_SAVE_S}")
    return found


def takes_shutdown_timeout() -> bool:
    """Whether this version's torchrun can be told how long to wait for workers that were asked to stop."""
    from torch.distributed.run import get_args_parser  # half a second, and only many processes need it

    return "--shutdown-timeout" in get_args_parser().format_help()


def check_data(config: CsvConfig) -> None:
    """Raises MissingFileError, with the command that makes them, if the bars are not there."""
    for path in config.data.data_path:
        place = Path(path)
        if path.startswith("arch:") or place.exists() or (glob.has_magic(path) and next(glob.iglob(path, recursive=True), None)):
            continue
        made = f"; make it with: {preprocess_command(place.parent)}" if place.name == "panel" else ""
        raise MissingFileError(f"data.data_path: {path} is not there (looked beside the configuration, then in {Path.cwd()}){made}")
    only = Path(config.data.data_path[0])
    if len(config.data.data_path) == 1 and only.name == "panel" and only.is_dir() and not is_panel_folder(only):
        raise InputError(f"data.data_path: {only} is not a whole panel; make it again with: {preprocess_command(only.parent)}")


def preprocess_command(folder: Path) -> str:
    """The command that fills a data folder."""
    return (
        f"python {ROOT / 'finetune_csv' / 'kaggle_data_preprocess.py'} --train train.csv --test test.csv --out {shlex.quote(str(folder))}"
    )


def results(config: CsvConfig, stages: Sequence[Stage], config_file: str, overrides: Sequence[str]) -> Iterator[str]:
    """What is said when all went well: where the models are, and the commands that come next."""
    paths = config.model_paths
    for stage in stages:
        yield f"{stage}: {paths.best_model(stage)}"
    same = f" --config {shlex.quote(config_file)}" + (f" --set {shlex.join(overrides)}" if overrides else "")
    if "predictor" not in stages:
        yield f"next: bash {ROOT / 'train_kaggle.sh'}{same} --skip-tokenizer"
        return
    data = shlex.quote(str(Path(config.data.data_path[0]).parent))
    csv = ROOT / "finetune_csv"
    yield f"next: python {csv / 'kaggle_inference.py'} --data {data}{same} --out predictions.csv"
    yield f"then: python {csv / 'generate_submission.py'} --predictions predictions.csv --test test.csv --out submission.csv"


def _named(device: str) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
