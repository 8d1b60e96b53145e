"""What of a configuration's stages is there already, and whether it was made with the settings at hand. Needs no torch: plans ask it.

A result counts as done only where what is recorded beside it (config.yaml, summary.json) is what would make it now: the settings of
`data` that cut windows, all of `training` and `model` that concern the stage, the weights it starts from, the bars, and a predictor's
tokenizer. What only shows, saves, fetches or speeds up (see `_WITHOUT_EFFECT`) may change freely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from finetune.engine.config import Section, resolved
from finetune.engine.errors import MissingFileError
from finetune.engine.files import read_json
from finetune.engine.places import Place, Stage, is_complete
from finetune.engine.schema import fields_of
from finetune.engine.sections import WindowSection
from finetune.engine.yaml_text import read_yaml

Say = Callable[[str], Any]
_OTHER: dict[Stage, str] = {"tokenizer": "predictor", "predictor": "tokenizer"}
_OF_STAGE = {  # keys of `training` and `model` that concern one stage only
    "tokenizer": {"tokenizer_epochs", "tokenizer_learning_rate", "clip_norm_tokenizer", "monitor_tokenizer", "tokenizer_dropout"},
    "predictor": {
        *("basemodel_epochs", "predictor_learning_rate", "clip_norm_predictor", "monitor_predictor"),
        *("dropout", "teacher_forcing"),
    },
}
_WITHOUT_EFFECT = {  # on the weights that come out
    *("max_context", "log_interval", "num_workers", "val_batch_size", "compile", "activation_checkpointing"),
    *("save_last", "top_k", "checkpoint_every_epochs", "checkpoint_every_steps", "cache_tokens", "cache_limit_gib"),
}


class Paths(Protocol):
    """Where weights come from and results go: `model_paths` of a configuration."""

    pretrained_tokenizer: str
    pretrained_predictor: str
    finetuned_tokenizer: str  # what the predictor is trained with
    base_save_path: str

    def folder(self, stage: Stage) -> Path: ...
    def best_model(self, stage: Stage) -> Path: ...
    @property
    def logs(self) -> Path: ...


class Change(NamedTuple):
    """A setting that was another when a result was made."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.old)} → {_plain(self.new)}"


def place_of(config: Any, stage: Stage) -> Place:
    """Where a stage's run is, and what is recorded there."""
    paths = config.model_paths
    return Place(paths.folder(stage), Path(paths.best_model(stage)), paths.logs, resolved(config), config.comet())


def find_tokenizer(config: Any, say: Say) -> str:
    """The tokenizer that the predictor is trained with: the fine-tuned one, or the pretrained one where none is trained.

    Raises MissingFileError if one is to be trained and is not there.
    """
    paths, experiment = config.model_paths, config.experiment
    if is_complete(Path(paths.finetuned_tokenizer)) or Path(paths.finetuned_tokenizer, "model.safetensors").is_file():
        return paths.finetuned_tokenizer
    if experiment.train_tokenizer or not experiment.pre_trained_tokenizer:
        raise MissingFileError(
            f"Predictor requires tokenizer: there is none in {paths.finetuned_tokenizer}. Train it first ({config.tokenizer_command}), "
            "name one in model_paths.finetuned_tokenizer, or set experiment.train_tokenizer: false to use pretrained_tokenizer as it is"
        )
    say(f"predictor: no fine-tuned tokenizer in {paths.finetuned_tokenizer}, using {paths.pretrained_tokenizer} as it is")
    return paths.pretrained_tokenizer


# ---------------------------------------------------------------------- what has changed


def changes(config: Section, stage: Stage, *, bars: bool = False) -> list[Change]:
    """The settings that matter for a stage's result and are not those it was made with; none where nothing is recorded.

    bars: also how the bars are read, for whoever cannot compare the bars themselves. Weights are compared where they lie in a folder.
    """
    file = config.model_paths.folder(stage) / "config.yaml"
    if not file.is_file():
        return []
    old, new = read_yaml(file).tree, resolved(config)
    found = []
    for path, known in fields_of(type(config)):
        default = None if known.is_required() else known.get_default(call_default_factory=True)
        values = [_value(tree, path, default) for tree in (old, new)]
        if values[0] != values[1] and _matters(path, stage, config, bars):
            found.append(Change(".".join(path), *values))
    return [*found, *_other_weights(config, stage)]


def _matters(path: tuple[str, ...], stage: Stage, config: Any, bars: bool) -> bool:
    section, name = path[0], path[-1]
    if name in _WITHOUT_EFFECT or name in _OF_STAGE[_OTHER[stage]]:
        return False
    if section == "data":
        return bars or name in WindowSection.model_fields
    pretrained = getattr(config.experiment, f"pre_trained_{stage}")
    if section == "model":
        return name in _OF_STAGE[stage] or (name == stage and not pretrained)
    if section == "experiment":
        return name == f"pre_trained_{stage}"
    if section == "model_paths":  # a folder's weights are compared themselves, wherever they lie
        return name == f"pretrained_{stage}" and pretrained and not weights_of(getattr(config.model_paths, name))
    return section == "training"


def _value(tree: Any, path: tuple[str, ...], default: Any) -> Any:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return default
        tree = tree[name]
    return list(tree) if isinstance(tree, tuple) else tree


def used_weights(config: Any, stage: Stage, tokenizer: str = "") -> dict[str, str]:
    """Digests of the weights that go into a stage, for its summary.json. tokenizer: the one that the predictor is trained with."""
    start = getattr(config.model_paths, f"pretrained_{stage}") if getattr(config.experiment, f"pre_trained_{stage}") else ""
    named = {"start": start, "tokenizer": tokenizer if stage == "predictor" else ""}
    return {name: digest for name, folder in named.items() if folder and (digest := weights_of(folder))}


def _other_weights(config: Any, stage: Stage) -> Iterator[Change]:
    """Weights of other content than those that went in; where either is not known (a hub id, an older run), nothing."""
    recorded = (read_json(config.model_paths.folder(stage) / "summary.json") or {}).get("weights")
    if not isinstance(recorded, dict):
        return
    try:
        tokenizer = find_tokenizer(config, lambda text: None) if stage == "predictor" else ""
    except MissingFileError:  # to be trained first: whoever plans knows
        tokenizer = ""
    for name, digest in used_weights(config, stage, tokenizer).items():
        if recorded.get(name, digest) != digest:
            where = tokenizer if name == "tokenizer" else getattr(config.model_paths, f"pretrained_{stage}")
            yield Change(f"weights in {where}", recorded[name][:8], digest[:8])


def weights_of(folder: str) -> str:
    """Digest of a model folder's files; empty for a hub id or a folder without weights."""
    files = [Path(folder, name) for name in ("config.json", "model.safetensors")]
    if not all(file.is_file() for file in files):
        return ""
    return _digest(tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=256)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, _, size in files:
        digest.update(str(size).encode())
        with open(name, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def other_bars(config: Any, stage: Stage, fingerprint: str) -> bool:
    """Whether a stage's result was made of other bars than those with this fingerprint; False where that is not recorded."""
    known = ((read_json(config.model_paths.folder(stage) / "summary.json") or {}).get("data") or {}).get("data")
    return known is not None and known != fingerprint


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = "none" if value is None else repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
