"""What kaggle_inference.py does: reads the folder that preprocessing made, forecasts, writes predictions and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune.data.kaggle_test_rows import TestRows, load_test_rows
from finetune.data.panel import Panel
from finetune.engine.files import ensure_writable_folder, read_json, read_json_lines
from finetune.engine.splits import make_splits
from finetune.engine.yaml_text import read_yaml
from finetune.evaluation.rise_report import write_reports
from finetune.evaluation.rise_run import Draws, RiseForecaster, counts_in_words, evaluate_rise, predict_rise, write_predictions
from finetune.evaluation.trained import find_pair
from finetune_csv.config import CsvConfig
from finetune_csv.launching import check_data, preprocess_command
from kronos import KronosPredictor, load_predictor, load_tokenizer
from kronos.errors import InputError, MissingFileError

Say = Callable[[str], Any]


def infer(config: CsvConfig, data: Path, out: Path, *, model: str = "", tokenizer: str = "", say: Say = print) -> dict[str, Any]:
    """Write `out` (ID, prob_up, Pred, reason), and {out without its ending}_report.json and .md beside it; returns the report.

    Finished forecasts are kept in `{out without its ending}.forecasts`; the same command continues from them.
    Raises InputError for anything wrong with the input.
    """
    check_data(config)
    test = _test(data)
    model, tokenizer = find_pair(config, model, tokenizer)
    trained = _trained_windows(model)
    _check_lookback(config, model, trained)
    panel = Panel.open(data / "panel")
    forecaster = _forecaster(config, panel, model, tokenizer, out, say)
    section, wanted = config.data, config.evaluation
    splits = make_splits(
        panel, section.lookback_window, section.predict_window, section.ratios, split=section.split, clip=section.clip, say=say
    )
    notes = [*_stopped_early(model, tokenizer), *_notes(config, trained, panel)]
    for note in notes:
        say(note)
    title = config.experiment.name
    held = evaluate_rise(
        forecaster, splits, title=title, moments=wanted.max_origins, per_moment=wanted.max_series, seed=wanted.seed, notes=notes
    )
    frame, counts = predict_rise(forecaster, test.ids, test.symbols, test.days.astype("datetime64[D]"), held)
    write_predictions(frame, out)
    words = counts_in_words(frame, counts, held.prior)
    report = {
        "title": title,
        "verdicts": held.verdicts,
        "counts": {"rows": len(frame), "model": int((frame["reason"] == "model").sum()), **counts},
        "counts_in_words": words,
        "prior": held.prior,
        "rule": held.rule.table(),
        "horizon": section.predict_window,
        "draws": vars(forecaster.draws),
        "models": {"predictor": model, "tokenizer": tokenizer},
        "data": panel.fingerprint,
        **held.report,
        "notes": notes,
    }
    written = write_reports(report, out)
    for line in [*words, *held.verdicts, f"predictions: {out}", f"report: {written[1]}, numbers in {written[0]}"]:
        say(line)
    return report


def _test(data: Path) -> TestRows:
    """Rows of test.csv as preprocessing left them."""
    path = data / "test.parquet"
    if not path.is_file():
        raise MissingFileError(f"{path} is not there: the competition's files are not preprocessed yet; run: {preprocess_command(data)}")
    rows = load_test_rows(path)
    if not rows.ids:
        raise InputError(f"{path}: has no rows; make it again with: {preprocess_command(data)}")
    return rows


def _forecaster(config: CsvConfig, panel: Panel, model: str, tokenizer: str, out: Path, say: Say) -> RiseForecaster:
    if config.device.cpu_threads:
        torch.set_num_threads(config.device.cpu_threads)
    how, data = config.evaluation, config.data
    if out.suffix != ".csv":
        raise InputError(f"--out {out}: the predictions are a CSV; give a name that ends in .csv")
    ensure_writable_folder(out.absolute().parent)
    predictor = KronosPredictor(
        load_predictor(model), load_tokenizer(tokenizer), device=config.device.pick(), max_context=data.max_context, clip=data.clip
    )
    draws = Draws(sample_count=how.samples, T=how.T, top_p=how.top_p, seed=how.seed)
    return RiseForecaster(predictor, panel, data.lookback_window, data.predict_window, draws, out.with_suffix(".forecasts"), say)


def _trained_windows(model: str) -> dict[str, Any]:
    """Facts of the windows that the model was trained on, as far as its run folder knows them; of a stopped run only the lookback."""
    if not Path(model).is_dir():
        return {}
    folder = Path(model).parent
    if summary := read_json(folder / "summary.json"):
        return summary.get("data") or {}
    lookback = (_run_config(folder).get("data") or {}).get("lookback_window")
    return {"lookback": lookback} if lookback else {}


def _run_config(folder: Path) -> dict[str, Any]:
    """The settings that a training recorded."""
    return read_yaml(folder / "config.yaml").tree if (folder / "config.yaml").is_file() else {}


def _check_lookback(config: CsvConfig, model: str, trained: dict[str, Any]) -> None:
    theirs, ours = trained.get("lookback"), config.data.lookback_window
    if theirs not in (None, ours):
        raise InputError(
            f"{model} was trained with a lookback of {theirs} bars, but data.lookback_window is {ours}: it would forecast from windows "
            f"it never saw; add --set data.lookback_window={theirs}, or train it with {ours}"
        )


def _stopped_early(model: str, tokenizer: str) -> list[str]:
    """Which of the two is not the result of a whole training."""
    notes = []
    for what, name in (("model", model), ("tokenizer", tokenizer)):
        folder = Path(name).parent
        status = read_json(folder / "status.json") if Path(name).is_dir() else None
        if status and status.get("state") in ("interrupted", "running", "failed"):
            notes.append(f"training of this {what} stopped early{_how_far(folder, status)} ({name}); --resume goes on")
    return notes


def _how_far(folder: Path, status: dict[str, Any]) -> str:
    begun = max((line.get("epoch", -1) + 1 for line in read_json_lines(folder / "metrics.jsonl")), default=0)
    training = _run_config(folder).get("training") or {}
    epochs = training.get({"tokenizer": "tokenizer_epochs", "predictor": "basemodel_epochs"}.get(status.get("name", ""), ""))
    return f", in epoch {begun} of {epochs}" if begun and epochs else f", in epoch {begun}" if begun else ""


def _notes(config: CsvConfig, trained: dict[str, Any], panel: Panel) -> list[str]:
    """What flatters the held-out scores, if anything does."""
    trained_on = trained.get("data")
    notes = []
    if trained_on not in (None, panel.fingerprint):
        notes.append("the model was trained on other bars than these: if its training reached into the scored dates, the scores flatter it")
    if trained_on is None:
        notes.append("it is not known which bars the model was trained on: if they reached into the scored dates, the scores flatter it")
    if trained_on == panel.fingerprint and not _same_cut(config, trained, panel):
        notes.append(
            "WARNING: the model was trained with another split than this one (data.train_ratio, data.split): the held-out bars may overlap "
            "its training, and the scores then flatter it; use the settings that it was trained with"
        )
    if config.data.split == "per_symbol":
        notes.append("data.split is per_symbol: the model may have seen other tickers' bars later than those that are scored")
    return notes


def _same_cut(config: CsvConfig, trained: dict[str, Any], panel: Panel) -> bool:
    """Whether this configuration's split gives the windows that the model was trained on. Their length and stride are the model's own:
    another horizon forecasts further from the same cut."""
    if "window starts" not in trained:
        return True
    section, lookback, horizon = config.data, trained["lookback"], trained["horizon"]
    try:
        splits = make_splits(
            panel,
            lookback,
            horizon,
            section.ratios,
            split=section.split,
            extra_rows=trained["rows per window"] - lookback - horizon,
            stride=trained["stride"],
            say=lambda _: None,
        )
    except InputError:  # a split without a window: not the one that it was trained with
        return False
    return splits.train.facts["window starts"] == trained["window starts"]
