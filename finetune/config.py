"""What a YAML file of the Qlib pipeline may hold: `QlibConfig`.

Names and defaults are the documented ones of upstream's finetune/config.py. Keys stand in sections; those that only one section has may
also stand at the top, as upstream writes them.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import environ
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PrivateAttr, field_validator

from finetune.data.panel import Panel
from finetune.data.qlib_panels import Preprocessed, open_panels
from finetune.engine.comet import CometSettings
from finetune.engine.config import Section, key, load_config
from finetune.engine.distributed import World
from finetune.engine.errors import InputError
from finetune.engine.places import Stage
from finetune.engine.run_sections import ExperimentSection
from finetune.engine.sections import DeviceSection, DistributedSection, ModelSection, TrainingSection, known_timezone, safe_name
from finetune.engine.splits import windows_of
from finetune.engine.windows import Splits, Windows

BENCHMARKS = {"csi300": "SH000300", "csi800": "SH000906", "csi1000": "SH000852"}  # the index of each pool
FEATURES = ("open", "high", "low", "close", "vol", "amt")
STAMPS = ("minute", "hour", "weekday", "day", "month")


def _not_a_date(text: str) -> str:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return f"is {text!r}, not a date; write it as 2024-06-30"
    return ""


def _wrong_range(dates: list[str]) -> Iterator[str]:
    if len(dates) != 2:
        yield f"holds {len(dates)} dates; give the first and the last day, e.g. ['2024-07-01', '2025-06-05']"
    elif wrong := _not_a_date(dates[0]) or _not_a_date(dates[1]):
        yield wrong
    elif datetime.datetime.fromisoformat(dates[0]) >= datetime.datetime.fromisoformat(dates[1]):
        yield f"begins at {dates[0]} and ends at {dates[1]}; the first date must be the earlier one"


class QlibDataSection(Section):
    """A Qlib store, the pool and the dates that are taken from it, and the windows cut from them."""

    qlib_data_path: str = key("~/.qlib/qlib_data/cn_data", "folder of the Qlib store", path="in")
    freq: str = key("day", "length of a bar, as Qlib names it: day, 60min (1h), 240min (4h), ...")
    instrument: str = key("csi300", "pool of the store: csi300, csi800, csi1000, all, or any other that it has")
    timezone: str = key("Asia/Shanghai", "the exchange's zone, of which the store's times are the wall clock")
    stamp: Literal["open", "close"] = key("open", "which edge of an intraday bar its time names")
    dataset_path: str = key("data/processed_datasets", "folder for what qlib_data_preprocess.py makes and training reads", path="out")
    dataset_begin_time: str = key("2011-01-01", "nothing earlier is trained on or forecast (lookback before it is read)")
    dataset_end_time: str = key("2025-06-05", "nothing later is trained on or forecast (bars to score with are read)")
    train_time_range: list[str] = key(["2011-01-01", "2022-12-31"], "first and last day to train on")
    val_time_range: list[str] = key(["2022-09-01", "2024-06-30"], "the same for validation; days shared with training only lend lookback")
    test_time_range: list[str] = key(["2024-04-01", "2025-06-05"], "the same for the test; days shared with validation only lend lookback")
    lookback_window: int = key(90, "bars before the forecast; their mean and deviation normalise the whole window", ge=2, le=100_000)
    predict_window: int = key(10, "bars to forecast", ge=1, le=100_000)
    max_context: int = key(512, "bars that the predictor looks back at most while forecasting (mini: 2048, others: 512)", ge=2, le=100_000)
    window_stride: int = key(1, "bars between the starts of two training windows", ge=1)
    clip: float = key(5.0, "normalised values are cut off at plus and minus this", gt=0, le=1000)
    feature_list: list[str] = key(list(FEATURES), "what the model reads of a bar; published weights read all six, in this order")
    time_feature_list: list[str] = key(list(STAMPS), "what it reads of the bar's time; published weights read all five, in this order")
    raw: bool = key(False, "true: price / factor and volume * factor, undoing the adjustment; false: as stored, which is adjusted")

    _timezone = field_validator("timezone")(known_timezone)

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, wanted in (("feature_list", FEATURES), ("time_feature_list", STAMPS)):
            if tuple(getattr(self, name)) != wanted:
                yield name, f"is {getattr(self, name)}; Kronos reads exactly {list(wanted)}, in this order: leave the key out"
        if not self.timezone:
            yield "timezone", "is empty; name the exchange's zone, e.g. Asia/Shanghai or UTC"
        for name in ("dataset_begin_time", "dataset_end_time"):
            if wrong := _not_a_date(getattr(self, name)):
                yield name, wrong
        for name in ("train_time_range", "val_time_range", "test_time_range"):
            yield from ((name, wrong) for wrong in _wrong_range(getattr(self, name)))


class QlibTrainingSection(TrainingSection):
    """The training loop, with the defaults of the Qlib pipeline."""

    batch_size: int = key(50, "windows per micro-batch and process", ge=1, le=1_000_000)
    log_interval: int = key(100, "optimiser steps between two logged lines", ge=1)
    checkpoint_every_epochs: int = key(10, "also keep the weights of every n-th epoch, in checkpoints/epoch_N; 0: none", ge=0)
    n_train_iter: int = key(-1, "training windows drawn per epoch; -1: 2000 × batch_size; 0: all", ge=-1)
    n_val_iter: int = key(-1, "validation windows, the same ones every epoch; -1: 400 × batch_size; 0: all", ge=-1)

    def _complete(self) -> None:
        for name, batches in (("n_train_iter", 2000), ("n_val_iter", 400)):
            if getattr(self, name) == -1:
                self._fill(**{name: batches * self.batch_size})


class QlibPathsSection(Section):
    """Where weights come from and where results go."""

    aliases: ClassVar = {
        f"{name}_path": (name,) for name in ("pretrained_tokenizer", "pretrained_predictor", "finetuned_tokenizer", "finetuned_predictor")
    }
    hides: ClassVar = {"save_path": ("finetuned_tokenizer", "finetuned_predictor")}

    pretrained_tokenizer: str = key(
        "NeoQuasar/Kronos-Tokenizer-base", "weights the tokenizer starts from: a folder or a hub id", env="KRONOS_TOKENIZER_PATH", path="in"
    )
    pretrained_predictor: str = key(
        "NeoQuasar/Kronos-small", "weights the predictor starts from: a folder or a hub id", env="KRONOS_PREDICTOR_PATH", path="in"
    )
    save_path: str = key("outputs/models", "folder below which both runs have theirs", path="out")
    tokenizer_save_folder_name: str = key("finetune_tokenizer_demo", "folder of the tokenizer's run in save_path")
    predictor_save_folder_name: str = key("finetune_predictor_demo", "folder of the predictor's run in save_path")
    finetuned_tokenizer: str = key(
        "", "tokenizer to train and forecast with; empty: {save_path}/{tokenizer_save_folder_name}/checkpoints/best_model", path="out"
    )
    finetuned_predictor: str = key(
        "", "predictor to forecast with; empty: {save_path}/{predictor_save_folder_name}/checkpoints/best_model", path="out"
    )

    _names = field_validator("tokenizer_save_folder_name", "predictor_save_folder_name")(safe_name)

    def _complete(self) -> None:
        for stage in ("tokenizer", "predictor"):
            if not getattr(self, f"finetuned_{stage}"):
                self._fill(**{f"finetuned_{stage}": str(self.best_model(stage))})

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.tokenizer_save_folder_name.lower() == self.predictor_save_folder_name.lower():
            yield "predictor_save_folder_name", f"is {self.predictor_save_folder_name!r}, the tokenizer's folder too; each needs its own"

    @property
    def base_save_path(self) -> str:
        return self.save_path

    def folder(self, stage: Stage) -> Path:
        """Run folder of a stage."""
        name = self.tokenizer_save_folder_name if stage == "tokenizer" else self.predictor_save_folder_name
        return Path(self.save_path, name)

    def best_model(self, stage: Stage) -> Path:
        """Where a stage's best weights go."""
        return self.folder(stage) / "checkpoints" / "best_model"

    @property
    def logs(self) -> Path:
        return Path(self.save_path, "logs")


class CometConfigSection(Section):
    """Comet, under its documented names. The key is read from COMET_API_KEY; a file is no place for it."""

    project_name: str = key("Kronos-Finetune-Demo", "Comet project")
    workspace: str = key("", "Comet workspace; empty: the key's own", env="COMET_WORKSPACE")


class QlibExperimentSection(ExperimentSection):
    """What is done, and under which name it is shown."""

    aliases: ClassVar = {**ExperimentSection.aliases, "comet_name": ("name",), "comet_tag": ("comet_tags",)}


class InferenceSection(Section):
    """Forecasts for the backtest."""

    aliases: ClassVar = {
        **{f"inference_{name}": (name,) for name in ("T", "top_p", "top_k", "sample_count")},
        "backtest_batch_size": ("series_at_once",),
    }

    T: float = key(0.6, "temperature of the sampling", gt=0, le=100)
    top_p: float = key(0.9, "sample from the likeliest tokens that together have this probability", gt=0, le=1)
    top_k: int = key(0, "sample from this many likeliest tokens; 0: all", ge=0)
    sample_count: int = key(5, "sample paths of each forecast", ge=1, le=10_000)
    series_at_once: int = key(1000, "forecasts computed together at most", ge=1, le=1_000_000)
    precision: Literal["float32", "bfloat16", "int8"] = key("float32", "numbers the forecasts are computed in")


class BacktestSection(Section):
    """The strategy, its dates and its benchmark."""

    aliases: ClassVar = {f"backtest_{name}": (name,) for name in ("n_symbol_hold", "n_symbol_drop", "hold_thresh", "benchmark")}

    backtest_time_range: list[str] = key(["2024-07-01", "2025-06-05"], "first and last day of the backtest")
    n_symbol_hold: int = key(50, "symbols held", ge=1, le=100_000)
    n_symbol_drop: int = key(5, "symbols replaced a day at most", ge=1, le=100_000)
    hold_thresh: int = key(5, "bars that a symbol is held at least", ge=1, le=100_000)
    benchmark: str = key("", "symbol of the store, or equal (equal weight of the pool); empty: the pool's index (csi300: SH000300, ...)")
    signal: Literal["all", "last", "mean", "max", "min", "median", "prob_up", "risk_adjusted"] = key(
        "all", "which signal of the forecasts to trade; all: each in a backtest of its own"
    )
    interval_draws: int = key(2000, "bootstrap draws for the interval of the information ratio", ge=100, le=1_000_000)
    backtest_result_path: str = key("outputs/backtest_results", "folder for forecasts, results and pictures", path="out")
    backtest_save_folder_name: str = key("finetune_backtest_demo", "folder of this backtest in backtest_result_path")

    _name = field_validator("backtest_save_folder_name")(safe_name)

    @property
    def folder(self) -> Path:
        return Path(self.backtest_result_path, self.backtest_save_folder_name)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from (("backtest_time_range", wrong) for wrong in _wrong_range(self.backtest_time_range))
        if self.n_symbol_drop > self.n_symbol_hold:
            yield "n_symbol_drop", f"is {self.n_symbol_drop}, more than the {self.n_symbol_hold} held; lower it"


class ExchangeSection(Section):
    """How orders are filled. The defaults are those of A-shares; configs/qlib_crypto_daily.yaml has those of a crypto exchange."""

    account: float = key(1e8, "money at the start", gt=0)
    deal_price: Literal["open", "close", "vwap"] = key("open", "price at which the day's orders are filled")
    limit_threshold: float | None = key(0.095, "a symbol that moved by more than this is not traded; null: no limit", gt=0, lt=1)
    open_cost: float = key(0.001, "cost of buying, as a share of the value", ge=0, lt=1)
    close_cost: float = key(0.0015, "cost of selling", ge=0, lt=1)
    min_cost: float = key(5.0, "lowest cost of an order", ge=0)
    trade_unit: int = key(100, "units are bought in multiples of this; 0: any fraction", ge=0)
    impact_cost: float = key(0.0, "cost of the order's own weight on the price, as a share, times (order / volume)²", ge=0, lt=1)
    volume_threshold: float | None = key(None, "largest share of a bar's volume that an order may take; null: any", gt=0, le=1)
    risk_degree: float = key(0.95, "share of the money that is invested", gt=0, le=1)
    annual_days: int = key(252, "trading days (or bars) of a year, to annualise by; 365 for crypto", ge=1, le=1_000_000)


class QlibConfig(Section):
    """A whole YAML file of the Qlib pipeline."""

    flat: ClassVar = True

    data: QlibDataSection = QlibDataSection()
    training: QlibTrainingSection = QlibTrainingSection()
    model_paths: QlibPathsSection = QlibPathsSection()
    model: ModelSection = ModelSection()
    experiment: QlibExperimentSection = QlibExperimentSection()
    comet_config: CometConfigSection = CometConfigSection()
    device: DeviceSection = DeviceSection()
    distributed: DistributedSection = DistributedSection()
    inference: InferenceSection = InferenceSection()
    backtest: BacktestSection = BacktestSection()
    exchange: ExchangeSection = ExchangeSection()
    _flags: str = PrivateAttr("")  # with which the commands load this configuration again

    @classmethod
    def load(cls, path: str | Path | None, overrides: Iterable[str] = (), environment: Mapping[str, str] = environ) -> QlibConfig:
        """As `load_config`, for this schema."""
        overrides = list(overrides)
        config = load_config(cls, path, overrides, environment)
        flags = [*(["--config", str(path)] if path else []), *(["--set", *overrides] if overrides else [])]
        config._flags = f" {shlex.join(flags)}" if flags else ""
        return config

    def command(self, script: str) -> str:
        """How to run one of the Qlib commands with this configuration."""
        return f"python finetune/{script}.py{self._flags}"

    @property
    def tokenizer_command(self) -> str:
        return self.command("train_tokenizer")

    def panels(self) -> Preprocessed:
        """What qlib_data_preprocess.py made, memory-mapped. Raises InputError naming the command that makes it."""
        return open_panels(Path(self.data.dataset_path), self.data, self.command("qlib_data_preprocess"))

    @property
    def benchmark(self) -> str:
        """The symbol to compare with, or "equal". Raises InputError where the pool has no known index."""
        chosen = self.backtest.benchmark or BENCHMARKS.get(self.data.instrument, "")
        if not chosen:
            raise InputError(
                f"backtest.benchmark is empty, and for the pool {self.data.instrument!r} no index is known (only for "
                f"{', '.join(BENCHMARKS)}); name a symbol of the store, or set backtest.benchmark=equal"
            )
        return chosen

    def cut(self, here: World, say: Callable[[str], Any]) -> tuple[Panel, Splits]:
        """The panels that qlib_data_preprocess.py made, memory-mapped on every rank, and their windows."""
        panels = self.panels()
        windows = Splits(*(self._windows(getattr(panels, name), name) for name in Splits._fields))
        for found, name in zip(windows[:2], ("train_time_range", "val_time_range"), strict=True):
            if not len(found):
                length = self.data.lookback_window + self.data.predict_window + 1
                raise InputError(
                    f"data.{name} {getattr(self.data, name)} holds no window: none of its {found.panel.n_series} symbols has {length} bars "
                    "in a row there (lookback_window + predict_window + 1); give a longer range or shorter windows"
                )
        return panels.test, windows

    def _windows(self, panel: Panel, name: str) -> Windows:
        data = self.data
        stride = data.window_stride if name == "train" else 1
        return windows_of(panel, name, data.lookback_window, data.predict_window, stride=stride, clip=data.clip)

    def comet(self) -> CometSettings | None:
        """Settings of the runs' Comet log; None if it is switched off."""
        if not self.experiment.use_comet:
            return None
        place = self.comet_config
        return CometSettings(place.project_name, place.workspace or None, self.experiment.name, tuple(self.experiment.comet_tags))
