"""What a user gets wrong about a backtest is refused in one message, before anything is traded."""

from __future__ import annotations

import pandas as pd
import pytest
from backtests import LAST, flat, noise, rules, sizes
from qlib_bars import DAYS, small_store

from finetune.data.qlib_store import open_store
from finetune.evaluation.backtest import run_backtest, run_backtests, trading_bars
from kronos.errors import InputError


@pytest.fixture(scope="module")
def store():
    return open_store(small_store())


WRONG = {
    "hold": (
        dict(n_symbol_hold=30),
        "ranks 11 symbols at 2021-01-29 00:00:00, the first bar traded on, and backtest.n_symbol_hold is 30; hold at most 11",
    ),
    "drop": (dict(n_symbol_drop=4), "n_symbol_hold 3 with backtest.n_symbol_drop 4"),
    "benchmark": (dict(benchmark="SH60000"), "no day bars of 'SH60000'; the nearest are SH600005"),
    "signal": (dict(signal="max"), "'max' is not a signal; there are mean, and all"),
    "outside": (dict(backtest_time_range=["2021-02-01", "2022-06-01"]), "leaves the calendar; the store"),
    "order": (dict(backtest_time_range=["2021-03-01", "2021-02-01"]), "2021-03-01 is later than 2021-02-01"),
    "dates": (dict(backtest_time_range=["yesterday", "2021-02-31"]), "not a first and a last day"),
    "weekend": (dict(backtest_time_range=["2021-02-06", "2021-02-07"]), "holds no bar to trade on"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_settings_are_refused_in_one_message_with_the_fix(store, wrong):
    changes, told = WRONG[wrong]
    with pytest.raises(InputError) as error:
        run_backtests(store, {"mean": noise(store)}, sizes(**changes), rules())
    assert told in str(error.value) and "\n" not in str(error.value)


def without(signal, first, last):
    return signal[(signal.index.get_level_values(0) >= first) & (signal.index.get_level_values(0) <= last)]


BAD_SIGNALS = {
    "nan": (lambda s: s.where(s.index != s.index[5]), "1 values are not finite, the first at"),
    "constant": (lambda s: s * 0 + 7, "ranks nothing: at every bar all its values are equal (7)"),
    "twice": (lambda s: pd.concat([s, s.iloc[:1]]), "two values at"),
    "names": (lambda s: s.rename_axis(["day", "instrument"]), "must have the levels datetime and instrument, not ['day', 'instrument']"),
    "strange": (lambda s: s.rename({"SH600000": "SH999999"}), "has no day bars of SH999999"),
    "hours": (lambda s: s.rename({s.index[0][0]: pd.Timestamp("2021-01-04 09:00")}), "2021-01-04 09:00:00 is no day bar"),
    "late": (lambda s: without(s, "2021-03-01", LAST), 'set backtest.backtest_time_range to ["2021-03-02", "2021-12-03"]'),
    "early": (lambda s: without(s, "2021-01-04", "2021-06-01"), 'set backtest.backtest_time_range to ["2021-02-01", "2021-06-02"]'),
    "none": (
        lambda s: without(s, "2021-01-04", "2021-01-08"),
        "it has values from 2021-01-04 00:00:00 to 2021-01-08 00:00:00; forecast that range",
    ),
}


@pytest.mark.parametrize("bad", BAD_SIGNALS)
def test_a_signal_that_pyqlib_would_trade_on_without_a_word_is_refused(store, bad):
    change, told = BAD_SIGNALS[bad]
    with pytest.raises(InputError) as error:
        run_backtest(store, change(noise(store)), sizes(), rules(), flat(store), name="mean")
    assert told in str(error.value) and str(error.value).startswith("signal 'mean'")


def test_a_deal_price_that_the_store_lacks_is_refused(store):
    with pytest.raises(InputError, match=r"exchange\.deal_price: the store .* has no field 'vwap'; give open, close or vwap"):
        run_backtest(store, noise(store), sizes(), rules(deal_price="vwap"), flat(store))


def test_the_bars_of_a_range_are_those_of_its_days(store):
    bars, notes = trading_bars(store, sizes(backtest_time_range=["2021-01-01", "2021-12-05"]))
    assert len(bars) == DAYS - 1 and bars[-1] == pd.Timestamp(LAST)  # weekends around the store are inside it
    assert notes == ["begins at the store's second bar, 2021-01-05 00:00:00: before the first there is none to decide on"]
