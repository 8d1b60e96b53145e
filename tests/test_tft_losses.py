"""Losses of many targets: what YAML may say, missing labels, stages, learned balance."""

import math

import numpy as np
import pytest
import tft_tiny as tiny
import torch
import torch.nn.functional as F

from finetune.engine.optimisation import Stepper
from kronos.errors import InputError
from tft.losses import TargetLoss, TargetLosses, plain_losses, read_stages, read_targets, with_training_weights

NAN = math.nan
BOTH = {"target_up": TargetLoss("bce", pos_weight=2.0), "target_return": TargetLoss("mse")}


def test_losses_are_read_by_name_in_any_spelling():
    read = read_targets(
        {
            "a": "WeightedBCE",
            "b": {"name": "focal", "gamma": 3},
            "c": {"loss": "SmoothL1", "beta": 0.5, "weight": 2},
            "d": "mse",
            "e": {"name": "quantile", "quantiles": [0.9, 0.1]},
            "f": {"name": "weighted_bce", "pos_weight": "auto"},
        }
    )
    assert [loss.kind for loss in read.values()] == ["bce", "focal", "smooth_l1", "mse", "quantile", "bce"]
    assert read["b"].gamma == 3 and read["c"].beta == 0.5 and read["c"].weight == 2
    assert read["e"].quantiles == (0.1, 0.9) and read["e"].outputs == 2
    assert read["f"].pos_weight is None
    assert read_targets(plain_losses(read)) == read


def test_everything_wrong_with_targets_is_told_at_once():
    with pytest.raises(InputError) as error:
        read_targets(
            {
                "target_upp": "MSE",
                "target_up": "WeightedBEC",
                "target_a": {"name": "focal", "beta": 1},
                "target_b": {"name": "WeightedBCE", "pos_weight": -3},
                "target_c": {"name": "quantile", "quantiles": [1.5]},
            },
            known=["target_up", "target_a", "target_b", "target_c"],
        )
    told = str(error.value)
    for part in (
        "target_upp: there is no such target (did you mean target_up?)",
        "'WeightedBEC' (did you mean WeightedBCE?)",
        "no option beta",
    ):
        assert part in told
    assert "pos_weight -3" in told and "quantiles [1.5]" in told
    with pytest.raises(InputError, match="no target is named"):
        read_targets({})


def test_each_loss_is_what_its_name_says():
    out, label = torch.tensor([[0.3], [-1.2], [2.0]]), torch.tensor([1.0, 0.0, 1.0])
    p = torch.sigmoid(out[:, 0])
    bce = torch.where(label == 1, -3 * p.log(), -(1 - p).log())
    torch.testing.assert_close(TargetLoss("bce", pos_weight=3.0)(out, label), bce)
    focal = torch.where(label == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(TargetLoss("focal")(out, label), focal)
    torch.testing.assert_close(TargetLoss("mse")(out, label), (out[:, 0] - label) ** 2)
    torch.testing.assert_close(
        TargetLoss("smooth_l1", beta=0.5)(out, label), F.smooth_l1_loss(out[:, 0], label, reduction="none", beta=0.5)
    )
    three = torch.tensor([[0.0, 1.0, 2.0]])
    expected = (0.1 * 3.0 + 0.5 * 2.0 + 0.9 * 1.0) / 3  # the label 3 lies above all of them
    torch.testing.assert_close(TargetLoss("quantile")(three, torch.tensor([3.0])), torch.tensor([expected]))
    expected = (0.9 * 1.0 + 0.5 * 2.0 + 0.1 * 3.0) / 3  # -1 below all of them
    torch.testing.assert_close(TargetLoss("quantile")(three, torch.tensor([-1.0])), torch.tensor([expected]))


def test_positive_weights_come_from_training_labels_within_bounds():
    targets = np.full((1001, 2), NAN)
    targets[:1000, 0] = np.arange(1000) % 4 == 0
    targets[:1000, 1] = np.arange(1000) == 0
    losses = read_targets({"b": "WeightedBCE", "a": "WeightedBCE"})
    weighted = with_training_weights(losses, targets, ["a", "b"])
    assert weighted["a"].pos_weight == 3.0
    assert weighted["b"].pos_weight == 10.0  # 999, bounded
    given = with_training_weights(read_targets({"a": {"name": "WeightedBCE", "pos_weight": 1.5}}), targets, ["a", "b"])
    assert given["a"].pos_weight == 1.5


def test_labels_that_cannot_be_learned_are_told():
    targets = np.array([[1.0, 0.3, NAN, 2.0], [1.0, 0.0, NAN, 2.0]])
    losses = read_targets({"a": "WeightedBCE", "b": "focal", "c": "MSE", "d": "SmoothL1"})
    with pytest.raises(InputError) as error:
        with_training_weights(losses, targets, list("abcd"))
    for part in ("a: all 2 training labels are 1", "b: label 0.3 is neither 0 nor 1", "c: no training window has a label", "d: all 2"):
        assert part in str(error.value)


def logits(size=6):
    torch.manual_seed(0)
    return {"target_up": torch.randn(size, 1, requires_grad=True), "target_return": torch.randn(size, 1, requires_grad=True)}


def labels(size=6):
    return torch.stack((torch.arange(size) % 2, torch.randn(size)), 1).float()


def test_a_missing_label_counts_for_nothing():
    out, target = logits(), labels()
    target[2, 0] = target[4, 1] = target[5, 1] = NAN
    loss, weight, _ = TargetLosses(BOTH)(out, target)
    loss.backward()
    assert out["target_up"].grad[2] == 0 and (out["target_return"].grad[[4, 5]] == 0).all()
    assert loss.isfinite() and weight == 4.5  # 9 of 12 labels, of 2 targets
    each = [BOTH[name](out[name], target[:, k]) for k, name in enumerate(BOTH)]
    torch.testing.assert_close(loss * weight, sum(x[~x.isnan()].sum() for x in each))


def test_a_batch_without_any_label_has_no_weight_and_no_gradient():
    out = logits()
    losses = TargetLosses(BOTH, uncertainty=True)
    torch.nn.init.constant_(losses.log_variance, 0.3)
    loss, weight, _ = losses(out, torch.full((6, 2), NAN))
    loss.backward()
    assert weight == 0 and loss == 0
    assert all((value.grad == 0).all() for value in out.values())


def test_the_weighted_mean_does_not_depend_on_how_windows_are_dealt_out():
    out, target = logits(), labels()
    target[:3, 0] = NAN
    target[5, 1] = NAN
    losses = TargetLosses(BOTH, uncertainty=True)
    torch.nn.init.constant_(losses.log_variance, 0.3)
    whole, weight, terms = losses(out, target)
    parts = [losses({name: value[part] for name, value in out.items()}, target[part]) for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(p[0] * p[1] for p in parts) / sum(p[1] for p in parts), whole)
    for name in terms:
        torch.testing.assert_close(sum(p[2][name] * p[1] for p in parts) / weight, terms[name])


def test_learned_uncertainty_is_loss_over_variance_plus_its_logarithm():
    losses = TargetLosses({**BOTH, "target_return": TargetLoss("mse", weight=0.5)}, uncertainty=True)
    with torch.no_grad():
        losses.log_variance.copy_(torch.tensor([0.4, -0.7]))
    out, target = logits(), labels()
    loss, _, _ = losses(out, target)
    means = [losses.losses[name](out[name], target[:, k]).mean() for k, name in enumerate(BOTH)]
    expected = 1.0 * (means[0] / math.exp(0.4) + 0.4) + 0.5 * (means[1] / math.exp(-0.7) - 0.7)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (losses.log_variance.grad != 0).all()


def test_stages_take_over_at_their_epochs():
    stages = read_stages(
        {"stage_2": {"start_epoch": 3, "weights": {"target_up": 0.0}}, "stage_1": {"start_epoch": 1, "target_return": 2}}, list(BOTH)
    )
    losses = TargetLosses(BOTH, stages)
    seen = []
    for epoch in range(5):
        losses.on_epoch(epoch)
        seen.append(losses.weights)
    assert seen == [[1.0, 1.0], [1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [0.0, 1.0]]
    out = logits()
    losses(out, labels())[0].backward()
    assert (out["target_up"].grad == 0).all() and (out["target_return"].grad != 0).any()


def test_wrong_stages_are_told():
    with pytest.raises(InputError) as error:
        read_stages(
            {"stage_1": {"start_epoch": 0, "target_upp": 1}, "stage_2": {"start_epoch": 2, "target_up": -1}, "stage_3": {"target_up": 1}},
            list(BOTH),
        )
    for part in ("no target target_upp (did you mean target_up?)", "stage_2: weight -1 of target_up", "stage_3: give start_epoch"):
        assert part in str(error.value)
    with pytest.raises(InputError, match="same epoch"):
        read_stages({"a": {"start_epoch": 1}, "b": {"start_epoch": 1}}, list(BOTH))


def test_the_loop_trains_every_weight_and_the_balance():
    from finetune.engine.batches import Micro
    from finetune.engine.distributed import World
    from finetune.engine.settings import FitSettings

    task = tiny.task(uncertainty=True).train()
    batch = tiny.batch(of=task.sizes, dtype=torch.float32)
    batch["targets"] = torch.tensor([[1.0, 0.3, NAN], [0.0, NAN, 0.1]]).repeat(3, 1)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    stepper = Stepper(task, FitSettings(batch_size=6), World())
    result = stepper.step([(Micro(np.arange(6), 0, True), batch)], 0, 1e-2, stop=False)
    assert result.sums.isfinite().all() and set(result.terms) == set(tiny.TARGETS)
    unchanged = [name for name, value in task.state_dict().items() if torch.equal(value, before[name])]
    assert not unchanged
