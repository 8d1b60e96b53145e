"""Signals are what they say, know nothing of later bars, and their scores find foresight perfect and luck to be luck."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from bars import make_panel
from scipy.stats import spearmanr

from finetune.data.panel import Panel
from finetune.evaluation.day_forecasts import DayForecasts
from finetune.evaluation.days import clock_of
from finetune.evaluation.signal_scores import score_signal, score_signals
from finetune.evaluation.signals import LEAST_SPREAD, NAMES, momentum, reversal, signals
from kronos.errors import InputError

N_SYMBOLS, N_DAYS = 30, 80


def changed(panel, **arrays):
    names = ("features", "stamps", "times", "offsets", "series", "origin", "breaks")
    return Panel.build(**{**{name: getattr(panel, name) for name in names}, **arrays})


@pytest.fixture(scope="module")
def panel():
    return make_panel(N_SYMBOLS, N_DAYS, freq="B")


@pytest.fixture(scope="module")
def opens(panel):
    """[days, symbols]"""
    return panel.features[:, 0].astype(float).reshape(N_SYMBOLS, N_DAYS).T


def as_signal(panel, values):
    """Values [days, symbols] as a signal, without NaN."""
    wide = pd.DataFrame(values, clock_of(panel, np.arange(N_DAYS)), [info.symbol for info in panel.series])
    return wide.rename_axis("datetime").rename_axis(columns="instrument").stack().dropna()


def foresight(panel, opens, bars):
    return as_signal(panel, pd.DataFrame(opens).shift(-1 - bars).to_numpy() / pd.DataFrame(opens).shift(-1).to_numpy() - 1)


def forecasts(closes, last=10.0, symbols=None, days=None):
    closes = np.asarray(closes, np.float32)
    count = len(closes)
    symbols = np.array(symbols or [f"S{i}" for i in range(count)])
    days = np.full(count, "2024-01-02", "datetime64[ns]") if days is None else np.array(days, "datetime64[ns]")
    return DayForecasts(days, symbols, np.full(count, last), closes, np.arange(count))


def test_each_signal_is_what_its_name_says():
    paths = [[[11, 12], [9, 9], [10, 10], [10, 12], [10, 11]]]  # one forecast, five samples, two bars, from a close of 10
    found = {name: series.iloc[0] for name, series in signals(forecasts(paths)).items()}
    end = np.array([12, 9, 10, 12, 11]) / 10 - 1
    assert found == pytest.approx(
        {
            "last": 0.08,
            "mean": 0.04,
            "max": 0.08,
            "min": 0.0,
            "median": 0.1,
            "prob_up": 0.7,  # three of five above, one equal
            "risk_adjusted": 0.08 / np.hypot(end.std(), LEAST_SPREAD),
        },
        abs=1e-7,
    )


def test_an_unchanged_close_counts_half_where_its_price_is_not_a_float64():
    assert signals(forecasts([[[0.1], [0.2]]], last=float(np.float32(0.1))))["prob_up"].iloc[0] == 0.75


def test_a_spread_of_zero_is_finite_and_ranks_as_the_forecast_itself():
    found = signals(forecasts([[[12.0]] * 3, [[11.0]] * 3, [[9.0]] * 3]))
    assert np.isfinite(found["risk_adjusted"]).all()
    assert np.array_equal(found["risk_adjusted"].rank(), found["last"].rank())
    assert np.isfinite(signals(forecasts([[[12.0]]]))["risk_adjusted"]).all(), "one sample has no spread"


def test_a_price_level_ranks_nothing():
    cheap, dear = forecasts([[[1.1, 1.2]]], 1.0), forecasts([[[1100, 1200]]], 1000.0)
    for name in NAMES:
        assert signals(cheap)[name].iloc[0] == pytest.approx(signals(dear)[name].iloc[0], rel=1e-5), name


def test_signals_are_sorted_by_day_then_instrument_and_hold_no_nan():
    days = ["2024-01-03", "2024-01-02", "2024-01-03", "2024-01-02"]
    found = signals(forecasts([[[4]], [[3]], [[2]], [[1]]], 1.0, ["B", "B", "A", "A"], days))
    for series in found.values():
        assert series.index.names == ["datetime", "instrument"] and series.index.is_monotonic_increasing
        assert series.notna().all() and series.dtype == np.float64
    assert found["last"].tolist() == [0, 2, 1, 3]
    assert found["last"][pd.Timestamp("2024-01-03"), "B"] == 3


def test_momentum_and_reversal_are_past_returns(panel):
    close = panel.features[:, 3].astype(float).reshape(N_SYMBOLS, N_DAYS).T
    rise, fall = momentum(panel), reversal(panel)
    assert len(rise) == N_SYMBOLS * (N_DAYS - 20) and len(fall) == N_SYMBOLS * (N_DAYS - 5)
    day = clock_of(panel, np.arange(N_DAYS))[50]
    assert rise[day, "S07"] == pytest.approx(close[50, 7] / close[30, 7] - 1)
    assert fall[day, "S07"] == pytest.approx(1 - close[50, 7] / close[45, 7])


def test_past_returns_stop_at_a_gap_and_may_be_asked_of_some_rows_only(panel):
    gap = changed(panel, breaks=[40])
    assert momentum(gap, rows=np.array([200, 39, 59, 60, 10])).index.get_level_values(1).tolist() == ["S00", "S02", "S00"]


@pytest.mark.parametrize("signal", [momentum, reversal])
def test_past_returns_know_nothing_of_later_bars(panel, signal):
    noise = np.random.default_rng(0).uniform(1, 100, panel.features.shape).astype(np.float32)
    later = np.tile(np.arange(N_DAYS) > 50, N_SYMBOLS)
    blind = changed(panel, features=np.where(later[:, None], noise, panel.features))
    day = clock_of(panel, np.arange(N_DAYS))[50]
    told, blinded = signal(panel), signal(blind)
    assert told[:day].equals(blinded[:day]) and not told.equals(blinded)


@pytest.mark.parametrize("bars", [1, 5])
def test_a_perfect_signal_has_an_ic_of_one(panel, opens, bars):
    found = score_signal(foresight(panel, opens, bars), panel, 5)
    assert set(found) == {1, 5}
    one = found[bars]
    assert one.days == N_DAYS - 1 - bars and one.symbols == N_SYMBOLS
    assert one.ic.value == pytest.approx(1) and one.rank_ic.value == pytest.approx(1)
    assert one.positive_days == 1 and one.hit_rate.value == 1
    assert len(one.groups) == 10 and np.array_equal(one.groups, np.sort(one.groups)) and one.spread.low > 0


def test_a_random_signal_has_an_ic_of_about_nothing(panel):
    noise = as_signal(panel, np.random.default_rng(5).normal(size=(N_DAYS, N_SYMBOLS)))
    for one in score_signal(noise, panel, 5).values():
        for value, chance in ((one.ic, 0), (one.rank_ic, 0), (one.icir, 0), (one.spread, 0), (one.hit_rate, 0.5)):
            assert value.low < chance < value.high
        assert abs(one.ic.value) < 0.06 and 0.8 < one.turnover < 1


def test_a_reversed_signal_has_the_opposite_scores(panel, opens):
    signal = foresight(panel, opens, 1) + as_signal(panel, np.random.default_rng(0).normal(0, 0.02, (N_DAYS, N_SYMBOLS)))
    up, down = (score_signal(one.dropna(), panel, 5)[1] for one in (signal, -signal))
    for name in ("ic", "rank_ic", "icir", "spread"):
        assert getattr(up, name).value == pytest.approx(-getattr(down, name).value)
    assert up.groups == pytest.approx(down.groups[::-1])


def test_the_daily_values_are_those_of_other_programs(panel, opens):
    from qlib.contrib.eva.alpha import calc_ic

    signal = foresight(panel, opens, 1) + as_signal(panel, np.random.default_rng(0).normal(0, 0.02, (N_DAYS, N_SYMBOLS)))
    one = score_signal(signal.dropna(), panel, 5)[1]
    values, returns = signal.unstack().to_numpy()[7], opens[9] / opens[8] - 1
    row = one.daily.iloc[7]
    assert row["ic"] == pytest.approx(np.corrcoef(values, returns)[0, 1])
    assert row["rank_ic"] == pytest.approx(spearmanr(values, returns).statistic)
    order = np.argsort(values)
    assert row["spread"] == pytest.approx(returns[order[-3:]].mean() - returns[order[:3]].mean())
    earned = as_signal(panel, pd.DataFrame(opens).shift(-2).to_numpy() / pd.DataFrame(opens).shift(-1).to_numpy() - 1)
    for of_days, ratio, theirs in zip(
        (one.daily["ic"], one.daily["rank_ic"]), (one.icir, one.rank_icir), calc_ic(signal, earned), strict=True
    ):
        assert of_days.to_numpy() == pytest.approx(theirs.dropna().to_numpy())
        assert ratio.value == pytest.approx(theirs.mean() / theirs.std())  # as pyqlib's SigAnaRecord
    assert one.ic.low < one.ic.value < one.ic.high


def test_days_on_which_no_price_moves_count_neither_as_hits_nor_as_misses(panel, opens):
    features = panel.features.copy().reshape(N_SYMBOLS, N_DAYS, -1)
    features[:, 30:33, 0] = features[:, 29:30, 0]  # a holiday that was filled with the last prices
    still = changed(panel, features=features.reshape(len(panel.features), -1))
    signal = foresight(still, features[:, :, 0].T.astype(float), 1)
    noise = as_signal(panel, np.random.default_rng(5).normal(size=(N_DAYS, N_SYMBOLS)))
    one, luck = score_signal(signal, still, 5)[1], score_signal(noise, still, 5)[1]
    assert one.hit_rate.value == 1 and one.rank_ic.value == pytest.approx(1)
    assert luck.days == N_DAYS - 2 and luck.daily["rank_ic"].isna().sum() == 3 and luck.hit_rate.low < 0.5 < luck.hit_rate.high


def test_the_return_is_from_the_next_open_not_from_the_close_that_is_forecast_from(panel, opens):
    gone = as_signal(panel, pd.DataFrame(opens).shift(-1).to_numpy() / opens - 1)  # what is over when one can buy
    assert abs(score_signal(gone, panel, 5)[1].ic.value) < 0.06


def test_turnover_of_a_constant_signal_is_nothing_and_of_one_that_flips_everything(panel):
    kept = np.tile(np.arange(N_SYMBOLS, dtype=float), (N_DAYS, 1))
    assert score_signal(as_signal(panel, kept), panel, 5)[1].turnover == 0
    flips = np.where(np.arange(N_DAYS)[:, None] % 2, kept, -kept)
    assert score_signal(as_signal(panel, flips), panel, 5)[1].turnover == pytest.approx(1)


def test_one_of_three_changed_is_a_turnover_of_a_third(panel):
    kept = np.tile(np.arange(N_SYMBOLS, dtype=float), (N_DAYS, 1))
    kept[np.arange(N_DAYS), np.arange(N_DAYS) % 2] = 100
    kept[:, 27] = 0.5
    found = score_signal(as_signal(panel, kept), panel, 5)[1]
    assert found.turnover == pytest.approx(1 / 3)


def test_equal_signals_share_the_groups_and_rank_nobody(panel):
    one = score_signal(as_signal(panel, np.ones((N_DAYS, N_SYMBOLS))), panel, 5)[1]
    assert np.isnan(one.ic.value) and np.isnan(one.icir.value)
    assert one.spread.value == pytest.approx(0) and one.turnover == pytest.approx(0) and one.hit_rate.value == 0.5
    assert np.ptp(one.groups) == pytest.approx(0)


def test_days_with_fewer_than_ten_symbols_are_not_scored(panel, opens):
    signal = foresight(panel, opens, 1).unstack()
    signal.iloc[10, 9:] = np.nan
    signal.iloc[11, 10:] = np.nan
    one = score_signal(signal.stack().dropna(), panel, 5)[1]
    days = set(one.daily.index)
    assert signal.index[10] not in days and signal.index[11] in days
    few = score_signal(signal.iloc[:, :9].stack().dropna(), panel, 5)[1]
    assert few.days == 0 and np.isnan(few.ic.value) and few.groups == []
    assert few.table()["rank_ic"]["value"] != few.table()["rank_ic"]["value"]


def test_fewer_symbols_make_fewer_groups(panel, opens):
    signal = foresight(panel, opens, 1).unstack().iloc[:, :12].stack().dropna()
    assert len(score_signal(signal, panel, 5)[1].groups) == 4


def test_intervals_of_few_days_are_not_told(panel, opens):
    signal = foresight(panel, opens, 1)
    early = signal[signal.index.get_level_values(0) < clock_of(panel, np.arange(N_DAYS))[12]]
    found = score_signal(early, panel, 5)
    assert np.isnan(found[5].ic.low) and np.isfinite(found[5].ic.value), "12 days hold hardly one block of 10"
    assert found[1].ic.low == pytest.approx(1)


def test_a_symbol_that_does_not_trade_the_next_day_is_not_scored_and_one_that_stops_later_is_sold_when_it_trades_again(panel):
    days, series = np.tile(np.arange(N_DAYS), N_SYMBOLS), np.repeat(np.arange(N_SYMBOLS), N_DAYS)
    keep = (series != 4) | (days < 21) | (days > 24)
    arrays = {name: getattr(panel, name)[keep] for name in ("features", "stamps", "times", "origin")}
    paused = changed(panel, **arrays, offsets=np.concatenate([[0], np.cumsum(np.bincount(series[keep]))]))
    opens = panel.features[:, 0].astype(float).reshape(N_SYMBOLS, N_DAYS).T
    opens[21:25, 4] = np.nan
    values = np.where(np.arange(N_SYMBOLS) == 4, 1.0, np.zeros((N_DAYS, 1)))  # the highest group is this symbol and others of the rest
    one = score_signal(as_signal(panel, values), paused, 5)[1]
    ic = one.daily["ic"].to_numpy()
    assert np.isnan(ic[20:24]).all(), "without it all signals are equal"
    returns = opens[25] / opens[20] - 1
    returns[np.arange(N_SYMBOLS) != 4] = (opens[21] / opens[20] - 1)[np.arange(N_SYMBOLS) != 4]
    assert ic[19] == pytest.approx(np.corrcoef(values[19], returns)[0, 1])


def test_a_symbol_that_leaves_the_market_is_scored_to_its_end_sold_at_its_last_close(panel, opens):
    days, series = np.tile(np.arange(N_DAYS), N_SYMBOLS), np.repeat(np.arange(N_SYMBOLS), N_DAYS)
    keep = (series != 4) | (days <= 40)
    features = panel.features.copy()
    features[4 * N_DAYS + 40, 3] = ruin = 0.1  # its last close
    arrays = {name: getattr(panel, name)[keep] for name in ("stamps", "times", "origin")}
    gone = changed(panel, features=features[keep], **arrays, offsets=np.concatenate([[0], np.cumsum(np.bincount(series[keep]))]))
    values = np.where(np.arange(N_SYMBOLS) == 4, 1.0, np.zeros((N_DAYS, 1)))
    found = score_signal(as_signal(panel, values), gone, 5)
    for bars in (1, 5):
        ic = found[bars].daily["ic"].to_numpy()
        for day in (39, 40 - bars):  # bought on its last day, and the first day whose sale finds it gone
            returns = opens[day + 1 + bars] / opens[day + 1] - 1
            returns[4] = np.float32(ruin) / opens[day + 1, 4] - 1
            assert ic[day] == pytest.approx(np.corrcoef(values[day], returns)[0, 1])
        assert np.isnan(ic[40:]).all(), "on its last day it can no longer be bought"
        assert found[bars].days == N_DAYS - 1 - bars


def test_all_signals_are_scored_together_with_the_same_draws(panel, opens):
    signal = foresight(panel, opens, 1) + as_signal(panel, np.random.default_rng(0).normal(0, 0.02, (N_DAYS, N_SYMBOLS)))
    signal = signal.dropna()
    both = score_signals({"a": signal, "b": 2 * signal}, panel, 5)
    assert both["a"][5].rank_ic == both["b"][5].rank_ic and dataclasses.asdict(both["a"][1].ic) == pytest.approx(vars(both["b"][1].ic))
    assert {"bars", "days", "ic", "rank_icir", "groups", "turnover"} <= both["a"][1].table().keys()


def test_a_signal_of_other_instruments_is_refused(panel, opens):
    signal = foresight(panel, opens, 1).rename(index=lambda name: f"X{name}", level=1)
    with pytest.raises(InputError, match="signal odd: none of its days and instruments is in the panel"):
        score_signals({"odd": signal}, panel, 5)
    with pytest.raises(InputError, match="signal momentum_80: none of its days"):
        score_signals({"momentum_80": momentum(panel, 80), "good": foresight(panel, opens, 1)}, panel, 5)


def test_a_signal_of_two_values_at_one_place_or_of_none_that_is_a_number_is_refused(panel, opens):
    signal = foresight(panel, opens, 1)
    with pytest.raises(InputError, match="signal 'odd': two values at"):
        score_signals({"odd": pd.concat([signal, signal.iloc[:1]])}, panel, 5)
    with pytest.raises(InputError, match="signal 'odd': 1 values are not finite"):
        score_signals({"odd": signal.where(signal.index != signal.index[3], np.inf)}, panel, 5)
