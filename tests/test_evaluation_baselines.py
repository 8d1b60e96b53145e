"""Baselines against their definitions written out, and that none of them looks ahead or into another stretch."""

from dataclasses import replace

import numpy as np
import pytest
from bars import make_panel
from statsmodels.tsa.ar_model import AutoReg
from worlds import LOOKBACK, make_world, origins_of

from finetune.data.panel import Panel
from finetune.evaluation.baselines import (
    ArFit,
    Autoregression,
    Drift,
    Persistence,
    SeasonalNaive,
    Volatility,
    _simulate,
    ewma_volatility,
    fit_autoregressions,
    history,
    make_baselines,
    season_length,
)

ALL = ["persistence", "drift", "seasonal_naive", "volatility_20", "volatility_60", "ar"]


@pytest.fixture(scope="module")
def origins():
    return origins_of(make_world(3, 400, 2), max_origins=20)


def past_returns(origins, i, count):
    """The last `count` log returns before origin i, slowly."""
    row = int(origins.rows[i])
    closes = origins.panel.features[row - count : row + 1, 3].astype(float)
    return np.log(closes[1:] / closes[:-1])


def log_paths(baseline, origins, index, samples=4000):
    return np.log(baseline.paths(origins, np.array(index), samples) / origins.closes[index, :1, None])


def test_persistence_is_the_last_close_for_ever(origins):
    paths = Persistence(0).paths(origins, np.arange(4), 7)
    np.testing.assert_allclose(paths, np.broadcast_to(origins.closes[:4, :1, None], paths.shape))


def test_drift_walks_with_the_mean_and_deviation_of_the_lookback(origins):
    returns = past_returns(origins, 5, LOOKBACK - 1)
    drawn = log_paths(Drift(0), origins, [5])[0]
    assert drawn[:, 3].mean() == pytest.approx(4 * returns.mean(), abs=4 * 2 * returns.std() / np.sqrt(4000))
    assert drawn[:, 3].std() == pytest.approx(2 * returns.std(ddof=1), rel=0.05)


@pytest.mark.parametrize("bars", [20, 60])
def test_volatility_draws_from_the_last_returns_without_their_mean(origins, bars):
    returns = past_returns(origins, 7, bars)
    centred = (returns - returns.mean()) * np.sqrt(bars / (bars - 1))
    first = log_paths(Volatility(0, bars), origins, [7])[0, :, 0]
    assert np.abs(first[:, None] - centred).min(1).max() < 1e-9  # each is one of them
    assert len(set(np.round(first, 12))) == bars  # and all of them come up
    assert first.std() == pytest.approx(returns.std(ddof=1), rel=0.05)


def test_seasonal_naive_replays_the_same_phase_of_earlier_seasons(origins):
    season, horizon = 3, origins.horizon
    drawn = np.diff(log_paths(SeasonalNaive(0, np.full(3, season)), origins, [4], 300)[0], axis=1, prepend=0)
    returns = past_returns(origins, 4, 120)
    replays = [[returns[len(returns) + h % season - season * (back + 1)] for h in range(horizon)] for back in range(20)]
    nearest = np.abs(drawn[:, None] - np.array(replays)).max(2)
    assert nearest.min(1).max() < 1e-9
    assert set(nearest.argmin(1)) == set(range(20))


def test_the_season_is_a_trading_day_or_a_week_read_off_the_times():
    assert season_length(make_panel(1, 200, freq="1h"), 0, 199) == 24
    assert season_length(make_panel(1, 60, freq="1D"), 0, 59) == 7
    assert season_length(make_panel(1, 60, freq="B"), 0, 59) == 5
    assert season_length(make_panel(1, 60, freq="7D"), 0, 59) == 0


def test_a_season_longer_than_the_lookback_is_left_out_and_said():
    said = []
    origins = origins_of(make_panel(1, 400, freq="5min"), lookback=20, horizon=3, max_origins=20)
    made = make_baselines(ALL, origins, 0, said.append)
    assert [one.name for one in made] == [name for name in ALL if name != "seasonal_naive"] and "left out" in said[0]


def test_the_autoregression_is_statsmodels_fitted_before_the_first_origin(origins):
    fit = fit_autoregressions(origins)[1]
    last = int(origins.rows[origins.series == 1].min())
    closes = origins.panel.features[origins.panel.offsets[1] : last + 1, 3].astype(float)
    returns = np.diff(np.log(closes))
    lags = np.flatnonzero(fit.coefficients) + 1
    fitted = AutoReg(returns, lags=list(lags) or 0).fit()
    np.testing.assert_allclose([fit.constant, *fit.coefficients[lags - 1]], fitted.params)
    assert abs(fit.residuals.std() - 1) < 0.2  # standardised


def test_without_shocks_the_simulation_is_statsmodels_own_forecast():
    rng = np.random.default_rng(0)
    returns = np.zeros(400)
    for t in range(2, 400):
        returns[t] = 0.4 * returns[t - 1] - 0.2 * returns[t - 2] + rng.normal(0.001, 0.01)
    fitted = AutoReg(returns, lags=2).fit()
    fit = ArFit(fitted.params[0], fitted.params[1:], np.zeros(1))
    steps = _simulate(fit, returns[None], np.zeros((1, 1, 6)))[0, 0]
    np.testing.assert_allclose(steps, fitted.forecast(6))


def test_the_volatility_of_late_is_its_definition():
    returns = np.random.default_rng(1).normal(size=30)
    weights = 0.94 ** np.arange(30)[::-1]
    assert ewma_volatility(returns)[-1] == pytest.approx(np.sqrt((weights * returns**2).sum() / weights.sum()))


def test_histories_stop_at_gaps_and_at_the_beginning_of_a_series(origins):
    panel = origins.panel
    row = int(origins.rows[10])
    broken = replace(panel, breaks=np.array([row - 6]))
    past = history(replace(origins, panel=broken), np.array([10]), 40)
    assert past.known[0] == 6
    np.testing.assert_allclose(past.returns[0, -6:], past_returns(origins, 10, 6), atol=1e-12)
    mean, deviation = past.moments()
    assert mean[0, 0] == pytest.approx(past_returns(origins, 10, 6).mean())
    assert deviation[0, 0] == pytest.approx(past_returns(origins, 10, 6).std(ddof=1))


@pytest.mark.filterwarnings("error")
def test_a_close_that_is_no_price_has_no_return_and_leaves_every_baseline_finite(origins):
    row, features = int(origins.rows[-1]), origins.panel.features.copy()
    features[row - 8, 3], features[row - 4, 3] = 0, -1
    holed = replace(origins, panel=replace(origins.panel, features=features))
    past = history(holed, np.array([len(origins) - 1]), 12).returns[0]
    assert (past[[3, 4, 7, 8]] == 0).all()
    np.testing.assert_allclose(np.delete(past, [3, 4, 7, 8]), np.delete(past_returns(origins, -1, 12), [3, 4, 7, 8]), atol=1e-12)
    for one in make_baselines(ALL, holed, 0, lambda _: None):
        assert np.isfinite(one.paths(holed, np.array([len(origins) - 1]), 30)).all(), one.name


def changed_after(panel: Panel, row: int) -> Panel:
    """The same panel with other prices in every series from the day after `row`."""
    features = panel.features.copy()
    features[panel.times > panel.times[row]] *= 3.7
    return replace(panel, features=features)


def test_no_baseline_looks_ahead(origins):
    for i in (int(np.flatnonzero(origins.scored)[0]), len(origins) - 1):
        other = replace(origins, panel=changed_after(origins.panel, int(origins.rows[i])))
        pairs = (make_baselines(ALL, each, 0, lambda _: None) for each in (origins, other))
        for one, same in zip(*pairs, strict=True):
            np.testing.assert_array_equal(
                one.paths(origins, np.array([i]), 30), same.paths(other, np.array([i]), 30), err_msg=f"{one.name} at {i}"
            )


def test_the_same_seed_draws_the_same_paths_alone_and_in_company(origins):
    for one in make_baselines(ALL, origins, 0, lambda _: None):
        alone, together = one.paths(origins, np.array([9]), 50), one.paths(origins, np.arange(20), 50)
        np.testing.assert_array_equal(alone[0], together[9], err_msg=one.name)
    assert not np.array_equal(Drift(0).paths(origins, np.array([9]), 50), Drift(1).paths(origins, np.array([9]), 50))


def test_an_autoregression_of_too_few_bars_is_white_noise_of_late_volatility():
    origins = origins_of(make_world(1, 150), lookback=10, horizon=3)
    fit = fit_autoregressions(origins)[0]
    assert fit.constant == 0 and len(fit.coefficients) == 0
    assert np.isfinite(Autoregression(0, {0: fit}).paths(origins, np.arange(5), 20)).all()
