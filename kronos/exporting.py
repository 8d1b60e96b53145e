"""Writes a pair out of the door, and proves before it says so that what was written forecasts what the pair forecasts.

A file or folder is written under a temporary name, loaded again, compared, and only then put in place. Deviations are in standard deviations of
each column over the lookback, the unit the model itself works in.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kronos.bars import COLUMNS, PRICES
from kronos.bundle import FORMAT, MANIFEST, Bundle, checked_manifest, load_bundle, read_manifest, write_folder, write_manifest, write_pth
from kronos.errors import InputError
from kronos.files import atomic_path, explained

LOOKBACK, HORIZON, SAMPLES = 64, 6, 4  # of the forecast that is compared; the lookback less if the context is short
SAME = {"folder": 1e-6, "pth": 1e-6, "pt2": 1e-3}  # largest deviation of what was written; a program computes without the cache
INT8_PATHS = 32
INT8_NATS = 0.01  # largest mean divergence of the next token's distribution
INT8_FORECAST = 0.05  # largest deviation of the mean forecast, unless another seed moves it more


@dataclass(frozen=True)
class Drift:
    """What int8 changed, on the bars of the check."""

    nats: float  # mean KL divergence of the distributions of the next coarse and the next fine token, float32 against int8
    forecast: float  # mean absolute deviation of the mean forecast, in standard deviations of the lookback
    another_seed: float  # the same between two seeds of the float32 pair: what chance alone does


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    path: Path
    bytes: int
    deviation: float  # largest, of the forecast after loading, in standard deviations of the lookback
    tolerance: float
    drift: Drift | None  # None without int8


def export_pair(
    bundle: Bundle, out: str | Path, *, format: str = "folder", quantize: str | None = None, card: Callable[[Path], object] | None = None
) -> Exported:
    """Write a float32 pair to `out` as "folder", "pth" or "pt2" (see `kronos.bundle`, `kronos.programs`), after checking what was written.

    quantize: "int8" for int8 linears (not for pt2). card: writes the model card to the path it is given. An earlier export at `out` is replaced
    when this one has passed; anything else there is refused. Raises InputError for that, for a place that cannot be written, and for a
    deviation beyond its tolerance; `out` is then as it was.
    """
    out = Path(out).expanduser()
    if format == "pt2" and quantize:
        raise InputError("programs (pt2) are float32: leave out --quantize, or choose --format folder or pth for int8")
    _refuse_foreign(out, format)
    shipped = bundle.quantized() if quantize else bundle
    drift = measure_drift(bundle, shipped) if quantize else None
    if drift and (drift.nats > INT8_NATS or drift.forecast > max(INT8_FORECAST, drift.another_seed)):
        raise InputError(
            f"int8 changes this model too much (next token {drift.nats:.2g} nats, tolerance {INT8_NATS}; forecast {drift.forecast:.2g} standard "
            f"deviations, tolerance {max(INT8_FORECAST, drift.another_seed):.2g}): export it without --quantize"
        )
    facts = {"check": {"int8": asdict(drift)} if drift else {}}
    expected = forecast_paths(shipped)
    if format == "pth":
        with atomic_path(out) as temporary:
            write_pth(shipped, temporary, **facts)
            deviation = _accepted(format, expected, forecast_paths(load_bundle(temporary)))
    else:
        write = partial(_write_programs if format == "pt2" else _write_bundle, shipped, facts)
        with _replacing(out) as temporary:
            deviation = _accepted(format, expected, write(temporary))
    if card is not None:
        card(card_path(out, format))
    return Exported(out, _size(out), deviation, SAME[format], drift)


def card_path(out: Path, format: str) -> Path:
    """Where the model card of an export lies: in the folder, or beside the file."""
    return out.with_suffix(".md") if format == "pth" else out / "README.md"


def _write_bundle(bundle: Bundle, facts: dict, folder: Path) -> np.ndarray:
    """Writes a folder and returns the forecast of what was written."""
    write_folder(bundle, folder, **facts)
    return forecast_paths(load_bundle(folder))


def _write_programs(bundle: Bundle, facts: dict, folder: Path) -> np.ndarray:
    from kronos.programs import load_programs, write_programs  # torch.export takes a second to import

    write_programs(bundle, folder)
    write_manifest(folder, bundle.manifest("pt2", **facts))
    programs = load_programs(folder, trust=True)  # our own, of a moment ago
    frame, past, future = check_bars(_lookback(bundle))
    return programs.predict(frame, past, future, HORIZON, top_p=0.9, sample_count=SAMPLES, seed=0)


def _accepted(format: str, expected: np.ndarray, seen: np.ndarray) -> float:
    deviation = float(np.abs(seen - expected).max() / 1) if seen.shape == expected.shape else float("inf")
    if not deviation <= SAME[format]:
        raise InputError(
            f"what was written as {format} forecasts something else: it deviates by {deviation:.2g} standard deviations, tolerance {SAME[format]}. "
            "Nothing was exported; try --format folder"
        )
    return deviation
