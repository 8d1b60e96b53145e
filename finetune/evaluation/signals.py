"""One number per symbol and day to rank symbols by: read off sampled closes, or, to compare with, off the bars themselves.

All are known when the day's bar is complete, and all are returns or free of units, so that the level of a price ranks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from finetune.data.panel import Panel
from finetune.evaluation.day_forecasts import DayForecasts
from finetune.evaluation.days import clock_of, has_before, series_of
from finetune.evaluation.origins import CLOSE

NAMES = ("last", "mean", "max", "min", "median", "prob_up", "risk_adjusted")
LEAST_SPREAD = 1e-3  # a spread of returns that counts as none: risk_adjusted stays finite, and without spread ranks as `last` does
_CHUNK = 4096  # forecasts whose paths are float64 at a time


def signals(forecasts: DayForecasts) -> dict[str, pd.Series]:
    """Every signal of NAMES as float64 by (datetime, instrument), sorted, without NaN.

    With r [samples, horizon] the sampled closes' returns from the last close, and m [horizon] their mean over samples:
    last, mean, max, min: m at the last bar, and its mean, highest and lowest over bars (upstream's four, as returns).
    median: median over samples of r at the last bar. prob_up: share of samples with r above 0 at the last bar, ties half.
    risk_adjusted: last / sqrt(spread² + LEAST_SPREAD²) with the standard deviation over samples of r at the last bar (of the samples as
    they are, not of what they were drawn from: one sample has none).
    """
    parts = list(_read_off(forecasts))
    order, index = _sorted_index(forecasts.days, forecasts.symbols)
    values = {name: np.concatenate([part[name] for part in parts])[order] for name in NAMES}
    return {name: pd.Series(values[name], index=index, name=name) for name in NAMES}


def _read_off(forecasts: DayForecasts) -> Iterator[dict[str, np.ndarray]]:
    """Every signal, chunk by chunk."""
    for first in range(0, len(forecasts), _CHUNK):
        part = slice(first, first + _CHUNK)
        returns = forecasts.closes[part] / forecasts.last[part, None, None] - 1  # [O, S, H]
        path, end = returns.mean(1), returns[:, :, -1]  # [O, H], [O, S]
        above, equal = (compare(forecasts.closes[part, :, -1], forecasts.last[part, None]).mean(1) for compare in (np.greater, np.equal))
        yield {
            "last": path[:, -1],
            "mean": path.mean(1),
            "max": path.max(1),
            "min": path.min(1),
            "median": np.median(end, axis=1),
            "prob_up": above + 0.5 * equal,
            "risk_adjusted": path[:, -1] / np.hypot(end.std(1), LEAST_SPREAD),
        }


def momentum(panel: Panel, days: int = 20, rows: np.ndarray | None = None) -> pd.Series:
    """Return of the last `days` bars at each origin, or at those of `rows`: what has risen is expected to rise.

    Same form as `signals`; rows without `days` unbroken bars before them, or with a price of 0 or below, are left out.
    """
    return _past_return(panel, days, rows).rename(f"momentum_{days}")


def reversal(panel: Panel, days: int = 5, rows: np.ndarray | None = None) -> pd.Series:
    """Minus the return of the last `days` bars: what has risen is expected to fall. Otherwise as `momentum`."""
    return -_past_return(panel, days, rows).rename(f"reversal_{days}")


def _past_return(panel: Panel, days: int, rows: np.ndarray | None) -> pd.Series:
    rows = np.flatnonzero(panel.origin) if rows is None else np.sort(rows)
    rows = rows[has_before(panel, rows, days + 1)]
    now, then = (np.asarray(panel.features[at, CLOSE], np.float64) for at in (rows, rows - days))
    priced = (now > 0) & (then > 0)
    rows, values = rows[priced], (now[priced] / then[priced]) - 1
    symbols = np.array([info.symbol for info in panel.series])[series_of(panel, rows)]
    order, index = _sorted_index(clock_of(panel, rows), symbols)
    return pd.Series(values[order], index=index)


def _sorted_index(days: np.ndarray, symbols: np.ndarray) -> tuple[np.ndarray, pd.MultiIndex]:
    """The order that sorts by day, then symbol, and the index in that order: the form that Qlib's strategies take."""
    names, number = np.unique(symbols, return_inverse=True)
    moments, day = np.unique(days, return_inverse=True)
    order = np.lexsort((number, day))
    index = pd.MultiIndex(
        levels=[pd.DatetimeIndex(moments), pd.Index(names.astype(object))],
        codes=[day[order], number[order]],
        names=["datetime", "instrument"],
    )
    return order, index
