"""The report of a rise forecast, as JSON and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.engine.files import write_json, write_text

_COLUMNS = {"accuracy": "accuracy", "f1": "F1", "auc": "AUC", "log_loss": "log-loss", "called_up": "called up"}


def write_reports(report: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """{out without its ending}_report.json and .md beside `out`. Raises InputError if they cannot be written."""
    paths = out.with_name(f"{out.stem}_report.json"), out.with_name(f"{out.stem}_report.md")
    write_json(paths[0], report)
    write_text(paths[1], markdown(report))
    return paths


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"# Rise or fall: {report['title']}", "", *(f"**{line}**  " for line in report["verdicts"]), ""]
    lines += ["## Predictions", "", *(f"- {line}" for line in report["counts_in_words"]), ""]
    if scores := report.get("scores"):
        lines += [f"## Held-out bars: {report['held_out_in_words']}", "", *table(scores), ""]
        rule = report["rule"]
        losses = ", ".join(f"{name} {value:.4f}" for name, value in rule["log_loss"].items())
        lines += [
            f"Chosen on {rule['chosen_on']:,} earlier forecasts: probability by {rule['estimate']} of the paths (log-loss once calibrated: "
            f"{losses}), log-odds × {rule['slope']:.3f} {rule['intercept']:+.3f}, a rise above {rule['threshold']:.4f}. "
            f"Uncalibrated log-loss on the held-out bars: {report['raw_log_loss']:.4f}. A coin's is 0.6931.",
            "",
            "| forecast | rose | count |",
            "| ---: | ---: | ---: |",
            *(f"| {100 * bin['forecast']:.1f} % | {100 * bin['rose']:.1f} % | {bin['count']:,} |" for bin in report["reliability"]),
            "",
        ]
    if report["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in report["notes"]), ""]
    return "\n".join(lines)


def table(scores: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown rows of scores by method."""
    rows = ["| method | " + " | ".join(_COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(_COLUMNS)]
    for one in scores.values():
        rows.append(f"| {one['label']} | " + " | ".join(_cell(name, one[name]) for name in _COLUMNS) + " |")
    return rows


def plain_table(scores: dict[str, dict[str, Any]]) -> list[str]:
    """The same for a terminal."""
    width = max(len(one["label"]) for one in scores.values())
    lines = [" " * width + "".join(f"{title:>11}" for title in _COLUMNS.values())]
    return lines + [f"{one['label']:<{width}}" + "".join(f"{_cell(name, one[name]):>11}" for name in _COLUMNS) for one in scores.values()]


def _cell(name: str, value: float) -> str:
    if value != value:
        return "–"
    return f"{100 * value:.2f} %" if name in ("accuracy", "called_up") else f"{value:.4f}"
