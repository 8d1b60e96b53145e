"""Calibration: bands of wrong forecasters are brought to what they claim, quickly after a change, and by nothing but the past."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import Knowing, Noise, make_world, origins_of

from finetune.evaluation.baselines import Persistence
from finetune.evaluation.calibration import _pool_quantile, calibrate, forecast_scale
from finetune.evaluation.forecasts import forecast_all
from finetune.evaluation.scores import LEVELS
from finetune.evaluation.tables import coverage_of, mean_pinball


@pytest.fixture(scope="module")
def origins():
    return origins_of(make_world(4, 1000, 3), max_origins=150)


def quantiles_of(forecaster, origins):
    return forecast_all(forecaster, origins, 100, 0).quantiles


WRONG = [Knowing(width=0.4), Knowing(width=2.5), Knowing(bias=0.5), Knowing(bias=-0.4, width=0.6), Noise(0.2), Persistence(0)]
WORDS = ["narrow", "wide", "high", "low and narrow", "noise", "a point"]


@pytest.mark.parametrize("forecaster", WRONG, ids=WORDS)
def test_the_90_percent_band_of_a_wrong_forecaster_covers_87_to_93_percent_afterwards(origins, forecaster):
    quantiles, keep = quantiles_of(forecaster, origins), origins.scored
    before = coverage_of(quantiles[keep], origins.returns[keep])["90%"]["coverage"]["overall"]
    found = calibrate(quantiles, origins)
    after = coverage_of(found.quantiles[keep], origins.returns[keep])
    assert abs(before - 0.9) > 0.05
    assert 0.87 <= after["90%"]["coverage"]["overall"] <= 0.93
    by_step = np.array(after["90%"]["coverage"]["by_step"])
    assert by_step.min() > 0.85 and by_step.max() < 0.95
    assert abs(after["50%"]["coverage"]["overall"] - 0.5) < 0.06
    losses = [mean_pinball(q, origins.returns)[keep].mean() for q in (quantiles, found.quantiles)]
    assert losses[1] < losses[0]
    assert found.active[keep].all() and (np.diff(found.quantiles, axis=2) >= 0).all()


def test_it_follows_when_bands_that_were_right_become_too_narrow(origins):
    quantiles = quantiles_of(Knowing(), origins)
    half = len(origins.moments) * 3 // 4
    quantiles = np.where((origins.moment >= half)[:, None, None], 0.4 * quantiles, quantiles)
    late = origins.moment >= half + 15
    fixed, adaptive = (calibrate(quantiles, origins, rate=rate).quantiles[late] for rate in (0.0, 0.05))
    covered = [coverage_of(q, origins.returns[late])["90%"]["coverage"]["overall"] for q in (fixed, adaptive)]
    assert covered[1] > covered[0] + 0.05 and abs(covered[1] - 0.9) < abs(covered[0] - 0.9)


def test_the_first_origins_have_no_past_to_learn_from_and_stay_as_they_are(origins):
    quantiles = quantiles_of(Knowing(width=0.4), origins)
    found = calibrate(quantiles, origins)
    assert not found.active[:20].any()
    np.testing.assert_array_equal(found.quantiles[~found.active], quantiles[~found.active])


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_outcomes_known_later_than_an_origin_change_nothing_there_and_those_known_earlier_do(origins, share):
    quantiles = quantiles_of(Knowing(width=0.4), origins)
    number = int(share * len(origins.moments))
    now = origins.now[origins.moment == number].max()
    until = origins.moment <= number
    rng = np.random.default_rng(0)

    def with_outcomes(changed):
        other = replace(origins)
        other.__dict__["returns"] = np.where(changed, rng.normal(size=changed.shape), origins.returns)
        return calibrate(quantiles, other).quantiles

    before = calibrate(quantiles, origins).quantiles
    np.testing.assert_array_equal(before[until], with_outcomes(origins.realised > now)[until])
    just_known = origins.realised == now
    assert just_known.any()
    changed = with_outcomes(just_known)
    np.testing.assert_array_equal(before[origins.moment < number], changed[origins.moment < number])
    assert (before[origins.moment == number] != changed[origins.moment == number]).any()


def test_the_shift_it_ends_with_is_what_it_did_to_the_last_origin(origins):
    quantiles = quantiles_of(Knowing(width=0.4), origins)
    found, last = calibrate(quantiles, origins), len(origins) - 1
    again = np.sort(quantiles[last] + forecast_scale(origins)[last][:, None] * found.shift, axis=-1)
    np.testing.assert_allclose(found.quantiles[last], again)


def test_among_independent_scores_the_rank_is_weibulls_and_among_few_it_lies_further_out():
    scores = np.random.default_rng(2).normal(size=(99, 1, len(LEVELS)))
    pool, levels = np.ones((99, 1), bool), np.array(LEVELS)[None]
    found = _pool_quantile(scores, pool, levels, np.array([[99.0]]))
    want = [np.quantile(scores[:, 0, q], level, method="weibull") for q, level in enumerate(LEVELS)]
    np.testing.assert_allclose(found[0], want)
    few = _pool_quantile(scores, pool, levels, np.array([[15.0]]))
    assert few[0, 0] < found[0, 0] and few[0, -1] > found[0, -1]
