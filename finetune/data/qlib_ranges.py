"""The dates of a configuration as places in a store's calendar, and everything that can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from kronos.errors import InputError

NAMES = ("train", "val", "test")
_OUTSIDE = pd.Timedelta(days=14)  # a range may end in the holidays after a store's last bar, or begin in those before its first


class RangesSection(Protocol):
    """What is read of the configuration's `data` section. Dates are days of the wall clock, both ends inclusive."""

    dataset_begin_time: str
    dataset_end_time: str
    train_time_range: list[str]
    val_time_range: list[str]
    test_time_range: list[str]
    lookback_window: int
    predict_window: int


@dataclass(frozen=True)
class Range:
    """Bars first..last of the calendar (inclusive). after: no bar up to this one may be forecast (the range ahead ends there; -1: none)."""

    name: str
    first: int
    last: int
    after: int


def ranges_of(section: RangesSection, calendar: np.ndarray) -> tuple[dict[str, Range], int, int]:
    """({"train", "val", "test"} → Range, first and last bar to read), of calendar [D] datetime64[ns].

    Reads from lookback_window bars before dataset_begin_time to predict_window bars after dataset_end_time, as far as the store goes.
    Raises InputError for a range outside the calendar or the dataset's times, without bars, or whose first bar to forecast (the one after
    lookback_window bars of it) lies in the range ahead of it. Ranges may overlap by less: then they only lend lookback.
    """
    begin, end = _moment(section, "dataset_begin_time"), _moment(section, "dataset_end_time", last=True)
    ranges: dict[str, Range] = {}
    for name, ahead in zip(NAMES, (None, *NAMES), strict=False):
        first, last = _places(section, name, calendar, begin, end)
        ranges[name] = Range(name, first, last, ranges[ahead].last if ahead else -1)
        if ahead:
            _check_ahead(ranges[name], ahead, section.lookback_window, calendar)
    low = int(np.searchsorted(calendar, np.datetime64(begin)))
    high = int(np.searchsorted(calendar, np.datetime64(end), "right")) - 1
    return ranges, max(0, low - section.lookback_window), min(len(calendar) - 1, high + section.predict_window)


def _places(section: RangesSection, name: str, calendar: np.ndarray, begin: pd.Timestamp, end: pd.Timestamp) -> tuple[int, int]:
    key = f"{name}_time_range"
    first, last = _moment(section, key, 0), _moment(section, key, 1, last=True)
    told = f"data.{key} {list(getattr(section, key))}"
    if first > last:
        raise InputError(f"{told} ends before it begins; give the first day, then the last")
    if first < begin or last > end:
        edges = f"data.dataset_begin_time {section.dataset_begin_time} to data.dataset_end_time {section.dataset_end_time}"
        raise InputError(f"{told} reaches outside {edges}; change one of them")
    known = f"the store's calendar, which runs from {day(calendar[0])} to {day(calendar[-1])}"
    if first < calendar[0] - _OUTSIDE or last > calendar[-1] + _OUTSIDE + pd.Timedelta(days=1):
        raise InputError(f"{told} reaches outside {known}; choose days inside it, or a store that holds them")
    places = int(np.searchsorted(calendar, np.datetime64(first))), int(np.searchsorted(calendar, np.datetime64(last), "right")) - 1
    if places[0] > places[1]:
        raise InputError(f"{told} holds no bar of {known}; choose days on which there was trading")
    return places


def _check_ahead(window: Range, ahead: str, lookback: int, calendar: np.ndarray) -> None:
    if window.last <= window.after:
        told = f"ends at {day(calendar[window.last])}, not after data.{ahead}_time_range, which ends at {day(calendar[window.after])}"
        raise InputError(f"data.{window.name}_time_range {told}; the ranges must follow each other: train, val, test")
    if window.first + lookback <= window.after:
        begins, ends = day(calendar[window.first]), day(calendar[window.after])
        target, better = day(calendar[window.first + lookback]), day(calendar[window.after - lookback + 1])
        raise InputError(
            f"data.{window.name}_time_range begins at {begins}, so the first bar it forecasts, after lookback_window {lookback} bars, is "
            f"{target}, which lies in data.{ahead}_time_range (it ends at {ends}); begin data.{window.name}_time_range at {better} or later"
        )


def _moment(section: RangesSection, key: str, place: int | None = None, last: bool = False) -> pd.Timestamp:
    """A date of the configuration; `last`: the end of that day, where no hour is written."""
    value = getattr(section, key)
    text = str(value if place is None else value[place]) if place is None or len(value) == 2 else ""
    try:
        moment = pd.Timestamp(text)
    except ValueError:
        moment = pd.NaT
    if moment is pd.NaT or moment.tz is not None:
        wanted = "two days, such as [2024-07-01, 2025-06-05]" if place is not None else "a day, such as 2024-07-01"
        raise InputError(f"data.{key}: {value!r} is not {wanted}")
    return end_of(text, moment) if last else moment


def end_of(text: str, moment: pd.Timestamp) -> pd.Timestamp:
    """The end of a day that is written without an hour; "2024-06-30 00:00" is that bar of a market that never closes."""
    return moment if ":" in text else moment.normalize() + pd.Timedelta(days=1) - pd.Timedelta(1, "ns")


def day(moment: np.datetime64 | pd.Timestamp) -> str:
    """A bar's time for a message: the day, and the hour where there is one."""
    moment = pd.Timestamp(moment)
    return f"{moment:%Y-%m-%d}" if moment == moment.normalize() else f"{moment:%Y-%m-%d %H:%M}"
