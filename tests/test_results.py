"""What counts as done: a result that these very settings, bars and weights would make; otherwise it is said what changed, key by key."""

import json
import shutil

import pytest
import yaml
from multi_tiny import make_panel, marks, models, plan_of, trained
from test_pipeline import run_all, write_config

from finetune.engine.config import resolved, to_yaml
from finetune.engine.tracking import Run
from finetune.jobs_machine import Machine
from finetune.jobs_session import Wish, plan_text, session_of
from finetune.pipeline import prepared, remaining, run_stage
from finetune.results import changes, weights_of
from finetune_csv.config import CsvConfig
from kronos.errors import InputError


def told(config, stage, **options):
    return [str(one) for one in changes(config, stage, **options)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trained pair, and how to load its configuration with changes."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_config(folder, training__tokenizer_epochs=1, training__basemodel_epochs=1, forecast__enabled=False)
    run_all(CsvConfig.load(path))
    return lambda *overrides: CsvConfig.load(path, overrides)


def test_the_settings_a_pair_was_trained_with_are_unchanged(whole):
    assert told(whole(), "tokenizer", bars=True) == told(whole(), "predictor", bars=True) == []


@pytest.mark.parametrize(
    ("override", "tokenizer", "predictor"),
    [
        ("training.tokenizer_epochs=5", ["training.tokenizer_epochs: 1 → 5"], []),
        ("training.basemodel_epochs=5", [], ["training.basemodel_epochs: 1 → 5"]),
        ("training.predictor_learning_rate=1e-5", [], ["training.predictor_learning_rate: 0.001 → 1e-05"]),
        ("training.seed=9", ["training.seed: 1 → 9"], ["training.seed: 1 → 9"]),
        ("training.augment.noise=0.1", ["training.augment.noise: 0 → 0.1"], ["training.augment.noise: 0 → 0.1"]),
        ("training.monitor_tokenizer=val_window_loss", ["training.monitor_tokenizer: 'val_loss' → 'val_window_loss'"], []),
        ("data.predict_window=3", ["data.predict_window: 4 → 3"], ["data.predict_window: 4 → 3"]),
        ("model.dropout=0.2", [], ["model.dropout: none → 0.2"]),
        ("training.log_interval=1", [], []),
        ("training.num_workers=3", [], []),
        ("training.save_last=false", [], []),
        ("data.max_context=64", [], []),
        ("experiment.name=other", [], []),
        ("forecast.samples=9", [], []),
        ("device.cpu_threads=1", [], []),
        ("model_paths.pretrained_predictor=NeoQuasar/Kronos-mini", [], []),  # random weights: it is not used
    ],
)
def test_a_change_counts_for_the_stage_whose_result_it_would_change(whole, override, tokenizer, predictor):
    config = whole(override)
    assert (told(config, "tokenizer"), told(config, "predictor")) == (tokenizer, predictor)


def test_sizes_count_where_they_are_used(whole):
    config = whole("model.predictor.ff_dim=64")
    assert told(config, "tokenizer") == [] and told(config, "predictor")[0].startswith("model.predictor: {'preset': 'mini'")
    assert told(whole("experiment.pre_trained_predictor=true"), "predictor")[-1] == "experiment.pre_trained_predictor: false → true"


def test_how_bars_are_read_counts_only_where_the_bars_themselves_cannot_be_compared(whole):
    config = whole("data.missing=drop")
    assert told(config, "tokenizer") == [] and told(config, "tokenizer", bars=True) == ["data.missing: 'error' → 'drop'"]


def test_a_tokenizer_of_other_weights_makes_its_predictor_another(whole, tmp_path):
    config = whole()
    copy = tmp_path / "copy"
    shutil.copytree(config.model_paths.best_model("tokenizer"), copy)
    same = whole(f"model_paths.finetuned_tokenizer={copy}")
    assert told(same, "predictor") == [], "where it lies does not matter"
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    [change] = told(same, "predictor")
    assert change.startswith(f"weights in {copy}: ") and told(same, "tokenizer") == []
    assert weights_of(str(copy)) and not weights_of("NeoQuasar/Kronos-mini") and not weights_of(str(tmp_path))


def test_weights_to_start_from_are_compared_by_content_or_by_name(whole, tmp_path):
    start = str(whole().model_paths.best_model("tokenizer"))
    pretrained = ("experiment.pre_trained_tokenizer=true", f"model_paths.base_path={tmp_path}", "training.score_start=false")
    tuned = whole(*pretrained, f"model_paths.pretrained_tokenizer={start}")
    with prepared(tuned, ["tokenizer"]) as job:
        run_stage(job, "tokenizer")
    assert told(tuned, "tokenizer") == []
    shutil.copytree(start, tmp_path / "copy")
    assert told(whole(*pretrained, f"model_paths.pretrained_tokenizer={tmp_path / 'copy'}"), "tokenizer") == []
    named = told(whole(*pretrained, "model_paths.pretrained_tokenizer=NeoQuasar/Kronos-Tokenizer-2k"), "tokenizer")
    assert named == [f"model_paths.pretrained_tokenizer: {start!r} → 'NeoQuasar/Kronos-Tokenizer-2k'"]


# ---- --skip-existing


def test_skip_existing_refuses_a_result_of_other_settings_and_names_every_key_and_the_fix(whole):
    config = whole("training.tokenizer_epochs=5", "training.seed=9")
    before = (config.model_paths.best_model("tokenizer") / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError) as refused, prepared(config, ["tokenizer", "predictor"], skip_existing=True):
        pass
    text = str(refused.value)
    assert text.startswith("--skip-existing: the tokenizer in ") and "training.tokenizer_epochs: 1 → 5; training.seed: 1 → 9" in text
    assert "Leave the flag out" in text and "folder of its own" in text
    assert (config.model_paths.best_model("tokenizer") / "model.safetensors").stat().st_mtime_ns == before
    assert remaining(whole("training.log_interval=1"), ["tokenizer", "predictor"], lambda _: None) == []


def test_skip_existing_refuses_a_result_of_other_bars(whole, tmp_path):
    shutil.copytree(whole().model_paths.base_save_path, tmp_path / "out" / "small")
    config = CsvConfig.load(write_config(tmp_path, training__tokenizer_epochs=1, training__basemodel_epochs=1))
    with prepared(config, ["tokenizer", "predictor"], skip_existing=True) as job:
        assert not job.models, "the same bars from another place are the same"
    csv = tmp_path / "AAA.csv"
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="trained on other bars"), prepared(config, ["tokenizer", "predictor"], skip_existing=True):
        pass


def test_skip_existing_never_keeps_a_predictor_whose_tokenizer_is_made_anew(whole, tmp_path):
    shutil.copytree(whole().model_paths.base_save_path, tmp_path / "out" / "small")
    config = whole(f"model_paths.base_path={tmp_path / 'out'}")
    (config.model_paths.best_model("tokenizer") / "complete.json").unlink()
    with pytest.raises(InputError, match=r"the predictor in .* its tokenizer is gone"):
        remaining(config, ["tokenizer", "predictor"], lambda _: None)


def test_going_on_with_other_settings_is_said(whole, tmp_path, capsys):
    shutil.copytree(whole().model_paths.base_save_path, tmp_path / "out" / "small")
    (tmp_path / "out" / "small" / "tokenizer" / "status.json").write_text(json.dumps({"state": "interrupted"}))
    config = whole(f"model_paths.base_path={tmp_path / 'out'}", "training.tokenizer_epochs=2")
    with prepared(config, ["tokenizer"], resume=True) as job:
        run_stage(job, "tokenizer")
    assert "goes on with other settings than it began with: training.tokenizer_epochs: 1 → 2" in capsys.readouterr().out


# ---- --resume of the scheduler


@pytest.fixture
def finished(tmp_path):
    """A manager of the model a, as if both its stages had been trained and evaluated."""
    manager = models(tmp_path, "a")
    record(manager)
    return manager


def record(manager, state="done", **evaluation):
    config = manager.load_config("a")
    for stage in ("tokenizer", "predictor"):
        trained(manager, "a", stage, state)
        (config.model_paths.folder(stage) / "config.yaml").write_text(to_yaml(resolved(config)))
        last = config.model_paths.folder(stage) / "checkpoints" / "last-00000001"
        last.mkdir(parents=True, exist_ok=True)
        (last / "complete.json").write_text('{"step": 7}')
    folder = config.panel_folder.parents[1] / "evaluation"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({"settings": {"max_origins": 20, "samples": 5, **evaluation}}))


def test_resuming_with_the_same_settings_does_nothing(finished):
    assert all(marks(plan_of(finished, "a", resume=True)).values())


def test_resuming_with_changed_settings_trains_again_and_the_plan_says_what_changed(finished):
    wish = Wish(("a",), resume=True, overrides=("training.basemodel_epochs=7", "training.log_interval=1"))
    session = session_of(wish, finished, Machine((), 0.0, 2, 8.0))
    assert marks(session.plan) == {"a-tokenizer": True, "a-predictor": False, "a-evaluate": False}
    assert "done, but settings have changed (training.basemodel_epochs: 2 → 7): made anew" in plan_text(session)
    assert not any(job.resume for job in session.plan.todo), "it must not go on from a checkpoint of other settings"


def test_a_stage_stopped_half_way_goes_on_only_with_the_settings_it_began_with(finished):
    record(finished, "interrupted")
    first = plan_of(finished, "a", resume=True).jobs[0]
    assert first.resume and first.exists == "stopped at step 7, goes on from there"
    changed = session_of(Wish(("a",), resume=True, overrides=("training.seed=4",)), finished, Machine((), 0.0, 2, 8.0)).plan.jobs[0]
    assert not changed.resume and "stopped at step 7, but settings have changed (training.seed: 100 → 4)" in changed.exists


def test_an_evaluation_with_other_settings_is_made_again(finished):
    record(finished, samples=50)
    made = plan_of(finished, "a", resume=True)
    assert marks(made) == {"a-tokenizer": True, "a-predictor": True, "a-evaluate": False}
    assert "evaluation.samples: 50 → 5" in made.jobs[2].exists


def test_settings_that_an_older_version_did_not_know_count_as_their_defaults(finished):
    file = finished.load_config("a").model_paths.folder("tokenizer") / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    del tree["training"]["augment"], tree["training"]["tf32"]
    file.write_text(yaml.safe_dump(tree))
    assert told(finished.load_config("a"), "tokenizer") == []
    assert told(finished.load_config("a", ["training.tf32=false"]), "tokenizer") == ["training.tf32: true → false"]


def test_a_fraction_named_token_is_recorded_and_a_text_named_so_is_not(tmp_path):
    config = {"model": {"dropout": {"token": 0.1}}, "experiment": {"token": "abc"}}
    Run.create(tmp_path, config=config, is_main=True, resume=False, name="predictor").close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"model": {"dropout": {"token": 0.1}}, "experiment": {}}


def test_made_panels_are_compared_by_content_and_files_by_how_they_are_read(finished, tmp_path):
    assert told(finished.load_config("a", ["data.missing=drop"]), "tokenizer") == []
    make_panel(2, 160).save(tmp_path / "elsewhere")
    files = plan_of(finished, "a", resume=True).configs["a"]
    assert files.is_prepared_from_source
    named = finished.load_config("a", [f"data.data_path={tmp_path / 'elsewhere'}"])
    assert any("data.data_path" in one for one in told(named, "tokenizer", bars=True))
