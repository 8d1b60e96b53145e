"""Which windows train, which validate, which test: by time, so that nothing in training is later than anything in validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .balance import balanced
from .cuts import NAMES, cut_panel, cut_whole, time_at_share
from .settings import Sampling
from .windows import Splits, Store, Windows

__all__ = ["make_splits", "time_at_share", "windows_of"]


def make_splits(
    panel: Any,
    lookback: int,
    horizon: int,
    ratios: tuple[float, float, float],
    *,
    split: str = "date",
    extra_rows: int = 1,
    stride: int = 1,
    normalise: str = "lookback",
    clip: float = 5.0,
    sampling: Sampling = "rows",
    say: Callable[[str], None] = print,
) -> Splits:
    """Cut a panel into training, validation and test windows.

    split "date": one cut date for all series, chosen so that `ratios` hold over rows; validation lookahead starts after
    the last training bar, its lookback may reach back into training. "per_symbol": each series is cut at its own ratios
    (training then holds bars later than another series' validation, and `say` warns of it).
    stride: bars between the starts of two training windows; validation and test use every window. sampling: see `balance.balanced`.
    Raises InputError if a split with a ratio above 0 has no window.
    """
    if split == "per_symbol":
        say(
            "warning: data.split is per_symbol: training bars of one series may be later than validation bars of another, "
            "so validation can look better than the future will be; data.split: date has no such leak"
        )
    store = Store(panel)
    cut = cut_panel(panel, lookback, horizon, ratios, split=split, extra_rows=extra_rows, stride=stride)
    how = dict(lookback=lookback, horizon=horizon, extra_rows=extra_rows, normalise=normalise, clip=clip)
    train, val, test = (
        Windows(store, name, *found, stride=stride if name == "train" else 1, **how) for name, found in zip(NAMES, cut, strict=True)
    )
    return Splits(balanced(train, sampling), val, test)


def windows_of(
    panel: Any,
    name: str,
    lookback: int,
    horizon: int,
    *,
    extra_rows: int = 1,
    stride: int = 1,
    normalise: str = "lookback",
    clip: float = 5.0,
) -> Windows:
    """All windows of a panel that is one split already, as its `origin` allows them. May be empty."""
    found = cut_whole(panel, lookback, horizon, extra_rows=extra_rows, stride=stride)
    how = dict(lookback=lookback, horizon=horizon, extra_rows=extra_rows, normalise=normalise, clip=clip)
    return Windows(Store(panel), name, *found, stride=stride, **how)
