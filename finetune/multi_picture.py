"""The picture of a multi-model run: all models' losses, one panel a stage, and their forecast skill where it was evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune.engine.curves import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, new_figure, quiet_axes, save_figure
from finetune.jobs_state import BLOCKED, DONE, FAILED, INTERRUPTED, WAITING

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
_DASHES = ("-", "--", ":", "-.")
_FEW = len(_COLOURS)  # models whose training losses can still be told apart
_WIDTH, _HEAD, _LOSSES, _SKILL_ROW, _LEGEND_ROW = 1600, 110, 500, 34, 24  # pixels


def draw_report(path: Path, numbers: Mapping[str, Any]) -> None:
    """Draws a report's numbers (`numbers_of`) as a PNG, written atomically. Raises InputError if it cannot be written."""
    curves, skills = numbers["curves"], {name: skill for name, skill in numbers["skill"].items() if skill}
    columns = max(1, min(5, int(_WIDTH / (85 + 8.5 * max(map(len, curves), default=1)))))
    legend = _LEGEND_ROW * -(-len(curves) // columns)
    top, below = _HEAD + legend + 55, 150 + _SKILL_ROW * len(skills) if skills else 0
    height = top + _LOSSES + 65 + below
    figure = new_figure(_WIDTH, height)
    _head(figure, numbers, height)
    _legend(figure, list(curves), columns, height)
    stages = list(next(iter(curves.values()), {}))
    for column, stage in enumerate(stages):
        axes = figure.add_axes((0.05 + 0.48 * column, 1 - (top + _LOSSES) / height, 0.44, _LOSSES / height))
        _draw_losses(axes, stage, {name: of[stage] for name, of in curves.items()})
    if skills:
        left = 0.02 + 0.0058 * max(map(len, skills))
        axes = figure.add_axes((left, 60 / height, 0.78 - left, _SKILL_ROW * len(skills) / height))
        _draw_skill(axes, skills, list(curves))
    save_figure(figure, path)


def _head(figure: Figure, numbers: Mapping[str, Any], height: int) -> None:
    jobs = numbers["jobs"]
    count = Counter(job["state"] for job in jobs.values())
    told = ", ".join(f"{count[state]} {state}" for state in (DONE, FAILED, INTERRUPTED, BLOCKED, WAITING) if count[state])
    figure.text(0.016, 1 - 40 / height, f"Multi-model training {numbers['run']}", fontsize=17, fontweight="bold", color=INK)
    figure.text(0.016, 1 - 68 / height, f"{len(numbers['curves'])} models, {len(jobs)} jobs: {told}", fontsize=12, color=MUTED)
    if failed := [name for name, job in jobs.items() if job["state"] == FAILED]:
        names = ", ".join(failed[:6]) + (f" and {len(failed) - 6} more" if len(failed) > 6 else "")
        figure.text(0.016, 1 - 92 / height, f"failed: {names}", fontsize=12, color=VERMILION)


def _legend(figure: Figure, names: Sequence[str], columns: int, height: int) -> None:
    lines = [Line2D([], [], linewidth=2, marker="o", markersize=5, label=name, **_style(at)) for at, name in enumerate(names)]
    figure.legend(
        handles=lines,
        loc="upper left",
        bbox_to_anchor=(0.008, 1 - (_HEAD - 8) / height),
        ncols=columns,
        frameon=False,
        fontsize=11,
        labelcolor=INK,
        handlelength=2.6,
        columnspacing=2.5,
    )


def _style(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)]}


def _draw_losses(axes: Axes, stage: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    quiet_axes(axes)
    axes.set_title(stage, loc="left", fontsize=15, fontweight="bold", color=INK)
    thin = len(curves) <= _FEW
    axes.set_xlabel("epoch (thin: training, marks: validation)" if thin else "epoch (validation only)", fontsize=11, color=MUTED)
    axes.set_ylabel("loss", fontsize=11, color=MUTED)
    drawn = False
    for number, curve in enumerate(curves.values()):
        if curve["train"] and (thin or not curve["val"]):
            axes.plot(curve["train_epoch"], curve["train"], linewidth=1.0, alpha=0.45, **_style(number))
        if curve["val"]:
            axes.plot(curve["val_epoch"], curve["val"], linewidth=1.8, marker="o", markersize=5, **_style(number))
        drawn |= bool(curve["train"] or curve["val"])
    if not drawn:
        axes.text(0.5, 0.5, "no loss was logged", transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=13)
        axes.set_yticks([])


def _draw_skill(axes: Axes, skills: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> None:
    """Share by which a model's CRPS is below the best baseline's, with its interval."""
    quiet_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    figure, box = axes.figure, axes.get_position()
    height = figure.get_figheight() * figure.dpi
    title = "forecast skill: CRPS below the best baseline's"
    figure.text(0.016, box.y1 + 20 / height, title, fontsize=15, fontweight="bold", color=INK)
    for row, (name, skill) in enumerate(skills.items()):
        colour = _style(order.index(name))["color"]
        axes.plot([100 * skill["low"], 100 * skill["high"]], [row, row], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(100 * skill["overall"], row, marker="o", color=colour, markersize=9, markeredgecolor="white")
        told = f"{100 * skill['overall']:+.1f} % against {skill['baseline']}"
        axes.text(1.015, row, told, transform=axes.get_yaxis_transform(), va="center", fontsize=11, color=INK)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.set_yticks(range(len(skills)), list(skills), fontsize=11, color=INK)
    axes.margins(x=0.06)
    axes.set_ylim(len(skills) - 0.4, -0.6)
    axes.set_xlabel("per cent, with 95 % interval; right of 0 is better than the baseline", fontsize=11, color=MUTED)
