"""Sections about a run as a whole: where its weights come from and go to, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from finetune.engine.comet import CometSettings
from finetune.engine.config import Section, key
from finetune.engine.places import Stage
from finetune.engine.sections import safe_name


class ModelPathsSection(Section):
    """Where weights come from and where results go. `{exp_name}` in a path is filled in."""

    hides: ClassVar = {"base_path": ("base_save_path",)}

    pretrained_tokenizer: str = key(
        "NeoQuasar/Kronos-Tokenizer-base", "weights the tokenizer starts from: a folder or a hub id", env="KRONOS_TOKENIZER_PATH", path="in"
    )
    pretrained_predictor: str = key(
        "NeoQuasar/Kronos-small", "weights the predictor starts from: a folder or a hub id", env="KRONOS_PREDICTOR_PATH", path="in"
    )
    exp_name: str = key("default_experiment", "name of the experiment and of its folder")
    base_path: str = key("finetuned", "folder below which each experiment has its own", env="KRONOS_OUTPUT_PATH", path="out")
    base_save_path: str = key("", "the experiment's folder; empty: {base_path}/{exp_name}", path="out")
    finetuned_tokenizer: str = key(
        "", "tokenizer that the predictor is trained with; empty: {base_save_path}/{tokenizer_save_name}/best_model", path="out"
    )
    tokenizer_save_name: str = key("tokenizer", "folder of the tokenizer in the experiment's folder")
    basemodel_save_name: str = key("basemodel", "folder of the predictor in the experiment's folder")

    _names = field_validator("exp_name", "tokenizer_save_name", "basemodel_save_name")(safe_name)

    @field_validator("base_path", "base_save_path", "finetuned_tokenizer")
    @classmethod
    def _known_places(cls, value: str) -> str:
        unknown = [name for name in re.findall(r"\{(\w*)\}", value) if name not in _PLACES]
        if unknown:
            raise ValueError(f"{{{unknown[0]}}} is not known here; {{exp_name}} is filled in")
        return value

    def _complete(self) -> None:
        known = {name: getattr(self, name) for name in _PLACES}
        for name, default in _DERIVED.items():
            text = known[name] or default
            known[name] = re.sub(r"\{(\w+)\}", lambda place: known[place[1]], text)
            self._fill(**{name: str(Path(known[name]))})

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.pretrained_tokenizer or not self.pretrained_predictor:
            name = "pretrained_predictor" if self.pretrained_tokenizer else "pretrained_tokenizer"
            yield name, "is empty; give a folder or a hub id such as NeoQuasar/Kronos-small"
        taken = ["logs"]
        for name in ("tokenizer_save_name", "basemodel_save_name"):
            folder = getattr(self, name).lower()
            if folder in taken:
                yield name, f"{folder!r} is taken: tokenizer, predictor and logs need folders of their own in {self.base_save_path}"
            taken.append(folder)

    def folder(self, stage: Stage) -> Path:
        """Run folder of a stage: {base_save_path}/tokenizer or /basemodel."""
        return Path(self.base_save_path, self.tokenizer_save_name if stage == "tokenizer" else self.basemodel_save_name)

    def best_model(self, stage: Stage) -> Path:
        """Where a stage's best weights go."""
        return self.folder(stage) / "best_model"

    @property
    def logs(self) -> Path:
        return Path(self.base_save_path, "logs")


# in the order in which they are filled in; a placeholder may name itself or one above it
_DERIVED = {
    "base_path": "finetuned",
    "base_save_path": "{base_path}/{exp_name}",
    "finetuned_tokenizer": "{base_save_path}/{tokenizer_save_name}/best_model",
}
_PLACES = ("exp_name", "tokenizer_save_name", "basemodel_save_name", *_DERIVED)


class ExperimentSection(Section):
    """What is done, and under which name it is shown."""

    aliases: ClassVar = {"pre_trained": ("pre_trained_tokenizer", "pre_trained_predictor")}

    name: str = key("kronos_custom_finetune", "name shown in logs and in Comet")
    description: str = key("", "a line for the record")
    use_comet: bool = key(False, "log to Comet as well; the key is read from COMET_API_KEY, without it an offline archive is written")
    comet_project: str = key("kronos", "Comet project")
    comet_workspace: str = key("", "Comet workspace; empty: the key's own", env="COMET_WORKSPACE")
    comet_tags: list[str] = key([], "tags of the run in Comet")
    train_tokenizer: bool = key(True, "do the first stage")
    train_basemodel: bool = key(True, "do the second stage")
    skip_existing: bool = key(False, "do not train a stage whose best_model is there")
    pre_trained_tokenizer: bool = key(
        True, "true: start from pretrained_tokenizer's weights; false: from random ones in model.tokenizer's sizes (`pre_trained`: both)"
    )
    pre_trained_predictor: bool = key(True, "the same for the predictor, with pretrained_predictor and model.predictor")

    def comet(self) -> CometSettings | None:
        """Settings for the run's Comet log; None if it is switched off."""
        if not self.use_comet:
            return None
        return CometSettings(self.comet_project, self.comet_workspace or None, self.name, tuple(self.comet_tags))
