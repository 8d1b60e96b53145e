"""A short round of the drill of numbers that are not finite, and what it taught: named windows, tokens, validation, weights."""

import numpy as np
import pytest
import tiny
import torch
from bars import make_panel
from test_drills_kill import drill

from finetune.data.panel import Panel
from finetune.engine.checkpoint import newest_last
from finetune.engine.distributed import World
from finetune.engine.errors import Interrupted
from finetune.engine.finite import non_finite_weights
from finetune.engine.signals import StopRequest
from finetune.engine.splits import make_splits
from finetune.engine.tokens import with_cached_tokens
from finetune.engine.tracking import Run
from finetune.engine.trainer import fit
from kronos.errors import InputError


@pytest.mark.slow
def test_what_is_not_finite_is_named_and_never_saved():
    drill("nan", "--rounds", "7", "--seed", "0")


@pytest.fixture
def damaged(tmp_path):
    """Makes splits of a panel with one bar that is not finite."""

    def make(series: int, row: int):
        folder = make_panel(2, 60).save(tmp_path / "panel")
        features = np.load(folder / "features.npy", mmap_mode="r+")
        features[series * 60 + row, 3] = np.nan
        features.flush()
        return make_splits(Panel.open(folder), tiny.LOOKBACK, tiny.HORIZON, (0.7, 0.3, 0.0), say=lambda _: None)

    return make


def run_in(folder):
    return Run.create(folder, config={}, is_main=True, resume=False, name="test")


@pytest.mark.parametrize("make", [tiny.tokenizer_task, tiny.predictor_task])
def test_the_window_that_holds_the_bar_is_named_even_if_it_is_not_among_the_first(tmp_path, damaged, make):
    with pytest.raises(InputError, match=r"step 1: the loss is not finite.*hold bars that are not finite") as error:
        fit(make(), damaged(1, 20), tiny.settings(batch_size=1000), run_in(tmp_path / "run"))
    assert "S01" in str(error.value) and "S00" not in str(error.value)
    assert newest_last(tmp_path / "run" / "checkpoints") is None


def test_bars_that_are_not_finite_are_not_cached_as_tokens(tmp_path, damaged):
    with pytest.raises(InputError, match=r"not finite.*S01 2020-01-0"):
        with_cached_tokens(damaged(1, 20), tiny.tokenizer(), tmp_path / "cache", tiny.settings(), World(), StopRequest(), mode="on")


def fp16_overflowing(monkeypatch, steps):
    """Training of the predictor in which fp16 gradients overflow in these steps, from 0."""
    from finetune.engine.optimisation import Stepper

    plain, seen = Stepper._update, []

    def update(stepper, correction):
        seen.append(None)
        if len(seen) - 1 in steps:
            stepper.parameters[0].grad.fill_(torch.inf)
        return plain(stepper, correction)

    monkeypatch.setattr(Stepper, "_update", update)
    return tiny.settings(amp="fp16", epochs=2)


def test_fp16_that_overflowed_in_every_step_of_a_short_run_is_no_success(tmp_path, monkeypatch):
    settings = fp16_overflowing(monkeypatch, range(100))
    with pytest.raises(InputError, match=r"overflowed in every one of the \d+ steps: no weight has changed.*amp: bf16"):
        fit(tiny.tokenizer_task(), tiny.windows(), settings, run_in(tmp_path / "run"))


def test_skipped_steps_are_told_and_counted_over_a_resume(tmp_path, monkeypatch, capsys):
    settings = fp16_overflowing(monkeypatch, (0, 1))
    with run_in(tmp_path / "run") as run, pytest.raises(Interrupted):
        fit(tiny.tokenizer_task(), tiny.windows(), settings, run, stop=tiny.StopAfter(4))
    with Run.create(tmp_path / "run", config={}, is_main=True, resume=True, name="test") as run:
        result = fit(tiny.tokenizer_task(), tiny.windows(), settings, run, resume=True)
    assert result.skipped_steps == 2
    assert f"fp16 gradients overflowed in 2 of {result.steps} steps, which changed nothing" in capsys.readouterr().out


def test_a_validation_that_was_never_finite_is_no_success(tmp_path, damaged):
    with pytest.raises(InputError, match=r"no epoch had a finite validation loss.*S00 2020"):
        fit(tiny.tokenizer_task(), damaged(0, 58), tiny.settings(), run_in(tmp_path / "run"))


def test_weights_spoiled_by_the_last_update_are_not_saved(tmp_path, monkeypatch):
    from finetune.engine.optimisation import Stepper

    plain, count = Stepper._update, [0]

    def update(stepper, correction):
        norm = plain(stepper, correction)
        count[0] += 1
        if count[0] == 4:
            with torch.no_grad():
                stepper.parameters[0].view(-1)[0] = float("nan")
        return norm

    monkeypatch.setattr(Stepper, "_update", update)
    with pytest.raises(InputError, match=r"step 4: the weight .* is not finite after it.*S0\d 2020"):
        fit(tiny.tokenizer_task(), tiny.windows(), tiny.settings(checkpoint_every_steps=2), run_in(tmp_path / "run"))
    assert newest_last(tmp_path / "run" / "checkpoints").name == "last-00000001"


def test_the_first_weight_that_is_not_finite_is_named():
    module = tiny.tokenizer()
    assert non_finite_weights(module) == ""
    name = list(dict(module.named_parameters()))[2]
    with torch.no_grad():
        dict(module.named_parameters())[name].view(-1)[0] = float("inf")
    assert non_finite_weights(module) == name
