"""Rolling origins: where they stand, that all series share them, and that nothing that prepares is known later than the first score."""

from dataclasses import replace

import numpy as np
import pytest
from bars import make_panel
from worlds import HORIZON, LOOKBACK, make_world, origins_of, settings

from finetune.engine.splits import make_splits
from finetune.evaluation.origins import choose_origins, rolling_origins
from kronos.errors import InputError


def windows(panel, ratios=(0.5, 0.25, 0.25), lookback=LOOKBACK, horizon=HORIZON):
    return make_splits(panel, lookback, horizon, ratios, say=lambda _: None)


def test_all_series_are_forecast_at_the_same_moments_and_every_outcome_lies_in_the_split():
    panel = make_world(3, 400)
    found = rolling_origins(windows(panel).test)
    assert (np.bincount(found.moment) == 3).all() and (found.now == found.moments[found.moment]).all()
    within = found.rows - panel.offsets[found.series]
    assert within.min() == 299 and within.max() == 400 - 1 - HORIZON - 1  # the last row says when the last outcome was known
    np.testing.assert_allclose(found.closes[0], panel.features[found.rows[0] : found.rows[0] + HORIZON + 1, 3])


def test_stride_and_maximum_spread_moments_evenly():
    test = windows(make_world(2, 400)).test
    strided = rolling_origins(test, stride=4)
    assert set(np.diff(strided.moments) // 86_400_000_000_000) == {4}
    few = rolling_origins(test, max_origins=10)
    gaps = np.diff(few.moments)
    assert len(few.moments) == 10 and gaps.max() - gaps.min() <= 86_400_000_000_000
    whole = rolling_origins(test)
    assert few.moments[0] == whole.moments[0] and few.moments[-1] == whole.moments[-1]


def test_series_drawn_by_seed_are_the_same_again_and_others_for_another_seed():
    test = windows(make_world(12, 200, 1), lookback=10).test
    drawn = [set(rolling_origins(test, max_series=4, seed=seed).series.tolist()) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 4


def test_a_series_on_another_clock_is_forecast_from_its_latest_bar_and_never_twice_from_one():
    fast, slow = make_panel(1, 400, freq="1h"), make_panel(1, 100, freq="4h", seed=3)
    both = type(fast).build(
        features=np.concatenate([fast.features, slow.features]),
        stamps=np.concatenate([fast.stamps, slow.stamps]),
        times=np.concatenate([fast.times, slow.times]),
        offsets=np.array([0, 400, 500]),
        series=[fast.series[0], type(fast.series[0])("slow", "4h")],
        stamp="close",
    )
    found = rolling_origins(windows(both, lookback=8, horizon=3).test)
    assert (found.now <= found.moments[found.moment]).all()
    for number in (0, 1):
        rows = found.rows[found.series == number]
        assert len(set(rows.tolist())) == len(rows) > 10


def test_a_bar_stamped_at_its_open_is_known_when_the_next_one_opens():
    opened, closed = make_panel(1, 60, freq="1h"), make_panel(1, 60, freq="1h", stamp="close")
    for panel, later_h in ((opened, 1), (closed, 0)):
        found = rolling_origins(windows(panel, lookback=6, horizon=2).test)
        assert (found.now - panel.times[found.rows] == later_h * 3_600_000_000_000).all()
        assert (found.realised[:, 0] > found.now).all()


@pytest.mark.parametrize("split, ratios", [("test", (0.5, 0.25, 0.25)), ("val", (0.5, 0.5, 0.0)), ("auto", (0.5, 0.5, 0.0))])
def test_nothing_that_prepares_is_known_after_the_first_scored_moment(split, ratios):
    found = origins_of(make_world(2, 500), ratios=ratios, split=split)
    assert found.realised[~found.scored].max() <= found.now[found.scored].min()
    assert found.scored.sum() > 50 and (~found.scored).sum() > 50
    assert (np.diff(found.moment) >= 0).all() and (np.diff(found.moments) > 0).all()
    assert found.unit == ("test" if split == "test" else "val")


@pytest.mark.parametrize("stride, overlap", [(1, 5), (2, 3), (5, 1), (10, 1)])
def test_blocks_hold_a_horizon_and_moments_count_as_overlapping_until_the_outcome_is_known(stride, overlap):
    found = origins_of(make_world(2, 600), stride=stride, max_origins=1000)
    assert found.overlap[-1] == overlap and found.overlap[0] == 1
    assert found.block * stride >= (2 * HORIZON if overlap > 1 else HORIZON)


def test_too_few_origins_are_refused_with_the_keys_that_help():
    with pytest.raises(InputError, match=r"too few forecast origins: 8 to score.*data.test_ratio.*evaluation.stride"):
        origins_of(make_world(2, 400), stride=12)
    with pytest.raises(InputError, match=r"test split has no window; set data.test_ratio"):
        choose_origins(windows(make_world(2, 300), (0.7, 0.3, 0.0)), settings(), lambda _: None)


def test_origins_without_a_positive_close_are_left_out_and_counted():
    panel = make_world(1, 200)
    features = panel.features.copy()
    features[170, :4] = 0
    said = []
    found = rolling_origins(windows(replace(panel, features=features)).test, say=said.append)
    assert (found.closes > 0).all() and len(found) > 10
    assert f"left out: {1 + HORIZON} origins" in said[0]


def test_auto_says_that_the_later_half_of_validation_is_scored():
    said = []
    choose_origins(windows(make_world(2, 500), (0.6, 0.4, 0.0)), settings(split="auto"), said.append)
    assert "on which the model was chosen too" in said[0]
