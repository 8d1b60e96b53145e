"""Hostile input: refused with one message or harmless; nothing executed, nothing written elsewhere, no memory filled, no terminal steered.

"yaml": tags that run code, alias bombs, megabytes of anything. "archive": gzip, zip, npz, parquet and .pth bombs. "pickle": programs and
forged objects in place of weights, arrays, tables and states. "header": safetensors, npy, JSON and CSV whose headers lie or never end.
"file": pipes, devices, link loops, impossible paths, notes that point elsewhere. "names": ../, absolute paths, line ends, NUL, formulas and
escape sequences as experiment, symbol and folder names, through the real training command, drawing and scoring included.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from finetune.data.panel import KRONOS_COLUMNS, Panel, SeriesInfo, fingerprint_of, meta_of
from tests.bars import make_frame, make_panel
from tests.drills import common, malformed_models
from tests.drills.attacks import ATTACKS, Attack
from tests.drills.common import Failed, Round, expect
from tests.drills.isolated import aside, judge

NAMES = (
    *("../up", "../../../../tmp/drill-up", "/tmp/drill-absolute", "a/b", "a\\b", "..", ".", "", " ", "~", "~root", "file:///etc/passwd"),
    *("a\nb", "a\0b", "\t", "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "a\u2028b", "a" * 300, "\u540d" * 60, "\U0001f9e8", "_nolegend_"),
    *(
        "$HOME",
        "$(touch x)",
        "`touch x`",
        "; touch x",
        "$\\frac{",
        "$x^$",
        "{exp_name}",
        "{0.__class__}",
        "%s%n",
        "-rf",
        "--help",
        "__class__",
    ),
    *("__class__", "CON", "<script>", "|x|", "'", '"', "NaN", "true", "1e5", ".hidden", "=cmd|' /C calc'!A0"),
)
PATH_KEYS = ("exp_name", "tokenizer_save_name", "basemodel_save_name")


def _round(attacks: tuple[Attack, ...], kind: str, whole: Path, seen: Counter[str], seed: int, place: Path) -> None:
    draw = random.Random(seed)
    attack = attacks[(seed // len(KINDS)) % len(attacks)]
    folder = place / "out"
    folder.mkdir(parents=True)
    (place / "cwd").mkdir()
    try:
        verdict = judge(attack(whole, folder, draw), place)
    except Failed as fault:
        raise Failed(f"{attack.__name__}: {fault}") from None
    seen[f"{kind} {verdict.kind}"] += 1
    seen["slowest, ms"] = max(seen["slowest, ms"], int(verdict.seconds * 1000))
    seen["largest, MiB"] = max(seen["largest, MiB"], int(verdict.peak_mib))


def _symbol_table(folder: Path, names: list[str], draw: random.Random) -> str:
    """Bars of symbols with these names, in a CSV or a panel; the path."""
    if draw.random() < 0.5:
        file = folder / "bars.csv"
        frames = [make_frame(90, seed=i).assign(symbol=name) for i, name in enumerate(names)]
        pd.concat(frames).to_csv(file, index=False)
        return str(file)
    arrays = make_panel(len(names), 90)._arrays()
    meta = meta_of(KRONOS_COLUMNS, [SeriesInfo(name, "1h", name, name) for name in names], (), "open", "UTC")
    return str(Panel._of(arrays, meta, fingerprint_of(arrays, meta)).save(folder / "panel"))  # `build` would refuse some


def hostile_names(seen: Counter[str], seed: int, place: Path) -> None:
    """Symbols, or the experiment's own names: a training that draws and scores, or one message; files in the output folder only."""
    draw = random.Random(seed)
    forecast = dict(enabled=True, samples=2)
    short = dict(training__tokenizer_epochs=1, training__basemodel_epochs=1)
    config = common.write_config(place / "in", model_paths__base_path=str(place / "out" / "deep"), **short)
    tree = yaml.safe_load(config.read_text())
    if draw.random() < 0.6:
        names = sorted(set(draw.sample(NAMES, 3)))
        tree["data"]["data_path"] = _symbol_table(place / "in", names, draw)
        tree["data"]["symbol_column"] = "symbol" if tree["data"]["data_path"].endswith(".csv") else ""
        tree["forecast"] = forecast | ({"symbol": draw.choice(names)} if draw.random() < 0.3 else {})
        tree["evaluation"] = dict(enabled=True, max_origins=10, samples=4)
    else:
        tree["model_paths"][draw.choice(PATH_KEYS)] = draw.choice(NAMES)
        tree["experiment"]["name"] = draw.choice(NAMES)
    config.write_text(yaml.safe_dump(tree))
    before = _listing(place)
    ended = common.run([common.BOTH, "--config", str(config)], place / "log", limit_s=120)
    if ended.code:
        told = common.clear_message(ended, 2)
        expect(len(told) < 6000, f"a message of {len(told)} characters")
    odd = {c for c in ended.text if not c.isprintable() and c not in "\n\r\t"}
    expect(not odd, f"control characters {odd} on the terminal:\n{ended.text[:2000]!r}")
    extra = {path for path in _listing(place) - before if path.parts[0] not in ("out", "log")}
    expect(not extra, f"files elsewhere: {sorted(map(str, extra))}")
    expect(not any(Path(path).exists() for path in ("/tmp/drill-up", "/tmp/drill-absolute")), "files in /tmp")
    below = {path.parts[:2] for path in _listing(place) if path.parts[0] == "out" and len(path.parts) > 1}
    expect(below <= {("out", "deep")}, f"files beside the folder of the experiments: {below}")
    seen[f"names {'accepted' if ended.code == 0 else 'refused'}"] += 1


def _listing(place: Path) -> set[Path]:
    return {path.relative_to(place) for path in place.rglob("*")}


KINDS = (*ATTACKS, "names")


def kinds(folder: Path) -> dict[str, Round]:
    """Valid files are made once, in a child; every attack takes what it needs of them."""
    whole, seen = folder / "whole", Counter[str]()
    aside(lambda: malformed_models.make_whole(whole))
    common.at_end(lambda: print("hostile: " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))))

    def of(kind: str) -> Callable[[int, Path], None]:
        return lambda seed, place: _round(ATTACKS[kind], kind, whole, seen, seed, place)

    return {kind: of(kind) for kind in ATTACKS} | {"names": lambda seed, place: hostile_names(seen, seed, place)}


if __name__ == "__main__":
    try:
        common.main("hostile", kinds, __doc__ or "", 180)
    except Failed as fault:
        sys.exit(f"hostile: {fault}")
