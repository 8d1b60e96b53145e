"""Nothing sees the future: the raw file is corrupted after an origin and everything runs again from the file, bit for bit the same there;
the test range is corrupted and everything is trained again, with the same best checkpoint."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
from bars import make_frame
from safetensors.torch import load_file
from test_pipeline import run_all, write_config
from worlds import settings

from finetune.data.load import load_panel
from finetune.engine.files import read_json
from finetune.engine.splits import make_splits
from finetune.evaluation.baselines import make_baselines
from finetune.evaluation.calibration import calibrate
from finetune.evaluation.forecasts import ModelForecaster, forecast_all
from finetune.evaluation.origins import choose_origins
from finetune_csv.config import CsvConfig
from kronos import KronosPredictor

LOOKBACK, HORIZON, ROWS = 12, 4, 240
BASELINES = ["persistence", "drift", "seasonal_naive", "volatility_20", "ar"]
FORECAST = ("quantiles", "mean_price", "mean_return", "up", "volatility")


def write_bars(folder, changed=lambda frame: frame):
    for number in range(2):
        changed(make_frame(ROWS, seed=number, freq="D")).to_csv(folder / f"S{number}.csv", index=False)


def corrupted(frame: pd.DataFrame, rows: slice, seed: int = 0) -> pd.DataFrame:
    """Wild but valid bars in place of some rows."""
    rng, bars = np.random.default_rng(seed), frame.copy()
    count = len(bars.iloc[rows])
    price = rng.uniform(20, 500, count)
    for name, factor in (("open", 1.0), ("close", 1.1), ("high", 1.5), ("low", 0.5)):
        bars.iloc[rows, bars.columns.get_loc(name)] = price * factor
    for name in ("volume", "amount"):
        bars.iloc[rows, bars.columns.get_loc(name)] = rng.uniform(1, 1e6, count)
    return bars


def run_from_file(folder):
    """File → Panel → origins → forecasts of the model and the baselines → calibration."""
    section = SimpleNamespace(
        data_path=[str(folder / "S0.csv"), str(folder / "S1.csv")],
        symbol_column="",
        columns={},
        timezone="",
        stamp="auto",
        missing="error",
        max_ffill=5,
        drop_suspended=False,
        lookback_window=LOOKBACK,
        predict_window=HORIZON,
    )
    panel = load_panel(section, say=lambda _: None)
    how = settings(max_origins=14, samples=20, T=1.0, top_p=0.9)
    origins = choose_origins(make_splits(panel, LOOKBACK, HORIZON, (0.5, 0.25, 0.25), say=lambda _: None), how, lambda _: None)
    predictor = KronosPredictor(tiny.predictor(), tiny.tokenizer(), device="cpu")
    model = ModelForecaster(predictor, label="tiny", T=how.T, top_p=how.top_p, seed=0)
    methods = [model, *make_baselines(BASELINES, origins, 0, lambda _: None)]
    forecasts = {one.name: forecast_all(one, origins, how.samples, 0) for one in methods}
    return origins, forecasts, calibrate(forecasts["model"].quantiles, origins)


def row_of(origins, number):
    """The row of the file that is the last one known at a moment; both files have the same rows."""
    first = int(np.flatnonzero(origins.moment == number)[0])
    return int(origins.rows[first] - origins.panel.offsets[origins.series[first]])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bars")
    write_bars(folder)
    return run_from_file(folder)


def test_a_file_corrupted_after_each_origin_gives_the_same_bits_at_that_origin(undisturbed, tmp_path):
    origins, forecasts, calibrated = undisturbed
    assert calibrated.active[origins.scored].all()
    for number in np.unique(origins.moment[origins.scored]).tolist():
        after = slice(row_of(origins, number) + 1, None)
        write_bars(tmp_path, lambda frame, after=after: corrupted(frame, after, seed=after.start))
        other, again, recalibrated = run_from_file(tmp_path)
        at, until = origins.moment == number, origins.moment <= number
        np.testing.assert_array_equal(origins.rows, other.rows)
        assert (origins.returns[at] != other.returns[at]).all()  # what came is other, what was forecast is not
        for name, found in forecasts.items():
            for field in FORECAST:
                np.testing.assert_array_equal(getattr(found, field)[until], getattr(again[name], field)[until], err_msg=f"{name}: {field}")
        np.testing.assert_array_equal(calibrated.quantiles[until], recalibrated.quantiles[until])


def test_the_check_would_notice_one_bar_of_the_past(undisturbed, tmp_path):
    origins, forecasts, calibrated = undisturbed
    origin = np.flatnonzero(origins.scored)[14]
    row = row_of(origins, int(origins.moment[origin]))
    write_bars(tmp_path, lambda frame: corrupted(frame, slice(row, row + 1)))
    _, again, recalibrated = run_from_file(tmp_path)
    for name, found in forecasts.items():
        assert not np.array_equal(found.mean_price[origin], again[name].mean_price[origin]), name
    assert not np.array_equal(calibrated.quantiles[origin], recalibrated.quantiles[origin])


def test_a_corrupted_test_range_trains_the_same_best_checkpoint(tmp_path):
    """And a corrupted training bar does not, so that the comparison means something."""
    rows = {"as it is": slice(0, 0), "test corrupted": slice(192, None), "training corrupted": slice(60, 61)}  # cuts at 120 and 192 of 240
    weights, scores = {}, {}
    for name, which in rows.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        write_bars(folder, lambda frame, which=which: corrupted(frame, which) if which.stop != 0 else frame)
        split = dict(data__train_ratio=0.5, data__val_ratio=0.3, data__test_ratio=0.2, forecast__enabled=False)
        config = CsvConfig.load(write_config(folder, [str(folder / f"S{i}.csv") for i in range(2)], **split))
        run_all(config)
        best = {stage: config.model_paths.best_model(stage) for stage in ("tokenizer", "predictor")}
        weights[name] = {stage: load_file(path / "model.safetensors") for stage, path in best.items()}
        scores[name] = [read_json(path.parent / "summary.json")["best_score"] for path in best.values()]
    same = {name: all(_equal(found, weights[name][stage]) for stage, found in weights["as it is"].items()) for name in rows}
    assert same == {"as it is": True, "test corrupted": True, "training corrupted": False}
    assert scores["as it is"] == scores["test corrupted"] != scores["training corrupted"]


def _equal(a, b):
    return a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)
