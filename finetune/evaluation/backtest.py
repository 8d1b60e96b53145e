"""Backtests through the real pyqlib: TopkDropoutStrategy trades a signal's ranking, baselines and indices stand beside it on the same bars.

A signal of bar t is known at that bar's close and traded at the deal price (the open) of bar t + 1. Qlib does that by itself: its strategy
looks one bar back ("delay_execution" of the public code is a word that its executor ignores).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from finetune.data.qlib_ranges import end_of
from finetune.data.qlib_store import Store, listed
from finetune.evaluation.backtest_signals import RANGE_KEY, BacktestSection, Scores, checked_signal
from finetune.evaluation.backtest_stats import statistics, verdict
from kronos.errors import InputError

if TYPE_CHECKING:
    from qlib.backtest.exchange import Exchange

_HOLIDAY_DAYS = 14  # a range may end in the holidays after the store's last bar, or begin in those before its first
_MARGIN_BARS = 250  # read before the first bar, so that a symbol suspended there has a last close
_ENOUGH_DAYS, _OTHER_YEAR = 60, 0.1  # so many days show how many a year has; a share by which that may differ from the configured one
HEADLINE = "mean"  # which signal decides where all are run: chosen beforehand, not the best


class ExchangeSection(Protocol):
    """What is read of the configuration's `exchange`. Rates are shares of the traded value, account and min_cost money."""

    account: float
    deal_price: str
    limit_threshold: float | None
    open_cost: float
    close_cost: float
    min_cost: float
    trade_unit: int | None
    impact_cost: float
    volume_threshold: float | None
    risk_degree: float
    annual_days: float


@dataclass(frozen=True, eq=False)
class Backtest:
    """One signal through the strategy.

    report: Qlib's, one row a bar (return, cost, bench, turnover, account, value, cash, ...). positions: one row per bar and symbol held at
    its close (datetime, symbol, amount, price, value, weight; amounts and prices as adjusted as the store's). figures: `statistics`, and
    held: how many symbols, mean and most. notes: what there is to say about this signal.
    """

    name: str
    report: pd.DataFrame
    positions: pd.DataFrame
    figures: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Backtests:
    """Every signal and what stands beside it. lines: returns per bar of what is only held: the benchmark, equal weight of the pool."""

    signals: dict[str, Backtest]
    baselines: dict[str, Backtest]
    lines: dict[str, pd.Series]
    benchmark: str
    headline: str
    pool: str
    store: Store
    backtest: BacktestSection
    exchange: ExchangeSection
    notes: list[str]

    @property
    def verdict(self) -> str:
        """One line on the deciding signal."""
        return verdict(self.headline, self.benchmark, self.signals[self.headline].figures)


def run_backtests(
    store: Store,
    signals: Mapping[str, pd.Series],
    backtest: BacktestSection,
    exchange: ExchangeSection,
    *,
    pool: str = "all",
    benchmark: str = "",
    baselines: Mapping[str, pd.Series] | None = None,
    seed: int = 100,
    say: Callable[[str], object] = lambda _: None,
) -> Backtests:
    """Run `signals` (one or all, as backtest.signal says) and `baselines` through the strategy, on the same bars and prices.

    Series are finite floats by (datetime, instrument). pool: whose equal weight is shown, and is the benchmark where that is "equal".
    benchmark: a symbol of the store or "equal"; backtest.benchmark if empty. seed: of the draws for equal scores and for the intervals.
    Raises InputError: range outside the store or the signals, benchmark or signal unknown, too few symbols, nothing to rank.
    """
    chosen, baselines = _chosen(signals, backtest.signal), baselines or {}
    bars, notes = trading_bars(store, backtest)
    scores = {name: checked_signal(store, one, name, bars, backtest, seed) for name, one in chosen.items()}
    for name, one in baselines.items():
        try:
            scores[name] = checked_signal(store, one, name, bars, backtest, seed)
        except InputError as error:  # a baseline that cannot stand beside must not stop what the user asked for
            notes.append(f"left out: {error}")
    benchmark, equal = benchmark or backtest.benchmark, f"equal weight of {pool}"
    lines = {equal: equal_weight(store, pool, bars)}
    if benchmark == "equal":
        benchmark = equal
    else:
        lines = {benchmark: index_returns(store, benchmark, bars, notes), **lines}
    prices = open_prices(store, sorted({name for one in scores.values() for name in one.symbols}), bars, exchange)
    done = {}
    for number, (name, one) in enumerate(scores.items(), 1):
        began = time.perf_counter()
        done[name] = _run(store, one, bars, prices, backtest, exchange, lines[benchmark], seed)
        say(f"backtest {number} of {len(scores)}: {verdict(name, benchmark, done[name].figures)} ({time.perf_counter() - began:.1f} s)")
    return Backtests(
        signals={name: done[name] for name in chosen},
        baselines={name: done[name] for name in baselines if name in done},
        lines=lines,
        benchmark=benchmark,
        headline=HEADLINE if HEADLINE in chosen else next(iter(chosen)),
        pool=pool,
        store=store,
        backtest=backtest,
        exchange=exchange,
        notes=[*notes, *_price_notes(prices, exchange), *_year_notes(bars, exchange)],
    )


def run_backtest(
    store: Store,
    signal: pd.Series,
    backtest: BacktestSection,
    exchange: ExchangeSection,
    benchmark: pd.Series,
    *,
    name: str = "signal",
    seed: int = 100,
) -> Backtest:
    """One signal through the strategy; benchmark: its return at each bar. Raises InputError as `run_backtests`."""
    bars, notes = trading_bars(store, backtest)
    known = benchmark.reindex(bars)
    if known.isna().any():
        raise InputError(f"the benchmark has no return at {known.index[known.isna()][0]}; give one for every bar of {RANGE_KEY}")
    scores = checked_signal(store, signal, name, bars, backtest, seed)
    prices = open_prices(store, scores.symbols, bars, exchange)
    found = _run(store, scores, bars, prices, backtest, exchange, known, seed)
    found.notes.extend([*notes, *_price_notes(prices, exchange), *_year_notes(bars, exchange)])
    return found


def trading_bars(store: Store, backtest: BacktestSection) -> tuple[pd.DatetimeIndex, list[str]]:
    """The bars on which is traded, and what there is to say about them. Raises InputError for a range outside the store's calendar."""
    calendar = pd.DatetimeIndex(store.calendar, name="datetime")
    begin, end = _range(backtest.backtest_time_range)
    has = f"the store {store.path} has {store.freq} bars from {calendar[0]:%Y-%m-%d} to {calendar[-1]:%Y-%m-%d}"
    outside = pd.Timedelta(days=_HOLIDAY_DAYS)
    if begin < calendar[0].normalize() - outside or end.normalize() > calendar[-1] + outside:
        raise InputError(f"{RANGE_KEY}: {begin:%Y-%m-%d} to {end:%Y-%m-%d} leaves the calendar; {has}")
    first, last = int(calendar.searchsorted(begin)), int(calendar.searchsorted(end, side="right")) - 1
    notes = []
    if first == 0:
        first = 1
        notes.append(f"begins at the store's second bar, {calendar[1]}: before the first there is none to decide on")
    if store.future[-1] <= calendar[last]:
        last -= 1
        ahead = f"calendars/{store.freq}_future.txt"
        notes.append(f"ended one bar early, at {calendar[last]}: pyqlib needs the bar after the last one, and the store has no {ahead}")
    if last < first:
        raise InputError(f"{RANGE_KEY}: {begin:%Y-%m-%d} to {end:%Y-%m-%d} holds no bar to trade on; {has}")
    return calendar[first : last + 1], notes


def index_returns(store: Store, benchmark: str, bars: pd.DatetimeIndex, notes: list[str]) -> pd.Series:
    """Returns of a symbol of the store at `bars`, from close to close; missing closes are noted. Raises InputError naming near symbols."""
    closes = _priced(store.closes(benchmark, 'backtest.benchmark (a symbol of the store, or "equal" for the equal weight of the pool)'))
    if closes.reindex(bars).isna().all():
        raise InputError(f"backtest.benchmark: {benchmark} has no close between {bars[0]} and {bars[-1]}; choose another, or equal")
    if missing := int(closes.reindex(bars).isna().sum()):
        notes.append(f"{benchmark} lacks {missing:,} of {len(bars):,} closes: its return is 0 there")
    return closes.astype(np.float64).ffill().pct_change(fill_method=None).reindex(bars).fillna(0.0).rename(benchmark)


def equal_weight(store: Store, pool: str, bars: pd.DatetimeIndex) -> pd.Series:
    """Mean return at each bar, from close to close, of those who were members of the pool at the bar before; a suspended one returns 0."""
    members = store.members(pool)
    calendar = pd.DatetimeIndex(store.calendar)
    first, end = calendar.get_indexer([bars[0], bars[-1]])
    around = calendar[max(0, first - _MARGIN_BARS) : end + 1]
    closes = store.features(sorted(members), ["$close"], around[0], around[-1])["$close"].astype(np.float64)
    closes = _priced(closes).unstack("instrument").reindex(around).ffill()
    inside = np.zeros(closes.shape, bool)
    for column, symbol in enumerate(closes.columns):
        for start, stop in members[symbol]:
            inside[:, column] |= (around >= start) & (around <= stop)
    returns = closes.pct_change(fill_method=None).to_numpy()
    counted = np.isfinite(returns) & np.roll(inside, 1, axis=0)
    counted[0] = False
    mean = np.where(counted, returns, 0.0).sum(1) / np.maximum(counted.sum(1), 1)
    return pd.Series(mean, index=around).reindex(bars).rename("equal")


def _priced(closes: pd.Series) -> pd.Series:
    """Without closes of 0 or below, which some stores hold on suspended days: no return leads there or back."""
    return closes.where(closes > 0)


def open_prices(store: Store, symbols: Sequence[str], bars: pd.DatetimeIndex, exchange: ExchangeSection) -> Exchange:
    """Qlib's exchange with the prices of `symbols` at `bars`. Raises InputError for a deal price that the store lacks."""
    store.activate()
    from finetune.evaluation.backtest_engine import open_exchange

    price = exchange.deal_price.lstrip("$")
    if not any(store.has(symbol, price) for symbol in symbols):
        raise InputError(f"exchange.deal_price: the store {store.path} has no field {price!r}; give open, close or vwap")
    has_change = all(store.has(symbol, "change") for symbol in symbols)
    return open_exchange(store.freq, symbols, bars[0], bars[-1], exchange, has_change)


def _run(
    store: Store,
    scores: Scores,
    bars: pd.DatetimeIndex,
    prices: Exchange,
    backtest: BacktestSection,
    exchange: ExchangeSection,
    bench: pd.Series,
    seed: int,
) -> Backtest:
    store.activate()
    from finetune.evaluation.backtest_engine import simulate

    report, held = simulate(prices, scores.ranks, (bars[0], bars[-1]), backtest, exchange, bench)
    rows = [
        (when, symbol, one["amount"], one["price"], one["amount"] * one["price"], one["weight"])
        for when, position in held.items()
        for symbol in position.get_stock_list()
        for one in [position.position[symbol]]
    ]
    positions = pd.DataFrame(rows, columns=["datetime", "symbol", "amount", "price", "value", "weight"])
    figures = _figures(report, positions, backtest, exchange, seed)
    notes = list(scores.notes)
    if (most := figures["held"]["most"]) > backtest.n_symbol_hold:
        kept = "hold_thresh, a limit or a suspension keeps the symbol it replaces"
        notes.append(f"held up to {most} symbols, not {backtest.n_symbol_hold}: pyqlib buys the new symbol even where {kept}")
    if not report["turnover"].any():
        notes.append("never traded: every order was below a trade unit, or every symbol suspended or at its limit")
    lost = [symbol for symbol in held[bars[-1]].get_stock_list() if prices.check_stock_suspended(symbol, bars[-1], bars[-1])]
    if lost:
        notes.append(f"holds at the end, valued at their last close, symbols without a price then: {listed(lost)}")
    return Backtest(scores.name, report, positions, figures, notes)


def _figures(
    report: pd.DataFrame, positions: pd.DataFrame, backtest: BacktestSection, exchange: ExchangeSection, seed: int
) -> dict[str, Any]:
    block = max(1, round(backtest.hold_thresh * report.index.normalize().nunique() / len(report)))  # days
    sizes = positions.groupby("datetime").size().reindex(report.index, fill_value=0)
    figures = statistics(report, annual_days=exchange.annual_days, draws=backtest.interval_draws, seed=seed, block=block)
    return {**figures, "held": {"mean": float(sizes.mean()), "most": int(sizes.max())}}


def _chosen(signals: Mapping[str, pd.Series], name: str) -> dict[str, pd.Series]:
    if name != "all" and name not in signals:
        raise InputError(f"backtest.signal: {name!r} is not a signal; there are {listed(signals)}, and all")
    return dict(signals) if name == "all" else {name: signals[name]}


def _range(dates: Sequence[str]) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last moment of two dates, the last one's whole day included."""
    try:
        begin, end = (pd.Timestamp(one) for one in dates)
    except (ValueError, TypeError) as error:
        raise InputError(f"{RANGE_KEY}: {dates!r} is not a first and a last day; write [2024-07-01, 2025-06-05]") from error
    end = end_of(str(dates[1]), end)
    if begin > end:
        raise InputError(f"{RANGE_KEY}: {dates[0]} is later than {dates[1]}; exchange them")
    return begin, end


def _price_notes(prices: Exchange, exchange: ExchangeSection) -> list[str]:
    notes = []
    if worthless := prices.quote.worthless:
        notes.append(f"{worthless:,} bars have a close of 0 or below: the symbol is taken for suspended there")
    silent = prices.quote.silent()
    if silent and exchange.volume_threshold is None:
        notes.append(f"{silent:,} bars have a close but a volume of 0: orders are dealt there too (exchange.volume_threshold forbids it)")
    if missing := prices.quote.count("$close", prices.buy_price):
        notes.append(f"{missing:,} bars have a close but no {prices.buy_price[1:]}: whatever is dealt there is dealt at the close")
    if prices.trade_w_adj_price and exchange.trade_unit:
        notes.append(f"the store has no factor for some bars: trade units of {exchange.trade_unit} cannot be kept, amounts are fractional")
    return notes


def _year_notes(bars: pd.DatetimeIndex, exchange: ExchangeSection) -> list[str]:
    """Markets that never close have 365 days a year; by the 252 of an exchange their ratios would be told a sixth too low."""
    days = bars.normalize().unique()
    if len(days) < _ENOUGH_DAYS:
        return []
    per_year = (len(days) - 1) / ((days[-1] - days[0]) / pd.Timedelta(days=365.25))
    if abs(per_year / exchange.annual_days - 1) <= _OTHER_YEAR:
        return []
    return [f"bars lie on {per_year:.0f} days a year, and ratios are annualised by {exchange.annual_days:g} (exchange.annual_days)"]
