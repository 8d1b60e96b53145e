"""Runs side by side: what differs in their settings, what came of them, and their validation losses in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune.engine.files import ensure_writable_folder, read_json, read_json_lines, write_text
from kronos.errors import InputError, MissingFileError

_LOG, _CONFIG, _SUMMARY, _STATUS = "metrics.jsonl", "config.yaml", "summary.json", "status.json"
_NAMES = ("model_paths.exp_name", "model_paths.base_path", "model_paths.base_save_path", "model_paths.finetuned_tokenizer")
_OUTCOMES = ("stage", "state", "best score", "best epoch", "epochs", "steps", "wall time", "parameters", "effective batch", "data")


@dataclass(frozen=True, eq=False)
class RunFacts:
    """One stage of one run. config: flat, by dotted key. validation: (step, score) of the monitored loss, and its name."""

    name: str
    folder: Path
    stage: str
    outcome: dict[str, str]
    config: dict[str, str]
    monitor: str
    validation: list[tuple[int, float]] = field(repr=False)


def read_runs(folders: Sequence[str | Path]) -> list[RunFacts]:
    """Runs by stage, tokenizers first. A folder is a run of one stage, or an experiment that holds some.

    Raises MissingFileError or InputError naming the folder that is no run.
    """
    found = [folder for given in folders for folder in _stages_in(Path(given))]
    unique = list(dict.fromkeys(folder.resolve() for folder in found))
    names = _short_names(unique)
    runs = [_read(folder, name) for folder, name in zip(unique, names, strict=True)]
    return sorted(runs, key=lambda run: run.stage != "tokenizer")


def _stages_in(given: Path) -> list[Path]:
    if not given.is_dir():
        raise MissingFileError(f"{given}: there is no such folder; name run folders such as finetuned/demo or finetuned/demo/basemodel")
    if (given / _LOG).is_file() or (given / _SUMMARY).is_file():
        return [given]
    inside = sorted(path.parent for path in given.glob(f"*/{_CONFIG}") if (path.parent / _LOG).is_file())
    if not inside:
        raise InputError(
            f"{given}: is not a run folder, it has no {_LOG} (nor has a folder in it); name one such as finetuned/demo or "
            "finetuned/demo/basemodel"
        )
    return inside


def _read(folder: Path, name: str) -> RunFacts:
    summary, status = read_json(folder / _SUMMARY) or {}, read_json(folder / _STATUS) or {}
    if not isinstance(summary, dict) or not isinstance(status, dict):
        raise InputError(f"{folder}: its {_SUMMARY} or {_STATUS} is damaged; name another run")
    lines = [line for line in read_json_lines(folder / _LOG) if line.get("split") == "val"]
    monitor = str(summary.get("monitor", "val_loss"))
    key = monitor.removeprefix("val_")
    points = [(int(line["step"]), float(line[key])) for line in lines if isinstance(line.get(key), int | float)]
    return RunFacts(
        name=name,
        folder=folder,
        stage=str(summary.get("task") or status.get("name") or folder.name),
        outcome=_outcome(summary, status, points, monitor),
        config=_config(folder / _CONFIG),
        monitor=monitor,
        validation=points,
    )


def _outcome(summary: dict[str, Any], status: dict[str, Any], points: list[tuple[int, float]], monitor: str) -> dict[str, str]:
    best = summary.get("best_score", min((score for _, score in points), default=None))
    history = [one for one in summary.get("history", []) if one.get("epoch", 0) >= 0]
    seconds = summary.get("wall_time_s", status.get("wall_time_s"))
    facts = {
        "state": status.get("state", "done" if summary else "unknown"),
        "best score": f"{monitor} {best:.5f}" if isinstance(best, int | float) else None,
        "best epoch": summary.get("best_epoch"),
        "epochs": len(history) if summary else None,
        "steps": summary.get("steps", points[-1][0] if points else None),
        "wall time": _span(seconds) if isinstance(seconds, int | float) else None,
        "parameters": summary.get("parameters"),
        "effective batch": summary.get("effective_batch"),
        "data": str((summary.get("data") or {}).get("data", ""))[:12] or None,
    }
    if facts["best epoch"] == 0:
        facts["best epoch"] = "before training"
    return {name: f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value) for name, value in facts.items()}


def _config(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); name another run") from error
    return dict(_flat(tree, "")) if isinstance(tree, dict) else {}


def _flat(value: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in _flat(one, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, str(value).lower() if isinstance(value, bool) else str(value))]


def differing_keys(runs: Sequence[RunFacts]) -> list[str]:
    """Configuration keys that not all runs have alike, in the order of the files; names and folders of experiments do not count."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key for key in keys if key not in _NAMES and not key.startswith("experiment.") and len({run.config.get(key) for run in runs}) > 1
    ]


def comparison(runs: Sequence[RunFacts]) -> list[list[str]]:
    """One table, a header and rows of text: outcomes first, then what differs. A column for each run."""
    rows = [["", *(run.name for run in runs)], ["stage", *(run.stage for run in runs)]]
    rows += [[name, *(run.outcome[name] for run in runs)] for name in _OUTCOMES if name in runs[0].outcome]
    if len({run.outcome["data"] for run in runs}) == 1:
        rows = [row for row in rows if row[0] != "data"]
    return rows + [[key, *(run.config.get(key, "–") for run in runs)] for key in differing_keys(runs)]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    cells = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in line).rstrip() for line in cells)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table for a document."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in safe]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]]) + "\n"


def write_comparison(runs: Sequence[RunFacts], out: Path) -> list[Path]:
    """runs.md and runs.png in `out`. Raises InputError if they cannot be written."""
    ensure_writable_folder(out)
    paths = [out / "runs.md", out / "runs.png"]
    write_text(paths[0], f"# {len(runs)} runs\n\n{as_markdown(comparison(runs))}\n![validation losses](runs.png)\n")
    draw_losses(runs, paths[1])
    return paths


def draw_losses(runs: Sequence[RunFacts], path: Path) -> None:
    """Validation losses over steps, one panel per stage (their losses are not comparable), the best of each run marked."""
    from finetune.engine.curves import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, new_figure, quiet_axes, save_figure

    colours = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK)
    stages = list(dict.fromkeys(run.stage for run in runs))
    figure = new_figure(900 * len(stages), 620)
    for place, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), place + 1)
        quiet_axes(axes)
        of_stage = [run for run in runs if run.stage == stage]
        for number, run in enumerate(of_stage):
            steps, scores = [step for step, _ in run.validation], [score for _, score in run.validation]
            colour, style = colours[number % len(colours)], ("-", "--", ":")[number // len(colours) % 3]
            best = min(range(len(scores)), key=scores.__getitem__) if scores else None
            label = f"{run.name}: {scores[best]:.4f}" if best is not None else f"{run.name}: no validation yet"
            axes.plot(steps, scores, style, color=colour, linewidth=1.8, marker="o", markersize=4, label=label)
            if best is not None:
                axes.plot(
                    steps[best], scores[best], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5
                )
        axes.set_title(stage, loc="left", fontsize=16, fontweight="bold", color=INK)
        axes.set_xlabel("optimiser step", fontsize=11, color=MUTED)
        axes.set_ylabel(" / ".join(dict.fromkeys(run.monitor for run in of_stage)), fontsize=11, color=MUTED)
        axes.legend(frameon=False, fontsize=10.5, labelcolor=INK)
    figure.tight_layout()
    save_figure(figure, path)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart: demo/tokenizer, not /home/me/finetuned/demo/tokenizer."""
    for depth in range(2, max((len(folder.parts) for folder in folders), default=2)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
