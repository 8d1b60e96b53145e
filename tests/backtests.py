"""What tests of backtests share: sections of a configuration, and signals over the small store of `qlib_bars`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd

FREE = dict(open_cost=0.0, close_cost=0.0, min_cost=0.0)
LAST = "2021-12-03"  # of the small store


def sizes(**changes):
    section = dict(
        backtest_time_range=["2021-02-01", LAST], n_symbol_hold=3, n_symbol_drop=1, hold_thresh=1, benchmark="equal", signal="all"
    )
    return SimpleNamespace(**{**section, "interval_draws": 400, **changes})


def rules(**changes):
    costs = dict(open_cost=0.001, close_cost=0.0015, min_cost=5.0, impact_cost=0.0)
    section = dict(
        account=1e6, deal_price="open", limit_threshold=None, trade_unit=0, volume_threshold=None, risk_degree=0.95, annual_days=252
    )
    return SimpleNamespace(**{**section, **costs, **changes})


def wide(store, field):
    members = sorted(store.members("all"))
    return store.features(members, [field], store.calendar[0], store.calendar[-1])[field].unstack("instrument").astype(float)


def as_signal(table):
    return table.stack().dropna().rename_axis(["datetime", "instrument"])


def noise(store, seed=3):
    closes = wide(store, "$close")
    values = np.random.default_rng(seed).normal(size=closes.shape)
    return as_signal(pd.DataFrame(values, closes.index, closes.columns).where(closes.notna()))


def flat(store):
    return pd.Series(0.0, pd.DatetimeIndex(store.calendar))
