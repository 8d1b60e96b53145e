"""Loading and saving tokenizers and predictors by folder or hub id."""

import os
from pathlib import Path
from typing import Any

from kronos.hub import find_folder
from kronos.network import Kronos
from kronos.tokenizer import KronosTokenizer
from kronos.weights import CONFIG_FILE, fingerprint, load_module, read_config, save_module

__all__ = ["fingerprint", "load_predictor", "load_tokenizer", "read_arguments", "save_module"]


def load_tokenizer(name: str | Path, *, revision: str | None = None, **dropouts: float) -> KronosTokenizer:
    """The tokenizer in a local folder or under a hub id (e.g. NeoQuasar/Kronos-Tokenizer-base), float32, CPU, evaluation mode.

    `dropouts` (e.g. ffn_dropout_p=0.1) replace the saved ones. Raises InputError naming file, value and fix.
    """
    return _load(KronosTokenizer, name, revision, dropouts)


def load_predictor(name: str | Path, *, revision: str | None = None, **dropouts: float) -> Kronos:
    """The predictor in a local folder or under a hub id (e.g. NeoQuasar/Kronos-small), float32, CPU, evaluation mode.

    `dropouts` (e.g. resid_dropout_p=0.1) replace the saved ones. Raises InputError naming file, value and fix.
    """
    return _load(Kronos, name, revision, dropouts)


def _load(cls: type, name: str | Path, revision: str | None, dropouts: dict[str, Any]) -> Any:
    return load_module(cls, name, revision=revision, overrides=dropouts)


def read_arguments(cls: type, name: str | Path) -> dict[str, Any]:
    """Constructor arguments of `cls` (Kronos or KronosTokenizer) from a config.json, the folder that holds it, or a hub id.

    Raises InputError or MissingFileError naming the file and what is wrong in it.
    """
    path = Path(os.path.expanduser(name))
    return read_config(path if os.path.isfile(path) else find_folder(name, [CONFIG_FILE]) / CONFIG_FILE, cls)
