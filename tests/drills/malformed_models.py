"""Malformed models, run folders, panels and pickles: whole ones are made once, then copied and one of their files is mutated."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from finetune.data.load import load_panel
from finetune.data.panel import Panel
from finetune.engine import checkpoint
from finetune.engine.files import read_json, read_json_lines, write_json
from finetune.engine.places import Place, finished, newest_last
from finetune.engine.tracking import Run
from finetune.evaluation.run_comparison import read_runs
from kronos import Kronos, KronosTokenizer, load_predictor, load_tokenizer, presets
from kronos.bundle import Bundle, load_bundle, write_folder, write_pth
from tests.bars import make_frame, make_panel
from tests.drills.common import SIZES, expect
from tests.drills.malformed_csv import section
from tests.drills.mutations import drawn, lie_about_length, mutated
from tft.safe_pickle import safe_load, write_pickle

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12
)


def arguments(stage: str) -> dict[str, Any]:
    """Constructor arguments of the drills' tiny models."""
    changed = dict(SIZES[stage])
    table = presets.TOKENIZERS if stage == "tokenizer" else presets.PREDICTORS
    return {**table[changed.pop("preset")], **changed}


def make_whole(folder: Path) -> None:
    """A tokenizer, a predictor, bundles, a run folder with a checkpoint, a panel and a pickle, all valid, in `folder`."""
    models = {"tokenizer": KronosTokenizer(**arguments("tokenizer")), "predictor": Kronos(**arguments("predictor"))}
    for name, module in models.items():
        module._save_pretrained(folder / "models" / name)
    bundle = Bundle(models["tokenizer"].eval(), models["predictor"].eval())
    write_folder(bundle, folder / "bundle")
    write_folder(bundle.quantized(), folder / "bundle8")
    write_pth(bundle, folder / "bundle.pth")
    with Run.create(folder / "run", config={"data": {"lookback": 6}}, is_main=True, resume=False, name="tokenizer") as run:
        for step in range(5):
            run.log(step, 0, "train" if step < 4 else "val", {"loss": 1.0 / (step + 1), "lr": 1e-3})
        models["tokenizer"]._save_pretrained(run.best)
        write_json(run.best / checkpoint.MARKER, {"score": 0.5, "epoch": 0, "step": 4})
        checkpoint.save_last(run.checkpoints, 4, models["tokenizer"], {"state": {"step": 4}, "sums": torch.arange(6.0)})
        run.finish({"monitor": "val_loss", "best_score": 0.5, "best_epoch": 0, "steps": 4, "data": {"data": "f00d", "lookback": 6}})
    make_panel(2, 30).save(folder / "panel")
    write_pickle(make_frame(20).assign(symbol="AAA"), folder / "table.pkl")


def _damage(whole: Path, place: Path, draw: random.Random, seed: int, names: tuple[str, ...] = ("*",)) -> Path:
    """A copy of `whole` (file or folder) in place/out, one file of it mutated, or missing, or empty; the copy."""
    copy = place / "out" / whole.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if whole.is_file():
        copy.write_bytes(mutated(draw, whole.read_bytes()))
        return copy
    shutil.copytree(whole, copy)
    files = sorted(path for name in names for path in copy.rglob(name) if path.is_file())
    chosen = draw.choice(files)
    data = chosen.read_bytes()
    if draw.random() < 0.05:
        chosen.unlink()
    elif draw.random() < 0.2 and chosen.suffix in (".json", ".jsonl"):
        chosen.write_text(_changed_json(draw, data, seed))
    elif draw.random() < 0.3 and chosen.suffix in (".safetensors", ".npy"):
        chosen.write_bytes(_changed_header(draw, data))
    else:
        chosen.write_bytes(mutated(draw, data))
    return copy


def _changed_json(draw: random.Random, data: bytes, seed: int) -> str:
    """Well-formed JSON with any value in the place of one of its own, or of all."""
    new = drawn(_JSON, seed)
    try:
        tree = json.loads(data)
    except ValueError:  # .jsonl: a further line
        return data.decode() + json.dumps(new) + "\n" + draw.choice(("", '{"step": 9}\n'))
    if isinstance(tree, dict) and tree and draw.random() < 0.8:
        at, key = tree, draw.choice(sorted(tree))
        while isinstance(at[key], dict) and at[key] and draw.random() < 0.6:
            at, key = at[key], draw.choice(sorted(at[key]))
        at[key] = new
        return json.dumps(tree)
    return json.dumps(new)


def _changed_header(draw: random.Random, data: bytes) -> bytes:
    """The header alone mutated, its length put right: what a careless or lying writer makes."""
    if data[:6] == b"\x93NUMPY":
        size = struct.unpack("<H", data[8:10])[0]
        return data[:10] + mutated(draw, data[10 : 10 + size])[:size].ljust(size) + data[10 + size :]
    size = struct.unpack("<Q", data[:8])[0]
    header = mutated(draw, data[8 : 8 + size])
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def model_case(whole: Path, seed: int, place: Path) -> Callable[[], Any]:
    """Weights and their configuration: refused, or exactly the numbers that stand in the file."""
    draw = random.Random(seed)
    what = draw.choice(("tokenizer", "predictor", "bundle", "bundle8", "bundle.pth"))
    path = _damage(whole / ("models/" + what if "bundle" not in what else what), place, draw, seed)

    def read() -> str:
        if "bundle" in what:
            load_bundle(path).manifest("folder")  # checked against its own fingerprints
            return "loaded"
        module = (load_tokenizer if what == "tokenizer" else load_predictor)(path)
        data = (path / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        for name, tensor in module.state_dict().items():
            first, last = header[name]["data_offsets"]
            if header[name]["dtype"] == "F32":
                expect(tensor.numpy().tobytes() == data[8 + size + first : 8 + size + last], f"{name} is not what the file holds")
            expect(bool(torch.isfinite(tensor).all()), f"{name} is not finite")
        return "loaded"

    return read


def json_case(whole: Path, seed: int, place: Path) -> Callable[[], Any]:
    """The small files of a run folder, as resuming, planning and comparing read them."""
    draw = random.Random(seed)
    run = _damage(whole / "run", place, draw, seed, ("*.json", "*.json", "*.jsonl", "*.yaml", "*.pt", "checkpoints/*/*"))
    reader = draw.choice((_resumed, _looked_at, _compared))
    if draw.random() < 0.3 and reader is _resumed:
        _seal_again(run)
    return lambda: reader(run)


def _seal_again(run: Path) -> None:
    """A marker that is true of damaged files: only the readers behind it are left to notice."""
    for last in (run / "checkpoints").glob("last-*"):
        if all((last / name).is_file() for name in (checkpoint.WEIGHTS, checkpoint.STATE)):
            marker = {name: checkpoint._seal(last / name) for name in (checkpoint.WEIGHTS, checkpoint.STATE)}
            (last / checkpoint.MARKER).write_text(json.dumps(marker | {"step": 4}))


def _resumed(run: Path) -> str:
    newest = newest_last(run / "checkpoints")
    if newest is not None:
        weights, state = checkpoint.load_last(newest)
        expect(isinstance(weights, dict) and isinstance(state, dict), f"{type(weights)} and {type(state)} from {newest}")
    with Run.create(run, config={"a": 1}, is_main=True, resume=True, name="tokenizer") as resumed:
        resumed.rewind(3, 0)
        resumed.log(4, 0, "val", {"loss": 0.5})
    lines = read_json_lines(run / "metrics.jsonl")
    expect(lines and lines[-1]["step"] == 4 and lines[-1]["loss"] == 0.5, "the line after the resume is not the last one")
    return "resumed"


def _looked_at(run: Path) -> str:
    finished(Place(run, run / "best_model", run / "logs"))
    for path in [*run.rglob("*.json")]:
        if isinstance(value := read_json(path), dict):
            expect(value == json.loads(path.read_bytes()) or "NaN" in path.read_text(), f"{path} was read wrong")
    read_json_lines(run / "metrics.jsonl")
    return "looked at"


def _compared(run: Path) -> str:
    read_runs([run])
    return "compared"


def panel_case(whole: Path, seed: int, place: Path) -> Callable[[], Any]:
    """A panel folder: refused, or every array as it was saved."""
    draw = random.Random(seed)
    folder = _damage(whole / "panel", place, draw, seed)
    how = section(folder, draw)
    if draw.random() < 0.2:
        array = draw.choice(sorted(folder.glob("*.npy")))
        array.write_bytes(lie_about_length(draw, array.read_bytes()))

    def read() -> str:
        panel, was = load_panel(how, say=lambda _: None), Panel.open(whole / "panel")
        expect(panel.fingerprint == was.fingerprint, "another fingerprint")
        for name, array in was._arrays().items():
            expect(np.array_equal(array, panel._arrays()[name]), f"{name} is not what was saved")
        expect(panel.series == was.series and panel.columns == was.columns and panel.stamp == was.stamp, "other series, columns or stamp")
        return "opened"

    return read


def pickle_case(whole: Path, seed: int, place: Path) -> Callable[[], Any]:
    """A table in a pickle: refused, or an object of the allowed parts."""
    draw = random.Random(seed)
    file = _damage(whole / "table.pkl", place, draw, seed)
    if draw.random() < 0.1:
        file.write_bytes(mutated(draw, pickle.dumps(drawn(_JSON, seed))))

    def read() -> str:
        return type(safe_load(file)).__name__

    return read
