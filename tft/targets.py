"""Targets: what the bars after t do. C_0 is the close of bar t, C_j, H_j, L_j are those of bar t + j, j = 1..h; h is the horizon.

A target at t uses the bars t + 1 .. t + h and of bar t the close alone, as the level to measure from; no earlier bar, none beyond t + h.
Thresholds (an outlier, a drawdown, a sideways market) are quantiles of what the targets measure over the training rows of the same
symbol and period: rows whose bar t + h has closed by the end of the training data. They are fitted once, stored, and applied to all.
Rows without h further bars in their unbroken stretch have NaN.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from kronos.errors import InputError
from tft.indicators import nearest, of_period

_CHUNK = 1 << 16  # rows whose paths are looked at together, so that a long horizon costs little memory
_PARKINSON = 1 / (4 * math.log(2))


@dataclass(frozen=True)
class Paths:
    """What follows each of n rows. close [n, h + 1]: ln C_0..C_h; high, low [n, h]: ln H_1..H_h, ln L_1..L_h; all float64."""

    close: np.ndarray
    high: np.ndarray
    low: np.ndarray

    @property
    def moves(self) -> np.ndarray:
        """[n, h] one-bar log returns r_j = ln(C_j / C_{j-1})."""
        return np.diff(self.close, axis=1)


@dataclass(frozen=True)
class Target:
    """kind: "class" (0 or 1) or "real". measure: paths → [n] float64. label: (measure, threshold) → [n], None: the measure itself.

    least: the shortest horizon at which it is not the same for all rows.
    """

    name: str
    kind: str
    function: Callable[..., np.ndarray]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    label: Callable[[np.ndarray, float], np.ndarray] | None = None
    least: int = 1


TARGETS: dict[str, Target] = {}


def target(kind: str, label: Callable[[np.ndarray, float], np.ndarray] | None = None, least: int = 1) -> Callable[..., Any]:
    """Registers a function of paths. With `label` it has the parameter `quantile`, which `fit` turns into a threshold."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        parameters = {p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]}
        TARGETS[function.__name__] = Target(function.__name__, kind, function, parameters, label, least)
        return function

    return register


@target("class")
def binarytrend(paths: Paths) -> np.ndarray:
    """1 if C_h > C_0, else 0."""
    return (paths.close[:, -1] > paths.close[:, 0]).astype(float)


@target("real")
def logreturn(paths: Paths) -> np.ndarray:
    """ln(C_h / C_0)."""
    return paths.close[:, -1] - paths.close[:, 0]


@target("real")
def logsharpe_ratio(paths: Paths) -> np.ndarray:
    """ln(C_h / C_0) / (s √h), s² = mean over j of ln(max(H_j, C_{j-1}) / min(L_j, C_{j-1}))² / (4 ln 2): return per realised volatility.

    s is Parkinson's estimate with true ranges, made of the same future bars; it bounds the ratio by √(4 ln 2) √h. 0 if nothing moved.
    """
    before = paths.close[:, :-1]
    ranges = np.maximum(paths.high, before) - np.minimum(paths.low, before)
    spread = np.sqrt((ranges**2).sum(axis=1) * _PARKINSON)  # s √h
    moved = logreturn(paths)
    return np.divide(moved, spread, out=np.zeros_like(moved), where=spread > 0)


@target("real")
def breakout_count(paths: Paths) -> np.ndarray:
    """How many of C_1..C_h are above every close before them since bar t, C_0 included: 0 to h."""
    highest = np.maximum.accumulate(paths.close, axis=1)
    return (paths.close[:, 1:] > highest[:, :-1]).sum(axis=1).astype(float)


@target("real")
def max_drawdown(paths: Paths) -> np.ndarray:
    """min over 0 <= i <= j <= h of ln(C_j / C_i): the deepest fall from a peak on the way, at most 0."""
    return (paths.close - np.maximum.accumulate(paths.close, axis=1)).min(axis=1)


@target("class", label=lambda depth, threshold: (depth > threshold).astype(float))
def drawdown_prob(paths: Paths, quantile: float = 0.75) -> np.ndarray:
    """1 if -max_drawdown is above its `quantile` in the training data, else 0."""
    return -max_drawdown(paths)


@target("class", least=2)
def pullback_prob(paths: Paths, share: float = 0.5) -> np.ndarray:
    """1 if the close first gains and then gives back: G = max_j ln(C_j / C_0) > 0, and after its peak it loses at least share × G."""
    rise = paths.close - paths.close[:, :1]
    peak = rise.argmax(axis=1)
    gain = rise.max(axis=1)
    after = np.arange(rise.shape[1]) > peak[:, None]
    lowest = np.where(after, rise, np.inf).min(axis=1)  # inf where the peak is the last bar: nothing was given back
    return ((gain > 0) & (gain - lowest >= share * gain)).astype(float)


@target("class", label=lambda moved, threshold: (moved < threshold).astype(float))
def return_outlier_lower_10(paths: Paths, quantile: float = 0.1) -> np.ndarray:
    """1 if ln(C_h / C_0) is below its `quantile` in the training data, else 0."""
    return logreturn(paths)


@target("class", label=lambda moved, threshold: (moved > threshold).astype(float))
def return_outlier_upper_90(paths: Paths, quantile: float = 0.9) -> np.ndarray:
    """1 if ln(C_h / C_0) is above its `quantile` in the training data, else 0."""
    return logreturn(paths)


@target("class", label=lambda width, threshold: (width < threshold).astype(float))
def sideway_detect(paths: Paths, quantile: float = 0.25) -> np.ndarray:
    """1 if the width of the way, ln(max(C_0, H_1..H_h) / min(C_0, L_1..L_h)), is below its `quantile` in the training data, else 0."""
    start = paths.close[:, 0]
    return np.maximum(paths.high.max(axis=1), start) - np.minimum(paths.low.min(axis=1), start)


@target("real", least=2)
def trend_persistence(paths: Paths) -> np.ndarray:
    """For how many bars from t + 1 on the close keeps moving the way it moved in bar t + 1: 1 to h, and 0 if that bar did not move."""
    ways = np.sign(paths.moves)
    same = (ways == ways[:, :1]) & (ways != 0)
    return np.cumprod(same, axis=1).sum(axis=1).astype(float)


@dataclass(frozen=True)
class Wanted:
    """One line of `targets.use`, checked for one period. column: its name in the panel, "target_logreturn"."""

    target: Target
    column: str
    horizon: int
    parameters: dict[str, Any]

    def measure(self, closes: np.ndarray, highs: np.ndarray, lows: np.ndarray, stretch: np.ndarray) -> np.ndarray:
        """[n] what the target measures, NaN without a full future. closes, highs, lows [n] prices; stretch [n]: number of the stretch."""
        n, h = len(closes), self.horizon
        result = np.full(n, np.nan)
        if n <= h:
            return result
        log_close, log_high, log_low = (np.log(np.asarray(x, np.float64)) for x in (closes, highs, lows))
        close = sliding_window_view(log_close, h + 1)  # [n - h, h + 1]
        high, low = (sliding_window_view(x[1:], h) for x in (log_high, log_low))
        for first in range(0, n - h, _CHUNK):
            part = slice(first, min(first + _CHUNK, n - h))
            paths = Paths(np.ascontiguousarray(close[part]), high[part], low[part])
            result[part] = self.target.function(paths, **self.parameters)
        result[: n - h][stretch[h:] != stretch[: n - h]] = np.nan
        return result

    def fit(self, measure: np.ndarray, training: np.ndarray) -> float | None:
        """The threshold from the rows of `training` [n] bool that have a future; None for a target without one.

        Raises InputError if there are fewer than 20 such rows.
        """
        if self.target.label is None:
            return None
        known = measure[training & ~np.isnan(measure)]
        if len(known) < 20:
            raise InputError(
                f"{self.column}: {len(known)} training rows have the {self.horizon} bars after them that its threshold is made of, fewer "
                "than 20; give more bars, a shorter targets.horizon or a smaller targets.val_ratio"
            )
        return float(np.quantile(known, self.parameters["quantile"]))

    def values(self, measure: np.ndarray, threshold: float | None) -> np.ndarray:
        """[n] the target itself, NaN where unknown."""
        if self.target.label is None or threshold is None:
            return measure
        return np.where(np.isnan(measure), np.nan, self.target.label(measure, threshold))


def choose_targets(lines: Sequence[Mapping[str, Any] | str], period: str, horizon: int | Mapping[str, int]) -> list[Wanted]:
    """Check the lines of `targets.use` for one period. Raises one InputError with all that is wrong."""
    chosen: list[Wanted] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            wanted = _choose(line, period, horizon)
        except InputError as error:
            wrong.append(f"targets.use, line {number}: {error}")
            continue
        if any(other.column == wanted.column for other in chosen):
            wrong.append(f"targets.use, line {number}: {wanted.column} is already there; give it another name with as: NAME")
        chosen.append(wanted)
    if wrong:
        raise InputError("\n  ".join(wrong))
    return chosen


def _choose(line: Mapping[str, Any] | str, period: str, horizon: int | Mapping[str, int]) -> Wanted:
    line = {"name": line} if isinstance(line, str) else dict(line)
    name = str(line.get("name")).removeprefix("target_")
    known = TARGETS.get(name)
    if known is None:
        raise InputError(f"{line.get('name')!r} is not a target{nearest(name, TARGETS)}")
    for key in line:
        if key not in ("name", "as", "horizon", *known.parameters):
            raise InputError(f"{name}: has no parameter {key!r}{nearest(str(key), ['as', 'horizon', *known.parameters])}")
    parameters = {key: of_period(line.get(key, default), period, f"{name}: {key}") for key, default in known.parameters.items()}
    for key, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < (1 if key == "quantile" else 1e6):
            raise InputError(f"{name}: {key} is {value!r}; expected a number above 0" + (" and below 1" if key == "quantile" else ""))
    bars = of_period(line.get("horizon", horizon), period, "targets.horizon")
    if isinstance(bars, bool) or not isinstance(bars, int) or bars < known.least:
        wanted = f"expected a whole number of at least {known.least} bars"
        raise InputError(f"{name}: horizon is {bars!r} for {period or 'these bars'}; {wanted}")
    return Wanted(known, f"target_{str(line.get('as') or name).removeprefix('target_')}", bars, parameters)
