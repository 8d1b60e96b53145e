"""model_config.yaml: known keys flat at the top, mistakes told with their line, and a run's own copy loads again."""

from pathlib import Path

import pytest

from finetune.engine.config import load_config, resolved
from finetune.engine.yaml_text import read_yaml, to_yaml
from kronos.errors import InputError
from tft.config import TftConfig, extra_file
from tft.data_config import TargetsSection
from tft.losses import read_stages, read_targets
from tft.metrics import Composite
from tft.target_panel import SPLIT_KEYS
from tft.training import better

CONFIGS = Path(__file__).parents[1] / "configs" / "tft"
KNOWN = {
    "data_path",
    "targets",
    "categoricals",
    "reals",
    "group_ids",
    "time_idx",
    "max_encoder_length",
    "max_prediction_length",
    "hidden_size",
    "lstm_layers",
    "dropout",
    "attention_head_size",
    "batch_size",
    "max_epochs",
    "optimizer",
    "lr",
    "precision",
    "num_workers",
    "gradient_clip_val",
    "onecycle",
    "val_mode",
    "focus_period",
    "early_stop_patience",
    "monitor",
    "monitor_mode",
    "top_k",
    "save_last",
    "resume_ckpt",
    "warm_start_ckpt",
}


def load(*overrides, path=None, environment=None):
    return load_config(TftConfig, path, overrides, environment or {})


def test_every_key_that_users_know_stands_flat_at_the_top_and_in_the_shipped_file():
    shipped = read_yaml(CONFIGS / "model_config.yaml").tree
    assert TftConfig.model_fields.keys() >= KNOWN
    assert shipped.keys() >= KNOWN


@pytest.mark.parametrize("name", ["model_config", "demo_model"])
def test_shipped_files_load_and_their_side_files_fit_them(name):
    config = load(path=CONFIGS / f"{name}.yaml")
    targets = config.targets if isinstance(config.targets, dict) else dict.fromkeys(config.targets, "MSE")
    losses = read_targets(targets)
    assert [stage.start for stage in read_stages(extra_file(config.weights_config), list(losses))] == (
        [0, 3] if config.weights_config else []
    )
    assert not config.composite_score or Composite.read(extra_file(config.composite_score), losses).weights
    assert better(config.monitor, config.monitor_mode, losses, [], bool(config.composite_score)) in ("min", "max")


@pytest.mark.parametrize(("data", "model"), [("data", "model_config"), ("demo_data", "demo_model")])
def test_shipped_files_split_targets_and_training_by_the_same_rule(data, model):
    """Else thresholds would be made of bars that training does not see, which it warns of."""
    targets = read_yaml(CONFIGS / f"{data}.yaml").tree["targets"]
    chosen = load(path=CONFIGS / f"{model}.yaml")
    assert {key: getattr(TargetsSection(**targets), key) for key in SPLIT_KEYS} == {key: getattr(chosen, key) for key in SPLIT_KEYS}
    assert chosen.test_ratio > 0, "a report should judge bars that chose nothing"


def test_flag_wins_over_environment_over_file(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("data_path: from_file\n")
    environment = {"TFM_DATA_PATH": "from_environment"}
    assert load(path=path).data_path == "from_file"
    assert load(path=path, environment=environment).data_path == "from_environment"
    assert load("data_path=from_flag", path=path, environment=environment).data_path == "from_flag"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["onecycle=false"],
        ["onecycle.pct_start=0.4"],
        ["schedule=cosine", "warmup_ratio=0.1"],
        ["targets={target_a: {name: focal, gamma: 3}, target_b: MSE}", "focus_period=1h", "horizon={1h: 3}", "cpu_threads=1"],
    ],
)
def test_the_copy_in_a_run_folder_loads_to_the_same_configuration(tmp_path, overrides):
    config = load(*overrides)
    path = tmp_path / "copy.yaml"
    path.write_text(to_yaml(resolved(config)))
    assert resolved(load(path=path)) == resolved(config)


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["hiden_size=32"], "did you mean hidden_size"),
        (["hidden_size=30"], "which 4 heads cannot share"),
        (["val_ratio=0"], "validation period is empty"),
        (["val_mode=days", "val_days=0"], "validation period is empty"),
        (["val_ratio=0.6", "test_ratio=0.5"], "add up to 1.1"),
        (["schedule=cosine", "onecycle=true"], "keep one of the two"),
        (["schedule=onecycle", "onecycle=false"], "keep one of the two"),
        (["resume_ckpt=last", "warm_start_ckpt=best"], "keep one of the two"),
        (["precision=64"], "expected: one of 32, 16-mixed, bf16-mixed"),
        (["targets=[]"], "name at least one target"),
        (["group_ids=[symbol]"], "must name symbol and period"),
        (["onecycle.pct_stat=0.1"], "did you mean"),
        (["shared_rows=true", "block_length=256"], "lower it"),
        (["train_until=soon"], "is not a date"),
        (["dropout=1"], "number ≥ 0 and < 1"),
    ],
)
def test_a_mistake_is_told_with_its_key_and_the_fix(overrides, told):
    with pytest.raises(InputError) as error:
        load(*overrides)
    assert told in str(error.value) and "--set" in str(error.value)


def test_precision_optimiser_and_onecycle_reach_the_loop():
    config = load(
        "precision=bf16-mixed", "onecycle={pct_start: 0.3, div_factor: 5, final_div_factor: 50}", "gradient_clip_val=0.5", "top_k=4"
    )
    settings = config.fit_settings("cpu", "max")
    assert (settings.amp, settings.schedule, settings.mode, settings.clip_norm, settings.top_k) == ("bf16", "onecycle", "max", 0.5, 4)
    assert (settings.warmup_ratio, settings.div_factor, settings.final_div_factor) == (0.3, 5, 50)
    assert (
        load("precision=32").fit_settings("cpu", "min").amp == "off" and load("precision=16-mixed").fit_settings("cpu", "min").amp == "fp16"
    )
    assert load("checkpoint_every_steps=3").fit_settings("cpu", "min").checkpoint_every_steps == 3
    assert load("optimizer=adam").fit_settings("cpu", "min").weight_decay == 0
    assert load("schedule=cosine").fit_settings("cpu", "min").schedule == "cosine"
    assert load("onecycle=false").fit_settings("cpu", "min").schedule == "constant"


def test_with_shared_rows_a_batch_has_the_same_windows_in_blocks_and_validation_counts_windows():
    settings = load("shared_rows=true", "block_length=16", "batch_size=128", "n_train_iter=1000", "n_val_iter=100").fit_settings(
        "cpu", "min"
    )
    assert (settings.batch_size, settings.val_batch_size, settings.n_train_iter, settings.n_val_iter) == (8, 128, 63, 100)


def test_symbol_and_period_among_the_categoricals_are_what_they_are_anyway():
    assert load("categoricals=[all, symbol]").categoricals == ["all"] and load("categoricals=[symbol, period]").categoricals == []


LOSSES = read_targets({"target_up": "focal", "target_return": "MSE"})


@pytest.mark.parametrize(
    "monitor, way",
    [
        ("val_loss", "min"),
        ("val_loss_for_ckpt", "min"),
        ("val_target_up_f1", "max"),
        ("val_target_up_auc@1h", "max"),
        ("val_target_up_loss@1h", "min"),
        ("val_target_return_rmse", "min"),
        ("val_composite_score", "max"),
    ],
)
def test_the_monitored_metric_knows_which_way_is_better(monitor, way):
    assert better(monitor, "auto", LOSSES, ["1h"], True) == better(monitor, way, LOSSES, ["1h"], True) == way
    with pytest.raises(InputError, match="would keep the worst weights"):
        better(monitor, {"min": "max", "max": "min"}[way], LOSSES, ["1h"], True)


@pytest.mark.parametrize("monitor", ["val_target_up_rmse", "val_target_up_f1@4h", "val_target_x_f1", "loss_", ""])
def test_what_validation_does_not_measure_cannot_be_monitored(monitor):
    with pytest.raises(InputError, match="is not measured in validation"):
        better(monitor, "auto", LOSSES, ["1h"], True)
