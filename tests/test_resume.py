"""Checkpoints and resume: stopped anywhere, going on gives the bits of a run that was never stopped."""

import json
import os

import pytest
import tiny
import torch

from finetune.engine import checkpoint, trainer
from finetune.engine.errors import Interrupted
from finetune.engine.optimisation import Stepper
from finetune.engine.tracking import Run
from finetune.engine.trainer import fit
from kronos import load_predictor
from kronos.errors import InputError


def new_run(folder, resume=False):
    return Run.create(folder, config={}, is_main=True, resume=resume, name="test")


def train(folder, resume=False, stop=None, make=tiny.predictor_task, windows=None, **changes):
    task = make()
    with new_run(folder, resume) as run:
        fit(task, windows or tiny.windows(), tiny.settings(**changes), run, resume=resume, stop=stop)
    return tiny.weights(task.trained())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return {
        make.__name__: train(tmp_path_factory.mktemp("whole"), make=make, schedule="onecycle")
        for make in (tiny.predictor_task, tiny.tokenizer_task)
    }


@pytest.mark.parametrize("make", [tiny.predictor_task, tiny.tokenizer_task])
@pytest.mark.parametrize("looks", [1, 2, 5, 6, 7, 8, 13])
def test_stopped_at_any_step_and_resumed_ends_with_the_same_bits(tmp_path, undisturbed, make, looks):
    with pytest.raises(Interrupted, match=r"--resume"):
        train(tmp_path, stop=tiny.StopAfter(looks), make=make, schedule="onecycle")
    assert tiny.same(train(tmp_path, resume=True, make=make, schedule="onecycle"), undisturbed[make.__name__])


def test_stopped_again_and_again_it_still_ends_with_the_same_bits(tmp_path, undisturbed):
    for _ in range(30):
        try:
            final = train(tmp_path, resume=True, stop=tiny.StopAfter(2), schedule="onecycle")
            break
        except Interrupted:
            continue
    assert tiny.same(final, undisturbed["predictor_task"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if line["split"] == "val"]
    assert epochs == sorted(set(epochs)), "each epoch is in the log once"


@pytest.mark.parametrize("looks", [1, 3, 9])
def test_a_stop_while_the_starting_weights_are_scored_or_later_resumes_to_the_same_bits(tmp_path, looks):
    whole = train(tmp_path / "whole", score_start=True, schedule="onecycle")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=tiny.StopAfter(looks), score_start=True, schedule="onecycle")
    assert tiny.same(train(tmp_path / "cut", resume=True, score_start=True, schedule="onecycle"), whole)


def test_only_the_newest_complete_checkpoint_counts(tmp_path):
    train(tmp_path)
    folder = tmp_path / "checkpoints"
    good = checkpoint.newest_last(folder)
    half = folder / "last-99999999"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest_last(folder) == good
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_what_a_killed_save_left_does_not_hinder_a_process_of_the_same_number(tmp_path):
    """In a container every start of a command has the same process number."""
    train(tmp_path, epochs=1)
    left = tmp_path / "checkpoints" / f".last-00000002.{os.getpid()}.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    train(tmp_path, epochs=2, resume=True)
    assert checkpoint.newest_last(tmp_path / "checkpoints").name == "last-00000002" and not left.exists()


@pytest.mark.parametrize("before, after, windows", [(1, 16, 34), (16, 5, 49)])
def test_resumed_with_another_batch_size_the_last_epoch_ends_with_its_last_window(tmp_path, monkeypatch, before, after, windows):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=tiny.StopAfter(1), epochs=1, batch_size=before, n_train_iter=windows)
    ends, whole = [], trainer.step_micros
    monkeypatch.setattr(trainer, "step_micros", lambda *given: ends.append(given[-1]) or whole(*given))
    train(tmp_path, resume=True, epochs=1, batch_size=after, n_train_iter=windows)
    assert ends == [*range(before + after, windows, after), windows]


def test_resumed_training_takes_decay_and_precision_from_the_settings_and_moments_from_the_checkpoint(tmp_path, monkeypatch):
    train(tmp_path, epochs=1, weight_decay=0.1)
    steppers, step = [], Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda stepper, *given: steppers.append(stepper) or step(stepper, *given))
    train(tmp_path, resume=True, epochs=2, weight_decay=0.5, betas=(0.5, 0.6), amp="fp16")  # the scaler of a run without fp16 is empty
    optimiser = steppers[-1].optimiser
    assert [optimiser.param_groups[0][name] for name in ("weight_decay", "betas")] == [0.5, (0.5, 0.6)]
    assert {int(state["step"]) for state in optimiser.state.values()} == {2 * len(steppers)}


def test_resumed_after_the_last_step_the_saved_state_is_that_of_an_undisturbed_run(tmp_path, capsys):
    def saved(name):
        return checkpoint.load_last(checkpoint.newest_last(tmp_path / name / "checkpoints"))[1]

    train(tmp_path / "whole", epochs=1, schedule="cosine")
    last = saved("whole")["state"]["step"]
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=tiny.StopAfter(last), epochs=1, schedule="cosine")
    for told in (f"epoch 1, step {last}", f"all 1 epochs are done, step {last}"):
        train(tmp_path / "cut", resume=True, epochs=1, schedule="cosine")
        assert told in capsys.readouterr().out
    assert saved("cut")["optimiser"]["param_groups"] == saved("whole")["optimiser"]["param_groups"]


def test_moments_of_another_optimiser_are_refused(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(InputError, match="optimiser is adamw, this run's sgd"):
        train(tmp_path, resume=True, optimiser="sgd")


def test_moments_of_other_layers_are_refused(tmp_path):
    def frozen():
        task = tiny.predictor_task()
        task.predictor.embedding.requires_grad_(False)
        return task

    train(tmp_path, epochs=1)
    with pytest.raises(InputError, match="trained 36 tensors, this run 32"):
        train(tmp_path, resume=True, make=frozen)


def test_an_old_checkpoint_loses_its_marker_before_its_weights(tmp_path, monkeypatch):
    train(tmp_path, epochs=1)
    folder = tmp_path / "checkpoints"
    old = checkpoint.newest_last(folder)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # killed just as removal begins
    train(tmp_path, epochs=2, resume=True)
    assert old.is_dir() and not (old / "complete.json").exists() and checkpoint.newest_last(folder) != old


def test_a_damaged_checkpoint_is_named_and_refused(tmp_path):
    train(tmp_path)
    path = checkpoint.newest_last(tmp_path / "checkpoints") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors is not as it was saved"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(windows=tiny.windows(2, 61)), "training data"),
        (dict(seed=7), "seed: checkpoint has 42, this run 7"),
        (dict(make=lambda: tiny.PredictorTask(tiny.predictor(), tiny.tokenizer(5), tiny.LOOKBACK)), "tokenizer"),
        (dict(make=tiny.tokenizer_task), "task: checkpoint has 'PredictorTask', this run 'TokenizerTask'"),
    ],
)
def test_resuming_with_changed_model_or_data_is_refused_and_says_what_changed(tmp_path, change, told):
    train(tmp_path, epochs=1)
    with pytest.raises(InputError, match="is of another run") as error:
        train(tmp_path, resume=True, **change)
    assert told in str(error.value)


def test_best_model_has_the_published_format_and_a_marker(tmp_path):
    train(tmp_path)
    best = tmp_path / "best_model"
    assert {p.name for p in best.iterdir()} >= {"config.json", "model.safetensors", "complete.json"}
    marker = json.loads((best / "complete.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert marker["val_loss"] == pytest.approx(min(line["loss"] for line in lines if line["split"] == "val"))
    assert load_predictor(str(best)).config == tiny.predictor().config


def test_every_nth_epoch_and_the_top_k_are_kept(tmp_path):
    train(tmp_path, epochs=5, checkpoint_every_epochs=2, top_k=2)
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert {"epoch_2", "epoch_4"} <= names
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ranked = sorted((line["loss"], line["epoch"]) for line in lines if line["split"] == "val")
    assert {n for n in names if n.startswith("best-")} == {f"best-epoch={e + 1:02d}" for _, e in ranked[:2]}


def test_a_run_started_anew_is_never_continued_from_the_former_one_which_is_kept_aside(tmp_path):
    train(tmp_path, epochs=2)
    with pytest.raises(Interrupted):
        train(tmp_path, epochs=2, stop=tiny.StopAfter(1), save_last=False)  # ends before its first save
    folder = tmp_path / "checkpoints"
    assert checkpoint.newest_last(folder) is None and (folder / "former" / "complete.json").is_file()


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    before = train(tmp_path)
    assert tiny.same(train(tmp_path, resume=True), before)


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    train(tmp_path, epochs=1)
    good = checkpoint.newest_last(tmp_path / "checkpoints")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="disk is full"):
        train(tmp_path, epochs=3, resume=True)
    assert checkpoint.newest_last(tmp_path / "checkpoints") == good
    checkpoint.load_last(good)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    train(tmp_path)
    path = checkpoint.newest_last(tmp_path / "checkpoints")

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state": Evil()}, path / checkpoint.STATE)
    marker = {name: checkpoint._seal(path / name) for name in (checkpoint.WEIGHTS, checkpoint.STATE)}
    (path / checkpoint.MARKER).write_text(json.dumps(marker))
    with pytest.raises(InputError, match="cannot be read"):
        train(tmp_path, resume=True)
