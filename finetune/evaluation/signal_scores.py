"""Does a signal rank symbols as they then do: correlation, hits, returns of its quantile groups and what holding the best would turn over.

The return that a signal of day t is scored by is one that could have been earned: bought at the open of the market's next bar, t + 1, sold
at the open `bars` bars later, t + 1 + bars: open[t + 1 + bars] / open[t + 1] - 1. A symbol without a bar at t + 1 cannot be bought and is
not scored that day; one without a bar at t + 1 + bars is sold at its next open, and one that never trades again at its last close: losers
that leave the market stay in the scores. The market's bars are those of any symbol of the panel; days too late for a sale are not scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.frames import wall_clock
from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.evaluation.backtest_signals import plain
from finetune.evaluation.scores import correlation, direction_hits, rank_correlation
from finetune.evaluation.skill import Resampler
from kronos.errors import InputError

FEWEST_SYMBOLS = 10  # on a day, for anything across symbols
MOST_GROUPS, GROUP_SIZE = 10, 3  # deciles, or as many groups as leave so many symbols in each
_FEWEST_BLOCKS = 3  # of days; of fewer, every resample is nearly the sample itself, and its interval would feign certainty
_OPEN, _CLOSE = KRONOS_NAMES.index("open"), KRONOS_NAMES.index("close")


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval from resampled blocks of days; NaN where there is nothing to tell from (fewer than 3 blocks)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, eq=False)
class SignalScore:
    """One signal against returns over `bars` bars, on the `days` days on which 10 symbols or more have both.

    symbols: their median number per day. ic, rank_ic: mean over days of Pearson's and Spearman's correlation across symbols.
    icir, rank_icir: that mean over its standard deviation between days (not annualised). positive_days: share of days with rank_ic above 0.
    hit_rate: share of symbols on the same side of the day's median return as of its median signal (0.5: chance; signals such as `max` have
    no zero of their own). groups: mean return of each quantile group, lowest signal first, symbols of equal signal shared among the groups
    they span. spread: highest group less lowest. turnover: share of the highest group that changes from day to day, mean over days.
    daily: ic, rank_ic, spread, turnover by day.
    """

    bars: int
    days: int
    symbols: int
    ic: Interval
    rank_ic: Interval
    icir: Interval
    rank_icir: Interval
    positive_days: float
    hit_rate: Interval
    groups: list[float]
    spread: Interval
    turnover: float
    daily: pd.DataFrame

    def table(self) -> dict[str, Any]:
        """All but the daily values, for JSON: intervals as {value, low, high}."""
        return {k: vars(v) if isinstance(v, Interval) else v for k, v in vars(self).items() if k != "daily"}


def score_signals(
    signals: Mapping[str, pd.Series], panel: Panel, horizon: int, *, seed: int = 0, draws: int = 2000
) -> dict[str, dict[int, SignalScore]]:
    """Scores of each signal by name, then by bars ahead: 1, and `horizon`.

    signals: values by (datetime, instrument) without NaN, datetime the wall clock of the last known bar. panel: bars up to horizon + 1
    after the last day; days that lack them are not scored. draws: resamples of the intervals.
    Raises InputError for a signal without any bar, with a value that is not finite, or with two at one place.
    """
    first = min((signal.index.get_level_values(0).min() for signal in signals.values() if len(signal)), default=pd.Timestamp(0))
    opens = _opens(panel, first)
    last = _last_closes(panel).reindex(opens.columns).to_numpy()
    ahead = {bars: _returns(opens.to_numpy(), last, bars) for bars in sorted({1, horizon})}
    resamplers: dict[tuple[int, int], Resampler] = {}
    found: dict[str, dict[int, SignalScore]] = {}
    for name, signal in signals.items():
        plain(signal, name)
        wide = signal.unstack().reindex(index=opens.index, columns=opens.columns)
        if not wide.notna().to_numpy().any():
            raise InputError(f"signal {name}: none of its days and instruments is in the panel; were they made from the same store?")
        found[name] = {bars: _score(wide, bars, ahead[bars], resamplers, seed, draws) for bars in ahead}
    return found


def score_signal(signal: pd.Series, panel: Panel, horizon: int, *, seed: int = 0, draws: int = 2000) -> dict[int, SignalScore]:
    """`score_signals` of one signal: its scores by bars ahead."""
    return score_signals({"signal": signal}, panel, horizon, seed=seed, draws=draws)["signal"]


def _opens(panel: Panel, first: pd.Timestamp) -> pd.DataFrame:
    """Opening prices from a moment on, [market's bars, symbols] by wall clock and symbol; NaN where a symbol has no bar."""
    columns = {}
    for info, begin, end in zip(panel.series, panel.offsets[:-1], panel.offsets[1:], strict=True):
        # wall clocks stand at most 14 hours from UTC: two days more are looked at, and cut off by the wall clock
        begin += int(np.searchsorted(panel.times[begin:end], (first - pd.Timedelta(days=2)).value))
        if begin < end:
            prices = np.asarray(panel.features[begin:end, _OPEN], np.float64)
            wall = wall_clock(panel, int(begin), int(end))
            columns[info.symbol] = pd.Series(np.where(prices > 0, prices, np.nan), index=wall)[wall >= first]
    return pd.DataFrame(columns).sort_index()


def _last_closes(panel: Panel) -> pd.Series:
    """The close of each symbol's last bar, NaN where it is no price."""
    prices = np.asarray(panel.features[panel.offsets[1:] - 1, _CLOSE], np.float64)
    return pd.Series({info.symbol: price if price > 0 else np.nan for info, price in zip(panel.series, prices, strict=True)})


def _returns(opens: np.ndarray, last: np.ndarray, bars: int) -> np.ndarray:
    """[days, symbols] returns earned from the next bar's open to the open `bars` later, NaN where unknown.

    A symbol without an open from then on is sold at `last` [symbols], its last close (or its last open where that is NaN).
    """
    prices = pd.DataFrame(opens)
    sale = prices.bfill().fillna(pd.Series(last)).fillna(prices.ffill()).to_numpy()
    found = np.full_like(opens, np.nan)
    if len(opens) > bars + 1:
        found[: -bars - 1] = sale[bars + 1 :] / opens[1:-bars] - 1
    return found


def _score(
    wide: pd.DataFrame, bars: int, ahead: np.ndarray, resamplers: dict[tuple[int, int], Resampler], seed: int, draws: int
) -> SignalScore:
    """wide: the signal [days, symbols]; ahead: returns of the same shape."""
    signal = wide.to_numpy(np.float64)
    turnover = _turnover(signal)
    known = np.isfinite(signal) & np.isfinite(ahead)
    kept = known.sum(1) >= FEWEST_SYMBOLS
    known, days = known[kept], wide.index[kept]
    signal, returns = (np.where(known, values[kept], np.nan) for values in (signal, ahead))
    symbols = int(np.median(known.sum(1))) if len(days) else 0
    groups = _Groups(signal, _group_count(symbols)).means(returns)
    daily = pd.DataFrame(
        {
            "ic": correlation(signal, returns),
            "rank_ic": rank_correlation(signal, returns),
            "hit_rate": _hits(signal, returns),
            "spread": groups[:, -1] - groups[:, 0],
            "turnover": turnover[kept],
        },
        index=days,
    )
    drawn = _Drawn(daily, bars, resamplers, seed, draws)
    return SignalScore(
        bars=bars,
        days=len(days),
        symbols=symbols,
        ic=drawn.mean("ic"),
        rank_ic=drawn.mean("rank_ic"),
        icir=drawn.ratio("ic"),
        rank_icir=drawn.ratio("rank_ic"),
        positive_days=_mean((daily["rank_ic"] > 0)[daily["rank_ic"].notna()]),
        hit_rate=drawn.mean("hit_rate"),
        groups=groups.mean(0).tolist() if len(days) else [],
        spread=drawn.mean("spread"),
        turnover=_mean(daily["turnover"].dropna()),
        daily=daily.drop(columns="hit_rate"),
    )


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else np.nan


def _hits(signal: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """[days] share of symbols whose signal and return lie on the same side of the day's medians; NaN where all returns are equal."""
    if not len(signal):
        return np.empty(0)
    away = [values - np.nanmedian(values, axis=1, keepdims=True) for values in (signal, returns)]
    hits = np.where(np.isfinite(signal), direction_hits(*away), np.nan)
    counted = np.isfinite(hits)
    with np.errstate(invalid="ignore"):
        return np.where(counted, hits, 0).sum(1) / counted.sum(1)


def _group_count(symbols: int) -> int:
    return max(2, min(MOST_GROUPS, symbols // GROUP_SIZE))


class _Groups:
    """Quantile groups of each day's symbols: group g of n symbols takes the places from g n / groups to (g + 1) n / groups.

    Symbols of equal signal share the places that they take together: nothing hangs on the order of names.
    """

    def __init__(self, signal: np.ndarray, groups: int):
        """signal [days, symbols], NaN where there is none."""
        frame = pd.DataFrame(signal)
        first, self.last = (frame.rank(axis=1, method=method).to_numpy() for method in ("min", "max"))
        self.first = first - 1  # a symbol takes the places from first to last, alone or with its equals
        self.size = np.isfinite(signal).sum(1, keepdims=True) / groups
        self.count = groups

    def share(self, group: int) -> np.ndarray:
        """[days, symbols] share of each symbol that belongs to the group, 0 where it has no signal."""
        inside = np.minimum(self.last, (group + 1) * self.size) - np.maximum(self.first, group * self.size)
        return np.nan_to_num(np.maximum(inside, 0) / (self.last - self.first))

    def means(self, values: np.ndarray) -> np.ndarray:
        """[days, groups] mean of values [days, symbols] over each group's symbols; what has no signal does not count."""
        filled = np.nan_to_num(values)
        shares = (self.share(group) for group in range(self.count))
        return np.stack([(share * filled).sum(1) / share.sum(1) for share in shares], axis=1)


def _turnover(signal: np.ndarray) -> np.ndarray:
    """[days] share of the highest group, held in equal parts, that has changed since the day before; NaN without two such days.

    Returns do not matter here: a day's group is chosen among all symbols with a signal, before anything is known of the next bar.
    """
    count = np.isfinite(signal).sum(1)
    enough = count >= FEWEST_SYMBOLS
    groups = _group_count(int(np.median(count[enough]))) if enough.any() else 2
    share = _Groups(signal, groups).share(groups - 1)
    weight = share / np.maximum(share.sum(1, keepdims=True), 1e-300)
    changed = np.full(len(signal), np.nan)
    changed[1:] = np.where(enough[1:] & enough[:-1], 0.5 * np.abs(np.diff(weight, axis=0)).sum(1), np.nan)
    return changed


class _Days:
    """Scored days in the form that the evaluation's resampler takes: one origin per day."""

    def __init__(self, count: int, bars: int):
        self.moments = self.moment = np.arange(count)
        self.overlap = np.array([bars])
        # as `Origins.block`: returns over several bars overlap with those of the following days
        self.block = int(max(2 * bars if bars > 1 else 1, np.ceil(count ** (1 / 3))))

    def chosen(self, keep: np.ndarray) -> _Days:
        return self


class _Drawn:
    """Intervals of the means of daily values: blocks of days are drawn, the same ones for every signal."""

    def __init__(self, daily: pd.DataFrame, bars: int, resamplers: dict[tuple[int, int], Resampler], seed: int, draws: int):
        self.columns = list(daily.columns)
        key = (len(daily), bars)
        if len(daily) and key not in resamplers:
            resamplers[key] = Resampler(_Days(*key), np.ones(len(daily), bool), seed, draws)
        self.resampler = resamplers.get(key)
        values = daily.to_numpy()
        known = np.isfinite(values)
        self.counts = known.sum(0)
        if self.resampler is not None:
            filled = np.where(known, values, 0.0)
            with np.errstate(invalid="ignore"):
                shares = self.resampler.means(known)
                self.means, self.squares = (self.resampler.means(power) / shares for power in (filled, filled**2))  # [1 + draws, columns]

    def mean(self, name: str) -> Interval:
        if self.resampler is None:
            return Interval(np.nan, np.nan, np.nan)
        return self._interval(self.means[:, self.columns.index(name)])

    def ratio(self, name: str) -> Interval:
        """Mean over standard deviation between days (of the sample, divisor n - 1, as in `tables` and pyqlib)."""
        if self.resampler is None:
            return Interval(np.nan, np.nan, np.nan)
        column = self.columns.index(name)
        mean, square, count = self.means[:, column], self.squares[:, column], self.counts[column]
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = (square - mean**2) * (count / (count - 1.0))
            return self._interval(np.where(variance > 1e-12, mean / np.sqrt(variance), np.nan))

    def _interval(self, drawn: np.ndarray) -> Interval:
        value = drawn[0]
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or self.resampler.size < _FEWEST_BLOCKS * self.resampler.block:
            return Interval(float(value), np.nan, np.nan)
        return Interval(*(float(end) for end in self.resampler.ends(drawn)))
