"""What is kept of sampled paths is what they are, and the model's paths are those that a caller of `predict` gets."""

import numpy as np
import pandas as pd
import pytest
import tiny
from bars import make_panel
from worlds import Knowing, make_world, origins_of

from finetune.data.frames import bars_frame, wall_clock
from finetune.evaluation.forecasts import ModelForecaster, forecast_all
from finetune.evaluation.scores import LEVELS
from kronos import KronosPredictor


@pytest.fixture(scope="module")
def origins():
    return origins_of(make_world(2, 400), max_origins=40)


def test_what_is_kept_of_the_paths_is_what_they_are(origins):
    found = forecast_all(Knowing(), origins, 50, 0)
    i, h = 100, 3
    paths = Knowing().paths(origins, np.array([i]), 50)[0]  # [samples, horizon]
    close, outcome = origins.closes[i, 0], origins.closes[i, h + 1]
    assert found.mean_price[i, h] == pytest.approx(paths[:, h].mean())
    assert found.mean_return[i, h] == pytest.approx(np.log(paths[:, h] / close).mean())
    assert found.up[i, h] == pytest.approx((paths[:, h] > close).mean())
    np.testing.assert_allclose(found.quantiles[i, h], np.quantile(np.log(paths[:, h] / close), LEVELS, method="weibull"))
    np.testing.assert_allclose(found.median[i, h], np.median(np.log(paths[:, h] / close)))
    away, apart = np.abs(paths[:, h] - outcome).mean(), np.abs(paths[:, h][:, None] - paths[:, h]).sum()
    assert found.crps_price[i, h] == pytest.approx(away - apart / (2 * 50 * 49))
    steps = np.diff(np.log(paths / close), axis=1, prepend=0)
    assert found.volatility[i] == pytest.approx(np.sqrt((steps**2).sum(1)).mean())
    assert abs(found.pit[i, h] - (paths[:, h] < outcome).mean()) < 0.03


def test_a_sampled_price_that_is_no_price_is_counted_and_stays_finite(origins):
    class Broken(Knowing):
        def paths(self, origins, index, samples):
            paths = super().paths(origins, index, samples)
            paths[:, 0, 0], paths[:, 1, 0], paths[:, 2, 0] = 0.0, -5.0, np.nan
            return paths

    found = forecast_all(Broken(), origins, 20, 0)
    assert found.floored == 3 * len(origins)
    assert np.isfinite(found.crps_return).all() and np.isfinite(found.mean_price).all()


def test_the_models_paths_are_those_of_predict_for_the_lookback_alone():
    panel = make_panel(2, 120, freq="D")
    origins = origins_of(panel, lookback=12, horizon=4, max_origins=12)
    predictor = KronosPredictor(tiny.predictor(), tiny.tokenizer(), device="cpu")
    model = ModelForecaster(predictor, label="tiny", T=1.0, top_p=0.9, seed=5)
    together = model.paths(origins, np.arange(len(origins)), 6)
    assert together.shape == (len(origins), 6, 4)
    for i in (0, 17):
        row = int(origins.rows[i])
        history = bars_frame(panel, row - 11, row + 1)
        ahead = pd.Series(wall_clock(panel, row + 1, row + 5))
        alone = predictor.predict(
            history, pd.Series(history.index), ahead, 4, T=1.0, top_p=0.9, sample_count=6, seed=5, return_samples=True, verbose=False
        )
        np.testing.assert_allclose(together[i], alone[:, :, 3], rtol=1e-5)


def test_long_work_says_how_far_it_is_where_there_is_no_terminal(origins, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("finetune.evaluation.forecasts.time.monotonic", lambda: next(clock))
    said = []
    forecast_all(Knowing(), origins, 5, 0, say=said.append)
    assert len(said) >= 2 and f"knowing: 64 of {len(origins)} forecasts" in said[0] and "s left" in said[0]
