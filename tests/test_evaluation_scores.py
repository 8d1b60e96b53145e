"""Every score against its definition written out slowly, or against the library that everybody knows."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from finetune.evaluation.scores import (
    LEVELS,
    brier,
    correlation,
    direction_hits,
    fair_crps,
    path_quantiles,
    pinball,
    r_squared,
    randomised_pit,
    rank_correlation,
    realised_volatility,
)
from finetune.evaluation.tables import ic_table


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def literal_fair_crps(members, outcome):
    """Ferro 2014, equation 3, term by term."""
    m = len(members)
    spread = sum(abs(a - b) for a in members for b in members)
    return sum(abs(a - outcome) for a in members) / m - spread / (2 * m * (m - 1))


def test_fair_crps_is_its_definition(rng):
    paths, outcome = np.sort(rng.normal(size=(6, 3, 9)), axis=-1), rng.normal(size=(6, 3))
    slow = [[literal_fair_crps(paths[i, j], outcome[i, j]) for j in range(3)] for i in range(6)]
    np.testing.assert_allclose(fair_crps(paths, outcome), slow, rtol=1e-12)


def test_fair_crps_keeps_its_digits_for_huge_prices(rng):
    paths, outcome = np.sort(rng.normal(size=(4, 50)), axis=-1), rng.normal(size=4)
    np.testing.assert_allclose(fair_crps(paths + 1e8, outcome + 1e8), fair_crps(paths, outcome), rtol=1e-6)


def test_fair_crps_has_the_expectation_of_the_true_distribution_for_few_members_as_for_many(rng):
    """For a standard normal forecast and outcome y it is y (2 Φ(y) - 1) + 2 φ(y) - 1/√π (Gneiting and Raftery 2007, eq. 21)."""
    y = 0.7
    exact = y * (2 * scipy.stats.norm.cdf(y) - 1) + 2 * scipy.stats.norm.pdf(y) - 1 / np.sqrt(np.pi)
    for members in (2, 5, 100):
        drawn = fair_crps(np.sort(rng.normal(size=(200_000 // members, members)), axis=-1), np.full(200_000 // members, y))
        assert abs(drawn.mean() - exact) < 4 * drawn.std() / np.sqrt(len(drawn)), members


def test_the_crps_of_one_repeated_number_is_its_absolute_error(rng):
    assert fair_crps(np.full((1, 100), 3.0), np.array([5.5])) == pytest.approx(2.5)


def test_pinball_is_its_definition_and_least_at_the_quantile(rng):
    for level in LEVELS:
        for q, y in ((1.0, 3.0), (3.0, 1.0), (2.0, 2.0)):
            assert pinball(np.array(q), np.array(y), level) == pytest.approx((level - (y < q)) * (y - q))
    sample, grid = rng.normal(size=20_000), np.linspace(-2, 2, 81)
    losses = [pinball(q, sample, 0.9).mean() for q in grid]
    assert abs(grid[int(np.argmin(losses))] - scipy.stats.norm.ppf(0.9)) < 0.08


@pytest.mark.parametrize("members", [2, 5, 19, 100])
def test_quantiles_are_weibulls(rng, members):
    paths = np.sort(rng.normal(size=(7, members)), axis=-1)
    np.testing.assert_allclose(path_quantiles(paths), np.quantile(paths, LEVELS, axis=-1, method="weibull").T, rtol=1e-12)


def test_the_band_of_a_perfect_forecaster_covers_what_it_claims_with_100_paths_and_too_little_with_5(rng):
    outcome = rng.normal(size=40_000)
    covered = {}
    for members in (5, 100):
        band = path_quantiles(np.sort(rng.normal(size=(40_000, members)), axis=-1), (0.05, 0.95))
        covered[members] = ((band[:, 0] <= outcome) & (outcome <= band[:, 1])).mean()
    assert abs(covered[100] - 0.9) < 0.007
    assert covered[5] < 0.7  # 4 / 6: no rank rule reaches further than the outermost paths


def test_pit_is_its_definition(rng):
    paths, outcome, v = rng.integers(0, 4, (50, 6)).astype(float), rng.integers(0, 4, 50).astype(float), rng.random(50)
    slow = []
    for i in range(50):
        below, equal = sum(x < outcome[i] for x in paths[i]), sum(x == outcome[i] for x in paths[i])
        slow.append(below / 7 + v[i] * (equal + 1) / 7)
    np.testing.assert_allclose(randomised_pit(paths, outcome, v), slow)


def test_pit_of_a_perfect_forecaster_is_flat_with_ties_and_with_few_members(rng):
    n = 40_000
    for draw in (lambda *shape: rng.normal(size=shape), lambda *shape: rng.integers(0, 3, shape).astype(float)):
        pit = randomised_pit(draw(n, 4), draw(n), rng.random(n))
        assert scipy.stats.kstest(pit, "uniform").pvalue > 0.01


def test_realised_volatility_is_the_root_of_summed_squared_steps():
    closes = np.array([100.0, 101.0, 99.0, 104.0])
    slow = sum(np.log(closes[i] / closes[i - 1]) ** 2 for i in (1, 2, 3)) ** 0.5
    assert realised_volatility(np.log(closes[1:] / closes[0])) == pytest.approx(slow)


def test_r_squared_is_one_for_the_truth_and_zero_for_its_mean(rng):
    outcome = rng.normal(size=100)
    assert r_squared(outcome, outcome) == 1
    assert r_squared(np.full(100, outcome.mean()), outcome) == pytest.approx(0, abs=1e-12)
    assert np.isnan(r_squared(outcome, np.ones(100)))


def test_correlations_are_those_of_scipy_and_pass_over_what_is_missing(rng):
    a, b = rng.normal(size=(5, 30)), rng.normal(size=(5, 30))
    b[:, ::4] = a[:, ::4]
    b[2, 7], a[3, 1] = np.nan, np.nan
    a[4, 5:9] = a[4, 5]  # ties
    for i in range(5):
        known = ~(np.isnan(a[i]) | np.isnan(b[i]))
        assert correlation(a, b)[i] == pytest.approx(scipy.stats.pearsonr(a[i][known], b[i][known]).statistic)
        assert rank_correlation(a, b)[i] == pytest.approx(scipy.stats.spearmanr(a[i][known], b[i][known]).statistic)


def test_a_constant_forecast_has_no_correlation_whatever_rounding_makes_of_it(rng):
    outcome = rng.normal(size=50)
    for constant in (0.0, 0.1, 12345.678):
        assert np.isnan(correlation(np.full(50, constant), outcome))
    assert np.isfinite(correlation(1e6 + 1e-3 * outcome, outcome))


def test_direction_counts_signs_a_coin_for_no_opinion_and_nothing_for_no_move():
    hits = direction_hits(np.array([1.0, -1.0, 0.0, 2.0]), np.array([2.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(hits, [1, 0, 0.5, np.nan])


def test_the_brier_score_of_a_coin_is_a_quarter_and_of_certainty_right_or_wrong_0_or_1():
    np.testing.assert_array_equal(brier(np.array([0.5, 1.0, 1.0, 0.3]), np.array([0.2, 0.1, -0.1, 0.0])), [0.25, 0, 1, np.nan])


def test_information_coefficients_are_the_mean_over_moments_of_scipys(rng):
    moments, symbols = 20, 12
    forecast, outcome = rng.normal(size=(2, moments, symbols, 2))
    forecast[..., 1] += outcome[..., 1]  # the second step is known in part
    moment, series = (grid.ravel() for grid in np.meshgrid(np.arange(moments), np.arange(symbols), indexing="ij"))
    table = ic_table(forecast.reshape(-1, 2), outcome.reshape(-1, 2), moment, series)
    for step in range(2):
        each = pd.Series([scipy.stats.pearsonr(forecast[d, :, step], outcome[d, :, step]).statistic for d in range(moments)])
        ranks = pd.Series([scipy.stats.spearmanr(forecast[d, :, step], outcome[d, :, step]).statistic for d in range(moments)])
        assert table["ic"]["by_step"][step] == pytest.approx(each.mean())
        assert table["icir"]["by_step"][step] == pytest.approx(each.mean() / each.std())
        assert table["rank_ic"]["by_step"][step] == pytest.approx(ranks.mean())
        assert table["rank_icir"]["by_step"][step] == pytest.approx(ranks.mean() / ranks.std())
    assert table["moments"] == moments
    assert table["ic"]["overall"] == pytest.approx(np.mean(table["ic"]["by_step"]))


def test_coefficients_that_are_the_same_at_every_moment_have_no_ratio_whatever_rounding_makes_of_them(rng):
    moment, series = (grid.ravel() for grid in np.meshgrid(np.arange(30), np.arange(12), indexing="ij"))
    outcome = rng.normal(size=(360, 2))
    for forecast, value in ((3 * outcome + 0.1, 1), (-outcome, -1)):
        table = ic_table(forecast, outcome, moment, series)
        assert table["ic"]["overall"] == pytest.approx(value) and table["rank_ic"]["overall"] == pytest.approx(value)
        for name in ("icir", "rank_icir"):
            assert np.isnan([table[name]["overall"], *table[name]["by_step"]]).all()


def test_below_ten_symbols_there_is_no_information_coefficient(rng):
    moment, series = (grid.ravel() for grid in np.meshgrid(np.arange(8), np.arange(9), indexing="ij"))
    assert ic_table(*rng.normal(size=(2, 72, 1)), moment, series) is None
