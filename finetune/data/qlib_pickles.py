"""Panels as the three pickles of the published pipeline, for code that reads those. They are written here and never read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from finetune.data.frames import bars_frame, wall_clock
from finetune.data.panel import Panel
from finetune.data.qlib_panels import Preprocessed
from finetune.data.qlib_ranges import NAMES
from kronos.errors import InputError
from kronos.files import atomic_path

KINDS = ("frames", "samples")
COLUMNS = ("open", "high", "low", "close", "vol", "amt")  # the public names of KRONOS_NAMES
_MOST_SAMPLES = 50_000  # of one file: about 150 MB at 90 + 10 bars
_PROTOCOL = 4  # read by every Python that the public code runs on


class WindowsSection(Protocol):
    """What is read of the configuration's `data` section."""

    lookback_window: int
    predict_window: int


def write_pickles(
    made: Preprocessed, folder: str | Path, kind: str, section: WindowsSection, say: Callable[[str], Any] = print
) -> dict[str, Path]:
    """Write train_data.pkl, val_data.pkl and test_data.pkl and return their paths by name.

    "frames": symbol → DataFrame of the range's bars (no margins), float32 columns COLUMNS, index `datetime`: what the public data set
    reads. It knows no origins, so it may start forecasts on days on which a symbol was not in the pool.
    "samples": one dictionary per window, at origins only: input_data [lookback, 6] and target_data [predict, 6] float32, input_timestamps
    and target_timestamps datetime64[ns] of the wall clock, symbol. Origins are predict_window apart, further where more than 50,000 would
    be left. Raises InputError for another kind or a folder that cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"--export-pickle: {kind!r} is not one of {', '.join(KINDS)}")
    files = {}
    for name in NAMES:
        panel = getattr(made, name)
        if kind == "frames":
            edges = made.manifest["ranges"][name]
            data: dict | list = _frames(panel, pd.Timestamp(edges["first"]), pd.Timestamp(edges["last"]))
            told = f"{len(data):,} symbols, {sum(map(len, data.values())):,} bars"
        else:
            data, step = _samples(panel, section.lookback_window, section.predict_window)
            told = f"{len(data):,} samples, one per {step} days of a symbol on which a forecast may start"
        files[name] = Path(folder).expanduser() / f"{name}_data.pkl"
        with atomic_path(files[name]) as temporary, open(temporary, "wb") as file:
            pickle.dump(data, file, protocol=_PROTOCOL)
        say(f"{files[name]}: {told}")
    return files


def _frames(panel: Panel, first: pd.Timestamp, last: pd.Timestamp) -> dict[str, pd.DataFrame]:
    frames = {}
    for info, low, high in zip(panel.series, panel.offsets[:-1], panel.offsets[1:], strict=True):
        frame = bars_frame(panel, int(low), int(high)).loc[first:last].astype(np.float32)
        # columns as objects: pandas 2, which the public code asks for, cannot read the text type of pandas 3
        frames[info.symbol] = frame.set_axis(pd.Index(COLUMNS, dtype=object), axis=1).rename_axis("datetime")
    return frames


def _samples(panel: Panel, lookback: int, predict: int) -> tuple[list[dict[str, Any]], int]:
    """(one dictionary per window, distance between origins in rows)."""
    series = np.repeat(np.arange(panel.n_series), np.diff(panel.offsets))
    rows = np.flatnonzero(panel.origin)
    rows = rows[rows + predict < panel.offsets[1:][series[rows]]]  # the test's last origins have no outcome yet
    step = max(predict, -(-len(rows) // _MOST_SAMPLES))
    rows = rows[(rows - panel.offsets[series[rows]]) % step == (lookback - 1) % step]
    samples = []
    for row in rows.tolist():
        begin, end = row + 1 - lookback, row + 1 + predict
        times = wall_clock(panel, begin, end).to_numpy()
        samples.append(
            {
                "input_data": np.array(panel.features[begin : row + 1]),
                "target_data": np.array(panel.features[row + 1 : end]),
                "input_timestamps": times[:lookback],
                "target_timestamps": times[lookback:],
                "symbol": panel.series[series[row]].symbol,
            }
        )
    return samples, step
