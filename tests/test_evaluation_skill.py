"""Verdicts: the better is called better, the worse worse, the same indistinguishable, and a perfect forecaster is found perfect."""

import numpy as np
import pytest
import scipy.stats
from worlds import Knowing, Noise, compared, make_world, origins_of

from finetune.evaluation.baselines import Persistence, Volatility
from finetune.evaluation.charts import pit_reading
from finetune.evaluation.skill import Resampler, best_of, skill
from finetune.evaluation.tables import coverage_of


@pytest.fixture(scope="module")
def perfect():
    return compared(Knowing(), Volatility(0, 20), Volatility(0, 60), Persistence(0))


def test_a_perfect_forecaster_covers_what_it_claims_and_its_pit_is_flat(perfect):
    bands = perfect.tables["knowing"]["bands"]
    for band in ("50%", "80%", "90%"):
        assert abs(bands[band]["coverage"]["overall"] - float(band[:-1]) / 100) < 0.03, band
    share = np.array(perfect.tables["knowing"]["pit_histogram"])
    assert share.sum() == pytest.approx(1) and np.abs(share - 0.05).max() < 0.02
    assert pit_reading(perfect) == "no fault that these origins can show"


def test_calibration_leaves_a_perfect_forecaster_nearly_alone(perfect):
    keep, returns = perfect.keep, perfect.returns
    after = coverage_of(perfect.calibrated.quantiles[keep], returns)["90%"]
    before = coverage_of(perfect.model.quantiles[keep], returns)["90%"]
    assert abs(after["coverage"]["overall"] - 0.9) < 0.03
    assert after["width"]["overall"] == pytest.approx(before["width"]["overall"], rel=0.15)


def test_a_forecaster_that_knows_is_better_than_all_baselines_at_every_step(perfect):
    for one in perfect.skills.values():
        assert one.verdict == "better than" and one.low > 0
    assert min(perfect.skills["volatility_60"].low_by_step) > 0
    # its errors are the smallest too, though a fair coin has no direction
    mae = {name: table["returns"]["mae"]["overall"] for name, table in perfect.tables.items()}
    assert mae["persistence"] == pytest.approx(mae["knowing"], rel=0.03)
    assert perfect.tables["persistence"]["returns"]["directional_accuracy"]["overall"] == 0.5


def test_noise_is_worse_than_every_baseline():
    found = compared(Noise(), Volatility(0, 20), Persistence(0))
    assert all(one.verdict == "worse than" for one in found.skills.values())
    assert "too wide" in pit_reading(found)


def test_against_itself_a_method_has_skill_zero_and_no_interval():
    class Model(Persistence):
        name = label = "model"

    one = compared(Model(0), Persistence(0)).skills["persistence"]
    assert (one.overall, one.low, one.high) == (0, 0, 0) and one.verdict == "indistinguishable from"


def test_the_same_method_with_other_random_numbers_is_indistinguishable():
    one = compared(Knowing("model", seed=1), Knowing("again", seed=2)).skills["again"]
    assert one.verdict == "indistinguishable from" and one.low < 0 < one.high and abs(one.overall) < 0.02


def test_a_narrow_and_a_biased_forecaster_are_worse_and_the_report_says_why():
    narrow = compared(Knowing("narrow", width=0.5), Knowing("right", seed=2))
    assert narrow.skills["right"].verdict == "worse than" and "too narrow" in pit_reading(narrow)
    assert narrow.tables["narrow"]["bands"]["90%"]["coverage"]["overall"] < 0.7
    high = compared(Knowing("high", bias=0.4), Knowing("right", seed=2))
    assert high.skills["right"].verdict == "worse than" and "too high" in pit_reading(high)


def test_the_best_baseline_is_chosen_on_the_bars_before_and_never_on_those_scored():
    scores = {"a": np.array([[1.0], [9.0]]), "b": np.array([[2.0], [0.0]])}
    assert best_of(scores, np.array([True, False])) == "a"

    class Turning(Knowing):
        """Right on one side of the first scored moment, far too high on the other."""

        def __init__(self, name, right_when_scored):
            super().__init__(name, seed=3)
            self.right_when_scored = right_when_scored

        def paths(self, origins, index, samples):
            wrong = origins.scored[index] != self.right_when_scored
            return super().paths(origins, index, samples) * np.where(wrong, 1.2, 1.0)[:, None, None]

    found = compared(Knowing("model"), Turning("right before", False), Turning("right after", True))
    assert (found.best, found.best_point) == ("right before", "right before")
    assert found.skills["right before"].verdict == "better than"


def test_skill_is_its_definition_and_its_interval_a_circular_block_bootstrap():
    origins = origins_of(make_world(3, 300, 4), max_origins=30)
    keep = origins.scored
    rng = np.random.default_rng(0)
    model, baseline = rng.random((2, int(keep.sum()), origins.horizon))
    resampler = Resampler(origins, keep, seed=3, resamples=200)
    found = skill(model, baseline, resampler)
    assert found.overall == pytest.approx(1 - model.mean() / baseline.mean())
    assert found.by_step == pytest.approx((1 - model.mean(0) / baseline.mean(0)).tolist())
    # each resample holds as many moments as the sample, in runs of a block, and a moment comes with all its series
    counts = resampler.weights[1:]
    assert (counts.sum(1) == resampler.size).all() and resampler.block >= 2
    moment = origins.chosen(keep).moment
    slow = [
        1 - np.repeat(model.mean(1), row[moment]).mean() / np.repeat(baseline.mean(1), row[moment]).mean() for row in counts.astype(int)
    ]
    # the more blocks, the nearer to the percentiles
    widening = scipy.stats.t.ppf(0.975, resampler.size / resampler.block - 1) / 1.959964
    ends = found.overall + widening * (np.quantile(slow, (0.025, 0.975)) - found.overall)
    np.testing.assert_allclose([found.low, found.high], ends, rtol=1e-6)
    assert 1 < widening < 1.5


def test_intervals_are_wider_where_moments_depend_on_each_other():
    origins = origins_of(make_world(2, 900, 1), max_origins=200)
    keep, rng = origins.scored, np.random.default_rng(1)
    part = origins.chosen(keep)
    lone = rng.normal(size=len(part.moments))
    runs = np.convolve(rng.normal(size=len(part.moments) + 5), np.ones(6) / np.sqrt(6), "valid")
    resampler = Resampler(origins, keep, seed=0)
    widths = [np.diff(resampler.ends(resampler.means(values[part.moment]))[1:])[0] for values in (lone, runs)]
    assert widths[1] > 1.5 * widths[0]


def test_the_table_holds_the_scores_by_their_definitions(perfect):
    keep, model = perfect.keep, perfect.model
    close, came = perfect.origins.closes[keep, :1], perfect.origins.closes[keep, 1:]
    outcome, table = np.log(came / close), perfect.tables["knowing"]
    median, mean = model.quantiles[keep][:, :, 3], model.mean_return[keep]
    step = 2
    errors = [abs(y - m) for y, m in zip(outcome[:, step], median[:, step], strict=True)]
    assert table["returns"]["mae"]["by_step"][step] == pytest.approx(sum(errors) / len(errors))
    squares = [(y - m) ** 2 for y, m in zip(outcome[:, step], mean[:, step], strict=True)]
    assert table["returns"]["rmse"]["by_step"][step] == pytest.approx((sum(squares) / len(squares)) ** 0.5)
    shares = np.abs(came - close * np.exp(median)) / came
    assert table["prices"]["mape"]["overall"] == pytest.approx(shares.mean())
    inside = (model.quantiles[keep][:, :, 0] <= outcome) & (outcome <= model.quantiles[keep][:, :, -1])
    assert table["bands"]["90%"]["coverage"]["overall"] == pytest.approx(inside.mean())
    hits = [(y > 0) == (m > 0) for y, m in zip(outcome.ravel(), median.ravel(), strict=True)]
    assert table["returns"]["directional_accuracy"]["overall"] == pytest.approx(sum(hits) / len(hits))
    series = perfect.origins.series[keep]
    each = [np.corrcoef(mean[series == s, step], outcome[series == s, step])[0, 1] for s in range(4)]
    assert table["returns"]["correlation"]["by_step"][step] == pytest.approx(np.mean(each))
    came_volatility = np.sqrt(np.square(np.diff(outcome, axis=1, prepend=0)).sum(1))
    assert table["volatility"]["mae"] == pytest.approx(np.abs(came_volatility - model.volatility[keep]).mean())
