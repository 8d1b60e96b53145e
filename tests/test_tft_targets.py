"""Targets: known answers, bars after t only, none beyond the horizon, thresholds from training rows only."""

import json

import numpy as np
import pandas as pd
import pytest
from bars import make_frame, make_panel

from finetune.data.panel import Panel
from kronos.errors import InputError, MissingFileError
from tft.data_config import TargetsSection
from tft.target_panel import close_times, target_panel, training_end
from tft.targets import TARGETS, choose_targets

ALL = sorted(TARGETS)
DAY = 86_400 * 10**9
quiet = lambda text: None  # noqa: E731


def wanted(name: str, horizon: int = 4, **more):
    return choose_targets([{"name": name, **more}], "1h", horizon)[0]


def measured(one, frame: pd.DataFrame, stretch=None) -> np.ndarray:
    stretch = np.zeros(len(frame)) if stretch is None else stretch
    return one.measure(frame.close.to_numpy(), frame.high.to_numpy(), frame.low.to_numpy(), stretch)


def path(*closes: float) -> pd.DataFrame:
    """Bars that close at e^closes and reach 0.5 beyond."""
    closes = np.array(closes)
    return pd.DataFrame({"close": np.exp(closes), "high": np.exp(closes + 0.5), "low": np.exp(closes - 0.5)})


ANSWERS = [
    ("binarytrend", (0, 1, -2, 3, 0.5), 1),
    ("binarytrend", (0, 1, 2, 3, 0), 0),
    ("logreturn", (2, 9, 9, 9, 1.5), -0.5),
    ("logsharpe_ratio", (0, 0, 0, 0, 1), 1 / np.sqrt((3 * 1.0 + 1.5**2) / (4 * np.log(2)))),
    ("breakout_count", (0, -1, 1, 0.5, 2), 2),
    ("breakout_count", (0, -1, -0.5, 0, 0), 0),
    ("max_drawdown", (0, 2, 1, 3, -1), -4),
    ("max_drawdown", (0, 1, 2, 3, 4), 0),
    ("drawdown_prob", (0, 2, 1, 3, -1), 4),
    ("pullback_prob", (0, 2, 1, 1.5, 1.9), 1),
    ("pullback_prob", (0, 2, 1.5, 1.6, 1.2), 0),
    ("pullback_prob", (0, -1, -2, -1.5, -3), 0),
    ("pullback_prob", (0, 1, 2, 3, 4), 0),
    ("return_outlier_lower_10", (0, 1, 1, 1, -3), -3),
    ("return_outlier_upper_90", (0, 1, 1, 1, 3), 3),
    ("sideway_detect", (0, 1, 0, -1, 0), 3),
    ("sideway_detect", (9, 1, 0, -1, 0), 10.5),
    ("trend_persistence", (0, 1, 2, 1, 2), 2),
    ("trend_persistence", (0, -1, -2, -3, -4), 4),
    ("trend_persistence", (0, 0, 1, 2, 3), 0),
]


@pytest.mark.parametrize(("name", "closes", "answer"), ANSWERS)
def test_known_answers(name, closes, answer):
    assert measured(wanted(name), path(*closes))[0] == pytest.approx(answer)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("horizon", [2, 7])
def test_a_target_is_made_of_the_bars_after_t_and_of_none_beyond_the_horizon(name, horizon):
    frame = make_frame(60)
    one, t = wanted(name, horizon), 30
    base = measured(one, frame)[t]
    past = frame.copy()
    past.loc[: t - 1, ["close", "high", "low"]] *= 3.7  # bars before t
    past.loc[t, ["high", "low"]] = 1e6, 1e-6  # bar t counts through its close alone
    beyond = frame.copy()
    beyond.loc[t + horizon + 1 :, ["close", "high", "low"]] *= 0.2
    assert measured(one, past)[t] == base and measured(one, beyond)[t] == base
    inside = frame.copy()
    inside.loc[t + 1 : t + horizon, "close"] *= np.exp(np.where(np.arange(horizon) % 2, -0.2, 0.3))
    inside.loc[t + 1 : t + horizon, "high"] *= 3
    down = inside.copy()
    down.loc[t + 1 : t + horizon, "close"] *= 0.2
    down.loc[t + 1 : t + horizon, "low"] *= 0.1
    found = {base, measured(one, inside)[t], measured(one, down)[t], measured(one, path(*np.zeros(t), 0, *np.arange(1, 30)))[t]}
    assert len(found) > 1, "and it does look at the bars in between"


@pytest.mark.parametrize("name", ALL)
def test_rows_without_a_full_future_have_none(name):
    frame = make_frame(50)
    found = measured(wanted(name, 5), frame)
    assert np.isnan(found[45:]).all() and np.isfinite(found[:45]).all()
    stretch = (np.arange(50) >= 20).astype(int)
    broken = measured(wanted(name, 5), frame, stretch)
    assert np.isnan(broken[15:20]).all(), "a gap lies in their future"
    assert np.isfinite(broken[:15]).all() and np.isfinite(broken[20:45]).all()
    assert np.isnan(measured(wanted(name, 50), frame)).all()


def test_long_series_are_worked_in_pieces_without_a_seam(monkeypatch):
    frame = make_frame(100)
    whole = [measured(wanted(name), frame) for name in ALL]
    monkeypatch.setattr("tft.targets._CHUNK", 7)
    for one, name in zip(whole, ALL, strict=True):
        np.testing.assert_array_equal(one, measured(wanted(name), frame), err_msg=name)


def test_shifting_all_prices_changes_no_target():
    frame = make_frame(80)
    scaled = frame.assign(**{name: frame[name] * 4096 for name in ("close", "high", "low")})
    for name in ALL:
        np.testing.assert_allclose(measured(wanted(name), scaled), measured(wanted(name), frame), atol=1e-9, err_msg=name)


def section(*lines, **more) -> TargetsSection:
    return TargetsSection(**{"use": list(lines) or ALL, "horizon": 4, **more})


def edited(panel: Panel, change) -> Panel:
    features = panel.features.copy()
    change(features)
    shared = {name: getattr(panel, name) for name in ("stamps", "times", "offsets", "series", "columns")}
    return Panel.build(features=features, **shared)


def test_thresholds_come_from_training_rows_alone():
    panel = make_panel(2, 300)
    made, told = target_panel(panel, section(val_ratio=0.3), quiet)
    end = training_end(panel.times, section(val_ratio=0.3))
    assert pd.Timestamp(told["train_until"]) == pd.Timestamp(end, tz="UTC").floor("s")
    later = close_times(panel) > end

    def wild(features):
        features[later, :4] *= np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.3, later.sum())))[:, None]

    other, again = target_panel(edited(panel, wild), section(val_ratio=0.3), quiet)
    assert told["thresholds"] == again["thresholds"] and set(told["thresholds"]["target_sideway_detect"]) == {"S00 1h", "S01 1h"}
    known = int((~later[:300]).sum()) - 4  # rows whose fourth bar has closed by then
    np.testing.assert_array_equal(made.targets[:known], other.targets[:known])
    names = list(made.target_names)
    share = made.targets[:known, names.index("target_return_outlier_lower_10")].mean()
    assert share == pytest.approx(0.1, abs=0.01)


def test_thresholds_of_another_run_are_taken_as_they_are_and_one_that_lacks_is_named(tmp_path):
    _, told = target_panel(make_panel(2, 300), section(), quiet)
    file = tmp_path / "targets.json"
    file.write_text(json.dumps(told))
    later = make_panel(2, 200, seed=9)
    assert target_panel(later, section(), quiet)[1]["thresholds"] != told["thresholds"]
    assert target_panel(later, section(thresholds=str(file)), quiet)[1]["thresholds"] == told["thresholds"]
    with pytest.raises(InputError, match=r"has no threshold of target_.* for S02 1h, only S00 1h, S01 1h"):
        target_panel(make_panel(3, 200), section(thresholds=str(file)), quiet)
    file.write_text("{}")
    with pytest.raises(InputError, match="holds no thresholds"):
        target_panel(later, section(thresholds=str(file)), quiet)
    with pytest.raises(MissingFileError, match="is not there"):
        target_panel(later, section(thresholds=str(tmp_path / "none.json")), quiet)


def test_the_training_data_end_where_the_configuration_says():
    times = make_panel(1, 240).times
    assert training_end(times, section(val_mode="days", val_days=3, test_days=2)) == times[-1] - 5 * DAY
    assert training_end(times, section(train_until="2020-01-03")) == pd.Timestamp("2020-01-03").value
    cut = training_end(times, section(val_ratio=0.25, test_ratio=0.25))
    assert (times < cut).sum() == 120


def test_horizons_differ_by_period_and_by_target():
    panel = make_panel(1, 200)
    made, told = target_panel(
        panel, section("logreturn", {"name": "logreturn", "horizon": 9, "as": "far"}, horizon={"1h": 3, "4h": 1}), quiet
    )
    assert made.target_names == ("target_logreturn", "target_far")
    assert np.isnan(made.targets).sum(axis=0).tolist() == [3, 9]
    close = made.features[:, 3].astype(float)
    np.testing.assert_allclose(made.targets[:191, 1], np.log(close[9:] / close[:-9]), rtol=1e-5, atol=1e-7)
    assert told["targets"]["target_far"] == {"name": "logreturn", "kind": "real", "parameters": {}, "horizon": {"1h": 9}}


@pytest.mark.parametrize(
    ("lines", "more", "told"),
    [
        (["logretrun"], {}, r"'logretrun' is not a target; did you mean logreturn"),
        ([{"name": "drawdown_prob", "quantil": 0.5}], {}, "did you mean quantile"),
        ([{"name": "drawdown_prob", "quantile": 1.5}], {}, "quantile is 1.5; expected a number above 0 and below 1"),
        (["logreturn", "logreturn"], {}, "line 2: target_logreturn is already there"),
        (["pullback_prob"], {"horizon": 1}, "horizon is 1 for 1h; expected a whole number of at least 2"),
        (["logreturn"], {"horizon": {"4h": 2}}, "targets.horizon has no entry for '1h'"),
        (["logreturn"], {"horizon": 400}, "target_logreturn: no row has its full future"),
        (["drawdown_prob"], {"train_until": "2020-01-01T10:00"}, "S00 1h, target_drawdown_prob: 6 training rows"),
        (["pullback_prob"], {}, "target_pullback_prob: is 0 in all"),
    ],
)
def test_mistakes_are_told(lines, more, told):
    panel = make_panel(1, 200)
    if lines == ["pullback_prob"]:
        panel = edited(panel, lambda features: features.__setitem__((slice(None), slice(0, 4)), np.arange(1.0, 201)[:, None]))
    with pytest.raises(InputError, match=told):
        target_panel(panel, section(*lines, **more), quiet)
