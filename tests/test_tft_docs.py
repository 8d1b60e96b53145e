"""The documents against the Temporal Fusion Transformer: keys of model_config.yaml in both languages, and what the commands are given."""

import re

import pytest
from ranks import TESTS

from finetune.engine.config import describe_keys, key_table
from tft.config import TftConfig

AGAIN = 'python -c "from finetune.engine.config import key_table; from tft.config import TftConfig; print(key_table(TftConfig))"'
CJK = re.compile(r"[\u4e00-\u9fff]")


def table(name):
    text = (TESTS.parent / name).read_text(encoding="utf-8")
    return re.search(r"<!-- tft keys -->\n(.*?)\n<!-- /tft keys -->", text, re.DOTALL)[1].splitlines()


def test_the_table_of_keys_is_what_the_schema_says_today():
    assert table("docs/tft.md") == key_table(TftConfig).splitlines(), f"the schema changed; paste the table again: {AGAIN}"


def test_the_chinese_table_has_the_same_keys_and_defaults_and_a_meaning_for_each():
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table("docs/tft_CN.md")[2:]]
    assert [(key, default) for key, _, default, _ in rows] == [(f"`{row.key}`", f"`{row.default}`") for row in describe_keys(TftConfig)]
    for row, (*_, meaning) in zip(describe_keys(TftConfig), rows, strict=True):
        assert CJK.search(meaning), row.key
        assert re.findall(r"[A-Z]+_[A-Z_]+", row.description) == re.findall(r"[A-Z]+_[A-Z_]+", meaning), row.key


@pytest.mark.parametrize("name", ["docs/tft.md", "docs/tft_CN.md"])
def test_the_environment_variable_and_every_command_of_the_chain_are_named(name):
    text = (TESTS.parent / name).read_text(encoding="utf-8")
    chain = ("indicating", "target_config", "data_fusion", "train_multi_tft", "train_resume", "warm_start_train", "predict", "interpret")
    assert "TFM_DATA_PATH" in text
    for command in (*chain, "stage_summary", "feature_healthcheck", "csv2Parquet", "csv2Pkl"):
        assert f"tft/{command}.py" in text, command
