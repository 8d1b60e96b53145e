"""Volume: ratios, percentiles, on-balance volume, VWAP. Without any volume they are 0, or 1 where 1 means "as usual"."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tft.indicators import Bars, feature, ta
from tft.indicators_trend import _extremes, lagged, ratio


def _mean(bars: Bars, window: int) -> np.ndarray:
    """[n] mean volume; rolling sums leave a rounding rest where all volumes are 0, so such windows are set to exactly 0."""

    def make() -> np.ndarray:
        mean = ta().SMA(bars.volume, window)
        mean[ta().MAX(bars.volume, max(window, 2)) == 0] = 0.0
        return mean

    return bars.shared(("volume", window), make)


@feature(warm_up=lambda window: max(window, 2) - 1)
def volume_ratio(bars: Bars, window: int = 20) -> np.ndarray:
    """volume / SMA(volume, window); 1 where the window has no volume."""
    return ratio(bars.volume, _mean(bars, window), empty=1.0)


@feature(warm_up=lambda window: max(window, 2) - 1)
def volume_change(bars: Bars, window: int = 20) -> np.ndarray:
    """(volume_t - volume_{t-1}) / SMA(volume, window)."""
    return ratio(bars.volume - lagged(bars.volume, 1), _mean(bars, window))


@feature(warm_up=lambda window: window - 1)
def volume_percentile(bars: Bars, window: int = 120) -> np.ndarray:
    """Rank of the volume among the last `window` ones, 1/window to 1; equal volumes share their mean rank."""
    return pd.Series(bars.volume).rolling(window).rank(pct=True).to_numpy()


@feature(warm_up=lambda window, distance: window - 1 if distance else 0)
def volume_spike_at_level(bars: Bars, window: int = 20, factor: float = 1.5, distance: float = 0.02) -> np.ndarray:
    """Where volume > factor × SMA(volume): 1 within `distance` below the highest high of window, -1 within it above the lowest low.

    Both at once give 0, as does everything else.
    """
    high, low = _extremes(bars, window)
    spike = bars.volume > factor * _mean(bars, window)
    near_high, near_low = (high - bars.close) < distance * bars.close, (bars.close - low) < distance * bars.close
    return (spike & near_high).astype(float) - (spike & near_low)


def _obv(bars: Bars) -> np.ndarray:
    return bars.shared("obv", lambda: ta().OBV(bars.close, bars.volume))


@feature(warm_up=lambda window: window, anchored=lambda raw, **_: raw)
def obv(bars: Bars, window: int = 20, raw: bool = False) -> np.ndarray:
    """Change of on-balance volume over `window` bars, as a share of the volume traded in them (-1 to 1); raw: OBV since the first bar."""
    if raw:
        return _obv(bars) * bars.volume_unit
    return ratio(_obv(bars) - lagged(_obv(bars), window), _mean(bars, window) * window)


@feature(warm_up=lambda window: max(window, 2) - 1)
def obv_slope(bars: Bars, window: int = 14) -> np.ndarray:
    """Least-squares slope of on-balance volume over `window` bars, per bar, in mean volumes of a bar."""
    window = max(window, 2)
    return ratio(ta().LINEARREG_SLOPE(_obv(bars), window), _mean(bars, window))


@feature(warm_up=lambda window: max(window, 2) - 1)
def vwap(bars: Bars, window: int = 20, raw: bool = False) -> np.ndarray:
    """close / volume-weighted mean of the typical price over `window` bars - 1 (unweighted without volume); raw: that mean."""
    typical = ta().TYPPRICE(bars.high, bars.low, bars.close)
    mean = _mean(bars, window)
    level = np.where(mean == 0, ta().SMA(typical, window), ratio(ta().SMA(typical * bars.volume, window), mean))
    return level * bars.price_unit if raw else bars.close / level - 1
