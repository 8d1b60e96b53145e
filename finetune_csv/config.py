"""What a YAML file of the CSV pipeline may hold: `CsvConfig`, the schema of every pipeline over bars with what training makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import environ
from pathlib import Path

from finetune.data.config import PipelineConfig
from finetune.engine.config import load_config
from finetune.engine.settings import FitSettings
from finetune.engine.stages import Stage


class CsvConfig(PipelineConfig):
    """A YAML file of the CSV pipeline."""

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), environment: Mapping[str, str] = environ) -> CsvConfig:
        """As `load_config`, for this schema."""
        return load_config(cls, path, overrides, environment)

    def fit_settings(self, stage: Stage, device: str | None = None) -> FitSettings:
        """The training loop's settings for a stage, on `device` or, without one, on the device that the configuration names.

        Raises InputError if that device is not there.
        """
        return self.training.fit_settings(stage, device or self.device.pick(), self.device.panel_on_device)
