"""What finetune/qlib_test.py does: forecasts of every day, signals, their scores and backtests, and the report; once or walking forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from finetune.config import QlibConfig, QlibPathsSection
from finetune.data.panel import Panel
from finetune.data.qlib_panels import build_panels, open_panels, save_panels
from finetune.data.qlib_store import Store, open_store
from finetune.engine.checkpoint import is_complete
from finetune.engine.config import resolved
from finetune.engine.errors import InputError, MissingFileError
from finetune.engine.files import ensure_writable_folder
from finetune.engine.stages import Stage
from finetune.evaluation.backtest import Backtests, index_returns, run_backtests, trading_bars
from finetune.evaluation.backtest_report import write_reports
from finetune.evaluation.day_forecasts import forecast_days
from finetune.evaluation.signal_scores import score_signals
from finetune.evaluation.signals import momentum, reversal, signals
from finetune.pipeline import prepared, run_stage
from kronos import KronosPredictor, load_predictor, load_tokenizer

Say = Callable[[str], Any]
STAGES: tuple[Stage, ...] = ("tokenizer", "predictor")
FEWEST_FOLD_BARS = 20  # of a backtest that says anything


@dataclass(frozen=True)
class ForecastSettings:
    """`inference` with the seed of the run, as `forecast_days` reads them."""

    T: float
    top_k: int
    top_p: float
    sample_count: int
    seed: int
    series_at_once: int


def study(config: QlibConfig, say: Say = print) -> Backtests:
    """Forecast the test panel, trade the signals, write everything to `config.backtest.folder`.

    Raises InputError for anything wrong with the input; all but the models' own numbers is checked before the forecasts begin.
    """
    store = checked_store(config)
    panel = open_panels(Path(config.data.dataset_path), config.data).test
    return judged(config, store, panel, day_signals(config, store, panel, say), say)


def checked_store(config: QlibConfig) -> Store:
    """The store, once the backtest's dates and its benchmark are found in it."""
    store = open_store(config.data.qlib_data_path, config.data.freq)
    bars, notes = trading_bars(store, config.backtest)
    if config.benchmark != "equal":
        index_returns(store, config.benchmark, bars, notes)
    return store


def day_signals(config: QlibConfig, store: Store, panel: Panel, say: Say) -> dict[str, pd.Series]:
    """The signals of every forecast that the panel allows; finished forecasts are kept, and a restarted run continues."""
    chosen = config.inference
    settings = ForecastSettings(
        chosen.T, chosen.top_k, chosen.top_p, chosen.sample_count, config.training.seed, series_at_once=chosen.series_at_once
    )
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


def judged(config: QlibConfig, store: Store, panel: Panel, found: dict[str, pd.Series], say: Say) -> Backtests:
    """Scores and backtests of signals, beside momentum and reversal; the report in `config.backtest.folder`."""
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
    folder = ensure_writable_folder(config.backtest.folder)
    tables = {name: {bars: score.table() for bars, score in found.items()} for name, found in scores.items()}
    write_reports(tested, folder, title=config.experiment.name, scores=tables, settings=resolved(config))
    say(tested.verdict)
    say(f"report: {folder / 'analysis_report.txt'}, numbers in backtest_results.json, picture in performance_plot.png")
    return tested


def walk_forward(config: QlibConfig, folds: int, say: Say = print) -> Backtests:
    """Train, validate and backtest `folds` times, each on the part of the backtest's range after what it was trained on; then the whole.

    Every fold has folders of its own, fold_1, ..., below dataset_path, save_path and the backtest's. What is finished is not done again.
    """
    store = checked_store(config)
    panel = open_panels(Path(config.data.dataset_path), config.data).test
    parts: list[dict[str, pd.Series]] = []
    for number, fold in enumerate(fold_configs(config, store, folds), 1):
        data = fold.data
        ranges = (("train", data.train_time_range), ("validate", data.val_time_range), ("test", data.test_time_range))
        say(f"fold {number} of {folds}: " + ", ".join(f"{what} {_told(days)}" for what, days in ranges))
        _prepare(fold, say)
        with prepared(fold, STAGES, resume=True, skip_existing=True) as job:
            for stage in job.models:
                run_stage(job, stage)
        own = open_panels(Path(data.dataset_path), data).test
        parts.append(day_signals(fold, store, own, say))
        judged(fold, store, own, parts[-1], say)
    say(f"all {folds} folds together:")
    return judged(config, store, panel, {name: pd.concat([part[name] for part in parts]).sort_index() for name in parts[0]}, say)


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
    name, data, paths, backtest = f"fold_{number}", config.data, config.model_paths, config.backtest
    own = {"save_path": str(Path(paths.save_path, name)), "finetuned_tokenizer": "", "finetuned_predictor": ""}
    parts = {
        "data": data.model_copy(update={**ranges, "dataset_path": str(Path(data.dataset_path, name))}),
        "model_paths": QlibPathsSection(**{**dict(paths), **own}),
        "backtest": backtest.model_copy(
            update={
                "backtest_time_range": tested,
                "backtest_result_path": str(backtest.folder),
                "backtest_save_folder_name": name,
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
        open_panels(folder, config.data)
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
                f"there is no trained {stage} in {path}: train it first (python finetune/train_{stage}.py), or name one in "
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
