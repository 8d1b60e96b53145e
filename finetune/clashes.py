"""What is wrong with a set of models: said once, for the manager that checks files and for the scheduler that runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from finetune.multi_config import ModelConfig
from kronos.errors import InputError

_FIX = "model_paths.exp_name; or model_paths.base_save_path in its file, for --set holds for all models"


def invalid(problems: Sequence[str]) -> InputError:
    """One error with all that is wrong with one configuration or several."""
    return InputError("Configuration validation failed:" + "".join(f"\n- {told}" for told in problems))


def clashes(configs: Sequence[ModelConfig]) -> list[str]:
    """What is wrong where two of these models have one name, or write to one folder; each pair is told once.

    One panel may serve several models of the same bars.
    """
    told: list[str] = []
    names: set[str] = set()
    runs: dict[str, ModelConfig] = {}
    panels: dict[str, ModelConfig] = {}
    for config in configs:
        if config.name in names:
            told.append(f"two configurations are named {config.name!r}; rename the file of one of them")
        names.add(config.name)
        paths = config.model_paths
        for folder in (paths.base_save_path, *(str(paths.folder(stage)) for stage in ("tokenizer", "predictor"))):
            if (other := runs.setdefault(_place(folder), config)) is not config:
                told.append(f"{other.reference} and {config.reference} both write to {folder}; give each a folder of its own ({_FIX})")
                break
        else:
            other = panels.setdefault(_place(config.timeframe.panel), config)
            if not _same_bars(other, config):
                where = config.timeframe.panel
                told.append(
                    f"{other.reference} and {config.reference} both write to {where}; give each a folder of its own (timeframe.panel)"
                )
    return told


def _same_bars(one: ModelConfig, two: ModelConfig) -> bool:
    return one is two or (one.timeframe == two.timeframe and one.data.timezone == two.data.timezone)


def _place(folder: str) -> str:
    return os.path.normcase(Path(folder).resolve())
