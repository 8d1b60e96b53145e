"""What a YAML file of a pipeline over bars may hold: how bars are read (`CsvDataSection`), and all sections together (`PipelineConfig`),
with what training makes of them.

Every command that takes such a file (training, evaluation) reads it through this one schema. Keys and defaults are upstream's documented
ones, and ours beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from os import environ
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator

from finetune.data.panel_store import is_panel_folder
from finetune.engine.comet import CometSettings
from finetune.engine.config import Section, key, load_config
from finetune.engine.run_sections import ExperimentSection, ModelPathsSection
from finetune.engine.sections import (
    DeviceSection,
    DistributedSection,
    EvaluationSection,
    ForecastSection,
    ModelSection,
    TrainingSection,
    WindowSection,
    known_timezone,
)

if TYPE_CHECKING:  # a configuration that is only looked at need not wait for pandas and torch
    from finetune.data.panel import Panel
    from finetune.engine.distributed import World
    from finetune.engine.windows import Splits


class ColumnsSection(Section):
    """What the file calls its columns, where the usual names do not find them. Case, order and further columns do not matter."""

    aliases: ClassVar = {"vol": ("volume",), "amt": ("amount",), "timestamp": ("timestamps",)}

    timestamps: str = key("timestamps", "the file's name for the bar's time; usual ones (date, time, 时间 ...) are found without it")
    open: str = key("open", "the file's name for the first price")
    high: str = key("high", "the file's name for the highest price")
    low: str = key("low", "the file's name for the lowest price")
    close: str = key("close", "the file's name for the last price, e.g. Adj Close")
    volume: str = key("volume", "the file's name for the units traded (`vol` is the same key)")
    amount: str = key("amount", "the file's name for the money traded (`amt` is the same key)")

    def problems(self) -> Iterator[tuple[str, str]]:
        users: dict[str, str] = {}
        for name, column in self:
            if not column:
                yield name, f"is empty; expected: the column's name in the file (default {name})"
            elif users.setdefault(column, name) != name:
                yield name, f"names the file's column {column!r}, and so does {users[column]}; each needs its own"


class CsvSection(Section):
    """How bars are read and checked."""

    data_path: list[str] = key(
        ...,
        "a CSV or parquet file, a folder, a pattern such as 'bars/*.csv', arch:sp500 or arch:nasdaq, or a list of these, "
        "where each file is a series of its own; or one saved panel",
        env="KRONOS_DATA_PATH",
        path="in",
        example="bars.csv",
    )
    symbol_column: str = key("", "column that names the symbol in a file with many; empty: symbol, ticker, code or instrument, if there")
    columns: ColumnsSection = ColumnsSection()
    missing: Literal["error", "drop", "ffill"] = key(
        "error", "bars with empty or infinite values: stop, leave them out, or repeat the bar before; the last two say what they did"
    )
    max_ffill: int = key(5, "ffill repeats no more than this many bars in a row", ge=1, le=10_000)
    drop_suspended: bool = key(False, "leave out bars without volume in a file that has volume (suspended, halted)")
    stamp: Literal["auto", "open", "close"] = key(
        "auto", "which edge of the bar its time names; auto: guessed from the session's edges, and printed"
    )
    timezone: str = key("", "the exchange's zone, e.g. Asia/Shanghai: its wall clock gives the stamp features; empty: as written")

    @field_validator("data_path")
    @classmethod
    def _names_files(cls, value: list[str]) -> list[str]:
        if not value or not all(path.strip() for path in value):
            raise ValueError("names no file; give a CSV file, a folder, a pattern such as 'bars/*.csv', or arch:sp500")
        return value

    _timezone = field_validator("timezone")(known_timezone)


class CsvDataSection(WindowSection, CsvSection):
    """Bars, and the windows cut from them."""

    @property
    def is_panel(self) -> bool:
        """Whether the bars are one saved panel, which any number of processes may open at once."""
        return len(self.data_path) == 1 and is_panel_folder(Path(self.data_path[0]))

    def load(self, say: Callable[[str], Any] = print) -> Panel:
        """Read and clean the bars. Raises what `load_panel` raises."""
        from finetune.data.load import load_panel

        columns = {name: theirs for name, theirs in self.columns if theirs != name}
        paths = self.data_path[0] if len(self.data_path) == 1 else self.data_path
        return load_panel(SimpleNamespace(**{**dict(self), "columns": columns, "data_path": paths}), say=say)


class PipelineConfig(Section):
    """A whole YAML file: bars, training, models, places, device, forecast and evaluation."""

    train_command: ClassVar[str] = "python train_sequential.py --config with this file"  # for a message

    data: CsvDataSection
    training: TrainingSection = TrainingSection()
    model_paths: ModelPathsSection = ModelPathsSection()
    model: ModelSection = ModelSection()
    experiment: ExperimentSection = ExperimentSection()
    device: DeviceSection = DeviceSection()
    distributed: DistributedSection = DistributedSection()
    forecast: ForecastSection = ForecastSection()
    evaluation: EvaluationSection = EvaluationSection()

    @classmethod
    def load(cls, path: str | Path | None, overrides: Iterable[str] = (), environment: Mapping[str, str] = environ) -> Self:
        """As `load_config`, for this schema."""
        return load_config(cls, path, overrides, environment)

    def cut(self, here: World, say: Callable[[str], Any]) -> tuple[Panel, Splits]:
        """The panel, read once, and its windows; further ranks open rank 0's copy memory-mapped, so that all share its pages."""
        from finetune.data.panel import Panel
        from finetune.engine.splits import make_splits

        data = self.data
        if here.size == 1 or data.is_panel:
            panel = data.load(say)
        else:
            folder = Path(self.model_paths.base_save_path, "cache", "panel")
            here.on_main(lambda: str(data.load(say).save(folder)))
            panel = Panel.open(folder)
        windows = make_splits(
            panel,
            data.lookback_window,
            data.predict_window,
            data.ratios,
            split=data.split,
            stride=data.window_stride,
            clip=data.clip,
            sampling=data.sampling,
            say=say,
        )
        return panel, windows

    def comet(self) -> CometSettings | None:
        """Settings of the runs' Comet log; None if it is switched off."""
        return self.experiment.comet()
