"""Writes a pair out of the door, and proves before it says so that what was written forecasts what the pair forecasts.

A file or folder is written under a temporary name, loaded again, compared, and only then put in place. Deviations are in standard
deviations of each column over the lookback, the unit the model itself works in.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kronos.bars import COLUMNS, prepare
from kronos.bundle import MANIFEST, Bundle, load_bundle, read_manifest, write_folder, write_manifest, write_pth
from kronos.errors import InputError
from kronos.files import atomic_path, explained, new_folder

FORMATS = ("folder", "pth", "pt2")
SAME = {"folder": 1e-6, "pth": 1e-6, "pt2": 1e-3}  # largest deviation of what was written; a program computes without the cache
INT8_NATS = 0.01  # largest mean divergence of the next token's distribution
INT8_FORECAST = 0.05  # largest deviation of the mean forecast, unless another seed moves it further
CARD_MARK = "<!-- model card made by kronos -->"  # in the first lines of every card of ours: such a file may be replaced
_LOOKBACK, _HORIZON, _SAMPLES, _INT8_SAMPLES, _INT8_SERIES = 64, 6, 4, 32, 4  # of the forecasts that are compared
_WRITTEN = {MANIFEST, "README.md"} | {
    f"{name}/{file}" for name in ("tokenizer", "predictor") for file in ("config.json", "model.safetensors", "model.int8.safetensors")
}


@dataclass(frozen=True)
class Drift:
    """What int8 changed, on the bars of the check."""

    nats: float  # mean KL divergence of the next coarse and the next fine token's distributions, float32 from int8
    forecast: float  # mean absolute deviation of the mean forecast, in standard deviations of the lookback
    another_seed: float  # the same between two seeds of the float32 pair: what chance alone does

    @property
    def tolerance(self) -> float:
        """Largest `forecast` that is let through."""
        return max(INT8_FORECAST, self.another_seed)


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    path: Path
    size: int  # bytes
    deviation: float  # largest, of the forecast after loading, in standard deviations of the lookback
    tolerance: float
    drift: Drift | None  # None without int8


def export_pair(bundle: Bundle, out: str | Path, *, format: str = "folder", quantize: str | None = None, card: str = "") -> Exported:
    """Write a float32 pair to `out` as "folder", "pth" or "pt2" (see `kronos.bundle`, `kronos.programs`), after checking what was written.

    quantize: "int8" for int8 linears (not for pt2). card: text of the model card, written to `card_path`. An earlier export at `out` is
    replaced when this one has passed; anything else there is refused. Raises InputError for that, for a place that cannot be written, and
    for a deviation beyond its tolerance; `out` is then as it was.
    """
    assert format in FORMATS and quantize in (None, "int8") and bundle.quantize is None
    out = Path(out).expanduser()
    if format == "pt2" and quantize:
        raise InputError("programs (pt2) are float32: leave out --quantize, or choose --format folder or pth for int8")
    _refuse_foreign(out, format, bool(card))
    shipped = bundle.quantized() if quantize else bundle
    drift = _accepted_drift(bundle, shipped) if quantize else None
    facts = {"check": {"int8": asdict(drift)} if drift else {}}
    with atomic_path(out) if format == "pth" else _replacing(out) as temporary:
        deviation = _deviation(shipped, _written(shipped, temporary, format, facts))
        if not deviation <= SAME[format]:
            raise InputError(
                f"written as {format} the pair forecasts something else: {deviation:.2g} standard deviations off, "
                f"tolerance {SAME[format]:g}; nothing was exported, try --format folder"
            )
        if card and format != "pth":
            _write_card(temporary / "README.md", card)
    if card and format == "pth":
        _write_card(card_path(out, format), card)
    return Exported(out, _size(out), deviation, SAME[format], drift)


def card_path(out: Path, format: str) -> Path:
    """Where the model card of an export lies: in the folder, or beside the file."""
    return out.with_suffix(".md") if format == "pth" else out / "README.md"


def _write_card(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _written(bundle: Bundle, path: Path, format: str, facts: dict[str, Any]) -> np.ndarray:
    """Write the bundle to `path`, load it again, and return what that forecasts."""
    if format != "pt2":
        (write_pth if format == "pth" else write_folder)(bundle, path, **facts)
        return _paths(load_bundle(path))
    from kronos.programs import load_programs, write_programs  # torch.export takes a second to import

    write_programs(bundle, path)
    write_manifest(path, bundle.manifest("pt2", **facts))
    programs = load_programs(path, trust=True)  # our own, of a moment ago
    given = _bars(bundle.max_context)
    return programs.predict(*given, len(given[2]), sample_count=_SAMPLES, seed=0)


# --- the comparison


def _bars(max_context: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DatetimeIndex, pd.DatetimeIndex]:
    """A random walk of hourly bars, the same every time: frame, its times, the times to forecast. Lookback and horizon fit the context."""
    rng = np.random.default_rng(seed)
    horizon = min(_HORIZON, max_context)
    n = max(2, min(_LOOKBACK, max_context - horizon))
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    open_ = np.concatenate([[100.0], close[:-1]])
    spread = 1 + rng.uniform(0, 0.01, (2, n))
    volume = rng.uniform(1e3, 1e5, n)
    columns = [open_, np.maximum(open_, close) * spread[0], np.minimum(open_, close) / spread[1], close, volume, volume * close]
    times = pd.date_range("2024-01-01", periods=n + horizon, freq="h")
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))), times[:n], times[n:]


def _paths(bundle: Bundle, samples: int = _SAMPLES, seed: int = 0, bars: int = 0) -> np.ndarray:
    """Paths [samples, horizon, 6] of the bars numbered `bars`."""
    given = _bars(bundle.max_context, bars)
    how = {"sample_count": samples, "seed": seed, "verbose": False, "return_samples": True, "consistent": False}
    return bundle.forecaster("cpu").predict(*given, len(given[2]), **how)


def _deviation(bundle: Bundle, seen: np.ndarray) -> float:
    """Largest difference of paths from those of `bundle`, in standard deviations of the lookback; infinite where one is not a number."""
    frame, _, _ = _bars(bundle.max_context)
    difference = np.abs(seen - _paths(bundle)) / frame.to_numpy().std(0)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def _accepted_drift(bundle: Bundle, quantized: Bundle) -> Drift:
    drift = measure_drift(bundle, quantized)
    if not (drift.nats <= INT8_NATS and drift.forecast <= drift.tolerance):
        raise InputError(
            f"int8 changes this model too much: the next token by {drift.nats:.2g} nats (tolerance {INT8_NATS}), the mean forecast by "
            f"{drift.forecast:.2g} standard deviations (tolerance {drift.tolerance:.2g}); export it without --quantize"
        )
    return drift


def measure_drift(bundle: Bundle, quantized: Bundle) -> Drift:
    """How far int8 moves next-token distributions and mean forecasts, and how far another seed moves the latter."""
    forecasts = []
    for pair, seed in ((bundle, 0), (quantized, 0), (bundle, 1)):
        paths = [_paths(pair, _INT8_SAMPLES, seed, bars).mean(0) for bars in range(_INT8_SERIES)]
        forecasts.append(np.stack([one / _bars(bundle.max_context, i)[0].to_numpy().std(0) for i, one in enumerate(paths)]))
    plain, rounded, other = forecasts  # [series, horizon, 6] each
    return Drift(_nats(bundle, quantized), float(np.abs(rounded - plain).mean()), float(np.abs(other - plain).mean()))


@torch.no_grad()
def _nats(bundle: Bundle, quantized: Bundle) -> float:
    given = [_bars(bundle.max_context, i) for i in range(_INT8_SERIES)]
    series = [prepare(*one, len(one[2]), bundle.clip) for one in given]
    tokens = bundle.tokenizer.encode(torch.from_numpy(np.stack([one.values for one in series])))
    stamps = torch.from_numpy(np.stack([one.stamps[: tokens[0].shape[1]] for one in series]))
    logits = [pair.model(*tokens, stamps, tokens[0]) for pair in (bundle, quantized)]
    return float(sum(_divergence(plain, rounded) for plain, rounded in zip(*logits, strict=True)) / 2)


def _divergence(plain: Tensor, rounded: Tensor) -> Tensor:
    """Mean KL divergence in nats of softmax(plain) from softmax(rounded), [..., V] each."""
    return (plain.softmax(-1) * (plain.log_softmax(-1) - rounded.log_softmax(-1))).sum(-1).mean()


# --- the place


def _refuse_foreign(out: Path, format: str, with_card: bool) -> None:
    """Raises InputError unless `out` is free, or holds an earlier export and nothing else."""
    if format == "pth":
        _refuse_foreign_file(out, card_path(out, format) if with_card else None)
    elif out.is_dir():
        _refuse_foreign_folder(out)
    elif out.exists():
        raise InputError(f"{out} is a file: give --out a folder, or choose --format pth")


def _refuse_foreign_file(out: Path, card: Path | None) -> None:
    if out.is_dir():
        raise InputError(f"{out} is a folder: give --out a file name such as {out.name}.pth")
    if out.suffix != ".pth":
        raise InputError(f"--out is {out}: a file of --format pth ends with .pth")
    if out.exists():
        try:
            read_manifest(out)
        except InputError as error:
            raise InputError(f"{out} is there already and is not a bundle: move it away, or choose another --out") from error
    if card and card.exists() and CARD_MARK not in card.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise InputError(f"{card} is there already and is not a card made by this command: move it away, or choose another --out")


def _refuse_foreign_folder(out: Path) -> None:
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    foreign = [name for name in found if name not in _WRITTEN and not (name.startswith("programs/") and name.endswith(".pt2"))]
    if foreign:
        raise InputError(f"{out} holds {foreign[0]}, which is not part of an export: choose a new folder, or an earlier export's")
    if found:
        try:
            read_manifest(out)
        except InputError as error:
            raise InputError(f"{out} is not empty and is not an earlier export ({error})") from error


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to; takes its place when the block ends well, is removed when it does not."""
    temporary, former = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    try:
        if out.exists():
            shutil.rmtree(former, ignore_errors=True)  # of a killed export, see `new_folder`
        with explained(out):
            new_folder(temporary)
        yield temporary
        with explained(out):
            if out.exists():
                out.rename(former)
            temporary.rename(out)
    except BaseException:
        if former.exists() and not out.exists():
            former.rename(out)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
