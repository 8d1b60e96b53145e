"""Which stages the CSV pipeline trains."""

from __future__ import annotations

from pathlib import Path

from finetune.engine.errors import InputError
from finetune.engine.places import Stage
from finetune_csv.config import CsvConfig


def stages_of(config: CsvConfig, *, skip_tokenizer: bool = False, skip_basemodel: bool = False) -> list[Stage]:
    """The stages to train, by the configuration and the command's flags. Raises InputError if none is left."""
    experiment = config.experiment
    stages: list[Stage] = []
    if experiment.train_tokenizer and not skip_tokenizer:
        stages.append("tokenizer")
    if experiment.train_basemodel and not skip_basemodel:
        stages.append("predictor")
    chosen, trained = config.model_paths.finetuned_tokenizer, config.model_paths.best_model("tokenizer")
    if len(stages) == 2 and Path(chosen) != trained:
        raise InputError(
            f"model_paths.finetuned_tokenizer is {chosen}, but the tokenizer that is trained first goes to {trained} and is not used; "
            "leave the key empty, or use --skip-tokenizer"
        )
    if not stages:
        raise InputError(
            "nothing to train: both stages are switched off (experiment.train_tokenizer, experiment.train_basemodel, --skip-tokenizer, "
            "--skip-basemodel); switch one on"
        )
    return stages
