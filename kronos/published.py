"""What tokenizer and predictor have in common as published models: constructor arguments as config.json, saving, loading."""

import inspect
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from kronos.weights import load_module, save_module


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
