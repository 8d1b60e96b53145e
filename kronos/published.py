"""What tokenizer and predictor have in common as published models: constructor arguments as config.json, saving, loading, checks."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from kronos.errors import InputError
from kronos.weights import load_module, save_module

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


def _check_value(key: str, value: Any) -> None:
    if key in _INTEGERS:
        low, high = _INTEGERS[key]
        if type(value) is not int or not low <= value <= high:
            raise InputError(f"{key} is {value!r}: it must be a whole number from {low} to {high}")
    elif key == "learn_te":
        if type(value) is not bool:
            raise InputError(f"learn_te is {value!r}: it must be true or false")
    elif type(value) not in (int, float) or not abs(value) < 1e6:
        raise InputError(f"{key} is {value!r}: it must be a finite number")
    elif key.endswith("_dropout_p") and not 0 <= value < 1:
        raise InputError(f"{key} is {value!r}: a dropout probability must be at least 0 and below 1")


def check_arguments(cls: "type[PublishedModule]", given: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the constructor arguments of `cls` out of `given` and check each and their fit; raises InputError naming the argument."""
    arguments = {key: given[key] for key in cls.argument_names()}
    for key, value in arguments.items():
        _check_value(key, value)
    d_model, n_heads = arguments["d_model"], arguments["n_heads"]
    if d_model % (2 * n_heads):
        raise InputError(f"d_model {d_model} with n_heads {n_heads}: heads must be of even size; make d_model a multiple of {2 * n_heads}")
    if d_model % 8:
        raise InputError(f"d_model is {d_model}: the four cross-attention heads need a multiple of 8")
    return arguments


class PublishedModule(nn.Module, PyTorchModelHubMixin):
    """A module whose folder (config.json, model.safetensors) is the published format, read and written by hub tools as well."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self._arguments: dict[str, Any] = {}

    @classmethod
    def argument_names(cls) -> list[str]:
        """Constructor arguments, in order, without self."""
        return list(inspect.signature(cls.__init__).parameters)[1:]

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, as in config.json (a copy)."""
        return dict(self._arguments)

    @property
    def recompute(self) -> bool:
        """Whether this pass throws activations away and recomputes them (only where a backward pass will come)."""
        return self.activation_checkpointing and torch.is_grad_enabled()

    def _save_pretrained(self, save_directory: Path) -> None:
        save_module(self, save_directory)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **overrides: Any) -> "PublishedModule":
        """Load from a folder or hub id, in evaluation mode; `overrides` replace constructor arguments that change no shape (dropouts).

        Raises InputError, naming the file and the fix, for anything missing, damaged or of the wrong shape.
        """
        return load_module(cls, name, revision=revision, overrides=overrides)
