"""A small fused panel with its manifest, and a configuration that trains on it in a second; shared by the tests of tft/'s commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.timestamps import stamp_features
from finetune.engine.yaml_text import to_yaml
from tft.rows import save_with_manifest

HOUR = 3_600 * 10**9
END = 440_000 * 4 * HOUR  # the last bar of every series
REALS = ("log_return_1", "rsi_14", "volatility_48")
KNOWN = ("weekday_sin", "weekday_cos")
TARGETS = {"target_up": ("class", 3), "target_rare": ("class", 3), "target_return": ("real", 3)}
SERIES = (("AAA", "1h"), ("AAA", "4h"), ("BBB", "1h"), ("BBB", "4h"))
SMALL = {
    "targets": {"target_up": "WeightedBCE", "target_rare": "focal", "target_return": "SmoothL1"},
    "max_encoder_length": 8,
    "hidden_size": 8,
    "attention_head_size": 2,
    "batch_size": 16,
    "max_epochs": 2,
    "lr": 3e-3,
    "num_workers": 0,
    "log_interval": 5,
    "early_stop_patience": 0,
    "device": {"device": "cpu", "cpu_threads": 1},
}


def make_panel(rows: int = 90, series=SERIES, seed: int = 0, change=None) -> tuple[Panel, dict]:
    """Panel and manifest. What follows a row depends on its columns, so there is something to learn. change(features, targets) edits."""
    draw, parts = np.random.default_rng(seed), []
    for _, period in series:
        step = HOUR * (1 if period == "1h" else 4)
        times = END - np.arange(rows)[::-1] * step
        real = draw.standard_normal((rows, len(REALS)))
        stamps = stamp_features(times.view("datetime64[ns]"))
        angle = stamps[:, 2] * (2 * np.pi / 7)
        codes = (stamps[:, 1] % 3 + 1)[:, None]
        features = np.concatenate((real, np.stack((np.sin(angle), np.cos(angle)), 1), codes), 1).astype(np.float32)
        up = (real[:, 0] + 0.3 * draw.standard_normal(rows) > 0).astype(np.float32)
        rare = (real[:, 1] > 1.0).astype(np.float32)
        value = (0.02 * real[:, 2] + 0.01).astype(np.float32)
        targets = np.stack((up, rare, value), 1)
        targets[-3:] = np.nan
        parts.append((features, stamps, times, targets))
    features, stamps, times, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    if change:
        change(features, targets)
    panel = Panel.build(
        features=features,
        stamps=stamps,
        times=times,
        offsets=np.arange(len(series) + 1) * rows,
        series=[SeriesInfo(*info) for info in series],
        columns=[*(Column(name) for name in REALS), *(Column(name, "known") for name in KNOWN), Column("hour_category", "categorical")],
        targets=targets,
        target_names=list(TARGETS),
    )
    horizon = {period: bars for period in ("1h", "4h") for bars in (3,)}
    noted = {name: {"name": name, "kind": kind, "parameters": {}, "horizon": horizon} for name, (kind, _) in TARGETS.items()}
    calendar = {"weekday_sin": ["weekday", "sin"], "weekday_cos": ["weekday", "cos"], "hour_category": ["hour_category", ""]}
    return panel, {"made_by": "data_fusion.py", "targets": noted, "calendar": calendar}


def write_config(folder: Path, name: str = "model.yaml", rows: int = 90, series=SERIES, change=None, **changes) -> Path:
    """A configuration file beside its data, ready for a command; `changes` replace keys of `SMALL`."""
    fused = folder / "fused"
    if not fused.exists():
        panel, manifest = make_panel(rows, series, change=change)
        save_with_manifest(panel, fused, manifest)
    path = folder / name
    path.write_text(to_yaml({"data_path": str(fused), "output_dir": str(folder / "runs"), **SMALL, **changes}), encoding="utf-8")
    return path
