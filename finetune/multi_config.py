"""What a YAML file of the multi-model platform may hold: `ModelConfig`, one model at one timeframe.

A file in configs/models/ is a model of the file's name; `ConfigManager` finds it, puts it on top of the one it `extends`, and loads it.
A key that only one section has may also stand at the top.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr, field_validator

from finetune.data.config import CsvDataSection, PipelineConfig
from finetune.data.panel_store import is_panel_folder
from finetune.data.resampling_settings import SOURCE_KEY, changed_settings, changed_source
from finetune.data.source_facts import named_sources
from finetune.data.stamps import period_name
from finetune.engine.advice import without_gpu
from finetune.engine.command import to_paste
from finetune.engine.config import Section, key
from finetune.engine.errors import InputError, MissingFileError
from finetune.engine.places import Stage
from finetune.engine.run_sections import ExperimentSection
from finetune.engine.sections import EvaluationSection
from finetune.model_sizes import parameter_count
from kronos import presets
from kronos.arguments import CONFIG_FILE, NAMES, WEIGHTS_FILE, read_arguments_file

if TYPE_CHECKING:  # a configuration that is only looked at need not wait for torch
    from finetune.data.panel import Panel
    from finetune.engine.distributed import World
    from finetune.engine.windows import Splits

ALWAYS_OPEN = "24/7"
_CLASSES: dict[Stage, str] = {"tokenizer": "KronosTokenizer", "predictor": "Kronos"}
_WEIGHTS = (CONFIG_FILE, WEIGHTS_FILE)
_LARGE = 10_000_000  # parameters; more are slow without a GPU
_UNIT_S = {"min": 60, "h": 3600, "d": 86_400, "w": 604_800}


class TimeframeSection(Section):
    """The length of the model's bars, and the finer bars they are made of (`python finetune/prepare_kronos_data.py`)."""

    period: str = key("1d", "length of a bar: 15min, 1h, 4h, 1d, 1w, ...")
    source: list[str] = key(
        [],
        "finer bars to make them of: a CSV or parquet file, a folder, a pattern such as 'bars/*_1h.csv', or a list of these",
        env="KRONOS_DATA_PATH",
        path="in",
    )
    stamp: Literal["auto", "open", "close"] = key("auto", "which edge of a finer bar its time names; auto: guessed, and printed")
    calendar: str = key(
        "",
        "24/7: days begin at midnight UTC; empty: at midnight of data.timezone; an exchange such as XSHG, XNYS: its sessions",
    )
    panel: str = key("", "folder of the bars made; empty: {base_save_path}/data/panel", path="out")

    @field_validator("period")
    @classmethod
    def _period(cls, value: str) -> str:
        """4H, 240min and 4h are the same period."""
        found = re.fullmatch(r"([1-9]\d{0,4})\s*(min|m|h|d|w)", value.strip().lower())
        if not found:
            raise ValueError("is not a length; write a number and min, h, d or w, e.g. 15min, 4h, 1d")
        unit = "min" if found[2] == "m" else found[2]
        return period_name(int(found[1]) * _UNIT_S[unit] * 10**9)

    @field_validator("calendar")
    @classmethod
    def _calendar(cls, value: str) -> str:
        if value in ("", ALWAYS_OPEN):
            return value
        import exchange_calendars  # half a second, so only where an exchange is named

        names = exchange_calendars.get_calendar_names()
        if value not in names:
            near = difflib.get_close_matches(value.upper(), names, 1)
            raise ValueError("is no calendar; " + (f"did you mean {near[0]}?" if near else "e.g. 24/7, XSHG, XHKG, XNYS"))
        return value

    @property
    def seconds(self) -> int:
        """Length of a bar in seconds."""
        found = re.fullmatch(r"(\d+)(\w+)", self.period)
        assert found, self.period
        return int(found[1]) * {**_UNIT_S, "mo": 30 * _UNIT_S["d"]}[found[2]]


class ModelDataSection(CsvDataSection):
    """Bars that the model is trained on, and the windows cut from them."""

    data_path: list[str] = key(
        [],
        "bars to train on; empty: the panel that prepare_kronos_data.py makes of timeframe.source; files of the period itself do too",
        path="in",
    )

    @field_validator("data_path")
    @classmethod
    def _names_files(cls, value: list[str]) -> list[str]:
        return value


class ModelExperimentSection(ExperimentSection):
    """What is done, and under which name it is shown: by default the model's, with the Comet tag {name}_finetune."""

    aliases: ClassVar = {**ExperimentSection.aliases, "comet_name": ("name",), "comet_tag": ("comet_tags",)}


class ModelEvaluationSection(EvaluationSection):
    """How good the forecasts are."""

    enabled: bool = key(True, "evaluate when the predictor is trained (multi_model_trainer.py does, with evaluate_multi.py)")


class ReportSection(Section):
    """What is reported beside the evaluation."""

    macro: bool = key(False, "seasonality by month and weekday, trend and volatility regimes, each for truth and forecast")


class ModelConfig(PipelineConfig):
    """A model's whole YAML file. Load it with `ConfigManager.load_config`."""

    flat: ClassVar = True

    extends: str = key("", "another model's name, or the path of its file: its keys hold where this file leaves them out")
    timeframe: TimeframeSection = TimeframeSection()
    data: ModelDataSection = ModelDataSection()
    experiment: ModelExperimentSection = ModelExperimentSection()
    evaluation: ModelEvaluationSection = ModelEvaluationSection()
    report: ReportSection = ReportSection()
    _reference: str = PrivateAttr("")  # what --config takes: a registered name, or a path

    def _complete(self) -> None:
        if not self.timeframe.panel:
            self.timeframe._fill(panel=str(Path(self.model_paths.base_save_path, "data", "panel")))
        if not self.data.data_path:
            self.data._fill(data_path=[self.timeframe.panel])

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.is_prepared_from_source and not self.timeframe.source:
            yield (
                "timeframe.source",
                "names no file; give the finer bars to make the model's of, or data.data_path: bars of its period",
            )

    @property
    def name(self) -> str:
        """The file's name without .yaml."""
        return Path(self._reference).stem if self._reference.endswith((".yaml", ".yml")) else self._reference or self.model_paths.exp_name

    @property
    def reference(self) -> str:
        """What `--config` takes to load this file again: a registered name, or a path."""
        return self._reference

    @property
    def panel_folder(self) -> Path:
        """Where the prepared bars are."""
        return Path(self.timeframe.panel)

    @property
    def is_prepared_from_source(self) -> bool:
        """Whether training reads the panel made of timeframe.source (and not bars named in data.data_path)."""
        return self.data.data_path == [self.timeframe.panel]

    @property
    def has_panel(self) -> bool:
        """Whether the prepared bars are there."""
        return is_panel_folder(self.panel_folder)

    @property
    def lacks_panel(self) -> bool:
        """Whether training waits for `prepare_command`."""
        return self.is_prepared_from_source and not self.has_panel

    @property
    def needs_panel(self) -> bool:
        """Whether `prepare_command` is to be run before training: there is no panel, or it was made with other settings."""
        return self.lacks_panel or (self.is_prepared_from_source and bool(changed_settings(self)))

    @property
    def changed_source(self) -> str:
        """Which of the finer bars' files are not those that the prepared bars were made of, in words; empty where all are."""
        return changed_source(self) if self.is_prepared_from_source and self.has_panel else ""

    @property
    def tokenizer_command(self) -> str:
        """How to train the tokenizer alone."""
        return to_paste("finetune/train_tokenizer_multi.py", "--config", self.reference)

    @property
    def train_command(self) -> str:
        """How to train both stages."""
        return to_paste("finetune/multi_model_trainer.py", "--models", self.reference)

    @property
    def prepare_command(self) -> str:
        """How to make the panel."""
        return to_paste("finetune/prepare_kronos_data.py", "--config", self.reference)

    @classmethod
    def load(cls, path: str | Path | None, overrides: Iterable[str] = (), environment: Mapping[str, str] = environ) -> ModelConfig:
        """A model that is ready to be trained, by its name or its file's path; as `ConfigManager.load_config`.

        Raises InputError also where its bars are not made yet, or where another registered model writes to its folder.
        """
        from finetune.clashes import invalid  # which import this file
        from finetune.config_manager import ConfigManager

        assert path is not None, "a model is a file"
        manager = ConfigManager(environment=environment)
        config = manager.load_config(path, overrides)
        if clashes := manager.clashes_of(config):
            raise invalid(clashes)
        config.check_device()
        config.check_data()
        return config

    def check_device(self) -> None:
        """Raises InputError with this configuration's numbers if the device it names is not there."""
        try:
            self.device.pick()
        except InputError as error:
            raise InputError(f"{error}. Without it, {without_gpu(self.training, self.parameters('predictor') or 0)}") from None

    def check_weights(self, stage: Stage, to_come: Container[Path] = ()) -> None:
        """Raises MissingFileError if the weights that a stage starts from are a folder without them, and not one of those to come."""
        name = self.starts_from(stage)
        pretrained = self.experiment.pre_trained_tokenizer if stage == "tokenizer" else self.experiment.pre_trained_predictor
        is_folder = Path(name).is_dir()
        if not pretrained or Path(name).absolute() in to_come or (presets.may_be_hub_id(name) and not is_folder):
            return
        if lacking := [file for file in _WEIGHTS if not Path(name, file).is_file()]:
            told = f"folder {name!r} has no {' and no '.join(lacking)}" if is_folder else f"there is no folder {name!r}"
            raise MissingFileError(
                f"{self.name}: model_paths.pretrained_{stage} (or KRONOS_{stage.upper()}_PATH): {told}; give one that "
                f"holds {' and '.join(_WEIGHTS)}, or a hub id such as {next(iter(presets.HUB_IDS[stage].values()))}"
            )

    def check_source(self) -> None:
        """Raises MissingFileError if the finer bars are not there, InputError if their files cannot be told apart."""
        try:
            named_sources(self.timeframe.source, SOURCE_KEY)
        except InputError as error:
            raise type(error)(f"{self.name}: {error}") from None

    def check_data(self) -> None:
        """Raises MissingFileError if the panel is not made yet, InputError if it was made in another way, or for another period."""
        if self.lacks_panel:
            raise MissingFileError(f"{self.name}: there are no prepared bars in {self.panel_folder}; make them: {self.prepare_command}")
        if not self.is_prepared_from_source:
            return
        if changed := changed_settings(self):
            raise InputError(
                f"{self.name}: the bars in {self.panel_folder} were made with {'; '.join(changed)}; make them again: {self.prepare_command}"
            )
        from finetune.data.panel import Panel

        made = {info.period for info in Panel.open(self.panel_folder).series} - {"", self.timeframe.period}
        if made:
            raise InputError(
                f"{self.name}: the bars in {self.panel_folder} are of {', '.join(sorted(made))}, but timeframe.period is "
                f"{self.timeframe.period}; make them again: {self.prepare_command}"
            )

    def cut(self, here: World, say: Callable[[str], Any]) -> tuple[Panel, Splits]:
        """The prepared panel, memory-mapped on every rank, and its windows."""
        self.check_data()
        size = self.parameters("predictor") or 0
        if here.device.type == "cpu" and size >= _LARGE:
            say(without_gpu(self.training, size))
        return super().cut(here, say)

    def parameters(self, stage: Stage) -> int | None:
        """Parameters of a stage's model; None where that is only known after a download."""
        arguments = self.model_arguments(stage)
        return None if arguments is None else parameter_count(stage, arguments)

    def model_arguments(self, stage: Stage) -> dict[str, Any] | None:
        """Constructor arguments of a stage's model, as far as this machine knows them."""
        paths, experiment = self.model_paths, self.experiment
        weights = paths.pretrained_tokenizer if stage == "tokenizer" else paths.pretrained_predictor
        if not (experiment.pre_trained_tokenizer if stage == "tokenizer" else experiment.pre_trained_predictor):
            if sizes := self.model.arguments(stage):
                return sizes
            weights = self.model.config_file(stage, weights)
        published = {"tokenizer": presets.TOKENIZERS, "predictor": presets.PREDICTORS}[stage]
        for size, hub_id in presets.HUB_IDS[stage].items():
            if weights == hub_id:
                return published[size]
        file = Path(weights) if weights.endswith(".json") else Path(weights, "config.json")
        return read_arguments_file(file, NAMES[stage], _CLASSES[stage]) if file.is_file() else None

    def starts_from(self, stage: Stage) -> str:
        """The weights that a stage's training starts from, for people to read."""
        paths, experiment, tokenizer = self.model_paths, self.experiment, stage == "tokenizer"
        if experiment.pre_trained_tokenizer if tokenizer else experiment.pre_trained_predictor:
            return paths.pretrained_tokenizer if tokenizer else paths.pretrained_predictor
        return "random weights"

    def get_model_info(self) -> dict[str, Any]:
        """What there is to know of the model, as plain values; the learning rates, epochs and parameters by stage."""
        data, training = self.data, self.training
        return {
            "name": self.name,
            "description": self.experiment.description,
            "period": self.timeframe.period,
            "lookback": data.lookback_window,
            "horizon": data.predict_window,
            "batch_size": training.batch_size,
            "accumulation_steps": training.accumulation_steps,
            "effective_batch": training.batch_size * training.accumulation_steps,  # of one process; × processes under torchrun
            "learning_rates": {"tokenizer": training.tokenizer_learning_rate, "predictor": training.predictor_learning_rate},
            "epochs": {"tokenizer": training.tokenizer_epochs, "predictor": training.basemodel_epochs},
            "parameters": {stage: self.parameters(stage) for stage in ("tokenizer", "predictor")},
            "starts_from": {stage: self.starts_from(stage) for stage in ("tokenizer", "predictor")},
            "comet_tags": list(self.experiment.comet_tags),
            "macro_report": self.report.macro,
            "source": list(self.timeframe.source),
            "panel": str(self.panel_folder),
            "output": self.model_paths.base_save_path,
        }
