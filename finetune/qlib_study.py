"""What finetune/qlib_test.py does: forecasts of every day, signals, their scores and backtests, and the report; once or walking forward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from finetune.config import QlibConfig, QlibPathsSection
from finetune.data.panel import Panel
from finetune.data.qlib_panels import Preprocessed, build_panels, save_panels
from finetune.data.qlib_store import Store, open_store
from finetune.engine.config import resolved
from finetune.engine.errors import InputError, MissingFileError
from finetune.engine.files import ensure_writable_folder, read_json
from finetune.engine.places import Stage, is_complete
from finetune.evaluation.backtest import Backtests, index_returns, run_backtests, trading_bars
from finetune.evaluation.backtest_report import write_reports
from finetune.evaluation.backtest_signals import checked_signal
from finetune.evaluation.day_forecasts import Draws, forecast_days
from finetune.evaluation.days import clock_of, has_before, series_of
from finetune.evaluation.signal_scores import score_signals
from finetune.evaluation.signals import momentum, reversal, signals
from finetune.pipeline import prepared, run_stage
from kronos import KronosPredictor, load_predictor, load_tokenizer

Say = Callable[[str], Any]
STAGES: tuple[Stage, ...] = ("tokenizer", "predictor")
FEWEST_FOLD_BARS = 20  # of a backtest that says anything


def study(config: QlibConfig, say: Say = print) -> Backtests:
    """Forecast the test panel, trade the signals, write everything to `config.backtest.folder`.

    Raises InputError for anything wrong with the input; all but the models' own numbers is checked before the forecasts begin.
    """
    store, panels = checked(config)
    notes = trained_on_these(config, panels, say)
    return judged(config, store, panels.test, day_signals(config, store, panels.test, say), say, notes)


def checked(config: QlibConfig) -> tuple[Store, Preprocessed]:
    """Store and panels, once the backtest's dates, its benchmark and the number of symbols to hold are found to fit them."""
    store = open_store(config.data.qlib_data_path, config.data.freq)
    bars, notes = trading_bars(store, config.backtest)
    if config.benchmark != "equal":
        index_returns(store, config.benchmark, bars, notes)
    panels = config.panels()
    rows = np.flatnonzero(panels.test.origin)
    rows = rows[has_before(panels.test, rows, config.data.lookback_window)]
    symbols = np.array([info.symbol for info in panels.test.series])[series_of(panels.test, rows)]
    index = pd.MultiIndex.from_arrays([clock_of(panels.test, rows), symbols], names=["datetime", "instrument"])
    possible = pd.Series(np.arange(len(rows), dtype=float), index=index).sort_index()
    checked_signal(store, possible, "of every possible forecast", bars, config.backtest, config.training.seed)
    return store, panels


def trained_on_these(config: QlibConfig, panels: Preprocessed, say: Say) -> list[str]:
    """What a reader must know of models that were not trained on these panels' training bars.

    Raises InputError for the configuration's own models if they were trained on others: they may have seen the days that are tested.
    """
    notes = []
    paths = config.model_paths
    for stage, path in (("tokenizer", paths.finetuned_tokenizer), ("predictor", paths.finetuned_predictor)):
        place = Path(path)
        own = place == paths.best_model(stage)
        summary = read_json(place.parent.parent / "summary.json") if place.is_dir() else None
        trained_on = ((summary or {}).get("data") or {}).get("data")
        if own and trained_on is None and is_complete(place):
            notes.append(f"the {stage}'s training was stopped before its end: {config.command(f'train_{stage}')} --resume goes on")
        elif own and trained_on not in (None, panels.train.fingerprint):
            raise InputError(
                f"the {stage} in {place} was trained on other bars than those of {config.data.dataset_path}/train, and may have seen the "
                f"days that are tested; train it again ({config.command(f'train_{stage}')}), or, if you know that it has not, name it in "
                f"model_paths.finetuned_{stage} by another path"
            )
        elif not own and trained_on != panels.train.fingerprint:
            notes.append(f"the {stage} {path} was not trained here: if its training reached into the days tested, the figures flatter it")
    for note in notes:
        say(note)
    return notes


def day_signals(config: QlibConfig, store: Store, panel: Panel, say: Say) -> dict[str, pd.Series]:
    """The signals of every forecast that the panel allows; finished forecasts are kept, and a restarted run continues."""
    names = ("T", "top_k", "top_p", "sample_count", "series_at_once")
    settings = Draws(**{name: getattr(config.inference, name) for name in names}, seed=config.training.seed)
    forecasts = forecast_days(
        _predictor(config),
        panel,
        calendar=store.future,
        folder=ensure_writable_folder(config.backtest.folder / "forecasts"),
        lookback=config.data.lookback_window,
        horizon=config.data.predict_window,
        settings=settings,
        say=say,
    )
    return signals(forecasts)


def judged(config: QlibConfig, store: Store, panel: Panel, found: dict[str, pd.Series], say: Say, notes: Sequence[str] = ()) -> Backtests:
    """Scores and backtests of signals, beside momentum and reversal; the report, with `notes`, in `config.backtest.folder`."""
    rivals = {one.name: one for one in (momentum(panel, 20), reversal(panel, 5))}
    draws = config.backtest.interval_draws
    scores = score_signals({**found, **rivals}, panel, config.data.predict_window, seed=config.training.seed, draws=draws)
    tested = run_backtests(
        store,
        found,
        config.backtest,
        config.exchange,
        pool=config.data.instrument,
        benchmark=config.benchmark,
        baselines=rivals,
        seed=config.training.seed,
        say=say,
    )
    tested.notes.extend(notes)
    folder = ensure_writable_folder(config.backtest.folder)
    tables = {name: {bars: score.table() for bars, score in found.items()} for name, found in scores.items()}
    write_reports(tested, folder, title=config.experiment.name, scores=tables, settings=resolved(config))
    say(tested.verdict)
    say(f"report: {folder / 'analysis_report.txt'}, numbers in backtest_results.json, picture in performance_plot.png")
    return tested


def walk_forward(config: QlibConfig, folds: int, say: Say = print) -> Backtests:
    """Train, validate and backtest `folds` times, each on the part of the backtest's range after what it was trained on; then the whole.

    The report is in the folder walk_forward_N of the backtest's, each fold's below it. Panels and models of a fold lie in folders named by
    its number and its settings: what is finished is not done again, and what others made is not taken.
    """
    store, panels = checked(config)
    own = config.backtest
    whole = config.model_copy(
        update={
            "backtest": own.model_copy(
                update={"backtest_result_path": str(own.folder), "backtest_save_folder_name": f"walk_forward_{folds}"}
            ),
            "experiment": config.experiment.model_copy(update={"name": f"{config.experiment.name}, {folds} folds walking forward"}),
        }
    )
    parts = list(fold_configs(whole, store, folds))
    for fold in parts:  # everything that may be wrong shows before the first is trained
        _prepare(fold, say)
        checked(fold)
    found: list[dict[str, pd.Series]] = []
    notes = []
    for number, fold in enumerate(parts, 1):
        data = fold.data
        ranges = (("train", data.train_time_range), ("validate", data.val_time_range), ("test", data.test_time_range))
        say(f"fold {number} of {folds}: " + ", ".join(f"{what} {_told(days)}" for what, days in ranges))
        with prepared(fold, STAGES, resume=True, skip_existing=True) as job:
            for stage in job.models:
                run_stage(job, stage)
        panel = fold.panels().test
        found.append(day_signals(fold, store, panel, say))
        notes.append(f"fold {number}, test {_told(data.test_time_range)}: {judged(fold, store, panel, found[-1], say).verdict}")
    say(f"all {folds} folds together:")
    together = {name: pd.concat([part[name] for part in found]).sort_index() for name in found[0]}
    return judged(whole, store, panels.test, together, say, notes)


def fold_configs(config: QlibConfig, store: Store, folds: int) -> Iterator[QlibConfig]:
    """The configuration of each fold: the backtest's bars in equal parts, before each as many bars of validation as configured.

    Raises InputError if a part would be too short, or nothing would be left to train on.
    """
    bars, _ = trading_bars(store, config.backtest)
    if folds < 2 or len(bars) // folds < FEWEST_FOLD_BARS:
        most = len(bars) // FEWEST_FOLD_BARS
        allowed = f"2 to {most} folds" if most >= 2 else "no folds"
        told = f"the {len(bars)} bars of backtest.backtest_time_range allow {allowed} of {FEWEST_FOLD_BARS} bars or more"
        raise InputError(f"--folds {folds}: {told}")
    calendar = pd.DatetimeIndex(store.calendar)
    first, last = (calendar.searchsorted(pd.Timestamp(day)) for day in config.data.val_time_range)
    start = int(calendar.searchsorted(pd.Timestamp(config.data.train_time_range[0])))
    least = config.data.lookback_window + config.data.predict_window + 1
    for number, part in enumerate(np.array_split(bars, folds), 1):
        begin = int(calendar.get_loc(part[0]))  # the first bar to forecast, on the bar before: its signal is traded here
        validation = max(least, int(last - first) - config.data.lookback_window)
        left = begin - validation - start
        if left < 2 * least:
            raise InputError(
                f"--folds {folds}: before fold {number} ({part[0]:%Y-%m-%d}) {max(0, left)} bars are left to train on; "
                "start data.train_time_range earlier or take fewer folds"
            )
        ranges = {
            "train_time_range": [str(calendar[start].date()), str(calendar[begin - validation - 1])],
            "val_time_range": [str(calendar[begin - validation]), str(calendar[begin - 1])],
            "test_time_range": [str(part[0]), str(part[-1])],
        }
        yield _fold(config, number, ranges, [str(part[0]), str(part[-1])])


def _fold(config: QlibConfig, number: int, ranges: dict[str, list[str]], tested: list[str]) -> QlibConfig:
    data, paths, backtest = config.data, config.model_paths, config.backtest
    settings = [{**resolved(data), **ranges, "dataset_path": ""}, *map(resolved, (config.training, config.model, config.experiment))]
    settings.append({name: getattr(paths, name) for name in ("pretrained_tokenizer", "pretrained_predictor")})
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    name = f"fold_{number}-{digest}"
    own = {"save_path": str(Path(paths.save_path, name)), "finetuned_tokenizer": "", "finetuned_predictor": ""}
    parts = {
        "data": data.model_copy(update={**ranges, "dataset_path": str(Path(data.dataset_path, name))}),
        "model_paths": QlibPathsSection(**{**dict(paths), **own}),
        "backtest": backtest.model_copy(
            update={
                "backtest_time_range": tested,
                "backtest_result_path": str(backtest.folder),
                "backtest_save_folder_name": f"fold_{number}",
                "benchmark": config.benchmark,
            }
        ),
        "experiment": config.experiment.model_copy(update={"name": f"{config.experiment.name}, fold {number}"}),
    }
    return config.model_copy(update=parts)


def _prepare(config: QlibConfig, say: Say) -> None:
    """The panels of a fold, made unless they are there."""
    folder = Path(config.data.dataset_path)
    try:
        config.panels()
    except InputError:
        save_panels(folder, build_panels(config.data, say=say))


def _predictor(config: QlibConfig) -> KronosPredictor:
    """The trained pair. Raises MissingFileError naming the command that trains what is missing."""
    paths = config.model_paths
    chosen = {"tokenizer": paths.finetuned_tokenizer, "predictor": paths.finetuned_predictor}
    for stage, path in chosen.items():
        own = Path(path) == paths.best_model(stage)
        if own and not is_complete(Path(path)):
            raise MissingFileError(
                f"there is no trained {stage} in {path}: train it first ({config.command(f'train_{stage}')}), or name one in "
                f"model_paths.finetuned_{stage}"
            )
    if config.device.cpu_threads:
        torch.set_num_threads(config.device.cpu_threads)
    data, how = config.data, config.inference
    return KronosPredictor(
        load_predictor(chosen["predictor"]),
        load_tokenizer(chosen["tokenizer"]),
        device=config.device.pick(),
        max_context=data.max_context,
        clip=data.clip,
        batch_tokens=how.series_at_once * (data.lookback_window + how.sample_count * data.predict_window),
        precision=None if how.precision == "float32" else how.precision,
    )


def _told(dates: list[str]) -> str:
    return " to ".join(day.removesuffix(" 00:00:00") for day in dates)
