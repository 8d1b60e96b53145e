"""Validation metrics: against scikit-learn, by period, over ranks; the composite score."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tft_tiny
import tiny
import torch
from ranks import run_ranks
from sklearn import metrics as theirs

from finetune.engine.distributed import World, world
from finetune.engine.errors import Interrupted
from finetune.engine.task import Outcome
from finetune.engine.tracking import Run
from finetune.engine.trainer import fit
from finetune.engine.windows import Splits
from kronos.errors import InputError
from tft.losses import read_targets
from tft.metrics import Composite, TargetMetrics
from tft.task import load_task

LOSSES = read_targets({"target_up": "WeightedBCE", "target_return": "MSE", "target_band": "quantile"})
N = 60


def windows():
    draw = torch.Generator().manual_seed(0)
    outputs = {name: torch.randn(N, loss.outputs, generator=draw) for name, loss in LOSSES.items()}
    targets = torch.randn(N, 3, generator=draw)
    targets[:, 0] = (targets[:, 0] > 0.3).float()
    targets[::7, 0] = targets[::5, 1] = math.nan
    return outputs, {"targets": targets, "period": torch.arange(N) // 20 % 2, "row": torch.arange(N).flip(0)}


def collected(of_rank: int = 0, size: int = 1, composite=None, here: World | None = None):
    """Metrics of batches of 7 dealt out to ranks as the loop does, with a filler where a rank has none left."""
    outputs, batch = windows()
    metrics = TargetMetrics(LOSSES, ["1h", "4h", "1d"], composite)
    starts = list(range(0, N, 7))
    for first in range(0, len(starts), size):
        number = first + of_rank
        part = slice(starts[number], starts[number] + 7) if number < len(starts) else slice(0, 1)
        outcome = Outcome(torch.tensor(1.0), torch.tensor(7.0), {}, {name: value[part] for name, value in outputs.items()})
        metrics.update(outcome if number < len(starts) else outcome._replace(weight=0.0), {k: v[part] for k, v in batch.items()})
    return metrics, metrics.compute(here or World())


def test_they_equal_scikit_learns_overall_and_by_period():
    metrics, found = collected()
    outputs, batch = windows()
    for where, chosen in {"": batch["period"] >= 0, "@1h": batch["period"] == 0, "@4h": batch["period"] == 1}.items():
        there = chosen & ~batch["targets"][:, 0].isnan()
        label, score = batch["targets"][there, 0].numpy(), outputs["target_up"][there, 0].numpy()
        expected = {
            "f1": theirs.f1_score(label, score > 0),
            "accuracy": theirs.accuracy_score(label, score > 0),
            "precision": theirs.precision_score(label, score > 0),
            "recall": theirs.recall_score(label, score > 0),
            "auc": theirs.roc_auc_score(label, score),
            "ap": theirs.average_precision_score(label, score),
        }
        for name, value in expected.items():
            assert found[f"target_up_{name}{where}"] == pytest.approx(value, abs=1e-12), name + where
        assert (metrics.confusion[f"target_up{where}"] == theirs.confusion_matrix(label, score > 0)).all()
        for k, name, column in ((1, "target_return", 0), (2, "target_band", 1)):  # the band is judged by its median
            there = chosen & ~batch["targets"][:, k].isnan()
            error = (outputs[name][there, column] - batch["targets"][there, k]).double().numpy()
            assert found[f"{name}_rmse{where}"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-6)
            assert found[f"{name}_mae{where}"] == pytest.approx(np.abs(error).mean(), abs=1e-6)
    assert not [name for name in found if name.endswith("@1d")]  # no window of that period


def test_what_the_labels_do_not_define_is_left_out():
    metrics = TargetMetrics({"target_up": LOSSES["target_up"]})
    outcome = Outcome(torch.tensor(1.0), 3.0, {}, {"target_up": torch.randn(3, 1)})
    metrics.update(outcome, {"targets": torch.ones(3, 1)})
    found = metrics.compute(World())
    assert "target_up_auc" not in found and "target_up_ap" not in found and "target_up_recall" in found
    assert all(math.isfinite(value) for value in found.values())


def test_the_checkpoint_loss_is_the_plain_sum_whatever_the_stage():
    found = collected()[1]
    assert found["loss_for_ckpt"] == pytest.approx(sum(found[f"{name}_loss"] for name in LOSSES))
    assert found["loss"] == 1.0


def test_one_rank_and_two_give_the_same_metrics(tmp_path):
    for done in run_ranks([__file__, str(tmp_path)], 2):
        assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["metrics"] == second["metrics"] == collected()[1]
    one = trained(World())
    assert set(first["weights"]) == set(one["weights"])
    for name, value in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), f"the ranks differ in {name}"
        torch.testing.assert_close(first["weights"][name], value, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert first["val"] == second["val"] and first["val"].keys() == one["val"].keys()
    for name, value in one["val"].items():
        assert first["val"][name] == pytest.approx(value, abs=1e-5), name


def trained(here: World) -> dict:
    """Two epochs of the loop, two micro-batches of 5 windows per step whatever the world, labels missing here and there."""
    task = tft_tiny.task(
        uncertainty=True, dropout=0.1, periods=["1h", "4h"], composite={"val_target_up_auc": 1, "val_target_return_mae@4h": -1}
    )
    settings = tiny.settings(epochs=2, batch_size=5, accumulation_steps=2 // here.size, monitor="val_composite_score", mode="max")
    result = fit(task, Splits(tft_tiny.Source(0), tft_tiny.Source(1), tft_tiny.Source(1)), settings, world=here)
    return {"weights": tiny.weights(task), "val": result.history[-1]}


def test_a_run_of_the_loop_continues_from_its_checkpoint(tmp_path):
    def started(folder, resume, **changes):
        run = Run.create(tmp_path / folder, config={}, is_main=True, resume=resume, name="test")
        task = tft_tiny.task(uncertainty=True, stages={"stage_2": {"start_epoch": 1, "target_up": 3.0}})
        splits = Splits(tft_tiny.Source(0), tft_tiny.Source(1), tft_tiny.Source(1))
        fit(task, splits, tiny.settings(epochs=2, schedule="constant"), run, resume=resume, **changes)
        return task

    whole = started("whole", False)
    with pytest.raises(Interrupted):
        started("broken", False, stop=tiny.StopAfter(7))
    assert tiny.same(tiny.weights(started("broken", True)), tiny.weights(whole))
    best = load_task(tmp_path / "whole" / "best_model")
    assert best.losses.log_variance.abs().sum() > 0


def test_the_composite_score_weighs_scores_and_errors():
    composite = Composite.read({"val_target_up_f1@1h": 2, "target_return_rmse": -0.5, "target_return_mae": 0.5}, LOSSES)
    values = {"target_up_f1@1h": 0.6, "target_return_rmse": 0.2, "target_return_mae": 1.0}
    assert composite(values) == pytest.approx((2 * 0.6 - 0.5 * 0.2 + 0.5 * 0.5) / 3)  # the positive error as 1 / (1 + 1)
    found = collected(composite=composite)[1]
    assert found["composite_score"] == pytest.approx(composite(found))


def test_an_absent_part_is_told_once_and_left_out():
    told = []
    composite = Composite.read({"composite_score": {"val_target_up_f1@1w": 1.0, "val_target_up_auc": 1.0}}, LOSSES)
    values = {"target_up_auc": 0.7}
    assert composite(values, told.append) == composite(values, told.append) == 0.7
    assert told == ["composite_score: left out, because not measured: val_target_up_f1@1w"]


def test_a_composite_score_of_nothing_is_an_error():
    composite = Composite.read({"val_target_up_f1@1w": 1.0}, LOSSES)
    with pytest.raises(InputError, match="none of its metrics"):
        composite({"target_up_auc": 0.7})


def test_a_name_that_is_no_metric_of_these_targets_is_told_once_before_training_and_left_out():
    composite = Composite.read({"val_target_up_f2": 1.0, "val_target_gone_auc": 1.0, "val_target_up_auc": 0.5}, LOSSES)
    told = []
    composite.tell_unknown(told.append)
    assert composite({"target_up_auc": 0.7}, told.append) == pytest.approx(0.7)
    assert len(told) == 1 and "val_target_up_f2 (did you mean val_target_up_f1?), val_target_gone_auc" in told[0]


def test_a_wrong_composite_score_is_told():
    with pytest.raises(InputError) as error:
        Composite.read({"val_target_up_f2": 1.0, "val_target_return_auc": 1, "val_target_gone_f1": "much"}, LOSSES)
    for part in ("none of its names is a metric of these targets: val_target_up_f2 (did", "weight 'much' of val_target_gone_f1"):
        assert part in str(error.value)
    with pytest.raises(InputError, match="names no metric"):
        Composite.read({}, LOSSES)


def test_a_smaller_error_always_scores_higher_below_nothing_too():
    """With learned balance a loss may be negative; 1 / (1 + loss) would have its pole at -1."""
    composite = Composite.read({"val_loss": 1.0}, LOSSES)
    scores = [composite({"loss": value}) for value in (3.0, 0.5, 0.0, -0.5, -1.0, -7.0)]
    assert scores == sorted(scores) and scores[:3] == pytest.approx([0.25, 1 / 1.5, 1.0])


if __name__ == "__main__":
    with world(timeout_s=60) as here:
        torch.set_num_threads(1)
        found = {"metrics": collected(here.rank, here.size, here=here)[1], **trained(here)}
        torch.save(found, Path(sys.argv[1]) / f"{here.rank}.pt")
