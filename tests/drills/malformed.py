"""Malformed input: an answer that is right, or one message of ours; no traceback, no crash, no hang, no blow-up, no file elsewhere.

"csv": tables of bars (CSV, gzip, parquet). "yaml": configurations. "json": the small files of a run folder, its checkpoint and its log.
"safetensors": weights, their config.json and bundles. "panel": saved panels. "pickle": tables in pickles. "command": CSV, YAML, panels and
weights through the real training commands. Files are valid ones mutated (bits flipped, cut, repeated, lengths and numbers that lie) or
drawn by hypothesis; every case runs in a child process of its own (see `isolated`).
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.drills import common, malformed_csv, malformed_models, malformed_yaml
from tests.drills.common import Failed, Round, expect
from tests.drills.isolated import aside, judge
from tests.drills.mutations import mutated

Case = Callable[[], Any]
_COMMAND_EVERY = 12  # rounds of this kind: one goes through a command, the others through the reader of CSV; a command takes a second


def _round(make: Callable[[int, Path], Case], kind: str, seen: Counter[str], seed: int, place: Path) -> None:
    verdict = judge(make(seed, place), place)
    seen[f"{kind} {verdict.kind}"] += 1
    seen["slowest, ms"] = max(seen["slowest, ms"], int(verdict.seconds * 1000))
    seen["largest, MiB"] = max(seen["largest, MiB"], int(verdict.peak_mib))


def through_command(whole: Path, seen: Counter[str], seed: int, place: Path) -> None:
    """A whole training, one of whose inputs is malformed: done, or one message and exit code 2; what it wrote is in its output folder."""
    draw = random.Random(seed)
    short = dict(training__tokenizer_epochs=1, training__basemodel_epochs=1)
    config = common.write_config(place / "in", model_paths__base_path=str(place / "out"), **short)
    what = draw.choice(("csv", "yaml", "panel", "weights"))
    if what == "csv":
        file = place / "in" / "AAA.csv"
        file.write_bytes(mutated(draw, file.read_bytes()))
    elif what == "yaml":
        config.write_bytes(mutated(draw, config.read_bytes()))
    else:
        tree = yaml.safe_load(config.read_text())
        if what == "panel":
            tree["data"]["data_path"] = str(malformed_models._damage(whole / "panel", place / "in", draw, seed))
        else:
            damaged = malformed_models._damage(whole / "models" / "tokenizer", place / "in", draw, seed)
            tree["model_paths"]["pretrained_tokenizer"] = str(damaged)
            tree["experiment"]["pre_trained_tokenizer"] = True
        config.write_text(yaml.safe_dump(tree))
    before = {path: path.read_bytes() for path in (place / "in").rglob("*") if path.is_file()}
    ended = common.run([common.BOTH, "--config", str(config)], place / "log")
    if ended.code:
        told = common.clear_message(ended, 2)
        expect(len(told) < 6000, f"a message of {len(told)} characters")
    expect(before == {path: path.read_bytes() for path in (place / "in").rglob("*") if path.is_file()}, "the input was changed")
    expect({path.name for path in place.iterdir()} <= {"in", "out", "log"}, f"files elsewhere: {sorted(place.iterdir())}")
    seen[f"command {'accepted' if ended.code == 0 else 'refused'}"] += 1


def _command(whole: Path, seen: Counter[str], seed: int, place: Path) -> None:
    if (seed // len(KINDS)) % _COMMAND_EVERY:
        _round(malformed_csv.case, "csv", seen, seed, place)
    else:
        through_command(whole, seen, seed, place)


KINDS = ("csv", "yaml", "json", "safetensors", "panel", "pickle", "command")


def kinds(folder: Path) -> dict[str, Round]:
    """Whole files are made once, in a child (nothing computes in this process), and mutated in every round."""
    whole, seen = folder / "whole", Counter[str]()
    aside(lambda: malformed_models.make_whole(whole))
    common.at_end(lambda: print("malformed: " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))))
    models: dict[str, Callable[[Path, int, Path], Case]] = {
        "json": malformed_models.json_case,
        "safetensors": malformed_models.model_case,
        "panel": malformed_models.panel_case,
        "pickle": malformed_models.pickle_case,
    }

    def of(kind: str) -> Round:
        if kind == "command":
            return lambda seed, place: _command(whole, seen, seed, place)
        if kind in models:
            return lambda seed, place: _round(lambda s, p: models[kind](whole, s, p), kind, seen, seed, place)
        return lambda seed, place: _round({"csv": malformed_csv, "yaml": malformed_yaml}[kind].case, kind, seen, seed, place)

    return {kind: of(kind) for kind in KINDS}


if __name__ == "__main__":
    try:
        common.main("malformed", kinds, __doc__ or "", 500)
    except Failed as fault:
        sys.exit(f"malformed: {fault}")
