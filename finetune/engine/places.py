"""Where a stage keeps its files, and what they say of it. Reads small files only and needs no torch: plans are made with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .comet import CometSettings
from .files import read_json

Stage = Literal["tokenizer", "predictor"]
MARKER = "complete.json"  # written last, in a checkpoint and in best_model: without it there is none
_LAST = re.compile(r"last-(\d+)$")


@dataclass(frozen=True)
class Place:
    """Where one stage keeps its files, and what is recorded there."""

    folder: Path
    best: Path
    logs: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    comet: CometSettings | None = None


def is_complete(folder: Path) -> bool:
    """Whether the weights in a best_model were written to the end."""
    return (folder / MARKER).is_file()


def number_of(checkpoint: Path) -> int | None:
    """12 of checkpoints/last-00000012, None of any other name."""
    found = _LAST.match(checkpoint.name)
    return int(found[1]) if found else None


def newest_last(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = [(number, path) for path in folder.glob("last-*") if (number := number_of(path)) is not None and is_complete(path)]
    return max(found)[1] if found else None


def finished(place: Place) -> bool:
    """Whether a stage's result is there and no later run of it stopped half-way."""
    status = read_json(place.folder / "status.json") or {}
    return is_complete(place.best) and status.get("state", "done") == "done"
