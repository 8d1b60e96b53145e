"""The loop: accumulation, remainder, schedules, validation, best model, early stop, and refusing to go on from nonsense."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch

from finetune.engine.batches import Micro, plan_epoch, step_micros
from finetune.engine.distributed import World
from finetune.engine.optimisation import Stepper
from finetune.engine.schedule import learning_rate
from finetune.engine.settings import Augmentation, FitSettings
from finetune.engine.state import State
from finetune.engine.task import Outcome, Task
from finetune.engine.trainer import fit
from finetune.engine.windows import Splits
from kronos.errors import InputError


class Recorder(Task):
    """A linear model that remembers which windows it saw."""

    def __init__(self, val_losses=()):
        super().__init__()
        self.layer = torch.nn.Linear(6, 1).double()
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.sizes, self.val_losses, self.saved = [], list(val_losses), []

    def trained(self):
        return self.layer

    def forward(self, batch):
        x = batch["x"].double()
        if not self.training:
            value = self.val_losses.pop(0) if self.val_losses else 1.0
            return Outcome(torch.tensor(value), len(x), {})
        self.sizes.append(len(x))
        return Outcome(self.layer(x).square().mean(), len(x), {})


def test_training_lowers_the_loss_of_tokenizer_and_predictor():
    for task in (tiny.tokenizer_task(), tiny.predictor_task()):
        result = fit(task, tiny.windows(), tiny.settings(epochs=6, learning_rate=5e-3))
        losses = [entry["train_loss"] for entry in result.history]
        assert losses[-1] < losses[0] and result.best_score == min(e["val_loss"] for e in result.history)


def test_accumulation_equals_one_large_batch_and_the_remainder_is_weighted_by_its_windows():
    """Fault 6 of the public code: it slices the batch, drops the remainder, and logs a batch it never used."""
    windows = tiny.windows(2, 59)
    n = len(windows.train)
    assert n % 12 not in (0, 4, 8)  # the last step is short, and so is its last micro-batch
    results = []
    for batch_size, accumulation in ((12, 1), (4, 3)):
        task = Recorder()
        fit(
            task,
            windows,
            FitSettings(epochs=2, batch_size=batch_size, accumulation_steps=accumulation, learning_rate=1e-2, clip_norm=0.5, num_workers=0),
        )
        assert sum(task.sizes) == 2 * n
        results.append(tiny.weights(task.layer))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-12)


def test_a_step_of_few_windows_has_the_gradient_of_their_mean_loss():
    task, source = Recorder(), tiny.windows().train
    batch = source.gather(np.arange(3))
    stepper = Stepper(task.train(), FitSettings(batch_size=8, accumulation_steps=2, clip_norm=0.0), World())
    expected = torch.autograd.grad(task(batch).loss, list(task.layer.parameters()))
    result = stepper.step([(Micro(np.arange(3), 0, True), batch)], step=0, rate=0.0, stop=False)
    assert float(result.norm) == pytest.approx(float(torch.nn.utils.get_total_norm(expected)), rel=1e-6)


def test_every_rank_takes_its_own_micro_batches_and_together_they_are_the_epoch():
    source = tiny.windows(2, 51).train  # 38 windows: the second step has 8 of 30, so the third rank has none
    settings = tiny.settings(batch_size=5, accumulation_steps=2)
    seen, fillers = [], 0
    for rank in range(3):
        world = World(rank, 3)
        plan = plan_epoch(source, settings, world)
        for first in range(0, plan.per_epoch, plan.effective_batch):
            micros = step_micros(source, settings, world, 0, first, min(first + plan.effective_batch, plan.per_epoch))
            assert micros, "a rank without a forward pass would leave the others waiting"
            seen += [i for m in micros if m.real for i in m.index]
            fillers += sum(not m.real for m in micros)
    assert sorted(seen) == list(range(len(source))) and fillers > 0


def test_adam_keeps_its_beta1_under_onecycle(monkeypatch):
    """Fault 9 of the public code: OneCycleLR cycles momentum over the configured beta1."""
    betas = set()
    original = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a, **k: (betas.update(g["betas"] for g in self.param_groups), original(self, *a, **k))[1]
    )
    fit(tiny.predictor_task(), tiny.windows(), tiny.settings(epochs=1, schedule="onecycle", betas=(0.83, 0.97)))
    assert betas == {(0.83, 0.97)}


@pytest.mark.parametrize("name", ["onecycle", "cosine", "linear"])
def test_schedules_rise_to_the_peak_and_fall_to_their_floor(name):
    s = FitSettings(learning_rate=1.0, schedule=name, warmup_ratio=0.1, div_factor=10, final_div_factor=100, min_lr_ratio=0.05)
    rates = [learning_rate(i, 200, s) for i in range(200)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 19
    assert all(a < b for a, b in pairwise(rates[:20])) and all(a > b for a, b in pairwise(rates[19:]))
    assert learning_rate(0, 1, replace(s, warmup_ratio=0.0)) == 1.0, "an only step learns something"
    assert rates[0] >= 0.1 and rates[-1] == pytest.approx(0.001 if name == "onecycle" else 0.05)


def test_plateau_lowers_the_rate_after_patience_epochs_without_improvement():
    s = FitSettings(schedule="plateau", plateau_factor=0.5, plateau_patience=1, min_lr_ratio=0.2)
    state = State()
    scales = []
    for score in (1.0, 2.0, 2.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0, 2.0):
        state.judge(score, s)
        scales.append(state.plateau_scale)
    assert scales == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_the_best_epoch_is_kept_early_stop_ends_and_nan_is_never_best():
    task = Recorder(val_losses=[math.nan, 3.0, 1.0, 2.0, 2.0, 0.1])
    windows = tiny.windows()
    result = fit(task, windows, tiny.settings(epochs=20, early_stop_patience=2, val_batch_size=1000))
    assert (result.best_score, result.best_epoch, len(result.history)) == (1.0, 2, 5)
    assert result.weights is not None and not tiny.same(result.weights, tiny.weights(task.layer))


def test_starting_weights_stay_the_best_until_an_epoch_beats_them():
    task = Recorder(val_losses=[1.0, 3.0, 2.0, 5.0])
    start = tiny.weights(task.layer)
    result = fit(task, tiny.windows(), tiny.settings(score_start=True, val_batch_size=1000))
    assert (result.best_score, result.best_epoch, result.history[0]["val_loss"]) == (1.0, -1, 1.0)
    assert tiny.same(result.weights, start)
    beaten = fit(Recorder(val_losses=[4.0, 3.0, 2.0, 5.0]), tiny.windows(), tiny.settings(score_start=True, val_batch_size=1000))
    assert (beaten.best_score, beaten.best_epoch) == (2.0, 1)


def test_mode_max_prefers_larger_scores():
    result = fit(Recorder(val_losses=[1.0, 3.0, 2.0]), tiny.windows(), tiny.settings(mode="max", val_batch_size=1000))
    assert (result.best_score, result.best_epoch) == (3.0, 1)


def test_an_unknown_monitor_names_those_that_exist():
    with pytest.raises(InputError, match=r"monitor: 'val_f1' is not among .*'val_loss'"):
        fit(Recorder(), tiny.windows(), tiny.settings(monitor="val_f1"))


@pytest.mark.parametrize("which", ["train", "val"])
def test_an_empty_source_is_refused(which):
    """Fault 8 of the public code: an empty validation set gives loss 0, best for ever."""
    full = tiny.windows()
    empty = tiny.windows(ratios=(0.7, 0.3, 0.0)).test
    with pytest.raises(InputError, match="split is empty"):
        fit(Recorder(), full._replace(**{which: empty}), tiny.settings())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_loss_or_gradient_stops_with_step_symbols_and_times(where):
    class Breaks(Recorder):
        def forward(self, batch):
            out = super().forward(batch)
            if self.training and len(self.sizes) == 3:
                bad = (
                    out.loss * math.nan
                    if where == "loss"
                    else out.loss + (self.layer.weight.sum() - self.layer.weight.sum().detach()).sqrt()
                )
                return out._replace(loss=bad)
            return out

    with pytest.raises(InputError, match=rf"step 3: the {where} is not finite.*S0\d 2020-01-0.*Lower the learning rate"):
        fit(Breaks(), tiny.windows(), tiny.settings())


def test_validation_gives_the_same_number_every_time():
    """Fault 2 of the public code: validation samples the coarse token, so the loss is random."""
    task = tiny.predictor_task()
    scores = []
    for _ in range(2):
        task.predictor.load_state_dict(tiny.weights(tiny.predictor()))
        scores.append(fit(task, tiny.windows(), tiny.settings(epochs=1, learning_rate=0.0, weight_decay=0.0)).best_score)
        torch.rand(7)  # other random numbers in between
    assert scores[0] == scores[1]


def test_the_validation_loss_counts_lookahead_targets_only():
    task, batch = tiny.predictor_task().eval(), tiny.windows().val.gather(torch.arange(4).numpy())
    with torch.no_grad():
        before = task(batch)
        s1, s2 = task.tokenizer.encode(batch["x"], half=True)
        changed = {"s1": s1.clone(), "s2": s2.clone(), "stamps": batch["stamps"]}
        changed["s1"][:, 1 : tiny.LOOKBACK] = s1[:, 1 : tiny.LOOKBACK].flip(1)
        logits = task.predictor(s1[:, :-1], s2[:, :-1], batch["stamps"][:, :-1], s1_targets=s1[:, 1:], teacher_forcing=True)
    nll = [
        torch.nn.functional.cross_entropy(part.transpose(1, 2), target[:, 1:], reduction="none")
        for part, target in zip(logits, (s1, s2), strict=True)
    ]
    by_position = (nll[0] + nll[1]) / 2
    torch.testing.assert_close(before.loss, by_position[:, tiny.LOOKBACK - 1 :].mean())
    torch.testing.assert_close(before.terms["window_loss"], by_position.mean())


def test_prefetching_threads_change_nothing_in_the_result():
    results = []
    for workers in (0, 3):
        task = tiny.predictor_task()
        fit(task, tiny.windows(), tiny.settings(num_workers=workers))
        results.append(tiny.weights(task.predictor))
    assert tiny.same(*results)


def test_bf16_trains_close_to_float32():
    losses = [
        fit(tiny.tokenizer_task(), tiny.windows(), tiny.settings(epochs=4, amp=amp)).history[-1]["train_loss"] for amp in ("off", "bf16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]


def test_activation_checkpointing_changes_memory_not_results():
    results = []
    for switch in (False, True):
        task = tiny.predictor_task()
        fit(task, tiny.windows(), tiny.settings(epochs=1, activation_checkpointing=switch))
        results.append(tiny.weights(task.predictor))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-6)


def test_torch_compile_changes_speed_not_results(monkeypatch):
    """Captured and differentiated by the real compiler; only its C++ code generation (minutes on a CPU) is left out."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: original(self, backend="aot_eager"))
    losses = []
    for switch in (False, True):
        windows = tiny.windows(2, 51)  # 38 training windows: two full batches of 19, so that few shapes are compiled
        result = fit(tiny.tokenizer_task(), windows, tiny.settings(epochs=1, batch_size=19, val_batch_size=1000, compile=switch))
        losses.append((result.history[0]["train_loss"], result.best_score))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_without_a_compiler_compile_is_refused_in_one_message(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that was compiled before
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(InputError, match=r"training.compile: .*No working C\+\+ compiler.*no-such-compiler.*; install .* or set"):
        fit(tiny.predictor_task(), tiny.windows(), tiny.settings(epochs=1, compile=True), max_steps=1)


def test_max_steps_ends_the_run_there_and_validates():
    result = fit(Recorder(), tiny.windows(), tiny.settings(epochs=50), max_steps=4)
    assert result.steps == 4 and len(result.history) == 1
    assert fit(Recorder(), tiny.windows(), tiny.settings(), max_steps=0).steps == 0


def test_windows_per_epoch_limits_training_and_validation():
    task = Recorder()
    windows = tiny.windows()
    fit(task, windows, tiny.settings(epochs=2, n_train_iter=20, n_val_iter=5))
    assert sum(task.sizes) == 40


@pytest.mark.parametrize("kind", ["noise", "scale", "time_warp", "slice"])
def test_augmentation_changes_training_windows_only_and_keeps_bars_possible(kind):
    windows = tiny.windows()
    plain = windows.train.gather(torch.arange(6).numpy())
    plain_val = windows.val.gather(torch.arange(6).numpy())
    task = Recorder()
    fit(task, windows, tiny.settings(epochs=1, augmentation=Augmentation(**{kind: 0.3})), max_steps=1)
    changed = windows.train.gather(torch.arange(6).numpy())
    again = windows.train.gather(torch.arange(6).numpy())
    assert not torch.equal(plain["x"], changed["x"]) and torch.equal(changed["x"], again["x"])
    assert torch.equal(plain_val["x"], windows.val.gather(torch.arange(6).numpy())["x"])
    windows.train.augment.epoch = 1
    assert not torch.equal(changed["x"], windows.train.gather(torch.arange(6).numpy())["x"])
    inside = (changed["x"].abs() < windows.train.clip).all(-1)
    raw = (changed["x"] * changed["scale"] + changed["loc"])[inside]
    assert (raw[:, 1] >= raw[:, [0, 3]].amax(1) - 1e-3).all() and (raw[:, 2] <= raw[:, [0, 3]].amin(1) + 1e-3).all()
    assert (raw[:, 4:] >= -1).all()


def test_a_splits_tuple_is_all_the_loop_needs():
    assert isinstance(tiny.windows(), Splits)
