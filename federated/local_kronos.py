"""Kronos in a federation: tokenizer, predictor, or both, over the parts of finetune/pipeline.py."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from federated.bars import group_count, own_panel, paths_of, stamps
from federated.settings import Settings, absolute_paths
from federated.task import Local, Node, Stage, Weights, local_settings
from finetune.data.panel import Panel
from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.splits import make_splits
from finetune.engine.stages import check_vocabulary
from finetune.engine.windows import Splits
from finetune.pipeline import find_tokenizer, make_model
from finetune_csv.config import CsvConfig
from kronos import KronosTokenizer, load_tokenizer, save_module
from kronos.errors import InputError
from kronos.weights import fingerprint


def check(settings: Settings) -> None:
    """Raises InputError for whatever is wrong with the model's YAML and can be told without bars."""
    _config(settings)


def hello(settings: Settings, node: Node) -> dict[str, Any]:
    """What a node tells of itself before the run: its windows and what they are of; nothing of the bars."""
    config = _config(settings)
    name, panel = _own_panel(settings, config, node)
    splits = _splits(config, panel)
    series = [[info.symbol, info.period] for info in panel.series]
    frozen = _weights(settings)[0].identity.get("frozen tokenizer", "")
    return {"name": name, "train": len(splits.train), "val": len(splits.val), "series": series, "frozen": frozen}


def heard(told: dict[str, Any]) -> None:
    """Raises KeyError or TypeError for a hello that `facts` cannot read."""
    if not isinstance(told["frozen"], str):
        raise TypeError("frozen is no text")


def facts(settings: Settings, hellos: list[dict[str, Any]]) -> dict[str, Any]:
    """Kronos needs nothing of the other clients' bars: they are normalised by each window's own lookback.

    Raises InputError if clients make tokens with different tokenizers, which would give one predictor several languages to learn.
    """
    if len({told["frozen"] for told in hellos}) > 1:
        raise InputError(
            "kronos-part=predictor: clients have different tokenizers: "
            + ", ".join(f"{told['name']}: {told['frozen'][:12]}" for told in hellos)
            + "; give all of them the same files in model_paths.pretrained_tokenizer"
        )
    return {}


def weights(settings: Settings, facts: dict[str, Any]) -> Weights:
    """The model as every node builds it: random weights from the run's seed, or pretrained ones."""
    return _weights(settings)[0]


def local(settings: Settings, node: Node, facts: dict[str, Any]) -> Local:
    """A client over its own partition. Raises InputError if that has no window."""
    config = _config(settings)
    torch.set_num_threads(config.device.cpu_threads or torch.get_num_threads())
    _, panel = _own_panel(settings, config, node)
    splits = _splits(config, panel)
    built, tokenizer = _weights(settings)
    lookback, device = config.data.lookback_window, config.device.pick()

    def tokenizer_task() -> TokenizerTask:
        tokenizer.requires_grad_(True)  # a predictor's task froze it
        return TokenizerTask(tokenizer, lookback)

    def predictor_task() -> PredictorTask:
        return PredictorTask(built.modules["predictor"], tokenizer, lookback, config.training.teacher_forcing)

    made = {"tokenizer": tokenizer_task, "predictor": predictor_task}
    stages = [
        Stage(
            stage, made[stage], splits, local_settings(config.training.fit_settings(stage, device, config.device.panel_on_device), settings)
        )
        for stage in built.modules
    ]
    return Local(settings, node, built, stages)


def groups(settings: Settings) -> int:
    """How many partitions the bars have."""
    return group_count(settings, _bars(settings, _config(settings), Node(0, 1)))


def _config(settings: Settings) -> CsvConfig:
    return _loaded(str(settings.yaml), settings.data_path, settings.seed, settings.kronos_part)


@lru_cache(maxsize=4)
def _loaded(yaml: str, data_path: str, seed: int, part: str) -> CsvConfig:
    own = [f"data.data_path={json.dumps(absolute_paths(data_path))}"] if data_path else []
    own += ["experiment.train_tokenizer=false"] if part == "predictor" else []  # the one that is named is taken as it is
    return CsvConfig.load(yaml, [*own, f"training.seed={seed}"])


def _bars(settings: Settings, config: CsvConfig, node: Node) -> Panel:
    paths = paths_of(node, config.data.data_path)
    return _panel(str(settings.yaml), settings.data_path, settings.seed, settings.kronos_part, paths, stamps(paths))


def _own_panel(settings: Settings, config: CsvConfig, node: Node) -> tuple[str, Panel]:
    return own_panel(settings, _bars(settings, config, node), node, run=config.data.window_stride)


@lru_cache(maxsize=1)
def _panel(yaml: str, data_path: str, seed: int, part: str, paths: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> Panel:
    """All clients of one process share the bars they are cut from, as they would share the pages of a memory-mapped panel."""
    section = _loaded(yaml, data_path, seed, part).data.model_copy(update={"data_path": list(paths)})
    return section.load(say=lambda text: None)


def _splits(config: CsvConfig, panel: Panel) -> Splits:
    """The node's own split in time."""
    data = config.data
    return make_splits(
        panel,
        data.lookback_window,
        data.predict_window,
        data.ratios,
        split=data.split,
        stride=data.window_stride,
        clip=data.clip,
        sampling=data.sampling,
        say=lambda text: None,
    )


def _weights(settings: Settings) -> tuple[Weights, KronosTokenizer]:
    """The modules that are trained, and the tokenizer, which is one of them or frozen."""
    config, part = _config(settings), settings.kronos_part
    if part == "predictor" and not config.experiment.pre_trained_tokenizer:
        raise InputError(
            f"kronos-part=predictor needs a trained tokenizer, and {settings.yaml} has pre_trained_tokenizer: false; name one in "
            "model_paths.pretrained_tokenizer, or train kronos-part=both"
        )
    modules: dict[str, Any] = {}
    if part != "predictor":
        modules["tokenizer"] = make_model(config, "tokenizer")
    if part != "tokenizer":
        modules["predictor"] = make_model(config, "predictor")
    tokenizer = modules.get("tokenizer") or load_tokenizer(find_tokenizer(config, lambda text: None))
    if "predictor" in modules:
        check_vocabulary(tokenizer, modules["predictor"])
    identity: dict[str, Any] = {name: dict(module.config) for name, module in modules.items()}
    if "tokenizer" not in modules:
        identity["frozen tokenizer"] = fingerprint(tokenizer)

    def save(folder: Path) -> None:

        for name, module in modules.items():
            save_module(module, folder / name)

    return Weights(modules, save, identity, comparable=len(modules) == 1), tokenizer  # a predictor's loss is over the tokens of its round
