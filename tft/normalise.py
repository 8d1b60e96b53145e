"""Rolling normalisation of one column of one series: the last `window` rows up to t, t included, and nothing after it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tft.indicators import ta

_ROUNDING = 1e-12  # a deviation below this share of the mean is rounding


def rolling_zscore(values: np.ndarray, window: int, clip: float = 5.0) -> np.ndarray:
    """[n] (x_t - mean) / deviation (n - 1) over rows t-window+1..t, cut off at ±clip; 0 where they are all equal; NaN before.

    values [n] float64, NaN at its beginning only.
    """
    rolling = pd.Series(values).rolling(window)
    mean, spread = rolling.mean().to_numpy(), rolling.std().to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.clip((values - mean) / spread, -clip, clip)
    score[spread <= _ROUNDING * np.abs(mean)] = 0.0
    return score


def rolling_minmax(values: np.ndarray, window: int) -> np.ndarray:
    """[n] (x_t - lowest) / (highest - lowest) over rows t-window+1..t, 0 to 1; 0.5 where they are all equal; NaN before.

    values [n] float64, NaN at its beginning only.
    """
    if np.isnan(values).all():
        return values.copy()
    low, high = ta().MIN(values, window), ta().MAX(values, window)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (values - low) / (high - low)
    share[high == low] = 0.5
    return share


def normalised(values: np.ndarray, method: str, window: int, clip: float = 5.0) -> np.ndarray:
    """values under `method`: none, zscore or minmax."""
    if method == "zscore":
        return rolling_zscore(values, window, clip)
    return rolling_minmax(values, window) if method == "minmax" else values
