"""Where runs of the Temporal Fusion Transformer lie: runs/<script>-YYYYMMDD_HHMM/ with checkpoints/, logs/ and configs/."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from finetune.engine.config import resolved, to_yaml
from finetune.engine.files import ensure_writable_folder, write_json, write_text
from finetune.engine.places import is_complete, newest_last
from kronos.errors import InputError, MissingFileError
from tft.config import TftConfig, extra_file

CONFIG_NAME, MANIFEST_NAME = "model_config.yaml", "data_manifest.json"
_EXTRA = ("weights_config", "composite_score")
_LAST = re.compile(r"last(-\d+)?(\.ckpt)?\Z")


def new_folder(output: str, script: str) -> Path:
    """Makes output/<script>-YYYYMMDD_HHMM, with -2, -3 ... behind it for more than one in a minute. Raises InputError if it cannot."""
    parent = Path(output)
    ensure_writable_folder(parent)
    name = f"{script}-{time.strftime('%Y%m%d_%H%M')}"
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise InputError(f"{parent}: holds 999 runs of this minute; name another output_dir")


def write_snapshot(folder: Path, config: TftConfig, manifest: dict[str, Any]) -> None:
    """configs/ of a run: the configuration as resolved, its two side files, and the data's manifest, so that the run opens by itself."""
    kept = folder / "configs"
    ensure_writable_folder(kept)
    plain = {**resolved(config), "data_path": str(Path(config.data_path).absolute()), "resume_ckpt": "", "warm_start_ckpt": ""}
    for name in _EXTRA:
        if path := getattr(config, name):
            write_text(kept / f"{name}.yaml", to_yaml(extra_file(path)))
            plain[name] = f"{name}.yaml"
    write_text(kept / CONFIG_NAME, to_yaml(plain))
    write_json(kept / MANIFEST_NAME, manifest)


def run_of(path: Path) -> Path:
    """The run's folder, from itself, its checkpoints/ or one of those."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "configs" / CONFIG_NAME).is_file():
            return folder
    return path


def find_run(ckpt: str, output: str) -> Path:
    """The run whose newest complete checkpoint `--ckpt` means: last (of the newest run below `output`), or a path to it or its run.

    Raises MissingFileError, and InputError for a checkpoint that holds weights only.
    """
    if _LAST.match(ckpt) and not Path(ckpt).exists():
        runs = [folder for folder in Path(output).glob("*") if newest_last(folder / "checkpoints")]
        if not runs:
            raise MissingFileError(f"--ckpt {ckpt}: no run below {output} has a checkpoint; give a path such as runs/.../checkpoints/last")
        return max(runs, key=lambda folder: newest_last(folder / "checkpoints").stat().st_mtime)
    path = Path(ckpt)
    if not path.exists() and not (path.name in ("last", "last.ckpt") and path.parent.is_dir()):
        raise MissingFileError(f"--ckpt {ckpt}: there is no such checkpoint; give last, or a path such as runs/.../checkpoints/last")
    if is_complete(path) and not _LAST.match(path.name):
        told = f"go on from {path.parent / 'last'}, or begin with these: tft/warm_start_train.py"
        raise InputError(f"--ckpt {ckpt}: holds weights only; {told}")
    run = run_of(path)
    if newest_last(run / "checkpoints") is None:
        raise MissingFileError(f"--ckpt {ckpt}: {run / 'checkpoints'} holds no complete checkpoint; give last, or another run's")
    return run


def find_weights(ckpt: str, output: str) -> Path:
    """The folder with the weights that `--ckpt` means: best or last (of the newest run), a run (its best) or any checkpoint's folder.

    Raises MissingFileError.
    """
    path = Path(ckpt)
    if _LAST.match(path.name) and not is_complete(path):
        return newest_last(find_run(ckpt, output) / "checkpoints")
    if ckpt == "best":
        runs = [folder for folder in Path(output).glob("*") if is_complete(folder / "checkpoints" / "best")]
        if runs:
            return max(runs, key=lambda folder: folder.stat().st_mtime) / "checkpoints" / "best"
    for folder in (path, path / "best", path / "checkpoints" / "best"):
        if (folder / "model.safetensors").is_file():
            return folder
    raise MissingFileError(f"--ckpt {ckpt}: there are no weights; give the folder of a checkpoint such as runs/.../checkpoints/best")


def weights_of(run: Path, checkpoint: str) -> Path:
    """checkpoints/<checkpoint> of a run, best or best-epoch=NN. Raises MissingFileError naming those that there are."""
    folder = run / "checkpoints" / checkpoint
    if not is_complete(folder):
        there = sorted(path.name for path in folder.parent.glob("best*") if is_complete(path))
        raise MissingFileError(f"{run}: has no checkpoint {checkpoint!r}; it has {', '.join(there) or 'none yet'}")
    return folder
