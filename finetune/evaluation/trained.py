"""Evaluation of what a configuration trained, or of a named pair: finds the models, evaluates, writes the report, says the verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune.data.config import PipelineConfig
from finetune.data.panel import Panel
from finetune.engine.files import ensure_writable_folder, read_json
from finetune.engine.places import is_complete
from finetune.engine.splits import make_splits
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.report import verdicts, write_report
from kronos import KronosPredictor, load_predictor, load_tokenizer
from kronos.errors import MissingFileError

Say = Callable[[str], Any]


def evaluate_trained(
    config: PipelineConfig,
    panel: Panel,
    *,
    model: str = "",
    tokenizer: str = "",
    out: Path | None = None,
    device: str | None = None,
    say: Say = print,
) -> Evaluation:
    """Evaluate on the bars of `panel` that training with this configuration holds out, write the report, say the verdict.

    model, tokenizer: folders or hub ids instead of the configuration's. out: the report's folder, {base_save_path}/evaluation by default.
    Raises InputError: a model that is not there, too few origins, an unwritable folder.
    """
    data = config.data
    model, tokenizer = find_pair(config, model, tokenizer)
    predictor = trained_forecaster(config, model=model, tokenizer=tokenizer, device=device)
    splits = make_splits(panel, data.lookback_window, data.predict_window, data.ratios, split=data.split, clip=data.clip, say=say)
    folder = ensure_writable_folder(out or Path(config.model_paths.base_save_path, "evaluation"))
    found = evaluate(splits, predictor, config.evaluation, title=config.experiment.name, say=say)
    if warning := _other_bars(Path(model), panel):
        found.notes.append(warning)
        say(warning)
    if data.split == "per_symbol":  # `make_splits` has said so
        found.notes.append("data.split is per_symbol: the model may have seen other series' bars later than those that are scored here")
    write_report(found, folder)
    for line in verdicts(found):
        say(line)
    say(f"evaluation: {folder / 'report.md'}, numbers in {folder / 'evaluation.json'}")
    return found


def trained_forecaster(config: PipelineConfig, *, model: str = "", tokenizer: str = "", device: str | None = None) -> KronosPredictor:
    """The pair that the configuration trains (or that is named), ready to forecast. Raises MissingFileError if it is not there."""
    if config.device.cpu_threads:
        torch.set_num_threads(config.device.cpu_threads)
    model, tokenizer = find_pair(config, model, tokenizer)
    return KronosPredictor(
        load_predictor(model),
        load_tokenizer(tokenizer),
        device=device or config.device.pick(),
        max_context=config.data.max_context,
        clip=config.data.clip,
    )


def find_pair(config: PipelineConfig, model: str = "", tokenizer: str = "") -> tuple[str, str]:
    """Predictor and tokenizer to evaluate: those named, else those that the configuration trains. Raises MissingFileError."""
    return model or _trained_predictor(config), tokenizer or _trained_tokenizer(config)


def _trained_predictor(config: PipelineConfig) -> str:
    best = config.model_paths.best_model("predictor")
    if not is_complete(best) and not Path(best, "model.safetensors").is_file():
        raise MissingFileError(
            f"there is no trained predictor in {best}: train it first ({config.train_command}), or name one "
            "with --model (a folder or a hub id such as NeoQuasar/Kronos-small)"
        )
    return str(best)


def _trained_tokenizer(config: PipelineConfig) -> str:
    """The fine-tuned tokenizer, or the pretrained one where the configuration trains none: as the predictor's training chose it."""
    paths = config.model_paths
    if Path(paths.finetuned_tokenizer, "model.safetensors").is_file():
        return paths.finetuned_tokenizer
    if config.experiment.train_tokenizer or not config.experiment.pre_trained_tokenizer:
        raise MissingFileError(
            f"there is no fine-tuned tokenizer in {paths.finetuned_tokenizer}: train it first ({config.train_command}), or name one "
            "with --tokenizer (a folder or a hub id such as NeoQuasar/Kronos-Tokenizer-base)"
        )
    return paths.pretrained_tokenizer


def _other_bars(model: Path, panel: Panel) -> str:
    """A warning if the model's run folder says that it was trained on other bars than these."""
    summary = read_json(model.parent / "summary.json") if model.is_dir() else None
    trained_on = (summary or {}).get("data", {}).get("data")
    if trained_on in (None, panel.fingerprint):
        return ""
    return "these are not the bars that the model was trained on: if its training reached into the scored dates, the figures flatter it"
