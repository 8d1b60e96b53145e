"""The registries in words, for --list and the documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tft.indicators import registry
from tft.targets import TARGETS


def feature_table() -> str:
    """One line per feature: name, parameters with their defaults, kind, and the first sentence of what it is."""
    return "\n".join(_line(name, known.parameters, known.kind, known.function.__doc__, known.outputs) for name, known in registry().items())


def target_table() -> str:
    """One line per target."""
    return "\n".join(_line(name, known.parameters, known.kind, known.function.__doc__, ()) for name, known in TARGETS.items())


def _line(name: str, parameters: Mapping[str, Any], kind: str, text: str | None, outputs: tuple[str, ...]) -> str:
    shown = ", ".join(f"{key}: {list(value) if isinstance(value, tuple) else value}" for key, value in parameters.items())
    columns = f" → {', '.join(outputs)}" if outputs else ""
    return f"{name} {{{shown}}} [{kind}]{columns}\n    {' '.join((text or '').split())}"
