"""Tiny registered models with bars, for the tests of the multi-model platform."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from bars import make_panel

from finetune.config_manager import ConfigManager
from finetune.jobs import Job, plan
from finetune.jobs_machine import Machine

ROOT = Path(__file__).resolve().parents[1]
CPU = Machine((), 0.0, 2, 8.0)
TINY = {
    "timeframe": {"period": "1h", "source": ["bars.csv"]},
    "data": {"lookback_window": 12, "predict_window": 4, "timezone": "UTC", "train_ratio": 0.6, "val_ratio": 0.2, "test_ratio": 0.2},
    "training": {"epochs": 2, "batch_size": 16, "log_interval": 2, "num_workers": 0},
    "model": {
        "tokenizer": {"d_model": 16, "n_heads": 2, "ff_dim": 32, "n_enc_layers": 2, "n_dec_layers": 2, "s1_bits": 4, "s2_bits": 4},
        "predictor": {"preset": "mini", "d_model": 16, "n_heads": 2, "ff_dim": 32, "n_layers": 1, "s1_bits": 4, "s2_bits": 4},
    },
    "experiment": {"pre_trained": False},
    "device": {"device": "cpu", "cpu_threads": 1},
    "evaluation": {"max_origins": 20, "samples": 5},
    "forecast": {"enabled": False},
}


def models(folder: Path, *names: str, panel: bool = True, **changes) -> ConfigManager:
    """Registered tiny models in `folder`/models, their results in `folder`/out, with bars."""
    (folder / "models").mkdir(exist_ok=True)
    for name in names:
        config = {section: {**TINY.get(section, {}), **changes.get(section, {})} for section in {**TINY, **changes}}
        config["model_paths"] = {"base_path": str(folder / "out"), **changes.get("model_paths", {})}
        (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump(config))
        if panel:
            make_panel(2, 160).save(folder / "out" / name / "data" / "panel")
    return ConfigManager(folder / "models", {})


def plan_of(manager: ConfigManager, *names: str, stage: str = "all", **options):
    return plan([manager.load_config(name) for name in names], stage, **options)


def trained(manager: ConfigManager, name: str, stage: str, state: str = "done", when: float = 1e9) -> None:
    """What a finished (or stopped) stage leaves behind, as far as the plan looks."""
    paths = manager.load_config(name).model_paths
    best = Path(paths.best_model(stage))
    best.mkdir(parents=True, exist_ok=True)
    for file in (best / "complete.json", best / "model.safetensors"):
        file.write_text("{}")
        os.utime(file, (when, when))
    (paths.folder(stage) / "status.json").write_text(json.dumps({"state": state}))


def marks(made) -> dict[str, bool]:
    return {job.name: job.done for job in made.jobs}


def script(name: str, *arguments: str, cwd: Path, env: dict | None = None, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "finetune" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, timeout=timeout, capture_output=True, text=True, **options)


def job(tmp_path: Path, model: str, stage: str = "tokenizer", code: str = "", needs: tuple[str, ...] = (), **changes) -> Job:
    """A job that runs Python code in place of a training."""
    return Job(model, stage, ("-c", code or "print('fine')"), tmp_path / model / stage, needs, **changes)
