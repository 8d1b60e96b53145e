"""Malformed YAML: shipped configurations mutated, and trees that hypothesis drew over the schema's own keys."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from finetune.config import QlibConfig
from finetune.engine.config import load_config, resolved, to_yaml
from finetune.engine.schema import Section, fields_of
from finetune.engine.yaml_text import read_yaml
from finetune.multi_config import ModelConfig
from finetune_csv.config import CsvConfig
from tests.drills.common import ROOT, expect
from tests.drills.mutations import drawn, mutated
from tft.config import TftConfig

SCHEMAS: dict[str, type[Section]] = {
    "demo.yaml": CsvConfig,
    "csv_template.yaml": CsvConfig,
    "config_ali09988_candle-5min.yaml": CsvConfig,
    "qlib_csi300.yaml": QlibConfig,
    "models/model_c_1h.yaml": ModelConfig,
    "tft/model_config.yaml": TftConfig,
}
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["1e400", "~nobody-here/x", "off", "{exp_name}", "{0}", "../x", "a\nb", "\x00", "0x" + "f" * 40, ".inf", "C:\\"]),
    st.lists(st.integers() | st.text(max_size=5), max_size=4),
    st.dictionaries(st.sampled_from(["preset", "d_model", "n_heads", "ffn", "x"]), st.integers() | st.text(max_size=3), max_size=3),
)


@cache
def _shipped(name: str) -> bytes:
    return (ROOT / "configs" / name).read_bytes()


def invented(schema: type[Section], draw: random.Random, seed: int) -> str:
    """A tree of the schema's keys with any values, as PyYAML writes it."""
    paths = [path for path, _ in fields_of(schema)]
    tree: dict[str, Any] = {}
    for number, path in enumerate(draw.sample(paths, min(len(paths), draw.choice((1, 3, 10))))):
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = drawn(_VALUES, seed + number)
    return yaml.safe_dump(tree, allow_unicode=True)


def case(seed: int, place: Path) -> Callable[[], Any]:
    """One loading of one malformed configuration: refused, or a configuration that, written down, loads again as the same."""
    draw = random.Random(seed)
    name = draw.choice(list(SCHEMAS))
    file = place / "out" / "config.yaml"
    file.parent.mkdir(parents=True)
    data = invented(SCHEMAS[name], draw, seed).encode() if draw.random() < 0.3 else mutated(draw, _shipped(name))
    file.write_bytes(data)
    overrides = [f"{'.'.join(draw.choice(list(fields_of(SCHEMAS[name])))[0])}={drawn(_VALUES, seed)}"] if draw.random() < 0.2 else []

    def read() -> str:
        tree = read_yaml(file).tree
        expect(_same(_written(tree, file), tree), "what was read is not what is read again after writing it")
        config = load_config(SCHEMAS[name], file, overrides, {})
        again = load_config(SCHEMAS[name], _save(resolved(config), file), [], {})
        expect(_same(resolved(again), resolved(config)), "the configuration, written down, is another one")
        return "loaded"

    return read


def _save(tree: Any, file: Path) -> Path:
    copy = file.with_name("again.yaml")
    copy.write_text(to_yaml(tree), encoding="utf-8")
    return copy


def _written(tree: dict[str, Any], file: Path) -> Any:
    return read_yaml(_save(tree, file)).tree if tree else tree


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in value:
            yield key
            yield from _leaves(value[key])
    elif isinstance(value, list):
        yield len(value)
        for item in value:
            yield from _leaves(item)
    else:
        home = isinstance(value, str) and "\0" not in value  # a default of ~/x is read again as a path
        yield type(value), os.path.expanduser(value) if home else value


def _same(a: Any, b: Any) -> bool:
    """Equal, NaN equal to NaN."""
    return repr(list(_leaves(a))) == repr(list(_leaves(b)))
