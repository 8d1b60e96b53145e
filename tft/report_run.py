"""Which split of a run a report judges, and what a reader must know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.engine.files import read_json
from finetune.engine.windows import Source
from tft.forecasts import Outputs
from tft.report import Comparison, compare
from tft.run_folder import run_of
from tft.training import Prepared

Say = Callable[[str], Any]


def report_split(
    prepared: Prepared,
    run: Path,
    sources: dict[str, Source],
    outputs: dict[str, Outputs],
    *,
    with_lightgbm: bool = True,
    seed: int = 0,
    say: Say = print,
) -> Comparison | None:
    """Judge test, or else val, or else train, of what was forecast; None if none of them was. Raises what `compare` raises."""
    known = [name for name in ("test", "val", "train") if name in outputs and not np.isnan(outputs[name].labels).all()]
    if not known:
        return None
    split = known[0]
    notes = []
    if split == "val":
        notes.append("the best epoch was chosen on this split, so the transformer looks a little better here than on bars to come")
    if split == "train":
        notes.append("these are the rows that every method learned from: nothing here tells of bars to come")
    trained = (read_json(run_of(run) / "summary.json") or {}).get("data", {}).get("data")
    if trained and trained != prepared.panel.fingerprint:
        notes.append("these are other data than the run was trained on; the baselines learned from the earlier part of these")
    found = compare(prepared, split, sources[split], outputs[split], with_lightgbm=with_lightgbm, seed=seed, say=say)
    return replace(found, notes=[*notes, *found.notes])
