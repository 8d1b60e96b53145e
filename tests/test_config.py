"""The loader on a small schema: precedence, aliases, suggestions, all mistakes in one message, secrets, the words about keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import pytest
from pydantic import SecretStr, field_validator

from finetune.engine.config import Section, describe_keys, key, key_table, load_config, resolved, sources, template, text_or, to_yaml
from kronos.errors import InputError


class Sizes(Section):
    width: int = key(8, "width", ge=1)
    layers: int | None = key(None, "layers", ge=1)


class Data(Section):
    path: list[str] = key(..., "files to read", env="KRONOS_DATA_PATH", path="in", example="bars.csv")
    low: float = key(0.1, "lower bound", ge=0, le=1)
    high: float = key(0.9, "upper bound", ge=0, le=1)
    vol: str = key("volume", "the file's volume column")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.low > self.high:
            yield "low", f"is {self.low:g}, above data.high = {self.high:g}; lower it"


class Training(Section):
    aliases: ClassVar = {"epochs": ("first_epochs", "second_epochs"), "lr": ("rate",)}

    first_epochs: int = key(30, "epochs", ge=1)
    second_epochs: int = key(20, "epochs", ge=1)
    batch_size: int = key(32, "windows per step", ge=1)
    rate: float = key(1e-3, "learning | rate", gt=0)
    amp: Literal["off", "bf16"] = key("off", "precision")
    fused: bool = key(True, "fused optimiser")
    note: str | None = key(None, "free text")


class Output(Section):
    hides: ClassVar = {"base": ("folder",)}

    base: str = key("out", "parent folder", env="KRONOS_OUTPUT_PATH", path="out")
    folder: str = key("", "folder", path="out")
    token: SecretStr = key(SecretStr(""), "key of the tracker", max_length=20)
    note: str = key("", "free text")

    @field_validator("token")
    @classmethod
    def _plausible(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().startswith("x"):
            raise ValueError("is no key; copy it from your account")
        return value

    def _complete(self) -> None:
        self._fill(folder=self.folder or f"{self.base}/x")


class Model(Section):
    net: text_or(Sizes) = key("tiny", "a name or sizes")


class Config(Section):
    data: Data
    training: Training = Training()
    output: Output = Output()
    model: Model = Model()


GOOD = "data: {path: [a.csv]}\n"


@pytest.fixture
def load(tmp_path):
    def load(text=GOOD, *overrides, env=None):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load_config(Config, path, overrides, env or {})

    return load


@pytest.fixture
def refused(load):
    def refused(text=GOOD, *overrides, env=None) -> str:
        with pytest.raises(InputError) as error:
            load(text, *overrides, env=env)
        return str(error.value)

    return refused


# ---- what goes in


def test_defaults_fill_what_is_left_out_and_a_configuration_never_changes(load):
    config = load()
    assert (config.training.batch_size, config.training.rate, config.output.folder) == (32, 1e-3, "out/x")
    with pytest.raises(ValueError, match="frozen"):
        config.training.batch_size = 1


def test_numbers_switches_and_empty_sections_are_read_as_people_write_them(load):
    training = load(GOOD + "training: {rate: 1e-4, batch_size: 1e2, amp: off, fused: no, note: 2024}\noutput:\n").training
    assert (training.rate, training.batch_size, training.amp, training.fused, training.note) == (1e-4, 100, "off", False, "2024")
    assert load(GOOD + "training: {amp: false, note: }\n").training.amp == "off"


def test_flag_beats_environment_beats_file_beats_default_and_sources_say_so(load):
    text = "data:\n  path: file.csv\noutput:\n  base: file\n"
    env = {"KRONOS_OUTPUT_PATH": "env", "UNRELATED": "x"}
    assert load(text).output.base == "file"
    assert load(text, env=env).output.base == "env"
    config = load(text, "output.base=flag", "training.batch_size=4", env=env)
    assert config.output.base == "flag"
    told = sources(config)
    assert told["data.path"] == "file, line 2" and told["output.base"] == "--set" and told["training.rate"] == "default"
    assert told["output.folder"] == "filled in"
    assert sources(load(text, env=env))["output.base"] == "environment KRONOS_OUTPUT_PATH"
    assert sorted(told) == sorted(row.key for row in describe_keys(Config))


def test_an_empty_variable_counts_as_unset(load):
    assert load(env={"KRONOS_OUTPUT_PATH": ""}).output.base == "out"


def test_a_new_base_folder_voids_the_folder_that_the_file_made_of_the_old_one(load):
    text = GOOD + "output: {base: /a, folder: /a/run}\n"
    assert load(text).output.folder == "/a/run"
    assert load(text, env={"KRONOS_OUTPUT_PATH": "/b"}).output.folder == "/b/x"
    assert load(text, "output.base=/b").output.folder == "/b/x"
    assert load(text, "output.folder=/c", "output.base=/b").output.folder == "/c"


def test_later_flags_win_and_values_may_hold_equals_signs_and_lists(load):
    config = load(GOOD, "training.batch_size=1", "training.batch_size=2", "data.path=[a=b.csv, 'c d']", "training.note=a=b")
    assert (config.training.batch_size, config.data.path, config.training.note) == (2, ["a=b.csv", "c d"], "a=b")


def test_an_alias_sets_each_key_it_stands_for_in_any_layer(load):
    assert load(GOOD + "training: {epochs: 5}\n").training.first_epochs == 5
    training = load(GOOD + "training: {epochs: 5, lr: 0.1}\n", "training.first_epochs=7").training
    assert (training.first_epochs, training.second_epochs, training.rate) == (7, 5, 0.1)
    training = load(GOOD + "training: {first_epochs: 5}\n", "training.epochs=9").training
    assert (training.first_epochs, training.second_epochs) == (9, 9)


def test_an_alias_beside_its_key_is_an_error_only_if_they_differ(load, refused):
    assert load(GOOD + "training: {epochs: 5, first_epochs: 5}\n").training.second_epochs == 5
    for text in ("training:\n  epochs: 5\n  first_epochs: 6\n", "training:\n  first_epochs: 6\n  epochs: 5\n"):
        message = refused(GOOD + text)
        assert "training.epochs sets training.first_epochs, which is given another value" in message
        assert "second_epochs" not in message


def test_a_text_or_a_mapping_and_flags_that_change_one_key_of_it(load):
    assert load(GOOD + "model: {net: big}\n").model.net == "big"
    assert load(GOOD + "model: {net: {width: 4}}\n", "model.net.layers=2").model.net == Sizes(width=4, layers=2)
    assert load(GOOD + "model: {net: big}\n", "model.net.layers=2").model.net == Sizes(layers=2)


def test_files_to_read_are_found_beside_the_configuration_then_from_here(load, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "a.csv").write_text("")
    (here / "b.csv").write_text("")
    beside = str(tmp_path / "a.csv")
    assert load("data: {path: [a.csv, b.csv, '~/c.csv', '*.csv', 'no*.csv']}\n").data.path == [
        beside,
        "b.csv",
        "/home/ada/c.csv",
        str(tmp_path / "*.csv"),
        "no*.csv",
    ]
    assert load(GOOD, "data.path=[a.csv]").data.path == ["a.csv"], "a flag is typed in the current folder"
    assert load(GOOD + "output: {base: ~/runs}\n").output.base == "/home/ada/runs"


def test_without_a_file_flags_are_enough():
    assert load_config(Config, None, ["data.path=[a.csv]"], {}).data.path == ["a.csv"]
    with pytest.raises(InputError, match=r"^configuration: data\.path is missing; files to read$"):
        load_config(Config, None, (), {})


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training:\n  batch_size: 0\n", "line 3: training.batch_size is 0; expected: whole number ≥ 1 (default 32)"),
        ("training: {batch_size: many}\n", "training.batch_size is 'many'; expected: whole number ≥ 1"),
        ("training: {batch_size: 1.5}\n", "training.batch_size is 1.5; expected"),
        ("training: {batch_size: true}\n", "training.batch_size is true; expected"),
        ("training: {batch_size: }\n", "training.batch_size is empty; expected"),
        ("training: {batch_size: [1, 2]}\n", "training.batch_size is a list of 2; expected"),
        ("training: {rate: .nan}\n", "training.rate is nan; expected: number > 0"),
        ("training: {rate: -1e-3}\n", "training.rate is -0.001; expected: number > 0"),
        ("training: {amp: true}\n", "training.amp is true; expected: one of off, bf16 (default 'off')"),
        ("training: {amp: fp8}\n", "training.amp is 'fp8'; expected: one of off, bf16"),
        ("training: {fused: maybe}\n", "training.fused is 'maybe'; expected: true or false"),
        ("training: [1]\n", "training is a list of 1; expected: a section with keys such as first_epochs, second_epochs"),
        ("model: {net: {width: 0}}\n", "model.net.width is 0; expected: whole number ≥ 1"),
        ("model:\n  net:\n    width: 1\n    widht: 2\n", "line 5: unknown key model.net.widht; did you mean model.net.width?"),
        ("model: {net: 3}\n", ""),
        ("output: {base: 'a\\0b'}\n".replace("'", '"'), "output.base is 'a\\x00b'; expected: text"),
    ],
)
def test_a_bad_value_is_told_with_its_line_key_value_and_what_is_expected(load, refused, tmp_path, text, told):
    if not told:
        assert load(GOOD + text).model.net == "3"
        return
    assert told in refused(GOOD + text)
    assert refused(GOOD + text).startswith(f"{tmp_path / 'c.yaml'}, line ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training: {batchsize: 1}\n", "line 2: unknown key training.batchsize; did you mean training.batch_size?"),
        ("training: {Batch-Size: 1}\n", "did you mean training.batch_size?"),
        ("trainning: {batch_size: 1}\n", "unknown key trainning; did you mean training?"),
        ("model: {batch_size: 1}\n", "unknown key model.batch_size; did you mean training.batch_size?"),
        ("batch_size: 1\n", "unknown key batch_size; did you mean training.batch_size?"),
        ("training: {epoch: 1}\n", "did you mean training.epochs?"),
        ("output: {width: 1}\n", "did you mean model.net.width?"),
        ("output: {nte: 1}\n", "did you mean output.note?"),
        ("model: {nte: 1}\n", "did you mean training.note or output.note?"),
        ("training: {lookback: 1}\n", "known in training: first_epochs, second_epochs, batch_size"),
        ("zzz: 1\n", "unknown key zzz; known at the top: data, training, output, model"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one_in_any_section(refused, text, told):
    assert told in refused(GOOD + text)


def test_everything_that_is_wrong_is_told_at_once_in_the_order_of_the_file(refused):
    message = refused(
        "training:\n  batch_size: 0\n  ratee: 1\ndata:\n  path: []\n  low: .8\n  high: .2\n",
        "training.rate=fast",
        "nonsense",
        env={"KRONOS_OUTPUT_PATH": "a\tb"},
    )
    lines = message.splitlines()
    assert lines[0].endswith("c.yaml: 6 things to mend")
    places = [line.split(": ")[0].strip() for line in lines[1:]]
    assert places == ["line 2", "line 3", "line 6", "--set", "--set", "environment KRONOS_OUTPUT_PATH"]
    assert "data.low: is 0.8, above data.high = 0.2; lower it" in message


def test_a_missing_section_names_the_keys_that_are_needed(refused):
    assert "data.path is missing; files to read" in refused("training: {batch_size: 1}\n")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("training.batch_size", "'training.batch_size' is not understood; write section.key=value"),
        ("=3", "the part before = is not a key"),
        ("training..batch_size=3", "the part before = is not a key"),
        ("data.path=[a.csv", "the value of data.path, line 1"),
        ("training.batch_size=x", "--set: training.batch_size is 'x'; expected: whole number ≥ 1"),
        ("training.batch_size.x=1", "training.batch_size is a mapping of 1; expected"),
        ("training=3", "training is a single value; expected: a section"),
        ("batch_size=3", "unknown key batch_size; did you mean training.batch_size?"),
    ],
)
def test_a_malformed_flag_is_told_as_one(refused, flag, told):
    message = refused(GOOD, flag)
    assert told in message and "--set" in message


def test_hundreds_of_unknown_keys_make_a_short_message_quickly(refused):
    message = refused(GOOD + "".join(f"key{i}: 1\n" for i in range(5_000)))
    assert "the first 40 things to mend" in message and len(message.splitlines()) == 41


def test_long_and_strange_keys_and_values_do_not_flood_or_garble_the_message(refused):
    assert len(refused(GOOD + f"{'k' * 900}: 1\n")) < 400
    assert "\x1b" not in refused(GOOD + '"\\e[31mred": 1\n')
    assert len(refused(GOOD + f"training: {{amp: {'x' * 5000}}}\n")) < 400


def test_a_secret_is_in_no_dump_no_message_and_no_repr(load, refused):
    secret = "hunter2"
    config = load(GOOD + f"output: {{token: {secret}}}\n")
    assert config.output.token.get_secret_value() == secret
    assert secret not in repr(config) + str(resolved(config)) + to_yaml(resolved(config)) + str(sources(config))
    assert "token" not in resolved(config)["output"]
    given = [f"output: {{token: {value}}}" for value in ("[hunter2]", "xhunter2", "hunter2hunter2hunter2")]
    for text in [*given, "output: {tokem: hunter2}", "output: hunter2", "tokens: {token: hunter2}"]:
        assert secret not in refused(f"{GOOD}{text}\n")


# ---- what comes out


def test_a_resolved_configuration_reads_back_as_itself(load, tmp_path):
    config = load(GOOD + "training: {rate: 1e-4, note: '007'}\nmodel: {net: {layers: 3}}\n", "training.epochs=3")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(resolved(config)))
    assert resolved(load_config(Config, path, (), {})) == resolved(config)
    assert resolved(config)["model"] == {"net": {"width": 8, "layers": 3}}


def test_keys_are_described_with_type_limits_default_and_variable():
    rows = {row.key: row for row in describe_keys(Config)}
    assert rows["training.batch_size"][1:] == ("whole number ≥ 1", "32", "windows per step")
    assert rows["data.low"][1:3] == ("number from 0 to 1", "0.1")
    assert rows["training.amp"][1:3] == ("one of off, bf16", "'off'")
    assert rows["data.path"][1:] == ("list of text", "required", "files to read (environment: KRONOS_DATA_PATH)")
    assert rows["output.token"][1:3] == ("text (secret)", '""')
    assert rows["model.net"].type == "text or mapping with width, layers"


def test_the_table_is_markdown_with_one_line_per_key():
    lines = key_table(Config).splitlines()
    assert len(lines) == 2 + len(describe_keys(Config))
    assert lines[1] == "| --- | --- | --- | --- |"
    assert "learning \\| rate" in key_table(Config)


def test_the_template_loads_and_holds_every_default(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(template(Config))
    assert resolved(load_config(Config, path, (), {})) == resolved(load_config(Config, None, ["data.path=bars.csv"], {}))


def test_a_variable_outside_of_the_table_is_a_fault_of_ours():
    with pytest.raises(AssertionError, match="NOT_LISTED"):
        key(1, "x", env="NOT_LISTED")


# ---- keys of one section at the top


class Flat(Config):
    flat: ClassVar = True


@pytest.fixture
def load_flat(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "flat.yaml"
        path.write_text(text)
        return load_config(Flat, path, overrides, {})

    return load


def test_a_key_of_one_section_may_stand_at_the_top_in_a_file_and_in_a_flag(load_flat):
    config = load_flat("path: [a.csv]\nbatch_size: 4\nepochs: 3\n", "rate=0.5", "net.width=3", "net.layers=2")
    assert (config.model.net.width, config.model.net.layers) == (3, 2)
    assert (config.data.path, config.training.batch_size, config.training.rate) == (["a.csv"], 4, 0.5)
    assert (config.training.first_epochs, config.training.second_epochs) == (3, 3), "aliases too"
    assert sources(config)["training.batch_size"] == "file, line 2"


def test_a_key_at_the_top_that_contradicts_its_section_is_told_with_both_places(load_flat):
    with pytest.raises(InputError, match=r"line 1: batch_size sets training.batch_size, which is given another value \(line 2\)"):
        load_flat("batch_size: 4\ntraining: {batch_size: 5}\npath: a.csv\n")


def test_a_wrong_value_at_the_top_is_told_with_its_line_and_section(load_flat):
    with pytest.raises(InputError, match=r"line 2: training.batch_size is 'many'; expected: whole number"):
        load_flat("path: a.csv\nbatch_size: many\n")


def test_a_key_that_two_sections_have_must_say_which_and_a_schema_that_is_not_flat_takes_none(load_flat, refused):
    with pytest.raises(InputError, match=r"unknown key note; did you mean training.note or output.note"):
        load_flat("path: a.csv\nnote: x\n")
    assert "unknown key batch_size; did you mean training.batch_size?" in refused(GOOD + "batch_size: 4\n")
