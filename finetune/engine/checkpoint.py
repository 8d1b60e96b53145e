"""The one writer of checkpoints. What is complete is never touched until its successor is complete.

`checkpoints/last-00000012/` (the twelfth save) holds weights (safetensors), training state (read with weights_only=True) and, written last,
`complete.json` with the size and digest of both. A folder without a true marker is no checkpoint. The newest complete
one counts; older ones are removed only after it. So kill -9 at any moment leaves one that loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kronos.errors import InputError
from kronos.files import new_folder
from kronos.weights import read_plain

from .files import explained, write_json
from .places import MARKER, newest_last, number_of
from .task import Task

WEIGHTS, STATE = "model.safetensors", "training_state.pt"


def save_last(folder: Path, step: int, module: nn.Module, state: dict[str, Any]) -> Path:
    """Write `folder/last-<n+1>` and then remove older ones. Raises InputError (disk full, no permission); older ones survive."""
    newest = max((number for path in folder.glob("last-*") if (number := number_of(path)) is not None), default=0)
    target = folder / f"last-{newest + 1:08d}"
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with explained(target):
        try:
            new_folder(temporary)
            save_file({k: v.detach().contiguous().cpu() for k, v in module.state_dict().items()}, temporary / WEIGHTS)
            torch.save(state, temporary / STATE)
            marker = {name: _seal(temporary / name) for name in (WEIGHTS, STATE)} | {"step": step}
            os.replace(temporary, target)
            write_json(target / MARKER, marker)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    with explained(folder, "cannot remove former checkpoints in"):
        for other in [*folder.glob("last-*"), *folder.glob(".last-*.tmp")]:
            if other != target:
                _discard(other)
    return target


def set_aside(folder: Path) -> None:
    """A run that starts anew must never be continued from a former run's checkpoint: keep that one, but as `former`."""
    path, former = newest_last(folder), folder / "former"
    with explained(folder, "cannot put the former checkpoint aside in"):
        for rest in folder.glob("last-*"):
            if rest != path:  # first: a kill half-way must not make an older one the newest
                _discard(rest)
        if path is not None:
            _discard(former)
            os.replace(path, former)


def load_last(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and training state of a complete checkpoint, on the CPU. Raises InputError naming the file if either is damaged."""
    try:
        marker = json.loads((path / MARKER).read_text())
        for name in (WEIGHTS, STATE):
            if _seal(path / name, flush=False) != marker[name]:
                raise InputError(
                    f"checkpoint {path / name} is not as it was saved (size or digest differ); "
                    f"remove {path} and start anew, or restore it from a copy"
                )
        return load_file(path / WEIGHTS), read_plain(path / STATE)
    except InputError:
        raise
    except Exception as error:  # what is damaged, or was made by somebody else, may fail in any way; nothing of it has been used
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"checkpoint {path} cannot be read ({told}); remove it and start anew") from error


def check_identity(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises InputError if the checkpoint belongs to another model, other data or other windows, listing what differs."""
    differ = [
        f"{key}: checkpoint has {_short(saved.get(key))}, this run {_short(now.get(key))}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if differ:
        raise InputError(
            f"cannot go on: checkpoint {path} is of another run; " + "; ".join(differ) + ". Go on with the former settings, or start anew"
        )


def save_best(folder: Path, task: Task, facts: dict[str, Any]) -> None:
    """Write the task's result to `folder`, each file atomically, its marker with `facts` (score, epoch, step) last."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        task.save(folder)
        write_json(folder / MARKER, facts)


def prune(folder: Path, pattern: str, keep: list[str]) -> None:
    """Remove the folders that match `pattern` and are not named in `keep`."""
    for path in folder.glob(pattern):
        if path.name not in keep:
            _discard(path)


def _discard(folder: Path) -> None:
    """Remove a checkpoint, its marker first: a kill half-way leaves no folder that claims to be complete."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _seal(path: Path, flush: bool = True) -> dict[str, Any]:
    """Size and digest of a file, after it has reached the disk."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb+" if flush else "rb") as file:
        if flush:
            os.fsync(file.fileno())
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
