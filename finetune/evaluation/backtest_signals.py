"""A signal made ready for the strategy: checked against the store and the range, and ranked. Whatever Qlib would trade on without a word
(NaN, times that are no bars, symbols without bars, nothing to rank) is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from finetune.data.qlib_store import Store, listed
from finetune.engine.randomness import numpy_generator
from kronos.errors import InputError

RANGE_KEY = "backtest.backtest_time_range"
_TIES_SEED = 19
_FEW_TIES = 0.01


class BacktestSection(Protocol):
    """What is read of the configuration's `backtest`."""

    backtest_time_range: Sequence[str]
    n_symbol_hold: int
    n_symbol_drop: int
    hold_thresh: int
    benchmark: str
    signal: str
    interval_draws: int


@dataclass(frozen=True, eq=False)
class Scores:
    """A signal made ready: at each bar its symbols' ranks, 0 the lowest; equal scores stand in one random order of the symbols."""

    name: str
    symbols: list[str]
    ranks: dict[pd.Timestamp, pd.Series]
    notes: list[str]


def checked_signal(store: Store, signal: pd.Series, name: str, bars: pd.DatetimeIndex, backtest: BacktestSection, seed: int) -> Scores:
    """The signal's ranks at the bars before each of `bars`. Raises InputError for whatever Qlib would trade on without a word."""
    hold, drop = backtest.n_symbol_hold, backtest.n_symbol_drop
    if hold < 1 or not 0 <= drop <= hold:
        told = "hold at least 1, and drop from 0 to as many as are held"
        raise InputError(f"backtest.n_symbol_hold {hold} with backtest.n_symbol_drop {drop}: {told}")
    when, symbol, values = plain(signal, name)
    calendar = pd.DatetimeIndex(store.calendar)
    at = calendar.get_indexer(when)
    if (at < 0).any():
        raise InputError(
            f"signal {name!r}: {when[at < 0][0]} is no {store.freq} bar of {store.path}; give it the times of the store's bars"
        )
    lacking = [one for one in symbol.unique() if not store.has(one)]
    if lacking:
        raise InputError(f"signal {name!r}: the store {store.path} has no {store.freq} bars of {listed(lacking)}; leave them out")
    first, end = (int(number) for number in calendar.get_indexer([bars[0], bars[-1]]))  # bars first - 1 to end - 1 are traded on
    _covers(name, calendar, at, first, end)
    used = (at >= first - 1) & (at < end)
    at, symbol, values = at[used], symbol[used], values[used]
    counts = np.bincount(at - (first - 1), minlength=end - first + 1)
    if counts[0] < hold:
        told = f"ranks {counts[0]} symbols at {calendar[first - 1]}, the first bar traded on, and backtest.n_symbol_hold is {hold}"
        raise InputError(f"signal {name!r} {told}; hold at most {counts[0]}, or take a larger pool (data.instrument)")
    return _ranked(name, calendar, at, symbol, values, counts, backtest, seed)


def plain(signal: pd.Series, name: str) -> tuple[pd.DatetimeIndex, pd.Index, np.ndarray]:
    """Times, symbols and float64 values of a signal; InputError for NaN (Qlib would rank them last and say nothing) and duplicates."""
    if not isinstance(signal.index, pd.MultiIndex) or set(signal.index.names) != {"datetime", "instrument"}:
        raise InputError(f"signal {name!r}: the index must have the levels datetime and instrument, not {list(signal.index.names)}")
    values = signal.to_numpy(np.float64)
    if not np.isfinite(values).all():
        place = signal.index[~np.isfinite(values)][0]
        raise InputError(f"signal {name!r}: {(~np.isfinite(values)).sum():,} values are not finite, the first at {place}; leave them out")
    if signal.index.has_duplicates:
        raise InputError(f"signal {name!r}: two values at {signal.index[signal.index.duplicated()][0]}; give one")
    return pd.DatetimeIndex(signal.index.get_level_values("datetime")), signal.index.get_level_values("instrument"), values


def _covers(name: str, calendar: pd.DatetimeIndex, at: np.ndarray, first: int, end: int) -> None:
    low, high = (int(at.min()), int(at.max())) if len(at) else (0, -1)
    if high < low or low > first - 1 or high < end - 1:
        has = f"it has values from {calendar[low]} to {calendar[high]}" if high >= low else "it has no value"
        fits = max(low + 1, first), min(high + 1, end)
        fix = (
            f'set {RANGE_KEY} to ["{calendar[fits[0]]:%Y-%m-%d}", "{calendar[fits[1]]:%Y-%m-%d}"]'
            if fits[0] <= fits[1]
            else "forecast that range"
        )
        told = f"trading from {calendar[first]} to {calendar[end]} needs values from {calendar[first - 1]} to {calendar[end - 1]}"
        raise InputError(f"signal {name!r}: {told}, {has}; {fix}")


def _ranked(
    name: str,
    calendar: pd.DatetimeIndex,
    at: np.ndarray,
    symbol: pd.Index,
    values: np.ndarray,
    counts: np.ndarray,
    backtest: BacktestSection,
    seed: int,
) -> Scores:
    """Ranks per bar. One order of the symbols for every bar, so that equal scores do not make the strategy swap symbols."""
    number, names = pd.factorize(np.asarray(symbol, object), sort=True)
    luck = numpy_generator(seed, _TIES_SEED).permutation(len(names))[number]
    order = np.lexsort((luck, values, at))
    at, values, labels = at[order], values[order], names[number[order]]
    equal = (np.diff(at) == 0) & (np.diff(values) == 0)
    tied = np.append(equal, False) | np.append(False, equal)
    if equal.sum() == (np.diff(at) == 0).sum():
        raise InputError(f"signal {name!r} ranks nothing: at every bar all its values are equal ({values[0]:g}); give one that differs")
    bounds = np.flatnonzero(np.diff(at, prepend=-1))
    ranks = {
        calendar[at[begin]]: pd.Series(np.arange(stop - begin, dtype=np.float64), index=pd.Index(labels[begin:stop], dtype=object))
        for begin, stop in zip(bounds, np.append(bounds[1:], len(at)), strict=True)
    }
    notes = []
    if tied.mean() > _FEW_TIES:
        notes.append(
            f"{100 * tied.mean():.0f} % of its values equal another's of the same bar; those are ranked by a draw that the seed decides"
        )
    if empty := int((counts == 0).sum()):
        notes.append(f"has no value at {empty:,} of {len(counts):,} bars: nothing is traded after those")
    if few := int(((counts > 0) & (counts < backtest.n_symbol_hold)).sum()):
        notes.append(f"ranks fewer than {backtest.n_symbol_hold} symbols at {few:,} of {len(counts):,} bars")
    return Scores(name, list(names), ranks, notes)
