"""The report of a multi-model run: configurations side by side, curves in one picture, forecast skill, times, failures with last lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from finetune.engine import provenance
from finetune.engine.files import read_json, read_json_lines, write_json, write_text
from finetune.engine.places import Stage
from finetune.jobs_run import last_lines
from finetune.jobs_state import DONE, FAILED, INTERRUPTED, RunState
from finetune.multi_config import ModelConfig
from finetune.multi_picture import draw_report

_SIDE_BY_SIDE = 4  # models in one table
_STAGES: tuple[Stage, ...] = ("tokenizer", "predictor")


def write_report(configs: Mapping[str, ModelConfig], state: RunState, logs: Path) -> Path:
    """Writes training_report_{run}.txt, .json and .png in `logs`; returns the .txt. Raises InputError if they cannot be written."""
    numbers = numbers_of(configs, state)
    stem = logs / f"training_report_{state.folder.name}"
    draw_report(stem.with_suffix(".png"), numbers)
    write_json(stem.with_suffix(".json"), {key: value for key, value in numbers.items() if key != "curves"})
    write_text(stem.with_suffix(".txt"), text_of(numbers, stem.with_suffix(".png").name))
    return stem.with_suffix(".txt")


def numbers_of(configs: Mapping[str, ModelConfig], state: RunState) -> dict[str, Any]:
    """Everything that the report says, as plain values."""
    return {
        "run": state.folder.name,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "models": {name: config.get_model_info() for name, config in configs.items()},
        "jobs": state.jobs,
        "results": {name: _results(config, state) for name, config in configs.items()},
        "skill": {name: _skill(config, state) for name, config in configs.items()},
        "macro": {name: found for name, config in configs.items() if (found := _macro(config, state))},
        "failures": {
            name: {"reason": job["reason"], "code": job["code"], "log": job["log"], "last_lines": last_lines(Path(job["log"]))}
            for name, job in state.jobs.items()
            if job["state"] in (FAILED, INTERRUPTED)
        },
        "curves": {name: {stage: _curve(config, stage, state) for stage in _STAGES} for name, config in configs.items()},
        "versions": provenance.versions(),
        "git": provenance.git_state(),
    }


def _is_old(config: ModelConfig, stage: str, state: RunState, *current: str) -> bool:
    """Whether what lies in a stage's folder is of a former run: this one has a job for it, which is not in one of these states."""
    job = state.jobs.get(f"{config.name}-{stage}")
    return job is not None and job["state"] not in current


def _results(config: ModelConfig, state: RunState) -> dict[str, Any]:
    """From each stage's summary.json, as far as it has ended."""
    found = {}
    for stage in _STAGES:
        summary = read_json(config.model_paths.folder(stage) / "summary.json")
        if summary and not _is_old(config, stage, state, DONE):
            keys = ("monitor", "best_score", "best_epoch", "steps", "effective_batch", "world_size", "device", "training_wall_s", "windows")
            found[stage] = {key: summary.get(key) for key in keys}
    return found


def _skill(config: ModelConfig, state: RunState) -> dict[str, Any] | None:
    """The evaluation's verdict; None where there is none."""
    numbers = read_json(Path(config.model_paths.base_save_path, "evaluation", "evaluation.json"))
    if not numbers or _is_old(config, "evaluate", state, DONE):
        return None
    best = numbers["verdict"]["best_baseline"]
    skill = {key: numbers["skill"][best][key] for key in ("overall", "low", "high")}
    return {"sentences": numbers["verdict"]["sentences"], "verdict": numbers["verdict"]["crps"], "baseline": best, **skill}


def _macro(config: ModelConfig, state: RunState) -> dict[str, Any] | None:
    """What the macro report says of regimes, and where it is; None where none is wanted, or there is none yet."""
    folder = Path(config.model_paths.base_save_path, "evaluation")
    numbers = read_json(folder / "macro.json") if config.report.macro else None
    if not numbers or _is_old(config, "evaluate", state, DONE):
        return None
    left_out = [f"left out: {told}." for told in [numbers.get("left_out")] if told]
    sentences = left_out or [regime["sentence"] for regime in numbers["regimes"].values()]
    return {"sentences": sentences, "numbers": str(folder / "macro.json"), "picture": "" if left_out else str(folder / "macro.png")}


def _curve(config: ModelConfig, stage: Stage, state: RunState) -> dict[str, list[float]]:
    """Losses over epochs (as a fraction: steps by the steps of an epoch)."""
    old = _is_old(config, stage, state, DONE, FAILED, INTERRUPTED)
    lines = [] if old else read_json_lines(config.model_paths.folder(stage) / "metrics.jsonl")
    ends = [(line["step"], line["epoch"] + 1) for line in lines if line.get("split") == "val" and line["step"] > 0]
    per_epoch = ends[0][0] / ends[0][1] if ends else max((line["step"] for line in lines), default=1)
    found: dict[str, list[float]] = {"train_epoch": [], "train": [], "val_epoch": [], "val": []}
    for line in lines:
        split = line.get("split")
        if split in ("train", "val") and isinstance(line.get("loss"), int | float):
            found[f"{split}_epoch"].append(line["step"] / max(1, per_epoch))
            found[split].append(line["loss"])
    return found


# ---------------------------------------------------------------------- text


def text_of(numbers: Mapping[str, Any], picture: str) -> str:
    """The report to read."""
    parts = [f"multi-model training {numbers['run']}, written {numbers['written']}; curves: {picture}"]
    parts.append("\n".join(["JOBS", *_table(["job", "state", "time", "attempts", "why"], list(_job_rows(numbers["jobs"])))]))
    parts.append("\n".join(["CONFIGURATIONS", *_configurations(numbers["models"])]))
    parts.append("\n".join(["TRAINING", *_training(numbers["results"])]))
    parts.append("\n".join(["FORECAST SKILL", *_skills(numbers["skill"])]))
    if numbers["macro"]:
        parts.append("\n".join(["SEASONS AND REGIMES", *(f"{name}: {_macro_text(found)}" for name, found in numbers["macro"].items())]))
    if numbers["failures"]:
        parts.append("\n\n".join(["WHAT FAILED OR WAS INTERRUPTED", *map(_failure, numbers["failures"].items())]))
    return "\n\n".join(parts) + "\n"


def _job_rows(jobs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, job in jobs.items():
        took = tqdm.format_interval(job["seconds"]) if job["seconds"] else "-"
        yield name, job["state"], took, str(job["attempts"]), job["reason"] if job["state"] != "done" or not job["attempts"] else ""


def _configurations(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    names = list(models)
    for first in range(0, len(names), _SIDE_BY_SIDE):
        chosen = names[first : first + _SIDE_BY_SIDE]
        keys = list(dict.fromkeys(key for name in chosen for key in models[name] if key not in ("name", "description")))
        yield from _table(["", *chosen], [(key, *(_plain(models[name].get(key)) for name in chosen)) for key in keys])
        yield ""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " / ".join(_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value in (None, "") else str(value)


def _training(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    rows = []
    for name, stages in results.items():
        for stage, found in stages.items():
            score = "-" if found["best_score"] is None else f"{found['best_score']:.5f}"
            where = f"{found['device']} × {found['world_size']}"
            wall = tqdm.format_interval(found["training_wall_s"] or 0)
            rows.append((name, stage, str(found["monitor"]), score, str(found["best_epoch"]), f"{found['steps']:,}", where, wall))
    yield from _table(["model", "stage", "monitor", "best", "epoch", "steps", "device", "time"], rows) if rows else ["no stage has ended"]


def _skills(skills: Mapping[str, Any]) -> Iterator[str]:
    for name, skill in skills.items():
        yield f"{name}: " + (" ".join(skill["sentences"]) if skill else "not evaluated")


def _macro_text(found: Mapping[str, Any]) -> str:
    return " ".join([*found["sentences"], *([f"Picture: {found['picture']}"] if found["picture"] else [])])


def _failure(failed: tuple[str, Mapping[str, Any]]) -> str:
    name, facts = failed
    lines = "\n".join(f"    {line}" for line in facts["last_lines"])
    return f"{name}: {facts['reason']} (exit code {facts['code']}), last lines of {facts['log']}:\n{lines}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
