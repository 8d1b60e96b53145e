"""Real bars that need no network: the daily index series bundled with the PyPI package `arch` (1999 to 2018)."""

from __future__ import annotations

import importlib

import pandas as pd

from finetune.data.sources import SAMPLE_PREFIX
from kronos.errors import InputError

SAMPLES = {"sp500": "arch.data.sp500", "nasdaq": "arch.data.nasdaq"}  # both follow the New York exchange's calendar
CALENDAR = "XNYS"


def load_sample(path: str) -> pd.DataFrame:
    """Daily bars of "arch:sp500" or "arch:nasdaq": 5,031 rows; timestamps (dates), open, high, low, close, volume as float64.

    Raises InputError for another name, or if `arch` is not installed.
    """
    name = path.removeprefix(SAMPLE_PREFIX)
    if name not in SAMPLES:
        raise InputError(f"data.data_path: {path!r} is not a sample; there are {', '.join(SAMPLE_PREFIX + known for known in SAMPLES)}")
    try:
        module = importlib.import_module(SAMPLES[name])
    except ModuleNotFoundError as error:
        raise InputError(f"data.data_path: {path!r} needs the package arch, which is not installed; run: pip install arch") from error
    bars = module.load()[["Open", "High", "Low", "Close", "Volume"]].astype("float64")
    bars.columns = bars.columns.str.lower()
    return bars.rename_axis("timestamps").reset_index()
