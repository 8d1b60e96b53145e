"""Volatility and the shape of returns, from bars up to t only."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from tft.indicators import Bars, fading, feature, ta, wilder
from tft.indicators_trend import ratio, returns

_PARKINSON = 1 / (4 * math.log(2))
_FLOOR = 1e-12  # a variance of log returns below this is rounding, not movement


def _atr(bars: Bars, window: int) -> np.ndarray:
    return bars.shared(("atr", window), lambda: ta().ATR(bars.high, bars.low, bars.close, window))


def _range(bars: Bars) -> np.ndarray:
    """[n] ln(high / low)."""
    return bars.shared("range", lambda: np.log(bars.high / bars.low))


def deviation(values: np.ndarray, window: int) -> np.ndarray:
    """[n] standard deviation (n - 1) of the last `window` values. pandas updates it stably; TA-Lib's difference of sums is not stable."""
    return pd.Series(values).rolling(window).std().to_numpy()


@feature(warm_up=lambda window: max(window, 2) - 1, outputs=("pctb", "width"))
def bollinger(bars: Bars, window: int = 20, deviations: float = 2.0) -> dict[str, np.ndarray]:
    """%b = (close - lower) / (upper - lower), 0.5 where they meet; width = (upper - lower) / middle."""
    upper, middle, lower = ta().BBANDS(bars.close, max(window, 2), deviations, deviations)
    return {"pctb": ratio(bars.close - lower, upper - lower, empty=0.5), "width": (upper - lower) / middle}


@feature(warm_up=lambda window: max(window, 2) - 1, outputs=("upper", "lower"))
def bollinger_bands(bars: Bars, window: int = 20, deviations: float = 2.0, raw: bool = False) -> dict[str, np.ndarray]:
    """close / upper band - 1 and 1 - lower band / close (both 0 on the band); raw: the bands in prices."""
    upper, _, lower = ta().BBANDS(bars.close, max(window, 2), deviations, deviations)
    if raw:
        return {"upper": upper * bars.price_unit, "lower": lower * bars.price_unit}
    return {"upper": bars.close / upper - 1, "lower": 1 - lower / bars.close}


@feature(warm_up=lambda window: wilder(window))
def atr(bars: Bars, window: int = 14, raw: bool = False) -> np.ndarray:
    """Average true range / close; raw: in prices."""
    return _atr(bars, window) * bars.price_unit if raw else _atr(bars, window) / bars.close


@feature(warm_up=lambda window: wilder(window))
def range_to_atr(bars: Bars, window: int = 14) -> np.ndarray:
    """(high - low) / ATR(window); 0 without movement."""
    return ratio(bars.high - bars.low, _atr(bars, window))


@feature(warm_up=lambda window, over: wilder(window) + max(over, 2) - 1)
def atr_slope(bars: Bars, window: int = 14, over: int = 5) -> np.ndarray:
    """Least-squares slope of ATR(window) over `over` bars, per bar, as a share of ATR."""
    return ratio(ta().LINEARREG_SLOPE(_atr(bars, window), max(over, 2)), _atr(bars, window))


@feature(warm_up=lambda window: wilder(window))
def tail_bias(bars: Bars, window: int = 14) -> np.ndarray:
    """((high - close) - (close - low)) / ATR(window): above 0 where the close lies in the lower half of its bar."""
    return ratio(bars.high + bars.low - 2 * bars.close, _atr(bars, window))


@feature(warm_up=lambda: 0)
def amplitude(bars: Bars) -> np.ndarray:
    """ln(high / low)."""
    return _range(bars)


@feature(warm_up=lambda window: max(window, 2))
def volatility(bars: Bars, window: int = 48) -> np.ndarray:
    """Standard deviation of the last `window` one-bar log returns."""
    window = max(window, 2)
    return bars.shared(("volatility", window), lambda: deviation(returns(bars), window))


@feature(warm_up=lambda short, long: max(short, long, 2))
def volatility_ratio(bars: Bars, short: int = 12, long: int = 96) -> np.ndarray:
    """volatility(short) / volatility(long); 1 without movement."""
    return ratio(volatility(bars, short), volatility(bars, long), empty=1.0)


@feature(warm_up=lambda window: window - 1)
def parkinson(bars: Bars, window: int = 48) -> np.ndarray:
    """sqrt(mean of ln(high / low)² over window / (4 ln 2)): Parkinson (1980)."""
    mean = pd.Series(_range(bars) ** 2).rolling(window).mean().to_numpy()
    return np.sqrt(np.maximum(mean, 0) * _PARKINSON)


@feature(warm_up=lambda decay: fading(1 - decay) + 1)
def ewma_volatility(bars: Bars, decay: float = 0.94) -> np.ndarray:
    """sqrt of v_t = decay v_{t-1} + (1 - decay) r_t², r one-bar log returns (RiskMetrics 1996)."""
    squares = returns(bars) ** 2
    return np.sqrt(pd.Series(squares).ewm(alpha=1 - decay, adjust=False).mean().to_numpy())


@feature(warm_up=lambda window: max(window, 3))
def skewness(bars: Bars, window: int = 48) -> np.ndarray:
    """Sample skewness of the last `window` one-bar log returns; 0 without movement."""
    return _moment(bars, max(window, 3), "skew")


@feature(warm_up=lambda window: max(window, 4))
def kurtosis(bars: Bars, window: int = 48) -> np.ndarray:
    """Excess kurtosis of the last `window` one-bar log returns; 0 without movement."""
    return _moment(bars, max(window, 4), "kurt")


def _moment(bars: Bars, window: int, name: str) -> np.ndarray:
    moved = returns(bars)
    value = getattr(pd.Series(moved).rolling(window), name)().to_numpy().copy()
    value[deviation(moved, window) ** 2 < _FLOOR] = 0.0
    return value
