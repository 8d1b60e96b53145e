"""Input made to do harm: each attack writes its files into a folder and returns the reading that must refuse them, or do no harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from finetune.data.load import load_panel
from finetune.engine.beginning import NOTE, goes_on
from finetune.engine.checkpoint import MARKER, STATE, WEIGHTS, _seal, load_last
from finetune.engine.distributed import World
from finetune.engine.files import read_json, read_json_lines
from finetune.engine.yaml_text import read_yaml
from kronos import load_tokenizer
from kronos.bundle import load_bundle
from tests.drills.malformed_csv import section
from tft.safe_pickle import read_pickle, safe_load

Attack = Callable[[Path, Path, random.Random], Callable[[], Any]]  # (whole files, a new folder, draw) -> the reading
_HEAD = b"timestamps,open,high,low,close\n"


class _Runs:
    """Unpickled, it runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def program(folder: Path) -> bytes:
    """A pickle that makes a file beside the reader's canaries."""
    return pickle.dumps(_Runs(folder.parent / "cwd" / "executed"), protocol=2)


def _bars(path: Path) -> Callable[[], Any]:
    how = section(path, random.Random(0))
    how.missing = "error"
    return lambda: load_panel(how, say=lambda _: None)


def _written(file: Path, data: bytes, read: Callable[[], Any]) -> Callable[[], Any]:
    file.write_bytes(data)
    return read


# ------------------------------------------------------------------ YAML

_TAGS = (
    "a: !!python/object/apply:os.system ['touch {0}']",
    "!!python/object/new:subprocess.Popen [[touch, {0}]]",
    "a: !!python/name:os.system",
    "a: !!python/object/apply:builtins.exec [\"open('{0}','w')\"]",
    "a: !!binary R0lGODlhAQ==\nb: !!set {{x}}",
    "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system ['touch {0}']",
    "a: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch {0}']",
)
_YAML_BOMBS: tuple[Callable[[random.Random], str], ...] = (
    lambda draw: "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, draw.randrange(6, 25))),
    lambda draw: "a0: &a0 {k: x}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 60)),
    lambda draw: "a: &a [*a]",
    lambda draw: "a: &a {b: &b {c: *a, d: *b}}",
    lambda draw: "a: &a {x: 1}\nb:\n  <<: *a",
    lambda draw: "[" * draw.randrange(1000, 900_000),
    lambda draw: "a: {" * 200_000,
    lambda draw: "".join(" " * i + f"k{i}:\n" for i in range(1300)),
    lambda draw: f"data: [{'1,' * draw.randrange(60_000, 480_000)}]",
    lambda draw: "\n".join(f"k{i}: v" for i in range(80_000)),
    lambda draw: "training:\n  batch_size: " + "9" * draw.randrange(5000, 900_000),
    lambda draw: "x" * 900_000 + ": 1",
    lambda draw: "a: !" + "t" * 900_000,
    lambda draw: 'a: "' + "\\U0001F4A3" * 90_000 + '"',
    lambda draw: "? " * 450_000,
    lambda draw: "a: |\n" + " x\n" * 300_000,
)


def yaml_tag(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """Tags that make PyYAML's full loader run code."""
    file = folder / "c.yaml"
    text = draw.choice(_TAGS).format(folder.parent / "cwd" / "executed")
    return _written(file, text.encode(), lambda: read_yaml(file))


def yaml_bomb(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """Aliases that multiply, nesting, and megabytes of anything."""
    file = folder / "c.yaml"
    return _written(file, draw.choice(_YAML_BOMBS)(draw).encode(), lambda: read_yaml(file))


# ------------------------------------------------------------------ archives


def gzip_bomb(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A few megabytes that unpack to gigabytes: of nothing, of one bar, or of archives in a row."""
    piece = draw.choice((bytes(1 << 20), b"2024-01-01 00:00:00,1,1,1,1\n" * 40_000, b"\n" * (1 << 20)))
    packed = gzip.compress(_HEAD) + gzip.compress(piece) * draw.randrange(2000, 4000)
    file = folder / draw.choice(("bars.csv.gz", "bars.csv"))
    return _written(file, packed, _bars(file))


def parquet_bomb(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """One value a hundred million times, which parquet writes in a kilobyte."""
    rows, file = 20_000_000, folder / "bars.parquet"
    ones = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array(["1"]))
    table = pa.table(dict.fromkeys(("timestamps", "open", "high", "low", "close", "x", "y", "z"), ones))
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return _bars(file)


def zip_for_csv(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A zip archive, of bars or of a bomb, under a CSV's name."""
    file = folder / "bars.csv"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(draw.choice(("bars.csv", "../../bars.csv", "/etc/bars.csv")), _HEAD + bytes(1 << 24))
    return _bars(file)


def npz_for_npy(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """An archive of arrays, or an array of objects, in place of a panel's array."""
    panel = _copy(whole / "panel", folder / "panel")
    file = panel / draw.choice(("features.npy", "times.npy", "offsets.npy", "stamps.npy"))
    stream = io.BytesIO()
    if draw.random() < 0.5:
        np.savez_compressed(stream, a=np.zeros(1 << 24))
    else:
        np.save(stream, np.array([_Runs(folder.parent / "cwd" / "executed")], dtype=object), allow_pickle=True)
    return _written(file, stream.getvalue(), _bars(panel))


def pth_bomb(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A bundle or a training state whose parts are packed, so that a small file unpacks to gigabytes."""
    file = folder / "b.pth"
    with zipfile.ZipFile(whole / "bundle.pth") as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            big = info.filename.endswith(draw.choice(("data.pkl", "data/0")))
            with new.open(info.filename, "w") as part:
                part.write(old.read(info))
                for _ in range(1500 if big else 0):
                    part.write(bytes(1 << 20))
    return lambda: load_bundle(file)


# ------------------------------------------------------------------ pickles


def pickle_for_weights(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A program in place of weights: safetensors, a bundle, a training state (with a marker that is true of it), torch's own format."""
    what = draw.choice(("safetensors", "config", "pth", "state", "torch"))
    evil = program(folder)
    if what in ("safetensors", "config"):
        model = _copy(whole / "models" / "tokenizer", folder / "model")
        (model / {"safetensors": "model.safetensors", "config": "config.json"}[what]).write_bytes(evil)
        return lambda: load_tokenizer(model)
    if what == "state":
        last = _copy(next((whole / "run" / "checkpoints").glob("last-*")), folder / "last-00000001")
        torch.save({"state": _Runs(folder.parent / "cwd" / "executed")}, last / STATE)
        (last / MARKER).write_text(json.dumps({name: _seal(last / name) for name in (WEIGHTS, STATE)}))
        return lambda: load_last(last)
    file = folder / "b.pth"
    file.write_bytes(evil)
    if what == "torch":
        torch.save({"config": _Runs(folder.parent / "cwd" / "executed")}, file, _use_new_zipfile_serialization=draw.random() < 0.5)
    return lambda: load_bundle(file)


def _assembled(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def _called(module: str, name: str, *arguments: bytes) -> bytes:
    """Opcodes that call module.name."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


_FALSE, _TRUE, _NONE = b"\x89", b"\x88", b"N"
_POINTER = b"C\x08" + struct.pack("<Q", 0x4141414141414141)  # eight bytes that, taken for an object, are read at that address


def _forged_dtype(flags: int, kind: str = "O") -> bytes:
    """A type of objects that claims to be one of plain bytes, or the other way round."""
    state = b"(" + _number(3) + _text("|") + _NONE * 3 + _number(-1) * 2 + _number(flags) + b"t"
    return _called("numpy", "dtype", _text(kind), _FALSE, _TRUE) + state + b"b"


def _forged_array(dtype: bytes) -> bytes:
    empty = _called("numpy._core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", _number(0) + b"\x85", b"C\x01b")
    return empty + b"(" + _number(1) + _number(1) + b"\x85" + dtype + _FALSE + _POINTER + b"tb"


_FRAME = b"cpandas\nDataFrame\n"
_PICKLES: tuple[Callable[[], bytes], ...] = (
    lambda: _assembled(_called("os", "system", _text("true"))),
    lambda: _assembled(_called("builtins", "eval", _text("1"))),
    lambda: _assembled(_called("pandas", "read_pickle", _text("/etc/passwd"))),
    lambda: _assembled(_called("builtins", "getattr", b"cpandas\nDataFrame\n", _text("to_csv"))),
    lambda: _assembled(_called("builtins", "set", _called("builtins", "range", _number(10**11)))),
    lambda: _assembled(_called("builtins", "frozenset", _called("builtins", "range", _number(10**11)))),
    lambda: _assembled(_called("builtins", "bytearray", _number(1 << 33))),
    lambda: _assembled(_called("builtins", "bytearray", _called("builtins", "range", _number(10**11)))),
    lambda: _assembled(
        _called("pandas", "DataFrame", _number(1), _called("pandas", "RangeIndex", _number(10**9)), b"(" + _text("a") + b"l")
    ),
    lambda: _assembled(_called("pandas", "Series", _number(1), _called("pandas", "RangeIndex", _number(10**9)))),
    lambda: _assembled(_called("numpy", "ndarray", _number(1) + b"\x85", _text("O"), _called("builtins", "bytearray", _POINTER))),
    lambda: _assembled(_called("numpy", "ndarray", _number(1 << 32) + b"\x85", _text("f8"))),
    lambda: _assembled(_forged_array(_forged_dtype(0))),
    lambda: _assembled(_forged_array(_forged_dtype(27, "f8"))),
    lambda: _assembled(_forged_array(_called("numpy", "dtype", _text("V8"), _FALSE, _TRUE))),
    lambda: _assembled(_called("_codecs", "encode", _text("x" * 100), _text("../../x"))),
    lambda: _assembled(_called("pandas.core.frame", "DataFrame.to_csv", _NONE)),
    lambda: _assembled(_FRAME + b")\x81" + b"}" + _text("_mgr") + _number(5) + b"sb"),
    lambda: _assembled(b"(" * 100_000),
    lambda: b"\x80\x04" + b"\x8c\xff" * 10,
    lambda: _assembled(b"\x8e" + struct.pack("<Q", 1 << 62)),
    lambda: _assembled(b"B" + struct.pack("<I", (1 << 32) - 1)),
    lambda: _assembled(b"r" + struct.pack("<I", (1 << 31) - 1)),
)


def _used(file: Path) -> str:
    """Read a pickle and look at every element: a forged one is only then followed to where it points."""
    found = safe_load(file)
    return str(found.tolist()) if isinstance(found, np.ndarray) else str(read_pickle(file))


def pickle_for_table(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A table's pickle that calls, forges objects out of bytes, or fills the memory."""
    file = folder / "t.pkl"
    data = draw.choice((*_PICKLES, lambda: program(folder)))()
    return _written(file, data, lambda: _used(file))


def spliced_pickle(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A valid table's pickle with an attack in the middle, at an opcode's edge."""
    data = (whole / "table.pkl").read_bytes()
    edges = [at for _, _, at in pickletools.genops(data) if at > 12]
    at = draw.choice(edges)
    evil = draw.choice(_PICKLES)()[2:-1]
    file = folder / "t.pkl"
    return _written(file, data[:at] + evil + draw.choice((b"0", b"")) + data[at:], lambda: _used(file))


# ------------------------------------------------------------------ headers that lie


def big_header(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A safetensors header of gigabytes, claimed or real, or one that is true of nothing."""
    model = _copy(whole / "models" / "tokenizer", folder / "model")
    file = model / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = draw.choice([key for key in header if key != "__metadata__"])
    lies = (
        {**header, name: {**header[name], "shape": [1 << 40]}},
        {**header, name: {**header[name], "shape": [-1, -16]}},
        {**header, name: {**header[name], "data_offsets": [0, 1 << 62]}},
        {**header, name: {**header[name], "data_offsets": [1 << 20, 0]}},
        {**header, name: {**header[name], "dtype": draw.choice(("F8_E4M3", "F4", "F6_E2M3", "BF16", "I64", "C64", "BOOL", "U16", "X"))}},
        {key: {**value, "data_offsets": header[name]["data_offsets"]} if key != "__metadata__" else value for key, value in header.items()},
        {**header, **{f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(draw.choice((1, 60_000)))}},
        {**header, "__metadata__": {"x": "y" * (9 << 20)}},
    )
    text = json.dumps(draw.choice(lies)).encode()
    length = draw.choice((len(text), len(text), len(text), 1 << 27, 1 << 40, (1 << 64) - 1))
    file.write_bytes(struct.pack("<Q", length) + text + (b" " * (1 << 27) if length == 1 << 27 else b"") + data[8 + size :])
    return lambda: load_tokenizer(model)


def npy_lie(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """An array that claims to have a trillion rows, in its own header and in panel.json."""
    panel = _copy(whole / "panel", folder / "panel")
    name = draw.choice(("features", "times", "offsets", "breaks", "origin"))
    rows = draw.choice((10**12, 3 * 10**9, 2**63, -1))
    meta = json.loads((panel / "panel.json").read_text())
    meta["shapes"][name] = [rows, *meta["shapes"][name][1:]]
    stream = io.BytesIO()
    header = {"descr": np.load(panel / f"{name}.npy").dtype.str, "fortran_order": False, "shape": tuple(meta["shapes"][name])}
    np.lib.format.write_array_header_1_0(stream, header)
    (panel / f"{name}.npy").write_bytes(stream.getvalue() + bytes(100))
    if draw.random() < 0.7:
        (panel / "panel.json").write_text(json.dumps(meta))
    return _bars(panel)


def big_json(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """JSON nested a million deep, numbers of a million digits, keys without end."""
    million = 10**6
    text = draw.choice(("[" * million, '{"a":' * million, f'{{"a": {"9" * million}}}', f'{{"{"k" * million}": 1}}', f"[1{',1' * million}]"))
    run, panel = _copy(whole / "run", folder / "run"), _copy(whole / "panel", folder / "panel")
    (run / "status.json").write_text(text)
    (run / "metrics.jsonl").write_text(text + '\n{"step": 1}\n')
    (panel / "panel.json").write_text(text)
    model = _copy(whole / "models" / "tokenizer", folder / "model")
    (model / "config.json").write_text(text)
    readers = (lambda: read_json(run / "status.json"), lambda: read_json_lines(run / "metrics.jsonl"), lambda: load_tokenizer(model))
    return draw.choice((*readers, _bars(panel)))


def wide_csv(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """Two hundred thousand columns, one line of 60 MB, a field of 60 MB, quotes that never end."""
    texts = (
        lambda: _HEAD.strip() + b"," + b",".join(b"c%d" % i for i in range(200_000)) + b"\n" + b"1," * 200_004 + b"1\n",
        lambda: b"a," * (30 << 20),
        lambda: _HEAD + b"2024-01-01,1,1,1," + b"1" * (60 << 20) + b"\n",
        lambda: _HEAD + b'"' + b"x\n" * (10 << 20),
        lambda: b'"' * (1 << 20) + b"\n" + _HEAD,
        lambda: b"\n" * (20 << 20) + _HEAD,
        lambda: b" " * (20 << 20) + _HEAD,
        lambda: _HEAD + b",,,,\n" * (2 << 20),
    )
    file = folder / "bars.csv"
    return _written(file, draw.choice(texts)(), _bars(file))


# ------------------------------------------------------------------ files that are none


def odd_file(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A pipe, a device, a link to itself or a folder where bars, a panel's array or weights are expected."""
    panel, model = _copy(whole / "panel", folder / "panel"), _copy(whole / "models" / "tokenizer", folder / "model")
    targets = {
        folder / "bars.csv": _bars(folder / "bars.csv"),
        panel / "features.npy": _bars(panel),
        panel / "panel.json": _bars(panel),
        model / "model.safetensors": lambda: load_tokenizer(model),
        model / "config.json": lambda: load_tokenizer(model),
    }
    file = draw.choice(list(targets))
    file.unlink(missing_ok=True)
    kind = draw.choice(("pipe", "device", "loop", "folder"))
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file.name)
    return targets[file]


def odd_path(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """Names that no file can have, where a file or weights are named."""
    name = draw.choice(("~nobody-of-this-name/x", "a" * 300, "a/" * 5000, "x\0y", "\udcff", "[", "\n", "..", "/dev/zero", "/proc/self/mem"))
    return draw.choice((_bars(name), lambda: load_tokenizer(name), lambda: load_bundle(name)))


def foreign_note(whole: Path, folder: Path, draw: random.Random) -> Callable[[], Any]:
    """A run folder from somebody else whose note asks to put another run's checkpoints aside."""
    other = _copy(whole / "run", folder.parent / "cwd" / "other")
    base = _copy(whole / "run", folder / "base")
    name = draw.choice((os.path.relpath(other, base), str(other), f"x/../{os.path.relpath(other, base)}", 5, [str(other)], "\0"))
    (base / NOTE).write_text(json.dumps({"launch": "", "set_aside": draw.choice(([name], name))}))
    world = World()
    return lambda: goes_on(base, [base / "tokenizer"], resume=draw.random() < 0.5, world=world)


def _copy(whole: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in sorted(whole.rglob("*")):
        copy = target / path.relative_to(whole)
        copy.mkdir() if path.is_dir() else copy.write_bytes(path.read_bytes())
    return target


ATTACKS: dict[str, tuple[Attack, ...]] = {
    "yaml": (yaml_tag, yaml_bomb),
    "archive": (gzip_bomb, parquet_bomb, zip_for_csv, npz_for_npy, pth_bomb),
    "pickle": (pickle_for_weights, pickle_for_table, spliced_pickle),
    "header": (big_header, npy_lie, big_json, wide_csv),
    "file": (odd_file, odd_path, foreign_note),
}
