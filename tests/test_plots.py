"""Forecast pictures: drawn for every shape of input that a forecast can have, and honest in what they say."""

import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from finetune.evaluation import plots
from finetune.evaluation.plots import FIELDS, ForecastView, forecast_picture, forecast_pictures
from kronos.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns where it had to mend something, such as empty limits


def bars(count: int, start: str = "2024-03-08", every: str = "B", volume: float = 100.0) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    close = 10 * np.exp(np.cumsum(rng.normal(scale=0.01, size=count)))
    opens = np.concatenate([[10.0], close[:-1]])
    high, low = np.maximum(opens, close) * 1.01, np.minimum(opens, close) * 0.99
    columns = {"open": opens, "high": high, "low": low, "close": close, "volume": np.full(count, volume)}
    return pd.DataFrame(columns, index=pd.date_range(start, periods=count, freq=every))


def sample(samples: int, horizon: int) -> np.ndarray:
    return np.stack([bars(horizon).assign(amount=1.0).to_numpy() * (1 + 0.01 * i) for i in range(samples)])  # [samples, H, 6]


@pytest.fixture
def figure(monkeypatch):
    """The figure that was drawn, kept for a look inside."""
    kept: list[Figure] = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda drawn, *rest, **options: (kept.append(drawn), save(drawn, *rest, **options)))
    return kept


def texts(figure: Figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title, *axes.get_xticklabels())]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()] + [text.get_text() for text in figure.texts]
    return "\n".join(found)


def test_a_forecast_is_drawn_with_bands_truth_volume_and_labels_that_say_what_they_are(tmp_path, figure):
    forecast_picture(tmp_path / "a.png", bars(90), bars(20, "2024-07-12"), sample(100, 20), "S&P 500", unit="points", note="tiny model")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    told = texts(figure[0])
    for part in ("S&P 500", "points", "100 sampled paths, 20 bars ahead", "last 60 of 90 bars shown", "50 % of paths", "90 % of paths",
                 "what came", "volume", "tiny model", "11 Jul", "8 Aug"):  # fmt: skip
        assert part in told
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_few_paths_are_shown_one_by_one_because_a_band_of_five_would_be_a_guess(tmp_path, figure):
    forecast_picture(tmp_path / "a.png", bars(60), None, sample(5, 10), "x")
    told = texts(figure[0])
    assert "each path" in told
    assert "5 sampled paths" in told
    assert "90 %" not in told
    assert "what came" not in told


def test_a_data_frame_is_one_forecast_with_its_own_times(tmp_path, figure):
    forecast = bars(10, "2025-01-01").drop(columns="volume")
    forecast_picture(tmp_path / "a.png", bars(60), None, forecast, "x")
    told = texts(figure[0])
    assert "one forecast, 10 bars ahead" in told
    assert "14 Jan" in told
    assert "2025" in told
    assert "sampled" not in told


def test_bars_stand_side_by_side_over_nights_and_weekends(tmp_path, figure):
    history = pd.concat([bars(30, "2024-08-09 14:00", "5min"), bars(30, "2024-08-12 09:35", "5min")])
    forecast_picture(tmp_path / "a.png", history.reset_index(names="timestamps"), None, sample(30, 12), "x")
    left, right = figure[0].axes[0].get_xlim()
    assert right - left == pytest.approx(40 + 12, abs=1.5)  # 40 of the 60 bars, 12 to come: no holes
    assert "12 Aug" in texts(figure[0])
    assert ":" in texts(figure[0])


def test_several_series_stand_side_by_side_and_one_without_volume_says_so(tmp_path, figure):
    views = [ForecastView(bars(50, volume=volume), sample(30, 5), None, f"series {volume}") for volume in (100.0, 0.0)]
    forecast_pictures(tmp_path / "a.png", views)
    assert len(figure[0].axes) == 4
    assert "no volume" in texts(figure[0])
    forecast_pictures(tmp_path / "b.png", views[1:])
    assert len(figure[1].axes) == 1


@pytest.mark.parametrize(
    "case",
    ["flat prices", "one bar of history", "no times", "truth shorter than the horizon", "prices of 1e-6"],
)
def test_odd_input_is_drawn_too(tmp_path, case):
    history, truth, paths = bars(50), bars(5), sample(20, 5)
    if case == "flat prices":
        history[list(plots.PRICES)], paths[..., :4], truth = 7.0, 7.0, None
    elif case == "one bar of history":
        history = history[-1:]
    elif case == "no times":
        history, truth = history.reset_index(drop=True), truth.reset_index(drop=True)
    elif case.startswith("truth"):
        truth = bars(2)
    else:
        history, truth, paths = history * 1e-6, truth * 1e-6, paths * 1e-6
    forecast_picture(tmp_path / "a.png", history, truth, paths, case)
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": bars(9).drop(columns=["low", "high"])}, "x: history lacks the column.s. high, low"),
        ({"truth": bars(9).drop(columns="close")}, "x: truth lacks the column.s. close"),
        ({"history": bars(9)[:0]}, "history has no bars"),
        ({"paths": np.ones((5, 6))}, r"paths have shape \(5, 6\)"),
        ({"paths": np.ones((5, 0, 6))}, "paths have shape"),
        ({"paths": bars(9).drop(columns="open")}, "x: forecast lacks"),
    ],
)
def test_wrong_input_is_told_by_name_and_leaves_no_file(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        forecast_pictures(tmp_path / "a.png", [ForecastView(**{"history": bars(9), "paths": sample(20, 5), "title": "x", **change})])
    assert list(tmp_path.iterdir()) == []


def test_the_median_and_bands_are_the_quantiles_of_the_paths(tmp_path, figure):
    paths = sample(41, 6)
    forecast_picture(tmp_path / "a.png", bars(50), None, paths, "x")
    axes, origin = figure[0].axes[0], bars(50)["close"].iloc[-1]
    close = paths[:, :, FIELDS.index("close")]
    median = next(line for line in axes.lines if len(line.get_xdata()) == 7)
    np.testing.assert_allclose(median.get_ydata(), [origin, *np.median(close, axis=0)])
    outer = axes.collections[2].get_paths()[0].vertices  # after wicks and bodies
    assert outer[:, 1].min() == pytest.approx(min(origin, np.quantile(close, 0.05, axis=0).min()))
    assert outer[:, 1].max() == pytest.approx(max(origin, np.quantile(close, 0.95, axis=0).max()))


def test_of_a_truth_longer_than_the_horizon_only_the_forecast_bars_are_drawn(tmp_path, figure):
    forecast_picture(tmp_path / "a.png", bars(50), bars(30), sample(20, 5), "x")
    bodies = [collection for collection in figure[0].axes[0].collections if isinstance(collection, PatchCollection)]
    assert [len(one.get_paths()) for one in bodies] == [40, 5]


def test_drawing_leaves_no_global_figure_behind(tmp_path):
    forecast_picture(tmp_path / "a.png", bars(50), None, sample(20, 5), "x")
    assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []
