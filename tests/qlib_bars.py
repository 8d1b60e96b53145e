"""A small synthetic market and its Qlib store, for anybody's tests: made once per process, deterministic, read by the real pyqlib."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from bars import make_frame

from finetune.data.qlib_writing import write_store

DAYS, LOOKBACK, HORIZON = 240, 12, 4  # business days from 2021-01-04 to 2021-12-03
LATE, SUSPENDED, CHANGING = "SZ000007", "SZ000006", "SH600001"  # listed at bar 60; not traded at bars 100 to 109; in pool "few" twice
CHANGING_SPANS = [("2021-01-04", "2021-03-31"), ("2021-08-02", "2021-12-03")]
Frames = dict[str, pd.DataFrame]


def market(n_symbols: int = 12, n_bars: int = DAYS, *, seed: int = 0, freq: str = "B", start: str = "2021-01-04") -> Frames:
    """symbol → open high low close volume amount factor (float64), index wall-clock times; SH600000, SH600001, ... and SZ000006, ..."""
    frames = {}
    for i in range(n_symbols):
        frame = make_frame(n_bars, seed * 1000 + i, freq, start).set_index("timestamps").rename_axis("datetime")
        frames[f"SH60000{i}" if i < 6 else f"SZ{i:06d}"] = frame.assign(factor=0.5 + 0.1 * i)
    if LATE in frames:
        frames[LATE] = frames[LATE].iloc[60:]
    if SUSPENDED in frames:
        frames[SUSPENDED].iloc[100:110] = np.nan
    return frames


@lru_cache(maxsize=4)
def small_store(freq: str = "day") -> Path:
    """The market's store: pool "few" (six symbols, one of them twice a member), BENCHMARK of equal weight. "60min": 24 hours a day."""
    folder = tempfile.mkdtemp(prefix="kronos-qlib-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    frames = market() if freq == "day" else market(4, 24 * 12, freq=f"{int(freq[:-3])}min")
    whole = [("2021-01-04", "2021-12-03")]
    few = {symbol: CHANGING_SPANS if symbol == CHANGING else whole for symbol in list(frames)[:6]}
    return write_store(Path(folder) / "store", frames, freq=freq, pools={"few": few}, benchmark="equal")


def data_section(**changes: object) -> SimpleNamespace:
    """The `data` section of a configuration that fits the small store."""
    section = dict(
        qlib_data_path=str(small_store()),
        freq="day",
        instrument="all",
        dataset_path="",
        dataset_begin_time="2021-01-04",
        dataset_end_time="2021-12-03",
        train_time_range=["2021-01-04", "2021-06-30"],
        val_time_range=["2021-06-21", "2021-09-15"],
        test_time_range=["2021-09-08", "2021-11-19"],
        lookback_window=LOOKBACK,
        predict_window=HORIZON,
        max_context=64,
        clip=5.0,
        feature_list=["open", "high", "low", "close", "vol", "amt"],
        raw=False,
        timezone="Asia/Shanghai",
        stamp="open",
    )
    return SimpleNamespace(**{**section, **changes})
