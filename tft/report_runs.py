"""Training runs side by side, a row each: what ran, how long, what it came to, and what weights it began with."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.engine.files import ensure_writable_folder, read_json, read_json_lines, write_text
from finetune.evaluation.run_comparison import as_markdown
from kronos.errors import InputError, MissingFileError
from tft.metrics import CLASSIFICATION, REGRESSION

_NAMED = re.compile(r"(.+)-\d{8}_\d{4}(-\d+)?\Z")
_RESUMED = "resumed from "
_SMALLER = ("loss", "loss_for_ckpt", *REGRESSION)
_MEANS = ("f1", "auc", "rmse")  # over all targets that have it
COLUMNS = (
    *("run", "script", "state", "epochs", "best epoch", "monitor", "best", "loss_for_ckpt", "composite_score"),
    *(f"mean {name}" for name in _MEANS),
    *("wall time", "origin"),
)
Say = Callable[[str], Any]


def read_all(folders: Sequence[str | Path], say: Say = print) -> list[dict[str, Any]]:
    """A row by `COLUMNS` and all validation metrics of the best epoch (val_...), of each folder that is a run.

    Others are left out and named. Raises MissingFileError for a path that is not there, InputError if no folder is a run.
    """
    missing = [str(folder) for folder in folders if not Path(folder).exists()]
    if missing:
        raise MissingFileError(
            f"{missing[0]}: there is no such folder; name run folders such as runs/train_multi_tft-20251101_1200, or runs/*"
        )
    runs = [Path(folder) for folder in folders if _is_run(Path(folder))]
    others = [str(folder) for folder in folders if not _is_run(Path(folder))]
    if not runs:
        raise InputError(f"{', '.join(others[:5])}: no run folder, none has metrics.jsonl or summary.json; name some such as runs/*")
    if others:
        say(f"left out, no run folders: {', '.join(others)}")
    return [read_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in runs)]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.jsonl", "summary.json", "status.json"))


def read_run(folder: Path) -> dict[str, Any]:
    """One run's row, from summary.json, or while it has none from status.json and metrics.jsonl. Raises InputError for damaged files."""
    summary, status = (read_json(folder / name) or {} for name in ("summary.json", "status.json"))
    if not isinstance(summary, dict) or not isinstance(status, dict):
        raise InputError(f"{folder}: its summary.json or status.json is damaged; name other runs")
    history = summary.get("history") or _logged(folder)
    monitor = str(summary.get("monitor") or _configured(folder, "monitor") or "val_loss")
    best = _best(history, monitor, summary)
    named = _NAMED.match(folder.name)
    seconds = summary.get("wall_time_s", status.get("wall_time_s"))
    metrics = {name: value for name, value in best.items() if name.startswith("val_") and isinstance(value, int | float)}
    return {
        "run": folder.name,
        "script": named[1] if named else str(summary.get("task") or status.get("name") or "–"),
        "state": status.get("state", "done" if summary else "unknown"),
        "epochs": sum(one["epoch"] >= 0 for one in history),
        "best epoch": best["epoch"] + 1 if best else None,
        "monitor": monitor,
        "best": best.get(monitor),
        "loss_for_ckpt": metrics.get("val_loss_for_ckpt"),
        "composite_score": metrics.get("val_composite_score"),
        **{f"mean {name}": _mean(metrics, name) for name in _MEANS},
        "wall time": round(seconds, 1) if isinstance(seconds, int | float) else None,
        "origin": _origin(folder, summary),
        **metrics,
    }


def _logged(folder: Path) -> list[dict[str, Any]]:
    """The history of a run that has no summary yet."""
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line.get("split") == "val" and "epoch" in line]
    own = ("split", "time_s", "step", "epoch", "train_loss")
    return [{"epoch": line["epoch"], **{f"val_{name}": value for name, value in line.items() if name not in own}} for line in lines]


def _configured(folder: Path, name: str) -> str | None:
    """A flat key of config.yaml as text."""
    path = folder / "config.yaml"
    found = re.search(rf"^{name}: *(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    return found[1].strip("'\"") if found else None


def _best(history: Sequence[Mapping[str, Any]], monitor: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The epoch whose weights were kept; {} before the first validation."""
    chosen = [one for one in history if one["epoch"] + 1 == summary.get("best_epoch")]
    known = chosen or [one for one in history if isinstance(one.get(monitor), int | float)]
    if not known:
        return {}
    smaller = summary.get("mode", "min" if monitor.split("@")[0].endswith(_SMALLER) else "max") == "min"
    return dict(min(known, key=lambda one: one.get(monitor, 0.0) if smaller else -one.get(monitor, 0.0)))


def _mean(metrics: Mapping[str, float], name: str) -> float | None:
    """Of a metric over all targets, all periods together."""
    assert name in (*CLASSIFICATION, *REGRESSION)
    found = [value for key, value in metrics.items() if key.endswith(f"_{name}")]
    return sum(found) / len(found) if found else None


def _origin(folder: Path, summary: Mapping[str, Any]) -> str:
    """What the run's weights began as, and whether it was resumed."""
    warm = summary.get("warm_start")
    parts = [f"warm start from {warm['from']}"] if isinstance(warm, Mapping) and warm.get("from") else []
    lines = [
        line for log in sorted((folder / "logs").glob("*.log")) for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    if not parts:
        parts = [line.partition("  ")[2].partition(": ")[0] for line in lines if ": warm start: " in line][-1:]
        parts = [f"warm start from {path}" for path in parts]
    resumed = [line.partition(_RESUMED)[2] for line in lines if _RESUMED in line] or [summary.get("resumed_from")]
    resumed = [name for name in resumed if name]
    if resumed:
        parts.append(f"resumed {len(resumed)} time{'s' if len(resumed) > 1 else ''}, last from {Path(resumed[-1].partition(':')[0]).name}")
    return "; ".join(parts) or "fresh"


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A header and rows of text; columns that no run has are left out."""
    shown = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    return [shown, *([_text(name, row[name]) for name in shown] for row in rows)]


def _text(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "wall time":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def write_tables(rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """runs.md as shown, runs.csv with every validation metric of the best epochs. Raises InputError if they cannot be written."""
    ensure_writable_folder(out)
    names = list(dict.fromkeys([*COLUMNS, *sorted({name for row in rows for name in row} - set(COLUMNS))]))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["wall time s" if name == "wall time" else name for name in names], lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({"wall time s" if name == "wall time" else name: value for name, value in row.items()})
    paths = [out / "runs.md", out / "runs.csv"]
    write_text(paths[0], f"# {len(rows)} runs\n\n{as_markdown(table(rows))}")
    write_text(paths[1], text.getvalue())
    return paths
