"""The whole distribution: paths, quantiles, probabilities, and bars that could have traded."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos import Forecast, InputError, KronosPredictor, load_predictor, load_tokenizer
from kronos.distribution import Repairs, make_consistent

GOLDEN = Path(__file__).parent / "golden"
BARS = pd.read_csv(GOLDEN / "bars.csv", parse_dates=["timestamps"])
TIMES = BARS.pop("timestamps")
OPTIONS = {"T": 1.0, "top_p": 1.0, "seed": 0, "verbose": False}


@pytest.fixture(scope="module")
def forecaster() -> KronosPredictor:
    return KronosPredictor(load_predictor(GOLDEN / "predictor"), load_tokenizer(GOLDEN / "tokenizer"), device="cpu", max_context=64)


def paths_of(*bars: list[float]) -> np.ndarray:
    return np.array([bars], dtype=np.float64)


def test_high_and_low_give_way_to_open_and_close_and_volumes_stop_at_zero():
    fixed, repairs = make_consistent(
        paths_of([10, 11, 9, 10.5, 5, 50], [10, 10.2, 9, 10.5, -1, 50], [10, 11, 10.1, 10.5, 5, -2], [10, 9, 12, 10.5, 0, 0])
    )
    expected = paths_of([10, 11, 9, 10.5, 5, 50], [10, 10.5, 9, 10.5, 0, 50], [10, 11, 10, 10.5, 5, 0], [10, 10.5, 10, 10.5, 0, 0])
    assert np.array_equal(fixed, expected)
    assert repairs == Repairs(bars=4, high=2, low=2, volume=1, amount=1)
    assert str(repairs) == "repaired of 4 sampled bars: high 2, low 2, volume 1, amount 1"


def test_bars_are_consistent_unless_told_otherwise_and_the_repairs_are_reported(forecaster):
    ask = {"x_timestamp": TIMES[:30], "y_timestamp": TIMES[40:45], "pred_len": 5, "sample_count": 20, **OPTIONS}
    raw = forecaster.predict(BARS[:30], **ask, return_samples=True, consistent=False)
    fixed = forecaster.predict(BARS[:30], **ask, return_samples=True)
    assert (raw[..., 1] < raw[..., [0, 3]].max(-1)).any(), "an untrained model makes impossible bars"
    assert np.array_equal(fixed, make_consistent(raw)[0])
    frame = forecaster.predict(BARS[:30], **ask, quantiles=(0.1, 0.9))
    for high, low, middle in [("high", "low", "open"), ("high", "low", "close"), ("high_q10", "low_q10", "open_q10")]:
        assert (frame[low] <= frame[middle]).all() and (frame[middle] <= frame[high]).all()
    assert (frame[["volume", "amount"]] >= 0).all(axis=None)
    assert frame.attrs["repairs"] == vars(make_consistent(raw)[1])
    assert "repairs" not in forecaster.predict(BARS[:30], **ask, consistent=False).attrs


def test_quantiles_and_probability_are_those_of_the_paths(forecaster):
    ask = {"x_timestamp": TIMES[:30], "y_timestamp": TIMES[40:45], "pred_len": 5, "sample_count": 40, **OPTIONS}
    paths = forecaster.predict(BARS[:30], **ask, return_samples=True)
    frame = forecaster.predict(BARS[:30], **ask, quantiles=(0.05, 0.5, 0.975), prob_up=True)
    assert list(frame.columns[:9]) == ["open", "high", "low", "close", "volume", "amount", "open_q5", "open_q50", "open_q97.5"]
    assert len(frame.columns) == 6 + 18 + 1 and frame.index.tolist() == TIMES[40:45].tolist()
    np.testing.assert_allclose(frame["close_q50"], np.median(paths[:, :, 3], axis=0))
    np.testing.assert_allclose(frame["volume_q97.5"], np.quantile(paths[:, :, 4], 0.975, axis=0))
    np.testing.assert_allclose(frame["prob_up"], (paths[:, :, 3] > BARS["close"][29]).mean(0))


def test_a_forecast_holds_everything_and_a_batch_gives_one_per_series(forecaster):
    found = forecaster.forecast(BARS[:30], TIMES[:30], TIMES[40:45], 5, sample_count=12, seed=0)
    assert isinstance(found, Forecast) and found.paths.shape == (12, 5, 6) and found.repairs.bars == 60
    assert found.last.tolist() == BARS.iloc[29].tolist() and list(found.times) == TIMES[40:45].tolist()
    batch = forecaster.forecast_batch([BARS[:20], BARS[:30]], [TIMES[:20], TIMES[:30]], [TIMES[40:45]] * 2, 5, sample_count=12, seed=0)
    np.testing.assert_allclose(batch[1].paths, found.paths, rtol=1e-5)
    mean = forecaster.predict(BARS[:30], TIMES[:30], TIMES[40:45], 5, sample_count=12, seed=0, verbose=False)
    pd.testing.assert_frame_equal(found.mean(), mean)
    assert found.frame(quantiles=0.5).equals(found.frame(quantiles=(0.5,)))
    assert list(found.quantiles((0.5,)).columns) == [f"{name}_q50" for name in mean.columns]


def test_a_close_equal_to_the_last_one_counts_half():
    close = np.array([101.0, 100.0, 99.0, 100.0])
    paths = np.zeros((4, 1, 6))
    paths[:, 0, 3] = close
    assert Forecast(paths, pd.RangeIndex(1), np.full(6, 100.0)).prob_up().tolist() == [0.5]


def test_the_limits_top_k_and_top_p_both_shape_the_paths(forecaster):
    """Fault 10: in the public code top_k silently disables top_p."""
    ask = {"x_timestamp": TIMES[:30], "y_timestamp": TIMES[40:45], "pred_len": 5, "sample_count": 30, "seed": 0, "verbose": False}
    both, k_alone, p_alone = (
        forecaster.predict(BARS[:30], **ask, top_k=k, top_p=p, return_samples=True) for k, p in ((20, 0.5), (20, 1.0), (0, 0.5))
    )
    first = [len(np.unique(paths[:, 0, 3])) for paths in (both, k_alone, p_alone)]
    assert first[0] < first[1] and not np.array_equal(both, k_alone) and not np.array_equal(both, p_alone)


WRONG = [
    ({"quantiles": (0.5, 1.0), "sample_count": 9}, r"quantile 1.0: it must lie between 0 and 1"),
    ({"quantiles": (5,), "sample_count": 9}, r"quantile 5: it must lie between 0 and 1"),
    ({"quantiles": (0.5,)}, r"quantiles of 1 path: draw more, e.g. sample_count=100"),
    ({"context": "fitting"}, r"context is 'fitting': it must be one of exact, fit, rolling"),
    ({"calendar": "XSHG"}, r"y_timestamp and calendar are both given"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_impossible_wishes_are_named(forecaster, wrong, words):
    with pytest.raises(InputError, match=words):
        forecaster.predict(BARS[:9], TIMES[:9], TIMES[9:12], 3, verbose=False, **wrong)
