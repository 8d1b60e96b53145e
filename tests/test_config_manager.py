"""Registered models: names, extends, precedence, what --show, --diff, --list-configs and --validate tell, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bars import make_panel

from finetune.config_manager import MODELS, ConfigManager, diff_text, flat_values, list_text, show_text, validate_text
from finetune.engine.advice import memory_advice, out_of_memory
from finetune.engine.config import resolved, sources, to_yaml
from finetune.model_sizes import parameter_count
from finetune.multi_config import ModelConfig
from finetune.pipeline import find_tokenizer
from kronos import Kronos, KronosTokenizer, presets
from kronos.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "timeframe: {period: 4h, source: [bars.csv]}\n"


def manager_of(folder: Path, files: dict[str, str], **environment: str) -> ConfigManager:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return ConfigManager(folder, environment)


def refusal(manager: ConfigManager, name: str, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        manager.load_config(name, overrides)
    return str(error.value)


# ---- the shipped models


def test_the_shipped_models_have_the_documented_settings():
    manager = ConfigManager(environment={})
    a, b = (manager.load_config(name).get_model_info() for name in ("model_a_4h", "model_b_1d"))
    assert (a["period"], a["lookback"], a["horizon"], a["batch_size"], a["accumulation_steps"]) == ("4h", 90, 10, 32, 2)
    assert (b["period"], b["lookback"], b["horizon"], b["batch_size"], b["accumulation_steps"]) == ("1d", 120, 15, 16, 4)
    assert a["learning_rates"] == {"tokenizer": 1.5e-4, "predictor": 3e-5} and b["learning_rates"] == {"tokenizer": 1e-4, "predictor": 2e-5}
    assert set(a["epochs"].values()) == {30} and set(b["epochs"].values()) == {50}
    assert (a["comet_tags"], b["comet_tags"]) == (["model_a_4h_finetune"], ["model_b_1d_macro_finetune"])
    assert (a["macro_report"], b["macro_report"]) == (False, True)
    assert a["parameters"] == {"tokenizer": 3_958_042, "predictor": 24_741_376} and json.dumps(a)


def test_the_third_model_is_the_first_with_a_few_keys_changed():
    manager = ConfigManager(environment={})
    a, c = manager.load_config("model_a_4h"), manager.load_config("model_c_1h")
    assert len(MODELS.joinpath("model_c_1h.yaml").read_text(encoding="utf-8").splitlines()) < 20
    assert c.training.batch_size == a.training.batch_size and c.timeframe.period == "1h" and c.name == "model_c_1h"
    assert c.experiment.comet_tags == ["model_c_1h_finetune"] and c.model_paths.base_save_path != a.model_paths.base_save_path


@pytest.mark.parametrize(
    "stage, build, table", [("tokenizer", KronosTokenizer, presets.TOKENIZERS), ("predictor", Kronos, presets.PREDICTORS)]
)
def test_parameters_are_counted_as_torch_counts_them(stage, build, table):
    import torch

    small = dict(d_model=16, n_heads=2, ff_dim=24, s1_bits=4, s2_bits=2)
    extra = dict(group_size=3, n_enc_layers=2, n_dec_layers=5) if stage == "tokenizer" else dict(learn_te=False)
    for arguments in (next(iter(table.values())), {**next(iter(table.values())), **small, **extra}):
        with torch.device("meta"):
            counted = sum(weight.numel() for weight in build(**arguments).parameters() if weight.requires_grad)
        assert parameter_count(stage, arguments) == counted


def test_a_model_that_starts_from_random_weights_says_so_and_names_no_published_one():
    manager = ConfigManager(environment={})
    published = {"tokenizer": "NeoQuasar/Kronos-Tokenizer-base", "predictor": "NeoQuasar/Kronos-small"}
    assert manager.load_config("model_a_4h").get_model_info()["starts_from"] == published
    both = manager.load_config("model_a_4h", ["experiment.pre_trained=false"]).get_model_info()["starts_from"]
    assert both == {"tokenizer": "random weights", "predictor": "random weights"}
    one = manager.load_config("model_a_4h", ["experiment.pre_trained_predictor=false"]).get_model_info()["starts_from"]
    assert one == {**published, "predictor": "random weights"}


# ---- names, paths, extends


def test_a_file_is_registered_by_its_name_and_one_elsewhere_is_named_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    manager = manager_of(tmp_path / "models", {"one": PLAIN, ".hidden": "nonsense", "two": PLAIN})
    (tmp_path / "models" / "notes.txt").write_text("no model")
    (tmp_path / "three.yml").write_text(PLAIN)
    assert manager.names() == ["one", "two"]
    monkeypatch.chdir(tmp_path)
    for reference in ("three.yml", "./three.yml", str(tmp_path / "three.yml")):
        config = manager.load_config(reference)
        assert (config.name, config.reference) == ("three", reference)
        assert config.model_paths.base_save_path == "finetuned/three" and config.experiment.comet_tags == ["three_finetune"]
    assert manager.load_config("one").reference == "one"


def test_an_unknown_model_is_answered_with_the_nearest_and_all():
    told = refusal(ConfigManager(environment={}), "model_a4h")
    assert "unknown model 'model_a4h'; did you mean model_a_4h?" in told and "model_a_4h, model_b_1d, model_c_1h" in told
    assert "did you mean" not in refusal(ConfigManager(environment={}), "zzz")


def test_two_files_of_one_name_are_refused(tmp_path):
    manager = manager_of(tmp_path, {"one": PLAIN})
    (tmp_path / "one.yml").write_text(PLAIN)
    assert "are both the model 'one'; rename one" in refusal(manager, "one")


def test_keys_of_a_file_lie_on_top_of_those_that_it_extends(tmp_path):
    middle = "extends: base\ntraining: {basemodel_epochs: 7}\nmodel: {predictor: {n_layers: 2}}\n"
    base = PLAIN + "training: {epochs: 3, batch_size: 8}\nmodel: {predictor: {preset: mini, d_model: 128}}\n"
    manager = manager_of(tmp_path, {"base": base, "middle": middle, "top": "extends: middle\nbatch_size: 4\n"})
    config = manager.load_config("top")
    assert (config.training.tokenizer_epochs, config.training.basemodel_epochs, config.training.batch_size) == (3, 7, 4)
    assert config.model.arguments("predictor") == {**presets.PREDICTORS["mini"], "d_model": 128, "n_layers": 2}
    assert [path.stem for path in manager.chain("top")] == ["top", "middle", "base"]


def test_extends_takes_a_path_beside_the_file_and_what_it_read_is_found_beside_the_other(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "bars.csv").write_text("x")
    (tmp_path / "shared" / "base.yaml").write_text(PLAIN)
    manager = manager_of(tmp_path / "models", {"one": "extends: ../shared/base.yaml\n"})
    assert manager.load_config("one").timeframe.source == [str(tmp_path / "shared" / "bars.csv")]


def test_a_folder_that_the_extended_file_names_gives_way_to_the_own_base_path(tmp_path):
    base = PLAIN + "model_paths: {base_save_path: /old}\n"
    manager = manager_of(tmp_path, {"base": base, "one": "extends: base\nmodel_paths: {base_path: /new}\n"})
    assert [manager.load_config(name).model_paths.base_save_path for name in ("base", "one")] == ["/old", "/new/one"]


def test_a_circle_of_extends_is_named(tmp_path):
    manager = manager_of(tmp_path, {"a": "extends: b\n", "b": "extends: c\n", "c": "\nextends: b\n", "me": "extends: me\n"})
    told = refusal(manager, "a")
    assert "c.yaml, line 2: extends: b closes a circle: b extends c extends b" in told
    assert "me extends me" in refusal(manager, "me")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: basis\n", "one.yaml, line 1: extends: basis: unknown model 'basis'; did you mean base?"),
        ("extends: ../none.yaml\n", "none.yaml does not exist"),
        ("extends: [base]\n", "line 1: extends is a list of 1; expected: text"),
        ("extends: base\nbatchsize: 3\n", "line 2: unknown key batchsize; did you mean training.batch_size"),
    ],
)
def test_what_cannot_be_extended_is_refused_with_its_line(tmp_path, text, told):
    assert told in refusal(manager_of(tmp_path, {"base": PLAIN, "one": text}), "one")


def test_a_mistake_in_the_extended_file_names_that_file(tmp_path):
    manager = manager_of(tmp_path, {"base": PLAIN + "training: {batch_size: 0}\n", "one": "extends: base\n"})
    assert "base.yaml, line 2: training.batch_size is 0" in refusal(manager, "one")


def test_a_run_folders_configuration_loads_again_wherever_it_lies(tmp_path):
    for name in ("models", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "base.yaml").write_text(PLAIN)
    manager = manager_of(tmp_path / "models", {"one": "extends: ../base.yaml\ntraining: {seed: 3}\n"})
    config = manager.load_config("one", ["training.batch_size=3"])
    (tmp_path / "elsewhere" / "config.yaml").write_text(to_yaml(resolved(config)))
    (tmp_path / "base.yaml").unlink()
    assert resolved(manager.load_config(tmp_path / "elsewhere" / "config.yaml")) == resolved(config)


# ---- precedence and its sources


def test_a_flag_wins_over_the_environment_that_over_the_file_and_that_over_what_it_extends(tmp_path):
    base = PLAIN + "model_paths: {base_path: /base, pretrained_tokenizer: /t}\ntraining: {seed: 1, batch_size: 8}\n"
    variables = {
        "KRONOS_OUTPUT_PATH": "/env",
        "KRONOS_DATA_PATH": "env.csv",
        "KRONOS_TOKENIZER_PATH": "/t2",
        "KRONOS_PREDICTOR_PATH": "/p2",
    }
    manager = manager_of(tmp_path, {"base": base, "one": "extends: base\ntraining: {seed: 2}\n"}, **variables, COMET_WORKSPACE="team")
    config = manager.load_config("one", ["model_paths.pretrained_predictor=/flag"])
    paths, told = config.model_paths, sources(config)
    assert (paths.base_path, paths.pretrained_tokenizer, paths.pretrained_predictor) == ("/env", "/t2", "/flag")
    assert (config.timeframe.source, config.training.seed, config.experiment.comet_workspace) == (["env.csv"], 2, "team")
    assert told["model_paths.base_path"] == "environment KRONOS_OUTPUT_PATH" and told["model_paths.pretrained_predictor"] == "--set"
    assert (told["training.seed"], told["training.batch_size"]) == ("file, line 2", "base.yaml, line 3")
    assert (told["data.clip"], told["model_paths.base_save_path"]) == ("default", "filled in")


def test_show_prints_yaml_that_loads_again_with_the_source_of_each_value(tmp_path):
    shown = show_text(manager_of(tmp_path, {"one": PLAIN}, KRONOS_OUTPUT_PATH="/out"), "one", ["training.log_interval=5"])
    lines = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert lines["log_interval"].split() == ["log_interval:", "5", "#", "--set"]
    assert lines["base_path"].endswith("# environment KRONOS_OUTPUT_PATH") and lines["period"].endswith("# file, line 1")
    tree = yaml.safe_load(shown)
    assert tree["training"]["log_interval"] == 5 and tree["timeframe"]["source"] == ["bars.csv"]
    (tmp_path / "again.yaml").write_text(shown)
    assert flat_values(ConfigManager(tmp_path, {}).load_config("again"))["training.log_interval"] == 5


def test_no_secret_is_shown_or_kept(tmp_path):
    manager = manager_of(tmp_path, {"one": PLAIN}, COMET_API_KEY="s3cret")
    config = manager.load_config("one")
    assert "s3cret" not in show_text(manager, "one") + to_yaml(resolved(config)) + repr(config) + list_text(manager)
    told = refusal(manager_of(tmp_path, {"two": PLAIN + "experiment: {comet_api_key: s3cret}\n"}), "two")
    assert "COMET_API_KEY" in told and "s3cret" not in told


def test_what_a_file_extends_is_no_flag():
    assert "--set extends" in refusal(ConfigManager(environment={}), "model_a_4h", "extends=model_b_1d")


# ---- periods and places


@pytest.mark.parametrize(
    ("text", "period"), [("4H", "4h"), ("240min", "4h"), ("15m", "15min"), ("24h", "1d"), ("7d", "1w"), ("90min", "90min")]
)
def test_a_period_may_be_written_as_people_do(tmp_path, text, period):
    config = manager_of(tmp_path, {"one": f"period: {text}\nsource: [x.csv]\n"}).load_config("one")
    assert config.timeframe.period == period


def test_seconds_of_a_period(tmp_path):
    manager = manager_of(tmp_path, {"one": PLAIN})
    assert [manager.load_config("one", [f"timeframe.period={period}"]).timeframe.seconds for period in ("4h", "15min", "1d")] == [
        14400,
        900,
        86400,
    ]


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("timeframe.period=daily", "timeframe.period is 'daily': is not a length; write a number and min, h, d or w, e.g. 15min, 4h, 1d"),
        ("timeframe.period=0h", "is not a length"),
        ("timeframe.calendar=XSHH", "timeframe.calendar is 'XSHH': is no calendar; did you mean XSH"),
        ("timeframe.source=[]", "timeframe.source: names no file; give the finer bars"),
    ],
)
def test_a_timeframe_that_cannot_be_is_refused(tmp_path, flag, told):
    assert told in refusal(manager_of(tmp_path, {"one": PLAIN}), "one", flag)


def test_bars_to_train_on_are_the_prepared_panel_or_those_named(tmp_path):
    manager = manager_of(tmp_path, {"one": PLAIN, "two": "data: {data_path: ready.csv}\n"})
    one, two = manager.load_config("one"), manager.load_config("two")
    assert one.data.data_path == ["finetuned/one/data/panel"] == [str(one.panel_folder)] and one.lacks_panel
    assert two.data.data_path == ["ready.csv"] and not two.is_prepared_from_source and not two.lacks_panel


# ---- validation


def test_validation_lists_every_problem_of_every_file_with_its_key(tmp_path):
    files = {"bad": PLAIN + "training: {batch_size: 0, epoch: 3}\n", "good": PLAIN, "worse": "timeframe: 4h\n", "broken": "a: [\n"}
    with pytest.raises(InputError) as error:
        manager_of(tmp_path, files).validate()
    told = str(error.value)
    assert told.startswith("Configuration validation failed:")
    for part in (
        "bad.yaml",
        "training.batch_size is 0",
        "unknown key training.epoch",
        "worse.yaml",
        "line 1: timeframe is text",
        "broken.yaml",
    ):
        assert part in told
    assert "good.yaml" not in told


def test_two_models_that_write_to_one_folder_are_refused_by_both_names(tmp_path):
    same = PLAIN + "model_paths: {exp_name: shared}\n"
    manager = manager_of(tmp_path, {"one": same, "two": same, "three": PLAIN})
    with pytest.raises(InputError, match=r"validation failed:\n- one and two both write to finetuned/shared; give each .*exp_name"):
        manager.validate()
    assert manager.problems("three") == [] and len(manager.problems("two")) == 1
    assert manager.validate(["one", "three"]).keys() == {"one", "three"}


def test_bars_of_two_models_may_share_a_folder_only_if_they_are_the_same(tmp_path):
    files = {
        name: f"timeframe: {{period: {period}, source: [x.csv], panel: /p}}\n" for name, period in (("a", "4h"), ("b", "4h"), ("c", "1h"))
    }
    manager = manager_of(tmp_path, files)
    assert manager.validate(["a", "b"])
    with pytest.raises(InputError, match="a and c both write to /p"):
        manager.validate(["a", "c"])


def test_diff_list_and_validate_tell_what_there_is(tmp_path):
    manager = manager_of(tmp_path, {"one": PLAIN, "two": "extends: one\ntraining: {seed: 9}\n", "bad": "period: x\n"})
    assert ("training.seed", 100, 9) in [tuple(row) for row in manager.diff("one", "two")]
    assert all(first != second for _, first, second in manager.diff("one", "two"))
    assert "training.seed" in diff_text(manager, "one", "two") and diff_text(manager, "one", "one") == "one and one hold the same values"
    listed = list_text(manager)
    assert (
        "does not load" in listed
        and "bad.yaml" in listed
        and any(line.split()[0] == "two" and line.endswith("one") for line in listed.splitlines()[2:4])
    )
    told = validate_text(manager, ["one"])
    assert "one: ok; its bars are to be made: python " in told and "prepare_kronos_data.py --config one" in told


# ---- ready to train


def test_a_model_whose_bars_are_not_made_names_the_command(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(PLAIN + f"model_paths: {{base_path: {tmp_path}/out}}\n")
    with pytest.raises(InputError, match=rf"no prepared bars in .*out/one/data/panel; make them: .*prepare_kronos_data.py --config {path}"):
        ModelConfig.load(path, (), {})
    make_panel(1, 30, freq="1h").save(tmp_path / "out" / "one" / "data" / "panel")
    with pytest.raises(InputError, match=r"are of 1h, but timeframe\.period is 4h; make them again"):
        ModelConfig.load(path, (), {})
    assert ModelConfig.load(path, ["timeframe.period=1h"], {}).data.is_panel


def test_a_predictor_without_its_tokenizer_names_the_command(tmp_path):
    config = manager_of(tmp_path, {"one": PLAIN + f"model_paths: {{base_path: {tmp_path}/out}}\n"}).load_config("one")
    with pytest.raises(InputError, match=r"Predictor requires tokenizer: .*\(python finetune/train_tokenizer_multi\.py --config one\)"):
        find_tokenizer(config, print)


def test_a_model_outside_may_not_write_into_a_registered_ones_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: model_a_4h\nmodel_paths: {exp_name: model_a_4h}\n")
    with pytest.raises(InputError, match=r"Configuration validation failed:\n- .*mine\.yaml and model_a_4h both write to"):
        ModelConfig.load(path, (), {})


def test_without_the_gpu_that_is_asked_for_the_advice_has_the_configurations_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    manager = ConfigManager(environment={})
    config = manager.load_config("model_a_4h", ["device.device=cuda"])
    with pytest.raises(InputError) as error:
        config.check_device()
    for part in (
        "no CUDA device",
        "25 million parameters",
        "batch_size 32",
        "batch_size 16 with accumulation_steps 4",
        "activation_checkpointing: true",
    ):
        assert part in str(error.value)


def test_advice_where_memory_runs_out_keeps_the_effective_batch_and_ends_where_nothing_is_left():
    training = ConfigManager(environment={}).load_config("model_b_1d").training
    told = out_of_memory(training, "cuda:0")
    assert "cuda:0 ran out of memory with batch_size 16, accumulation_steps 4" in told and "batch_size 8 with accumulation_steps 8" in told
    last = training.model_copy(update={"batch_size": 1, "activation_checkpointing": True, "amp": "bf16"})
    assert "smaller model" in memory_advice(last) and "batch_size" not in memory_advice(last)


# ---- the commands


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "finetune" / script), *arguments], capture_output=True, text=True, timeout=60, cwd="/"
    )


def test_the_command_ends_with_one_message_and_code_2_for_a_mistake():
    done = run("config_manager.py", "--show", "model_a_4")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown model") and "Traceback" not in done.stderr


def test_every_check_of_the_registered_models_passes_as_a_command_from_any_folder():
    done = run("test_multi_config.py")
    assert done.returncode == 0 and done.stdout.count("ok  ") == 5, done.stdout + done.stderr
