"""What a YAML file of the CSV pipeline may hold: `CsvConfig`, the schema of every pipeline over bars with what training makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import environ
from pathlib import Path
from typing import Any, ClassVar

from finetune.data.config import PipelineConfig
from finetune.data.panel import Panel
from finetune.engine.comet import CometSettings
from finetune.engine.config import load_config
from finetune.engine.distributed import World
from finetune.engine.splits import make_splits
from finetune.engine.windows import Splits


class CsvConfig(PipelineConfig):
    """A YAML file of the CSV pipeline."""

    tokenizer_command: ClassVar = "finetune_csv/finetune_tokenizer.py"

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), environment: Mapping[str, str] = environ) -> CsvConfig:
        """As `load_config`, for this schema."""
        return load_config(cls, path, overrides, environment)

    def cut(self, here: World, say: Callable[[str], Any]) -> tuple[Panel, Splits]:
        """The panel, read once, and its windows; further ranks open rank 0's copy memory-mapped, so that all share its pages."""
        data = self.data
        if here.size == 1:
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
