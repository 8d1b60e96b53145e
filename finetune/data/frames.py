"""Rows of a Panel as a DataFrame again, with the times that a wall at the exchange shows: for forecasts and pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from finetune.data.panel import Panel

_DAY_MIN = 24 * 60
_WEST_MIN = -12 * 60  # clocks stand between 12 hours behind UTC and 14 before it


def bars_frame(panel: Panel, first: int, last: int) -> pd.DataFrame:
    """Rows first..last-1 of one series: the panel's columns as float64, indexed by wall-clock time (naive)."""
    names = [column.name for column in panel.columns]
    return pd.DataFrame(np.asarray(panel.features[first:last], np.float64), columns=names, index=wall_clock(panel, first, last))


def wall_clock(panel: Panel, first: int, last: int) -> pd.DatetimeIndex:
    """Wall-clock times of rows first..last-1: UTC moved so that hour, minute and day are those of the stored stamps.

    The stamps came from the wall clock as written, which no zone name may describe (a file with -05:00 and -04:00).
    """
    utc = pd.DatetimeIndex(np.asarray(panel.times[first:last]).astype("datetime64[ns]"))
    minute, hour, _, day, _ = np.asarray(panel.stamps[first:last]).astype(np.int64).T
    ahead = (hour * 60 + minute - utc.hour.to_numpy() * 60 - utc.minute.to_numpy()) % _DAY_MIN  # 0..1439 minutes before UTC
    moved = utc + pd.to_timedelta(ahead, "min")
    behind = moved.day.to_numpy() != day
    assert (ahead[behind] - _DAY_MIN >= _WEST_MIN).all(), "stamps and times of a panel disagree"
    return pd.DatetimeIndex(moved - pd.to_timedelta(behind * _DAY_MIN, "min"))
