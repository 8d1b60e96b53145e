"""pyqlib's backtest as it is run here: its exchange, strategy, executor and account, with parts of ours where it lets one put them.

Imported by `backtest` where a backtest begins, so that everything else works without pyqlib. What is exchanged, and why:
quotes lie in arrays (Qlib builds an index object per price asked for); the signal of a bar is looked up, not resampled; positions list
their symbols in order (Qlib's come out of a set: sums and ties then depend on Python's hash seed, and no two runs agree to the last digit).
A test runs the unchanged pyqlib beside it and expects the same report.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.qlib_store import quietly

with quietly():
    from qlib.backtest import get_strategy_executor
    from qlib.backtest.exchange import Exchange
    from qlib.backtest.executor import SimulatorExecutor
    from qlib.backtest.high_performance_ds import BaseQuote
    from qlib.backtest.position import Position
    from qlib.backtest.signal import Signal
    from qlib.contrib.strategy import TopkDropoutStrategy

_NO_PRICE = 1e-8  # Qlib deals at the close where its deal price is no more than this
_NEXT_TO_NOTHING = 1e-12  # Qlib divides by the cost of buying when cash is short: a rate of 0 would end the run


class ArrayQuote(BaseQuote):
    """Qlib's quotes as one float64 array [symbols, bars, fields]. One question is about one bar, as an executor of the data's own
    frequency asks; a bar that a symbol does not have is NaN, which Qlib takes for suspended. So is one with a close of 0 or below (some
    stores hold suspended days so), at which Qlib would value what is held. worthless: how many those are.
    """

    def __init__(self, quote_df: pd.DataFrame, freq: str) -> None:
        # not super().__init__: it raises the log level and prints on the terminal
        symbols, self._columns = quote_df.index.get_level_values("instrument"), {name: k for k, name in enumerate(quote_df.columns)}
        row, names = pd.factorize(symbols)
        self._times = np.unique(quote_df.index.get_level_values("datetime").to_numpy("datetime64[ns]"))
        bar = np.searchsorted(self._times, quote_df.index.get_level_values("datetime").to_numpy("datetime64[ns]"))
        self._rows = {name: number for number, name in enumerate(names)}
        self._table = np.full((len(names), len(self._times), len(self._columns)), np.nan)
        self._table[row, bar] = quote_df.to_numpy(np.float64)
        none = self._table[:, :, self._columns["$close"]] <= 0
        self._table[none], self.worthless = np.nan, int(none.sum())
        self._bars: dict[pd.Timestamp, int | None] = {}

    def get_all_stock(self) -> Mapping[str, int]:
        return self._rows

    def get_data(self, stock_id: str, start_time: Any, end_time: Any, field: str, method: str | None = None) -> float | None:
        if start_time not in self._bars:
            first, end = np.searchsorted(self._times, np.array([start_time, end_time], "datetime64[ns]"), side="left")
            assert end - first <= 1, f"{start_time} to {end_time} holds {end - first} bars"
            self._bars[start_time] = int(first) if end > first else None
        bar, row = self._bars[start_time], self._rows.get(stock_id)
        if bar is None or row is None:
            return None
        value = float(self._table[row, bar, self._columns[field]])
        return 0.0 if method == "sum" and value != value else value

    def count(self, present: str, missing: str) -> int:
        """How many bars have one field and lack the other, a price."""
        seen, lacking = (self._table[:, :, self._columns[name]] for name in (present, missing))
        return int((np.isfinite(seen) & ~(lacking > _NO_PRICE)).sum())

    def silent(self) -> int:
        """How many bars have a close and a volume of 0."""
        close, volume = (self._table[:, :, self._columns[name]] for name in ("$close", "$volume"))
        return int((np.isfinite(close) & (volume == 0)).sum())


class OrderedPosition(Position):
    """A position that lists its symbols in alphabetical order, and is copied without copying its numbers one by one."""

    def get_stock_list(self) -> list[str]:
        return sorted(super().get_stock_list())

    def __deepcopy__(self, memo: dict[int, Any]) -> OrderedPosition:
        other = copy.copy(self)
        other.position = {name: dict(held) if isinstance(held, dict) else held for name, held in self.position.items()}
        return other


class BarSignal(Signal):
    """Scores by the bar after whose close they were known."""

    def __init__(self, scores: Mapping[pd.Timestamp, pd.Series]):
        self._scores = scores

    def get_signal(self, start_time: pd.Timestamp, end_time: pd.Timestamp) -> pd.Series | None:
        return self._scores.get(start_time)


def open_exchange(freq: str, symbols: Sequence[str], first: pd.Timestamp, last: pd.Timestamp, rules: Any, has_change: bool) -> Exchange:
    """Qlib's exchange over the bars from `first` to `last`, to be shared by every signal: reading the quotes takes longer than trading.

    has_change: whether the store has $change; without it Qlib's limit would silently never apply, so it is put as an expression.
    """
    limit = rules.limit_threshold
    if limit is None:
        limit = float("inf")  # None would mean Qlib's own .095
    elif not has_change:
        change = "$close/Ref($close,1)-1"
        limit = (f"{change}>={limit!r}", f"{change}<={-limit!r}")
    share = rules.volume_threshold
    return Exchange(
        freq=freq,
        start_time=first,
        end_time=last,
        codes=list(symbols),
        deal_price=rules.deal_price,
        limit_threshold=limit if isinstance(limit, tuple) else float(limit),
        volume_threshold=None if share is None else ("current", f"{share!r}*$volume"),
        open_cost=max(rules.open_cost, _NEXT_TO_NOTHING),
        close_cost=rules.close_cost,
        min_cost=rules.min_cost,
        impact_cost=rules.impact_cost,
        trade_unit=rules.trade_unit or None,
        quote_cls=ArrayQuote,
    )


def simulate(
    exchange: Exchange,
    scores: Mapping[pd.Timestamp, pd.Series],
    bars: tuple[pd.Timestamp, pd.Timestamp],
    sizes: Any,
    rules: Any,
    bench: Any,
) -> tuple[pd.DataFrame, dict[pd.Timestamp, Position]]:
    """Qlib's report (one row a bar) and positions of TopkDropoutStrategy, over `bars` (first and last, inclusive).

    scores: by the bar at whose close they are known; they are traded at the next bar's price. `sizes` is the backtest section, `rules` the
    exchange section, `bench` a Series of returns.
    """
    strategy = TopkDropoutStrategy(
        topk=sizes.n_symbol_hold,
        n_drop=sizes.n_symbol_drop,
        hold_thresh=sizes.hold_thresh,
        signal=BarSignal(scores),
        risk_degree=rules.risk_degree,
    )
    executor = SimulatorExecutor(time_per_step=exchange.freq, generate_portfolio_metrics=True)
    strategy, executor = get_strategy_executor(
        *bars, strategy, executor, bench, float(rules.account), {"exchange": exchange}, pos_type=OrderedPosition
    )
    executor.reset(start_time=bars[0], end_time=bars[1])
    strategy.reset(level_infra=executor.get_level_infra())
    done = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Qlib takes the mean of no orders on quiet bars
        while not executor.finished():  # as qlib.backtest.backtest_loop, without its progress bar
            done = executor.execute(strategy.generate_trade_decision(done))
            strategy.post_exe_step(done)
    strategy.post_upper_level_exe_step()
    return executor.trade_account.get_portfolio_metrics()
