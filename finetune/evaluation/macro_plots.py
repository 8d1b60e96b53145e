"""The macro report's picture: seasons above, regimes below, each as it came, as it was forecast, and as it was before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from finetune.engine.curves import BLUE, INK, MUTED, ORANGE, new_figure, quiet_axes, save_figure

_BEFORE = "#C4C9D1"
_LABELS = {
    "month": dict(zip(range(1, 13), ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], strict=True)),
    "weekday": dict(enumerate(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])),
}
_PARTS = (("before", _BEFORE, "before"), ("truth", INK, "what came"), ("forecast", BLUE, "forecast"))


def draw_macro(numbers: Mapping[str, Any], path: Path) -> None:
    """Draws what `macro_report` found as a PNG, written atomically. Raises InputError if it cannot be written."""
    figure = new_figure(1100, 1050)
    axes = figure.subplots(3, 2)
    figure.subplots_adjust(left=0.075, right=0.985, top=0.885, bottom=0.05, wspace=0.17, hspace=0.52)
    figure.text(0.012, 0.972, f"{numbers['title']}: seasons and regimes", fontsize=14, fontweight="bold", color=INK)
    told = (
        f"{numbers['forecasts']:,} held-out forecasts of {numbers['horizon']} bars, {numbers['first'][:10]} to {numbers['last'][:10]}, "
        f"{numbers['samples']} paths each"
    )
    figure.text(0.012, 0.953, told, fontsize=10, color=MUTED)
    for column, (name, season) in enumerate(numbers["seasonality"].items()):
        _seasons(axes[0, column], name, season, "mean", f"Mean return by {name}", "of a bar; lines: 95 % interval of what came")
        _seasons(axes[1, column], name, season, "move", f"Typical move by {name}", "mean absolute return of a bar")
    for column, (name, regime) in enumerate(numbers["regimes"].items()):
        _regimes(axes[2, column], name, regime)
    handles, labels = axes[2, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", bbox_to_anchor=(0.99, 0.99), ncols=3, frameon=False, fontsize=10, labelcolor=INK)
    save_figure(figure, path, scale=1.6)


def _seasons(axes: Axes, name: str, season: Mapping[str, Any], what: str, title: str, subtitle: str) -> None:
    correlation = season["correlation"][what]
    agreement = f"; correlation {correlation:+.2f}" if correlation is not None and np.isfinite(correlation) else ""
    _headed(axes, title, subtitle + agreement)
    groups = season["groups"]
    at = np.arange(len(groups))
    for place, (part, colour, _) in enumerate(_PARTS):
        values = np.array([group[part][what] for group in groups.values()], float)
        axes.bar(at + 0.27 * (place - 1), values, width=0.25, color=colour, zorder=2)
        if part == "truth" and what == "mean":
            errors = 1.96 * np.array([group[part]["se"] for group in groups.values()], float)
            axes.errorbar(at, values, yerr=errors, fmt="none", ecolor=ORANGE, elinewidth=1.5, zorder=3)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=3)
    axes.set_xticks(at, [_LABELS[name][int(value)] for value in groups])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.2g} %" if share else "0"))


def _regimes(axes: Axes, name: str, regime: Mapping[str, Any]) -> None:
    skill = regime["skill"]
    values = [skill[end] for end in ("overall", "low", "high")]
    told = "Brier skill {:+.1%} ({:+.1%} to {:+.1%}) against the shares before".format(*values) if np.isfinite(values).all() else ""
    _headed(axes, f"{name.capitalize()} of a horizon", told)
    at = np.arange(len(regime["states"]))
    for place, (part, colour, label) in enumerate(_PARTS):
        axes.bar(at + 0.27 * (place - 1), regime[part], width=0.25, color=colour, zorder=2, label=label)
    axes.set_xticks(at, regime["states"])
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _headed(axes: Axes, title: str, subtitle: str) -> None:
    quiet_axes(axes)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=20)
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, fontsize=9, color=MUTED)
