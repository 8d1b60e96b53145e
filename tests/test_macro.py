"""The macro report: seasons and regimes of truth and forecast, against series whose seasons and regimes are known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bars import make_frame

from finetune.data.load import build_panel
from finetune.engine.sections import EvaluationSection
from finetune.evaluation.macro import held_out_origins, macro_report, state, what_was_before

LOOKBACK, HORIZON, SAMPLES = 20, 5, 20


def seasonal_frame(n: int = 900, seed: int = 0) -> pd.DataFrame:
    """Daily bars that rise by 1 % on Mondays and fall by 1 % on Fridays; every other half year is five times as lively."""
    rng = np.random.default_rng(seed)
    frame = make_frame(n, seed, "1D")
    day = frame["timestamps"].dt
    noise = rng.normal(0, 0.002, n) * np.where(day.month > 6, 5, 1)
    close = 100 * np.exp(np.cumsum(0.01 * (day.day_of_week == 0) - 0.01 * (day.day_of_week == 4) + noise))
    return frame.assign(open=close, high=close * 1.001, low=close * 0.999, close=close)


@pytest.fixture(scope="module")
def panel():
    return build_panel({name: seasonal_frame(seed=seed) for seed, name in enumerate(("AAA", "BBB"))}, timezone="UTC", stamp="open")


def configuration(**changes) -> SimpleNamespace:
    data = dict(lookback_window=LOOKBACK, predict_window=HORIZON, ratios=(0.5, 0.25, 0.25), split="date", clip=5.0)
    settings = EvaluationSection(samples=SAMPLES, max_origins=changes.pop("max_origins", 100))
    return SimpleNamespace(data=SimpleNamespace(**{**data, **changes}), evaluation=settings, experiment=SimpleNamespace(name="seasons"))


class Prophet:
    """A predictor that knows the closes to come, or, if `blind`, one whose paths are a coin thrown at every bar."""

    def __init__(self, panel, blind: bool = False):
        self.blind, self.closes = blind, {}
        for first, end in zip(panel.offsets[:-1], panel.offsets[1:], strict=True):
            self.closes |= {float(panel.features[row, 3]): row for row in range(first, end)}
        self.panel = panel

    def predict_batch(self, history, known, ahead, horizon, *, sample_count, **how):
        found = []
        for frame in history:
            row = self.closes[frame["close"].iloc[-1]]
            paths = np.repeat(np.asarray(self.panel.features[row + 1 : row + 1 + horizon], np.float64)[None], sample_count, axis=0)
            if self.blind:
                steps = np.random.default_rng(row).choice([-0.02, 0.02], (sample_count, horizon))
                paths[..., 3] = frame["close"].iloc[-1] * np.exp(np.cumsum(steps, axis=1))
            found.append(paths)
        return found


def report(panel, folder, predictor, **changes):
    return macro_report(configuration(**changes), panel, predictor, folder, lambda text: None)


def test_who_knows_the_future_has_its_seasons_and_regimes(panel, tmp_path):
    found = report(panel, tmp_path, Prophet(panel))
    week = found["seasonality"]["weekday"]
    for value in week["groups"].values():
        assert value["forecast"]["mean"] == pytest.approx(value["truth"]["mean"], abs=1e-6)
        assert value["forecast"]["move"] == pytest.approx(value["truth"]["move"], abs=1e-6)
    assert week["correlation"]["mean"] == pytest.approx(1)
    for regime in found["regimes"].values():
        assert regime["brier"] == 0 and regime["hit_rate"] == 1 and regime["skill"]["overall"] == 1
        assert regime["forecast"] == pytest.approx(regime["truth"]) and regime["skill"]["verdict"] == "better than"


def test_a_season_that_is_there_is_found_and_one_that_is_forecast_by_a_coin_is_not(panel, tmp_path):
    found = report(panel, tmp_path, Prophet(panel, blind=True))
    days = found["seasonality"]["weekday"]["groups"]
    assert days["0"]["truth"]["mean"] == pytest.approx(0.01, abs=4 * days["0"]["truth"]["se"]) and days["4"]["truth"]["mean"] < -0.008
    assert days["0"]["before"]["mean"] == pytest.approx(0.01, abs=0.002) and abs(days["2"]["before"]["mean"]) < 0.002
    assert all(abs(day["forecast"]["mean"]) < 0.003 and day["forecast"]["move"] == pytest.approx(0.02) for day in days.values())
    assert found["regimes"]["volatility"]["forecast"][2] > 0.99  # a coin of 2 % is wilder than all that was before
    assert found["regimes"]["volatility"]["skill"]["verdict"] == "worse than"


def test_months_are_those_of_the_bars_and_not_of_the_origins(panel, tmp_path):
    months = report(panel, tmp_path, Prophet(panel))["seasonality"]["month"]["groups"]
    lively, quiet = (np.mean([months[str(m)]["truth"]["move"] for m in half if str(m) in months]) for half in (range(7, 13), range(1, 7)))
    assert lively > 1.5 * quiet
    origins = held_out_origins(configuration(), panel, print)
    ahead = origins.rows[:, None] + np.arange(1, HORIZON + 1)
    assert {value: group["bars"] for value, group in months.items()} == {
        str(m): int((panel.stamps[ahead, 4] == m).sum()) for m in np.unique(panel.stamps[ahead, 4])
    }


def test_each_held_out_bar_is_forecast_once_and_none_that_was_trained_on(panel):
    origins = held_out_origins(configuration(), panel, print)
    ahead = (origins.rows[:, None] + np.arange(1, HORIZON + 1)).ravel()
    assert len(np.unique(ahead)) == len(ahead) > 0.8 * 0.5 * panel.n_rows
    first = np.sort(np.asarray(panel.times))[panel.n_rows // 2 - 1]  # half of all bars is for training
    assert panel.times[ahead].min() > first


def test_what_was_before_ends_before_the_first_forecast_and_crosses_no_gap():
    frame = seasonal_frame()
    frame.loc[100:, ["open", "high", "low", "close"]] *= 3  # across the gap, where no return is
    frame = frame.drop(index=range(95, 100)).reset_index(drop=True)
    base = build_panel({"AAA": frame}, timezone="UTC", stamp="open")
    parts = {name: getattr(base, name) for name in ("features", "stamps", "times", "offsets", "series", "stamp", "timezone")}
    panel = type(base).build(**parts, breaks=np.array([95]))
    before = what_was_before(held_out_origins(configuration(), panel, print))
    assert 95 not in before.rows and {94, 96} <= set(before.rows.tolist()) and np.abs(before.steps).max() < 0.1
    assert panel.times[before.rows].max() < held_out_origins(configuration(), panel, print).now.min()
    assert before.shares["volatility"] == pytest.approx([1 / 3] * 3, abs=0.02)


def test_states_lie_between_the_edges():
    assert state(np.array([-2.0, 0.0, 2.0]), np.array([-1.0, 1.0])).tolist() == [0, 1, 2]


def test_numbers_and_picture_are_written_and_the_verdict_is_said(panel, tmp_path):
    said = []
    macro_report(configuration(), panel, Prophet(panel, blind=True), tmp_path / "new", said.append)
    numbers = json.loads((tmp_path / "new" / "macro.json").read_text())
    assert numbers["series"] == ["AAA", "BBB"] and set(numbers["regimes"]) == {"trend", "volatility"}
    assert (tmp_path / "new" / "macro.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "new" / "macro.png").stat().st_size > 30_000
    assert any("Its forecast of the volatility regime is worse than the shares seen before: Brier skill" in line for line in said)


@pytest.mark.parametrize("changes", [{"max_origins": 10, "ratios": (0.9, 0.03, 0.0)}, {"ratios": (0.03, 0.5, 0.4)}])
def test_too_few_bars_are_said_instead_of_counted(panel, tmp_path, changes):
    said = []
    (tmp_path / "macro.png").write_bytes(b"an earlier one")
    assert macro_report(configuration(**changes), panel, Prophet(panel), tmp_path, said.append) is None
    assert "macro report left out" in said[-1] and [file.name for file in tmp_path.iterdir()] == ["macro.json"]
    assert "horizons are held out" in json.loads((tmp_path / "macro.json").read_text())["left_out"]
