"""What a YAML file of the CSV pipeline may hold: `CsvConfig`."""

from __future__ import annotations

from typing import ClassVar

from finetune.data.config import PipelineConfig


class CsvConfig(PipelineConfig):
    """A YAML file of the CSV pipeline."""

    tokenizer_command: ClassVar = "finetune_csv/finetune_tokenizer.py"
