"""The CSV pipeline's schema: the shipped files load, upstream's keys keep their meaning, ranges, paths, sizes, and the loop's settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.engine.config import describe_keys, resolved, template, to_yaml
from finetune_csv.config import CsvConfig
from kronos import presets
from kronos.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO, ALI, TEMPLATE = (CONFIGS / name for name in ("demo.yaml", "config_ali09988_candle-5min.yaml", "csv_template.yaml"))
KNOWN = {
    "data": "data_path lookback_window predict_window max_context clip train_ratio val_ratio test_ratio",
    "training": "tokenizer_epochs basemodel_epochs batch_size log_interval num_workers seed tokenizer_learning_rate "
    "predictor_learning_rate adam_beta1 adam_beta2 adam_weight_decay accumulation_steps",
    "model_paths": "pretrained_tokenizer pretrained_predictor exp_name base_path base_save_path finetuned_tokenizer tokenizer_save_name "
    "basemodel_save_name",
    "experiment": "name description use_comet train_tokenizer train_basemodel skip_existing pre_trained_tokenizer pre_trained_predictor",
    "device": "use_cuda device_id",
    "distributed": "use_ddp backend",
}


def configure(*overrides: str, **environment: str) -> CsvConfig:
    path = None if any(text.startswith("data.data_path=") for text in overrides) else DEMO
    return CsvConfig.load(path, overrides, environment)


def refusal(*overrides: str, **environment: str) -> str:
    with pytest.raises(InputError) as error:
        configure(*overrides, **environment)
    return str(error.value)


# ---- shipped files


@pytest.mark.parametrize("path", [DEMO, ALI, TEMPLATE], ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    config = CsvConfig.load(path, (), {})
    assert config.data.lookback_window and resolved(config)


def test_the_template_is_what_the_schema_says_today():
    again = "from finetune_csv.config import *; from finetune.engine.config import *; print(template(CsvConfig), end='')"
    told = f'the schema changed; write the file again: python -c "{again}" > configs/csv_template.yaml'
    assert TEMPLATE.read_text(encoding="utf-8") == template(CsvConfig), told


def test_the_demo_starts_from_random_weights_and_real_bars_and_needs_no_network():
    config = CsvConfig.load(DEMO, (), {})
    assert config.data.data_path == ["arch:sp500", "arch:nasdaq"]
    assert not config.experiment.pre_trained_tokenizer and not config.experiment.pre_trained_predictor
    assert config.model.arguments("predictor")["d_model"] < 128 and config.model.arguments("tokenizer")["d_model"] < 128


def test_the_template_of_a_real_run_has_every_known_key_with_comments_in_both_languages():
    text = ALI.read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    assert [(section, name) for section, names in KNOWN.items() for name in names.split() if name not in written[section]] == []
    assert "# 模板" in text


# ---- known keys


def test_a_file_of_the_public_project_loads_with_the_meaning_it_had(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "data: {data_path: /d/x.csv, train_ratio: 0.9, val_ratio: 0.1, test_ratio: 0.0}\n"
        "training: {epochs: 7, predictor_learning_rate: 0.000001}\n"
        "model_paths: {pretrained_tokenizer: /p/tok, exp_name: ali, base_path: /b/, base_save_path: '', finetuned_tokenizer: }\n"
        "experiment: {pre_trained: false}\ndevice: {use_cuda: false}\ndistributed: {use_ddp: false}\n"
    )
    config = CsvConfig.load(path, (), {})
    assert (config.training.tokenizer_epochs, config.training.basemodel_epochs, config.training.predictor_learning_rate) == (7, 7, 1e-6)
    assert config.model_paths.base_save_path == "/b/ali"
    assert config.model_paths.finetuned_tokenizer == "/b/ali/tokenizer/best_model"
    assert not config.experiment.pre_trained_tokenizer and not config.experiment.pre_trained_predictor
    assert config.device.pick() == "cpu"


def test_known_keys_left_out_have_the_public_defaults():
    config = configure("data.data_path=x.csv")
    data, training = config.data, config.training
    assert (data.lookback_window, data.predict_window, data.max_context, data.clip, data.ratios) == (512, 48, 512, 5.0, (0.9, 0.1, 0.0))
    assert (training.tokenizer_epochs, training.basemodel_epochs, training.batch_size, training.log_interval) == (30, 30, 160, 50)
    assert (training.num_workers, training.seed, training.tokenizer_learning_rate, training.predictor_learning_rate) == (6, 100, 2e-4, 4e-5)
    assert (training.adam_beta1, training.adam_beta2, training.adam_weight_decay, training.accumulation_steps) == (0.9, 0.95, 0.1, 1)
    rows = {row.key for row in describe_keys(CsvConfig)}
    assert {f"{section}.{name}" for section, names in KNOWN.items() for name in names.split()} <= rows


def test_each_key_says_what_it_means():
    assert [row.key for row in describe_keys(CsvConfig) if len(row.description) < 5 or not row.type or row.type == "value"] == []


# ---- data


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["data.val_ratio=.3"], "data: train_ratio + val_ratio + test_ratio = 0.8 + 0.3 + 0.1 = 1.2; lower one"),
        (["data.val_ratio=0"], "data.val_ratio is 0; expected: number > 0 and ≤ 1"),
        (["data.train_ratio=-1"], "data.train_ratio is -1; expected"),
        (["data.lookback_window=1"], "data.lookback_window is 1; expected: whole number from 2"),
        (["data.data_path=[]"], "data.data_path is a list of 0: names no file"),
        (["data.data_path="], "data.data_path is '': names no file"),
        (["data.data_path={a: 1}"], "data.data_path is a mapping of 1; expected: list of text"),
        (["data.data_path=[a.csv, '']"], "data.data_path is a list of 2: names no file"),
        (["data.timezone=Asia/Shangai"], "data.timezone is 'Asia/Shangai': is not a time zone; did you mean Asia/Shanghai?"),
        (["data.timezone=../etc/passwd"], "is not a time zone"),
        (["data.columns.volum=Vol"], "unknown key data.columns.volum; did you mean data.columns.volume?"),
        (["data.columns={vol: a, volume: b}"], "data.columns.vol sets data.columns.volume, which is given another value"),
        (["data.columns.close=[1]"], "data.columns.close is a list of 1; expected: text (default close)"),
        (["data.columns.close=open"], "names the file's column 'open', and so does open; each needs its own"),
        (["data.columns.close="], "data.columns.close: is empty; expected: the column's name in the file"),
        (["data.missing=zero"], "data.missing is 'zero'; expected: one of error, drop, ffill"),
        (["data.batch_size=3"], "unknown key data.batch_size; did you mean training.batch_size?"),
    ],
)
def test_bad_data_keys_are_refused_with_the_fix(flags, told):
    assert told in refusal(*flags)


def test_ratios_that_only_miss_one_by_rounding_pass():
    assert sum(configure("data.train_ratio=0.55", "data.val_ratio=0.34", "data.test_ratio=0.11").data.ratios) > 1


def test_columns_have_short_names_too():
    columns = configure("data.columns={vol: Vol., amt: Turnover, close: Adj Close}").data.columns
    assert (columns.volume, columns.amount, columns.close, columns.open) == ("Vol.", "Turnover", "Adj Close", "open")


# ---- places


def test_empty_paths_and_templates_are_filled_in():
    paths = configure("model_paths.base_save_path=/data/{exp_name}/run", "model_paths.exp_name=a b").model_paths
    assert paths.base_save_path == "/data/a b/run"
    assert paths.finetuned_tokenizer == "/data/a b/run/tokenizer/best_model"
    assert paths.folder("predictor") == Path("/data/a b/run/basemodel")
    assert paths.best_model("predictor") == Path("/data/a b/run/basemodel/best_model")
    assert paths.logs == Path("/data/a b/run/logs")
    paths = configure("model_paths.finetuned_tokenizer=/t/{exp_name}", "model_paths.tokenizer_save_name=tok").model_paths
    assert paths.finetuned_tokenizer == "/t/demo" and paths.best_model("tokenizer") == Path("outputs/demo/tok/best_model")


def test_an_output_folder_from_outside_moves_the_whole_experiment(tmp_path):
    text = DEMO.read_text(encoding="utf-8").replace("base_path: outputs", "base_path: outputs\n  base_save_path: /old/{exp_name}")
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert CsvConfig.load(tmp_path / "c.yaml", (), {}).model_paths.base_save_path == "/old/demo"
    assert CsvConfig.load(tmp_path / "c.yaml", (), {"KRONOS_OUTPUT_PATH": "/new"}).model_paths.base_save_path == "/new/demo"


def test_every_documented_variable_reaches_its_key():
    paths = {"KRONOS_TOKENIZER_PATH": "/t", "KRONOS_PREDICTOR_PATH": "/p", "KRONOS_DATA_PATH": "d.csv"}
    config = configure(**paths, DIST_BACKEND="NCCL", COMET_WORKSPACE="w", COMET_API_KEY="s3cret")
    assert (config.model_paths.pretrained_tokenizer, config.model_paths.pretrained_predictor) == ("/t", "/p")
    assert config.data.data_path == ["d.csv"]
    assert (config.distributed.world_backend, config.experiment.comet_workspace) == ("nccl", "w")
    assert "s3cret" not in to_yaml(resolved(config)) + repr(config)
    assert "environment DIST_BACKEND: distributed.backend is 'mpi'; expected: one of auto, nccl, gloo" in refusal(DIST_BACKEND="MPI")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b", "'  '", '"a\\nb"', '"a\\0b"', "{exp_name}", '""', "' a'", "x" * 130])
def test_names_of_folders_cannot_lead_elsewhere(name):
    assert "model_paths.exp_name" in refusal(f"model_paths.exp_name={name}")
    assert "model_paths.tokenizer_save_name" in refusal(f"model_paths.tokenizer_save_name={name}")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("model_paths.base_save_path=/x/{name}", "{name} is not known here; {exp_name} is filled in"),
        ("model_paths.tokenizer_save_name=Basemodel", "'basemodel' is taken"),
        ("model_paths.basemodel_save_name=logs", "'logs' is taken"),
        ("model_paths.pretrained_tokenizer=", "model_paths.pretrained_tokenizer: is empty; give a folder or a hub id"),
    ],
)
def test_places_that_cannot_be_are_refused(flag, told):
    assert told in refusal(flag)


def test_weights_beside_the_configuration_file_are_found_and_hub_ids_stay_hub_ids(tmp_path):
    (tmp_path / "weights").mkdir()
    path = tmp_path / "c.yaml"
    weights = "pretrained_tokenizer: weights, pretrained_predictor: NeoQuasar/Kronos-mini"
    path.write_text(f"data: {{data_path: arch:sp500}}\nmodel_paths: {{{weights}}}\n")
    paths = CsvConfig.load(path, (), {}).model_paths
    assert (paths.pretrained_tokenizer, paths.pretrained_predictor) == (str(tmp_path / "weights"), "NeoQuasar/Kronos-mini")


# ---- models


def test_sizes_come_from_a_preset_a_mapping_or_a_config_file():
    model = configure("model.tokenizer=2k", "model.predictor=small").model
    assert (model.arguments("tokenizer"), model.arguments("predictor")) == (presets.TOKENIZERS["2k"], presets.PREDICTORS["small"])
    model = configure("model.tokenizer=base", "model.predictor={preset: small, n_layers: 2}").model
    assert model.arguments("predictor") == {**presets.PREDICTORS["small"], "n_layers": 2}
    model = configure("model.tokenizer=./my/config.json", "model.predictor=").model
    assert model.arguments("tokenizer") is None and model.config_file("tokenizer", "hub/id") == "./my/config.json"
    assert model.arguments("predictor") is None and model.config_file("predictor", "hub/id") == "hub/id"


def test_a_folder_named_like_a_preset_does_not_shadow_it(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "c.yaml").write_text("data: {data_path: arch:sp500}\nmodel: {tokenizer: base}\n")
    assert CsvConfig.load(tmp_path / "c.yaml", (), {}).model.tokenizer == "base"


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("model.predictor=smal", "there is no preset 'smal'; choose mini, small, base, large, or name a config.json by its path; did you"),
        ("model.predictor={preset: tiny}", "model.predictor.preset: there is no preset 'tiny'"),
        ("model.predictor.d_model=60", "model.predictor: d_model 60 with n_heads 4"),
        ("model.predictor.n_layers=0", "model.predictor.n_layers is 0; expected: whole number from 1 to 128"),
        ("model.tokenizer.group_size=7", "group_size 7 does not divide"),
        ("model.tokenizer.s1_bits=10", "model.predictor: s1_bits + s2_bits are 6 + 6, but the tokenizer's are 10 + 6; make them"),
        ("model.predictor.layers=3", "unknown key model.predictor.layers; did you mean"),
        ("model.dropout=1", "model.dropout: 1 is not a probability"),
        ("model.dropout={ffn: 1}", "model.dropout.ffn is 1; expected: number ≥ 0 and < 1"),
        ("model.tokenizer_dropout={token: .1}", "a tokenizer has no tokens to drop"),
    ],
)
def test_models_that_cannot_be_built_are_refused_with_the_key(flag, told):
    assert told in refusal(flag)


def test_dropout_replaces_what_was_loaded():
    assert configure().model.dropouts("predictor") == {}
    assert configure("model.dropout=0.3").model.dropouts("predictor") == {"ffn_dropout_p": 0.3, "resid_dropout_p": 0.3}
    model = configure("model.dropout={attn: .1, token: 0}", "model.tokenizer_dropout=.2").model
    assert model.dropouts("predictor") == {"attn_dropout_p": 0.1, "token_dropout_p": 0.0}
    assert model.dropouts("tokenizer") == {"ffn_dropout_p": 0.2, "resid_dropout_p": 0.2}


# ---- training


@pytest.mark.parametrize(
    "flag",
    [
        "tokenizer_epochs=0", "basemodel_epochs=-1", "batch_size=0", "accumulation_steps=0", "log_interval=0", "num_workers=-1",
        "top_k=0", "seed=-1", "tokenizer_learning_rate=0", "predictor_learning_rate=5", "adam_beta1=1", "adam_beta2=-0.1",
        "warmup_ratio=1", "div_factor=0.5", "plateau_factor=1", "min_lr_ratio=2", "schedule=step", "amp=fp8", "cache_tokens=maybe",
        "cache_limit_gib=0", "augment.slice=1", "augment.noise=-1", "early_stop_patience=-1", "monitor_tokenizer=val_s1",
        "clip_norm_predictor=-1", "seed=99999999999999999999",
    ],
)  # fmt: skip
def test_training_keys_out_of_range_are_refused_by_name(flag):
    name = flag.partition("=")[0]
    assert f"training.{name} is " in refusal(f"training.{flag}")


def test_the_loops_settings_follow_the_stage():
    flags = ["training.accumulation_steps=3", "training.pct_start=0.2", "training.augment.noise=0.1", "training.early_stop_min_delta=1e-3"]
    config = configure(*flags, "training.monitor_predictor=val_window_loss", "device.panel_on_device=false")
    training, on_device = config.training, config.device.panel_on_device
    tokenizer, predictor = (training.fit_settings(stage, "cpu", on_device) for stage in ("tokenizer", "predictor"))
    assert (tokenizer.learning_rate, predictor.learning_rate) == (training.tokenizer_learning_rate, training.predictor_learning_rate)
    assert (tokenizer.epochs, predictor.epochs) == (training.tokenizer_epochs, training.basemodel_epochs)
    assert (tokenizer.clip_norm, predictor.clip_norm) == (2.0, 3.0)
    assert (tokenizer.monitor, predictor.monitor) == ("val_loss", "val_window_loss")
    assert (predictor.accumulation_steps, predictor.warmup_ratio, predictor.augmentation.noise, predictor.min_delta) == (3, 0.2, 0.1, 1e-3)
    assert predictor.betas == (0.9, 0.95) and not predictor.panel_on_device and predictor.device == "cpu"


def test_every_setting_of_the_loop_is_set_by_some_key():
    plain = configure("data.data_path=x.csv").training.fit_settings("predictor", "cpu")
    flags = (
        "epochs=2 batch_size=2 accumulation_steps=2 predictor_learning_rate=1e-3 adam_beta1=0.5 adam_weight_decay=0 clip_norm_predictor=1 "
        "seed=1 schedule=plateau warmup_ratio=0.5 div_factor=2 final_div_factor=2 min_lr_ratio=0.5 plateau_factor=0.1 plateau_patience=9 "
        "amp=bf16 tf32=no compile=yes activation_checkpointing=yes monitor_predictor=val_s1 early_stop_patience=3 early_stop_min_delta=0.1 "
        "save_last=no checkpoint_every_steps=5 checkpoint_every_epochs=5 top_k=2 n_train_iter=5 n_val_iter=5 val_batch_size=5 "
        "log_interval=5 num_workers=0 augment.scale=0.5 score_start=no"
    )
    changed = configure("data.data_path=x.csv", *[f"training.{flag}" for flag in flags.split()], "device.panel_on_device=no")
    changed = changed.training.fit_settings("predictor", "mps", changed.device.panel_on_device)
    same = [field.name for field in fields(plain) if getattr(plain, field.name) == getattr(changed, field.name)]
    assert same == ["optimiser", "mode"], "Kronos is trained by AdamW, and what its tasks monitor is a loss: neither has a key"


def test_a_named_gpu_and_no_gpus_contradict_each_other():
    message = refusal("device.device=cuda", "device.use_cuda=false")
    assert "device.device: is cuda, but device.use_cuda is false; keep one of the two" in message


def test_a_tracking_key_in_a_file_is_sent_to_the_environment():
    message = refusal("experiment.comet_api_key=hunter2")
    assert "set COMET_API_KEY in the environment instead" in message and "hunter2" not in message


def test_comet_is_off_or_fully_described():
    assert configure().experiment.comet() is None
    flags = ["experiment.use_comet=true", "experiment.comet_tags=[a, b]", "experiment.comet_workspace=w"]
    comet = configure(*flags).experiment.comet()
    assert (comet.project, comet.workspace, comet.name, comet.tags) == ("kronos", "w", "demo", ("a", "b"))


# ---- anything at all

_known = {part for row in describe_keys(CsvConfig) for part in row.key.split(".")}
_names = st.sampled_from(sorted(_known | {"epochs", "pre_trained", "vol", "x"}))
_tricky = ["arch:sp500", "*.csv", "~", "{exp_name}", "\0", "\ud800", "1e-4", ".inf", "[", "base", "UTC", "a" * 300]
_words = st.text(max_size=8) | st.sampled_from(_tricky)
_plain = st.none() | st.booleans() | st.integers() | st.floats() | _words
_values = st.recursive(_plain, lambda deep: st.lists(deep, max_size=3) | st.dictionaries(_names | _words, deep, max_size=3), max_leaves=6)
_sections = st.sampled_from(list(CsvConfig.model_fields))
_trees = st.dictionaries(_sections | _names, st.dictionaries(_names, _values, max_size=4) | _values, max_size=4)
_texts = st.text(max_size=200) | st.text(alphabet="data:_pthriging \n\t-[]{}#&*!|>'\"%@`0", max_size=200)
_flags = st.lists(st.builds("{}.{}={}".format, _sections | _names, _names, _words) | _words, max_size=3)


def check_anything(folder: Path, tree_or_text, flags: list[str], variable: str) -> None:
    """Any file, flags and variable give a configuration or an InputError with a message that can be printed, nothing else."""
    text = tree_or_text if isinstance(tree_or_text, str) else yaml.safe_dump(tree_or_text, allow_unicode=True)
    path = folder / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        config = CsvConfig.load(path, flags, {"KRONOS_DATA_PATH": variable.replace("\0", "")})
    except InputError as error:
        str(error).encode("utf-8", "backslashreplace")
    else:
        again = folder / "again.yaml"
        again.write_text(to_yaml(resolved(config)), encoding="utf-8")
        assert resolved(CsvConfig.load(again, (), {})) == resolved(config)


@given(_trees | _texts, _flags, _words)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_given_ends_in_a_configuration_or_an_input_error(tmp_path_factory, tree_or_text, flags, variable):
    check_anything(tmp_path_factory.getbasetemp(), tree_or_text, flags, variable)
