"""Trend and momentum: averages, oscillators, slopes, levels, breakouts. See `tft.indicators` for what every feature keeps to."""

from __future__ import annotations

import numpy as np

from tft.indicators import Bars, fading, feature, ta, wilder


def log_close(bars: Bars) -> np.ndarray:
    """[n] ln close."""
    return bars.shared("log_close", lambda: np.log(bars.close))


def returns(bars: Bars) -> np.ndarray:
    """[n] one-bar log returns, the first NaN."""
    return bars.shared("returns", lambda: np.diff(log_close(bars), prepend=np.nan))


def ratio(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """part / whole, and `empty` where whole is 0 (a bar without range, a window without volume); NaN stays NaN."""
    zero = whole == 0
    result = part / np.where(zero, 1.0, whole)
    result[zero] = empty
    return result


def lagged(values: np.ndarray, rows: int) -> np.ndarray:
    """[n] values of `rows` rows earlier, NaN where there are none."""
    result = np.full(len(values), np.nan)
    result[rows:] = values[: max(0, len(values) - rows)]
    return result


def _level(bars: Bars, level: np.ndarray, raw: bool) -> np.ndarray:
    """The level in the user's prices, or how far the close lies above it."""
    return level * bars.price_unit if raw else bars.close / level - 1


def _ema_rows(window: int) -> int:
    return window + fading(2 / (window + 1))


@feature(warm_up=lambda window: window)
def log_return(bars: Bars, window: int = 1) -> np.ndarray:
    """ln(close_t / close_{t-window})."""
    return log_close(bars) - lagged(log_close(bars), window)


@feature(warm_up=lambda window: window - 1)
def ma(bars: Bars, window: int = 20, raw: bool = False) -> np.ndarray:
    """close / SMA(window) - 1; raw: the average itself."""
    return _level(bars, ta().SMA(bars.close, window) if window > 1 else bars.close, raw)


@feature(warm_up=_ema_rows)
def ema(bars: Bars, window: int = 20, raw: bool = False) -> np.ndarray:
    """close / EMA(window) - 1; raw: the average itself."""
    return _level(bars, ta().EMA(bars.close, window) if window > 1 else bars.close, raw)


@feature(warm_up=lambda short, long: max(short, long) - 1)
def ma_diff(bars: Bars, short: int = 5, long: int = 20) -> np.ndarray:
    """SMA(short) / SMA(long) - 1."""
    return ta().SMA(bars.close, short) / ta().SMA(bars.close, long) - 1


@feature(warm_up=lambda window: window - 1)
def price_above_ma(bars: Bars, window: int = 20) -> np.ndarray:
    """1 where close > SMA(window), else 0."""
    return (bars.close > ta().SMA(bars.close, window)).astype(float)


def _rsi(bars: Bars, window: int) -> np.ndarray:
    return bars.shared(("rsi", window), lambda: ta().RSI(bars.close, window))


@feature(warm_up=lambda window: wilder(window) + 1)
def rsi(bars: Bars, window: int = 14) -> np.ndarray:
    """Wilder's relative strength index, 0 to 100."""
    return _rsi(bars, window)


@feature(warm_up=lambda window: wilder(window) + 1)
def rsi_zone(bars: Bars, window: int = 14, high: float = 70.0, low: float = 30.0) -> np.ndarray:
    """1 where RSI > high (overbought), -1 where RSI < low (oversold), else 0."""
    value = _rsi(bars, window)
    return (value > high).astype(float) - (value < low)


def _macd(bars: Bars, fast: int, slow: int, signal: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return bars.shared(("macd", fast, slow, signal), lambda: ta().MACD(bars.close, fast, slow, signal))


def _macd_rows(fast: int, slow: int, signal: int) -> int:
    return _ema_rows(max(fast, slow)) + _ema_rows(signal)


@feature(warm_up=_macd_rows, outputs=("line", "signal", "hist"))
def macd(bars: Bars, fast: int = 12, slow: int = 26, signal: int = 9, raw: bool = False) -> dict[str, np.ndarray]:
    """EMA(fast) - EMA(slow), its EMA(signal) and their difference, as shares of the close; raw: in prices."""
    unit = bars.price_unit if raw else 1 / bars.close
    return {name: value * unit for name, value in zip(("line", "signal", "hist"), _macd(bars, fast, slow, signal), strict=True)}


@feature(warm_up=lambda fast, slow, signal: _macd_rows(fast, slow, signal) + 1)
def macd_cross(bars: Bars, fast: int = 12, slow: int = 26, signal: int = 9) -> np.ndarray:
    """1 where the MACD histogram turns from <= 0 to > 0, -1 where it turns from >= 0 to < 0, else 0."""
    now = _macd(bars, fast, slow, signal)[2]
    before = lagged(now, 1)
    return ((now > 0) & (before <= 0)).astype(float) - ((now < 0) & (before >= 0))


@feature(warm_up=lambda window, smooth: window + 4 * smooth + fading(1 / smooth, stages=2), outputs=("k", "d", "j"))
def kdj(bars: Bars, window: int = 9, smooth: int = 3) -> dict[str, np.ndarray]:
    """K: average with weight 1/smooth of 100 (close - lowest) / (highest - lowest) over window; D: the same of K; J = 3 K - 2 D."""
    k, d = ta().STOCH(bars.high, bars.low, bars.close, window, 2 * smooth - 1, 1, 2 * smooth - 1, 1)  # type 1: EMA of weight 2 / (n + 1)
    return {"k": k, "d": d, "j": 3 * k - 2 * d}


@feature(warm_up=lambda window: window)
def momentum(bars: Bars, window: int = 10, raw: bool = False) -> np.ndarray:
    """close_t / close_{t-window} - 1; raw: the difference in price."""
    return ta().MOM(bars.close, window) * bars.price_unit if raw else ta().ROCP(bars.close, window)


@feature(warm_up=lambda window: window - 1)
def cci(bars: Bars, window: int = 20) -> np.ndarray:
    """Commodity channel index: (typical price - its SMA) / (0.015 × mean absolute deviation)."""
    return ta().CCI(bars.high, bars.low, bars.close, window)


@feature(warm_up=lambda window: wilder(window, stages=2), outputs=("trend", "plus_di", "minus_di"))
def adx(bars: Bars, window: int = 14) -> dict[str, np.ndarray]:
    """Wilder's average directional index and DI+ and DI-, each 0 to 100."""
    prices = bars.high, bars.low, bars.close
    return {"trend": ta().ADX(*prices, window), "plus_di": ta().PLUS_DI(*prices, window), "minus_di": ta().MINUS_DI(*prices, window)}


@feature(warm_up=lambda window: window - 1)
def trend_slope(bars: Bars, window: int = 20) -> np.ndarray:
    """Slope of the least-squares line through the last `window` values of ln close, per bar."""
    return ta().LINEARREG_SLOPE(log_close(bars), max(window, 2))


def _extremes(bars: Bars, window: int) -> tuple[np.ndarray, np.ndarray]:
    """([n] highest high, [n] lowest low) of the last `window` bars, t included."""
    return bars.shared(("extremes", window), lambda: (ta().MAX(bars.high, window), ta().MIN(bars.low, window)))


@feature(warm_up=lambda window: window - 1, outputs=("support", "resistance"))
def level_distance(bars: Bars, window: int = 20, raw: bool = False) -> dict[str, np.ndarray]:
    """(close - lowest low) / close and (highest high - close) / close over window; raw: the two levels in prices."""
    high, low = _extremes(bars, window)
    if raw:
        return {"support": low * bars.price_unit, "resistance": high * bars.price_unit}
    return {"support": (bars.close - low) / bars.close, "resistance": (high - bars.close) / bars.close}


@feature(warm_up=lambda window: window)
def breakout(bars: Bars, window: int = 20) -> np.ndarray:
    """1 where the close is above the highest high of the `window` bars before t, -1 where it is below their lowest low, else 0."""
    high, low = _extremes(bars, window)
    return (bars.close > lagged(high, 1)).astype(float) - (bars.close < lagged(low, 1))


@feature(warm_up=lambda window: window - 1)
def pullback(bars: Bars, window: int = 20) -> np.ndarray:
    """(highest high of window - close) / highest high."""
    high, _ = _extremes(bars, window)
    return (high - bars.close) / high


@feature(warm_up=lambda: 0)
def body(bars: Bars) -> np.ndarray:
    """(close - open) / (high - low), 0 in a bar without range."""
    return ratio(bars.close - bars.open, bars.high - bars.low)


@feature(warm_up=lambda: 1)
def gap(bars: Bars) -> np.ndarray:
    """ln(open_t / close_{t-1})."""
    return np.log(bars.open) - lagged(log_close(bars), 1)
