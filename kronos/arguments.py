"""Constructor arguments of tokenizer and predictor as plain values: their names, their checks, their file. Needs no torch.

A configuration is checked, and a plan for many models made, without building a model and without waiting for torch.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kronos.errors import InputError, MissingFileError
from kronos.presets import PREDICTORS, TOKENIZERS

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a saved model
NAMES: dict[str, tuple[str, ...]] = {"tokenizer": tuple(TOKENIZERS["base"]), "predictor": tuple(PREDICTORS["mini"])}  # by kind of model

# Argument -> smallest, largest. Far beyond any published size: they only keep a damaged or hostile config from asking for terabytes.
_INTEGERS = {
    "d_in": (1, 4096),
    "d_model": (8, 65536),
    "n_heads": (1, 1024),
    "ff_dim": (1, 1 << 20),
    "n_layers": (1, 1024),
    "n_enc_layers": (1, 1024),
    "n_dec_layers": (1, 1024),
    "s1_bits": (1, 20),
    "s2_bits": (1, 20),
    "group_size": (1, 40),
}


def check_arguments(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the arguments `names` out of `given` and check each and their fit; raises InputError naming the argument."""
    arguments = {name: given[name] for name in names}
    for name, value in arguments.items():
        _check_value(name, value)
    d_model, n_heads = arguments["d_model"], arguments["n_heads"]
    if d_model % (2 * n_heads):
        raise InputError(f"d_model {d_model} with n_heads {n_heads}: heads must be of even size; make d_model a multiple of {2 * n_heads}")
    if d_model % 8:
        raise InputError(f"d_model is {d_model}: the four cross-attention heads need a multiple of 8")
    if "group_size" in arguments:
        check_groups(arguments["s1_bits"] + arguments["s2_bits"], arguments["group_size"])
    return arguments


def check_groups(bits: int, group_size: int) -> None:
    """Raises InputError where group_size does not divide the number of bits (the published code refuses such a checkpoint)."""
    if bits % group_size:
        raise InputError(f"group_size {group_size} does not divide s1_bits + s2_bits = {bits}: choose a divisor of {bits}")


def _check_value(name: str, value: Any) -> None:
    if name in _INTEGERS:
        low, high = _INTEGERS[name]
        if type(value) is not int or not low <= value <= high:
            raise InputError(f"{name} is {value!r}: it must be a whole number from {low} to {high}")
    elif name == "learn_te":
        if type(value) is not bool:
            raise InputError(f"learn_te is {value!r}: it must be true or false")
    elif type(value) not in (int, float) or not abs(value) < 1e6:
        raise InputError(f"{name} is {value!r}: it must be a finite number")
    elif name.endswith("_dropout_p") and not 0 <= value < 1:
        raise InputError(f"{name} is {value!r}: a dropout probability must be at least 0 and below 1")


def read_arguments_file(path: Path, names: Iterable[str], what: str) -> dict[str, Any]:
    """The arguments `names` of a `what` ("KronosTokenizer") from a config.json; raises InputError naming the file and what is wrong."""
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: a {what} folder holds {CONFIG_FILE} and model.safetensors; check its name")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): copy it again from where the weights came from") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error}): check its permissions") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a {type(config).__name__}, not an object of {what}'s arguments")
    wanted = list(names)
    missing, unknown = [key for key in wanted if key not in config], sorted(set(config) - set(wanted))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise InputError(f"{path} {' and '.join(parts)}: it does not describe a {what}; is this the folder of another model?")
    return config
