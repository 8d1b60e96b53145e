"""LightGBM and the constant beside the transformer, and the intervals that decide between them."""

import builtins
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from finetune.engine.randomness import numpy_generator
from kronos.errors import InputError
from tft.baselines import constants, held_out, lightgbm
from tft.forecasts import Rows, probability, threshold
from tft.losses import TargetLoss
from tft.report_scores import Moments, differences, metrics_of, resampled

LOSSES = {"target_up": TargetLoss("bce", pos_weight=2.0), "target_return": TargetLoss("smooth_l1")}
HOUR = 3_600 * 10**9


def rows(n=1200, seed=0):
    """Two periods; feature 2 of 5 (and a code) says the class, feature 1 the value, with noise."""
    draw = numpy_generator(seed)
    x = draw.normal(size=(n, 6)).astype(np.float32)
    x[:, 5] = draw.integers(0, 4, n)
    up = (x[:, 2] + 0.5 * (x[:, 5] == 2) + 0.5 * draw.normal(size=n) > 0.5).astype(float)
    labels = np.column_stack([up, x[:, 1] + 0.3 * draw.normal(size=n)]).astype(np.float32)
    labels[::11, 0] = np.nan
    return Rows(x, (5,), labels, np.arange(n) % 2, np.arange(n))


def test_lightgbm_finds_what_the_features_say_and_the_constant_does_not():
    train, scored = rows(), rows(400, seed=1)
    times = train.row * HOUR
    reach = {name: [HOUR, HOUR] for name in LOSSES}
    found, plain = lightgbm(train, scored, LOSSES, times, reach, say=pytest.fail), constants(train, scored, LOSSES)
    there = ~np.isnan(scored.labels[:, 0])
    assert roc_auc_score(scored.labels[there, 0], found["target_up"][there]) > 0.85
    assert (found["target_up"] > 0).all() and (found["target_up"] < 1).all()
    error, spread = (np.std(scored.labels[:, 1] - guess["target_return"]) for guess in (found, plain))
    assert error < 0.5 * spread
    for period in (0, 1):
        known = train.labels[train.period == period, 0]
        assert np.unique(plain["target_up"][scored.period == period]) == pytest.approx(np.nanmean(known), abs=1e-6)


def test_a_period_with_too_few_labels_gets_the_constant_and_is_named():
    train, scored, told = rows(300), rows(40, seed=1), []
    found = lightgbm(train, scored, {"target_up": LOSSES["target_up"]}, train.row * HOUR, {"target_up": [0, 0]}, say=told.append)
    assert len(told) == 2 and "target_up" in told[0] and "too few" in told[0]
    assert np.array_equal(found["target_up"], constants(train, scored, {"target_up": LOSSES["target_up"]})["target_up"])


def test_labels_before_the_held_out_rows_are_known_before_them():
    times = np.arange(100) * HOUR
    early, late = held_out(times, 5 * HOUR)
    assert late[0] == 85 and early[-1] == 79 and len(late) == 15


def test_without_lightgbm_there_is_one_line(monkeypatch):
    whole = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a: (_ for _ in ()).throw(ImportError("no")) if name == "lightgbm" else whole(name, *a)
    )
    with pytest.raises(InputError, match="pip install lightgbm"):
        lightgbm(rows(), rows(), LOSSES, rows().row, {})


@pytest.mark.parametrize("loss", [TargetLoss("bce", pos_weight=4.0), TargetLoss("focal"), TargetLoss("focal", gamma=0.5, alpha=0.8)])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_the_logit_that_a_loss_likes_best_stands_for_the_true_probability(loss, share):
    import torch

    logits = torch.linspace(-9, 9, 36001, dtype=torch.float64)
    ones = torch.ones_like(logits)
    mean = share * loss(logits[:, None], ones) + (1 - share) * loss(logits[:, None], 0 * ones)
    best = logits[mean.argmin()].numpy()
    assert probability(loss, best) == pytest.approx(share, abs=2e-3)
    assert (best > 0) == (share > threshold(loss))


def test_probabilities_stay_in_range_and_rise_with_the_logit():
    for loss in (TargetLoss("bce", pos_weight=0.1), TargetLoss("focal", gamma=2.0)):
        found = probability(loss, np.array([-500.0, -20, -1, 0, 1, 20, 500]))
        assert np.isfinite(found).all() and (np.diff(found) >= 0).all() and found[0] >= 0 and found[-1] <= 1


def sample(n=600, seed=3):
    draw = numpy_generator(seed)
    label = (draw.random(n) < 0.3).astype(float)
    point = np.round(label + draw.normal(size=n), 1)  # with ties
    return label, point - 0.5


def moments_of(n, per_moment=1, horizon=1):
    times = np.arange(n) // per_moment * HOUR
    return Moments.of(times, np.full(n, horizon * HOUR))


def test_resampled_metrics_begin_with_those_of_scikit_learn_and_of_training():
    label, point = sample()
    found = resampled(LOSSES["target_up"], point, label, moments_of(len(label)).resampler(0))
    assert found["auc"][0] == pytest.approx(roc_auc_score(label, point), abs=1e-12)
    assert found["ap"][0] == pytest.approx(average_precision_score(label, point), abs=1e-12)
    assert found["f1"][0] == pytest.approx(f1_score(label, point > 0), abs=1e-12)
    trained, confusion = metrics_of(
        {"target_up": LOSSES["target_up"]}, {"target_up": point}, label[:, None], np.zeros(len(label), int), ["1h"]
    )
    for name in ("f1", "accuracy", "precision", "recall", "auc", "ap"):
        assert trained[f"target_up_{name}@1h"] == trained[f"target_up_{name}"] == pytest.approx(found[name][0], abs=1e-12)
    assert confusion["target_up"].sum() == len(label)
    error = resampled(LOSSES["target_return"], point, label, moments_of(len(label)).resampler(0))
    assert error["rmse"][0] == pytest.approx(math.sqrt(np.mean((point - label) ** 2)))


def test_a_resample_is_scored_as_its_rows_repeated():
    label, point = sample(60)
    moments = moments_of(60)
    resampler = moments.resampler(0)
    found = resampled(LOSSES["target_up"], point, label, resampler)
    for number in (1, 7):
        again = np.repeat(np.arange(60), resampler.weights[number].astype(int))
        assert found["auc"][number] == pytest.approx(roc_auc_score(label[again], point[again]))
        assert found["ap"][number] == pytest.approx(average_precision_score(label[again], point[again]))
        assert found["f1"][number] == pytest.approx(f1_score(label[again], point[again] > 0))


def test_verdicts_know_better_worse_and_neither():
    label, point = sample(900)
    noise = numpy_generator(9).normal(size=900)
    loss = LOSSES["target_up"]
    found = differences(loss, point, {"noise": noise, "itself": point, "oracle": label - 0.5}, label, moments_of(900))
    assert found["noise"]["auc"].verdict == "better than" and found["oracle"]["auc"].verdict == "worse than"
    assert found["itself"]["auc"].verdict == "indistinguishable from"
    assert found["noise"]["auc"].low < found["noise"]["auc"].value < found["noise"]["auc"].high
    errors = differences(LOSSES["target_return"], label + 0.1, {"far": label + 1 + noise}, label, moments_of(900))["far"]
    assert errors["rmse"].value < 0 and errors["rmse"].verdict == "better than"


def test_labels_that_overlap_make_longer_blocks_and_wider_intervals():
    draw = numpy_generator(5)
    n, horizon = 1500, 24
    signal = np.convolve(draw.normal(size=n + horizon - 1), np.ones(horizon) / math.sqrt(horizon), "valid")
    loss, noise = LOSSES["target_return"], np.convolve(draw.normal(size=n + horizon - 1), np.ones(horizon) / math.sqrt(horizon), "valid")
    wide, narrow = (
        differences(loss, np.zeros(n), {"noise": noise}, signal, moments_of(n, horizon=h))["noise"]["rmse"] for h in (horizon, 1)
    )
    assert moments_of(n, horizon=horizon).block == 2 * horizon
    assert wide.high - wide.low > narrow.high - narrow.low


def test_symbols_of_one_moment_are_drawn_together():
    moments = moments_of(600, per_moment=3)
    assert len(moments.moments) == 200 and moments.resampler(0).weights.shape[1] == 200


def test_too_few_moments_give_no_interval():
    label, point = sample(20)
    found = differences(LOSSES["target_up"], point, {"zero": -point}, label, moments_of(20))["zero"]["auc"]
    assert found.verdict == "not comparable with" and math.isnan(found.low) and np.isfinite(found.value)
