"""From a caller's DataFrame and timestamps to what the model reads: checked columns, z-score over the lookback, time stamps."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos.errors import InputError

PRICES = ("open", "high", "low", "close")
COLUMNS = (*PRICES, "volume", "amount")
_LARGEST = 1e150  # beyond it squares are not finite; some programs write 1.8e308 where nothing is known
_EPSILON = 1e-5  # added to the standard deviation, as published


@dataclass(frozen=True)
class Lookback:
    """One series, ready for the tokenizer."""

    values: np.ndarray  # [P, 6] float32, z-scored and clipped
    mean: np.ndarray  # [6] float64
    scale: np.ndarray  # [6] float64, population standard deviation + 1e-5
    stamps: np.ndarray  # [P + horizon, 5] int64: minute, hour, weekday (Monday 0), day, month
    key: int  # names the series for random numbers: a hash of its bars and stamps
    last: np.ndarray  # [6] float64, the newest bar as given

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Undo the z-score of [..., 6]."""
        return values.astype(np.float64) * self.scale + self.mean


def prepare(
    df: pd.DataFrame, x_timestamp: Sequence, y_timestamp: Sequence, pred_len: int, clip: float, where: str = "", newest: int | None = None
) -> Lookback:
    """Check one series and normalise it. `where` begins every message (which series of a batch). newest: use so many bars, not all.

    Raises InputError.
    """
    values = _values(df, where)
    past, future = as_times(x_timestamp, "x_timestamp", where), as_times(y_timestamp, "y_timestamp", where)
    if len(past) != len(values):
        raise InputError(f"{where}x_timestamp has {len(past)} entries for {len(values)} bars: give one timestamp per row of df")
    if len(future) != pred_len:
        raise InputError(f"{where}y_timestamp has {len(future)} entries, pred_len is {pred_len}: give one timestamp per bar to forecast")
    if past[0] > past[-1]:
        raise InputError(f"{where}x_timestamp goes back from {past[0]} to {past[-1]}: give df and x_timestamp oldest first")
    return normalise(values, np.concatenate([_stamps(past), _stamps(future)]), clip, newest)


def normalise(values: np.ndarray, stamps: np.ndarray, clip: float, newest: int | None = None) -> Lookback:
    """Finite bars [P, 6] float64 and stamps [P + horizon, 5] int64, made ready; the `newest` alone, as if no more were given."""
    if newest is not None and newest < len(values):
        values, stamps = values[-newest:], stamps[len(values) - newest :]
    mean, scale = values.mean(0), values.std(0) + _EPSILON
    normalised = np.clip((values - mean) / scale, -clip, clip).astype(np.float32)
    digest = hashlib.blake2b(values.tobytes() + stamps.tobytes(), digest_size=8).digest()
    return Lookback(normalised, mean, scale, stamps, int.from_bytes(digest, "little"), values[-1])


def _values(df: pd.DataFrame, where: str) -> np.ndarray:
    """The six columns as float64 [P, 6]; missing volume is 0, missing amount is volume times the mean price."""
    if not isinstance(df, pd.DataFrame):
        raise InputError(f"{where}df is a {type(df).__name__}: give a pandas DataFrame with columns {', '.join(COLUMNS)}")
    missing = [name for name in PRICES if name not in df.columns]
    if missing:
        raise InputError(f"{where}df has no column {', '.join(missing)} (it has {', '.join(map(str, df.columns))}): rename or add it")
    if len(df) == 0:
        raise InputError(f"{where}df has no rows: give the bars before the forecast, oldest first")
    given = {name: _column(df, name, where) for name in COLUMNS if name in df.columns}
    volume = given.get("volume", np.zeros(len(df)))
    amount = given.get("amount")
    if amount is None:
        amount = volume * np.mean([given[name] for name in PRICES], axis=0)
    return np.stack([*(given[name] for name in PRICES), volume, amount], axis=1)


def usable(values: np.ndarray) -> np.ndarray:
    """Which numbers a forecast can begin from: finite, and small enough to be squared."""
    return np.abs(values) < _LARGEST


def _column(df: pd.DataFrame, name: str, where: str) -> np.ndarray:
    try:
        column = np.asarray(df[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}column {name} holds something that is not a number ({error}): clean it first") from error
    if column.ndim != 1:
        raise InputError(f"{where}df has column {name} more than once: drop or rename the others")
    bad = np.flatnonzero(~usable(column))
    if len(bad):
        raise InputError(f"{where}column {name} is {column[bad[0]]} in row {bad[0]} ({len(bad)} such rows): fill or drop them first")
    return column


def as_times(timestamps: Sequence, name: str, where: str = "") -> pd.DatetimeIndex:
    """Anything that holds times, as an index. Raises InputError naming the argument `name`."""
    try:
        given = pd.Index(timestamps)
        times = pd.DatetimeIndex(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}{name} cannot be read as times ({error}): give a Series or DatetimeIndex of datetimes") from error
    if pd.api.types.is_numeric_dtype(given):  # pandas takes any number for nanoseconds: row numbers become 1970
        raise InputError(f"{where}{name} holds numbers, such as {given[0]}: give datetimes, e.g. pd.to_datetime({name}, unit='ms')")
    if times.hasnans:
        raise InputError(f"{where}{name} has no time at entry {int(np.argmax(times.isna()))}: fill or drop it")
    return times


def _stamps(times: pd.DatetimeIndex) -> np.ndarray:
    """[n, 5] int64 of the wall clock that the times show (their own zone, if they have one)."""
    return np.stack([times.minute, times.hour, times.day_of_week, times.day, times.month], axis=1).astype(np.int64)
