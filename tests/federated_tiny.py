"""A federation small enough for a test: synthetic bars, the tiniest Kronos, every client in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bars import make_panel

from federated.client_app import app
from federated.local_grid import LocalGrid
from federated.rounds import federate
from federated.settings import Settings, read_settings, run_config

YAML = """
data: {{data_path: {data}, lookback_window: 12, predict_window: 4, train_ratio: 0.7, val_ratio: 0.3, test_ratio: 0.0}}
training: {{tokenizer_learning_rate: 0.002, predictor_learning_rate: 0.002, teacher_forcing: {forced}, clip_norm_predictor: {clip}, adam_weight_decay: {decay}}}
model:
  tokenizer: {{preset: base, d_model: 16, n_heads: 2, ff_dim: 32, n_enc_layers: 2, n_dec_layers: 2, s1_bits: 4, s2_bits: 4, group_size: 4}}
  predictor: {{preset: mini, n_layers: 1, d_model: 16, n_heads: 2, ff_dim: 32, s1_bits: 4, s2_bits: 4, ffn_dropout_p: {dropout}, attn_dropout_p: {dropout},
              resid_dropout_p: {dropout}, token_dropout_p: {dropout}}}
experiment: {{pre_trained_tokenizer: {trained}, pre_trained_predictor: false}}
model_paths: {{pretrained_tokenizer: {tokenizer}, base_path: {folder}}}
device: {{device: cpu, cpu_threads: 1}}
"""  # noqa: E501  one line per section


def write_yaml(
    folder: Path, *, rows: int | list[int] = 60, series: int = 3, dropout: float = 0.1, tokenizer: Path | None = None, **training
) -> Path:
    """A panel of `series` series and the YAML that names it. training: forced, clip, decay."""
    make_panel(series, rows).save(folder / "panel")
    how = {"forced": "false", "clip": 3.0, "decay": 0.1, **training}
    text = YAML.format(
        data=folder / "panel",
        dropout=dropout,
        trained=str(tokenizer is not None).lower(),
        tokenizer=tokenizer or "none",
        folder=folder,
        **how,
    )
    path = folder / "kronos.yaml"
    path.write_text(text)
    return path


def settings(yaml: Path, folder: Path, **changes: Any) -> Settings:
    """Settings of a quick run; keys with underscores."""
    plain = {
        "model_config": str(yaml),
        "run_folder": str(folder),
        "batch_size": 16,
        "num_server_rounds": 2,
        "kronos_part": "both",
        **changes,
    }
    return read_settings({name.replace("_", "-"): value for name, value in plain.items()})


def grid(run: Settings, clients: int = 3, **changes: Any) -> LocalGrid:
    """A grid of clients that have the run's settings, or others."""
    return LocalGrid(app, clients, {**run_config(run), **{name.replace("_", "-"): value for name, value in changes.items()}})


def simulate(yaml: Path, folder: Path, clients: int = 3, **changes: Any) -> Path:
    """A whole run; returns its folder."""
    run = settings(yaml, folder, **changes)
    return federate(grid(run, clients), run)
