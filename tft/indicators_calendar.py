"""The calendar, known ahead: each cycle as sine and cosine (kind known), or as a category counted from 1 (0 is left for unknown)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kronos.errors import InputError
from tft.indicators import Bars, feature, registry

_MINUTE, _HOUR, _WEEKDAY, _DAY, _MONTH = range(5)  # columns of Panel.stamps


def _cycle(part: np.ndarray, length: float) -> dict[str, np.ndarray]:
    angle = part * (2 * np.pi / length)
    return {"sin": np.sin(angle), "cos": np.cos(angle)}


@feature(warm_up=lambda: 0, outputs=("sin", "cos"), kind="known")
def time_of_day(bars: Bars) -> dict[str, np.ndarray]:
    """Hour and minute on a circle of 24 hours."""
    return _cycle(bars.stamps[:, _HOUR] + bars.stamps[:, _MINUTE] / 60, 24)


@feature(warm_up=lambda: 0, outputs=("sin", "cos"), kind="known")
def weekday(bars: Bars) -> dict[str, np.ndarray]:
    """Weekday on a circle of 7."""
    return _cycle(bars.stamps[:, _WEEKDAY].astype(float), 7)


@feature(warm_up=lambda: 0, outputs=("sin", "cos"), kind="known")
def day_of_month(bars: Bars) -> dict[str, np.ndarray]:
    """Day of the month on a circle of 31."""
    return _cycle(bars.stamps[:, _DAY] - 1.0, 31)


@feature(warm_up=lambda: 0, outputs=("sin", "cos"), kind="known")
def month(bars: Bars) -> dict[str, np.ndarray]:
    """Month on a circle of 12."""
    return _cycle(bars.stamps[:, _MONTH] - 1.0, 12)


@feature(warm_up=lambda: 0, kind="categorical")
def hour_category(bars: Bars) -> np.ndarray:
    """1 to 24."""
    return bars.stamps[:, _HOUR] + 1.0


@feature(warm_up=lambda: 0, kind="categorical")
def weekday_category(bars: Bars) -> np.ndarray:
    """1 (Monday) to 7."""
    return bars.stamps[:, _WEEKDAY] + 1.0


@feature(warm_up=lambda: 0, kind="categorical")
def month_category(bars: Bars) -> np.ndarray:
    """1 to 12."""
    return bars.stamps[:, _MONTH].astype(float)


def calendar_rows(noted: Mapping[str, Sequence[str]], columns: Sequence[str], stamps: np.ndarray) -> np.ndarray:
    """[n, len(columns)] float32 calendar columns for moments without bars, such as the step after the last row: stamps [n, 5] uint8.

    noted: "calendar" of a panel's manifest, {column: [feature, output]}. Raises InputError for a column that is not among them.
    """
    none = np.empty(0)
    bars = Bars(none, none, none, none, none, none, np.asarray(stamps))
    out = np.empty((len(stamps), len(columns)), np.float32)
    for k, column in enumerate(columns):
        if column not in noted:
            raise InputError(
                f"{column!r} is not a calendar column of this panel, so it is not known ahead; it has {', '.join(noted) or 'none'}"
            )
        name, output = noted[column]
        made = registry()[name].function(bars)
        out[:, k] = made[output] if output else made
    return out


def calendar_columns(names: Sequence[str], features: np.ndarray, stamps: np.ndarray) -> dict[str, list[str]]:
    """Column → [feature, output] of those among names [F] that are called as the calendar's and hold what it says at every row.

    features [N, F], stamps [N, 5] uint8. For tables that come without a manifest: what only looks like the calendar is not known ahead.
    """
    calendar = [known for known in registry().values() if known.kind != "past"]
    noted = {f"{known.name}_{out}".rstrip("_"): [known.name, out] for known in calendar for out in known.outputs or ("",)}
    called = [name for name in names if name in noted]
    if not called:
        return {}
    values = calendar_rows(noted, called, stamps)
    same = [np.allclose(features[:, names.index(name)], values[:, k], atol=1e-5) for k, name in enumerate(called)]
    return {name: noted[name] for name, holds in zip(called, same, strict=True) if holds}
