"""Pictures of the transformer: what it looked at, and how it compares with its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from finetune.engine.curves import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, new_figure, quiet_axes, save_figure

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK)
_SHOWN = 24  # variables in a picture; the tables have all
_LINES = 6  # variables that are followed over time
_TITLES = {"past": "inputs up to now", "known": "inputs known ahead", "static": "what a series is"}


def _headed(axes: Axes, title: str, line: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=24 if line else 8)
    if line:
        axes.text(0, 1.0, line, transform=axes.transAxes, fontsize=9.5, color=MUTED, va="bottom")


def draw_importance(path: Path, table: pd.DataFrame) -> None:
    """A bar for each of the first 24 variables of a part with its band from the 10th to the 90th percentile of windows.

    table: of `importance.importance` without groups.
    """
    parts = [part for part in _TITLES if (table.part == part).any()]
    shown = {part: table[table.part == part].head(_SHOWN) for part in parts}
    heights = [len(shown[part]) + 4 for part in parts]
    figure = new_figure(900, int(24 * sum(heights) + 40))
    for axes, part in zip(np.atleast_1d(figure.subplots(len(parts), 1, height_ratios=heights)), parts, strict=True):
        rows, of_all = shown[part], (table.part == part).sum()
        at = np.arange(len(rows))[::-1]
        quiet_axes(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.barh(at, 100 * rows["mean"], color=BLUE, alpha=0.8, height=0.72)
        axes.hlines(at, 100 * rows.p10, 100 * rows.p90, color=INK, linewidth=1.6)
        axes.plot(100 * rows.p50, at, "|", color=INK, markersize=9, markeredgewidth=1.8)
        axes.set_yticks(at, rows.variable, fontsize=9, color=INK)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.axvline(100 / of_all, color=VERMILION, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(left=0)
        first = f"the first {len(rows)} of {of_all}; " if of_all > len(rows) else ""
        _headed(
            axes, f"Variable importance: {_TITLES[part]}", f"{first}bar: mean; line: 10th to 90th percentile of windows; dashed: all alike"
        )
        axes.set_xlabel("share of the selection's weight, %", fontsize=9.5, color=MUTED)
    figure.tight_layout()
    save_figure(figure, path, scale=1.3)


def draw_over_time(path: Path, table: pd.DataFrame) -> None:
    """The six variables of the past that matter most, over time, each with its band. table: of `importance` grouped by span of time."""
    past = table[table.part == "past"]
    weighed = (past["mean"] * past.windows).groupby(past.variable).sum().sort_values(ascending=False)
    chosen = weighed.index[:_LINES].tolist()
    figure = new_figure(1000, 120 + 140 * len(chosen))
    plots = np.atleast_1d(figure.subplots(len(chosen), 1, sharex=True))
    for axes, name, colour in zip(plots, chosen, _COLOURS, strict=False):
        rows = past[past.variable == name].sort_values("group")
        when = pd.to_datetime(rows.group).to_numpy()
        quiet_axes(axes)
        axes.fill_between(when, 100 * rows.p10, 100 * rows.p90, color=colour, alpha=0.18, linewidth=0)
        axes.plot(when, 100 * rows["mean"], color=colour, linewidth=2, marker="o", markersize=4, markeredgecolor="white")
        axes.set_title(name, loc="left", fontsize=10.5, color=INK, pad=4)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("%", fontsize=9, color=MUTED)
    plots[-1].set_xlabel("time (UTC)", fontsize=9.5, color=MUTED)
    figure.suptitle("Variable importance over time", x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.01, 1 - 52 / figure.get_figheight() / 100, "line: mean weight; band: 10th to 90th percentile", fontsize=9.5, color=MUTED)
    figure.tight_layout(rect=(0, 0, 1, 1 - 50 / figure.get_figheight() / 100))
    save_figure(figure, path, scale=1.3)


def draw_by_group(path: Path, table: pd.DataFrame, what: str) -> None:
    """Variables of the past against groups (symbols, periods): mean weights as colours and numbers, the band small below each.

    table: of `importance` with groups; what: "symbol" or "period".
    """
    past = table[table.part == "past"]
    order = past.groupby("variable")["mean"].mean().sort_values(ascending=False).index[:_SHOWN].tolist()
    groups = list(dict.fromkeys(past.group))[:12]
    mean, low, high = (
        past.pivot(index="variable", columns="group", values=key).loc[order, groups].to_numpy() for key in ("mean", "p10", "p90")
    )
    figure = new_figure(330 + 120 * len(groups), 150 + 34 * len(order))
    axes = figure.subplots()
    axes.imshow(mean, aspect="auto", cmap="Blues", vmin=0, vmax=max(1e-9, float(mean.max())) * 1.3)
    for i, j in np.ndindex(mean.shape):
        ink = "white" if mean[i, j] > 0.8 * mean.max() else INK
        axes.text(j, i - 0.14, f"{100 * mean[i, j]:.1f} %", ha="center", va="center", fontsize=9, color=ink)
        axes.text(j, i + 0.26, f"{100 * low[i, j]:.1f} to {100 * high[i, j]:.1f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(len(order)), order, fontsize=9, color=INK)
    axes.set_xticks(range(len(groups)), groups, fontsize=10, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _headed(axes, f"Variable importance by {what}", "mean weight; below it the 10th to 90th percentile")
    figure.tight_layout()
    save_figure(figure, path, scale=1.3)


def draw_attention(path: Path, table: pd.DataFrame) -> None:
    """Attention by lag with its band, one plot per period. table: of `attention_by_lag` grouped by period."""
    periods = list(dict.fromkeys(table.group))
    figure = new_figure(1000, 60 + 290 * len(periods))
    for axes, period, colour in zip(np.atleast_1d(figure.subplots(len(periods), 1)), periods, _COLOURS * 9, strict=False):
        rows = table[table.group == period].sort_values("lag", ascending=False)
        at = -rows.lag
        quiet_axes(axes)
        axes.fill_between(at, 100 * rows.p10, 100 * rows.p90, color=colour, alpha=0.18, linewidth=0, label="10th to 90th percentile")
        axes.plot(at, 100 * rows["mean"], color=colour, linewidth=2, label="mean")
        axes.plot(at, 100 * rows.p50, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="median")
        axes.axhline(100 / len(rows), color=MUTED, linewidth=0.9, linestyle=":", label="all rows alike")
        axes.axvline(0, color=FAINT, linewidth=1.2)
        axes.set_ylim(0, 120 * rows.p90.max())
        _headed(axes, f"Attention by lag{f', bars of {period}' if period else ''}", "0: the last known bar; +1: the step that is forecast")
        axes.set_ylabel("weight, %", fontsize=9.5, color=MUTED)
        axes.set_xlabel("bars from the last known one", fontsize=9.5, color=MUTED)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=4, loc="upper right")
    figure.tight_layout()
    save_figure(figure, path, scale=1.3)


def draw_comparison(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Differences from each baseline with 95 % intervals, right of 0: the transformer is better. A panel per place (all, 1h ...).

    rows: {"where", "target", "other", "metric", "value", "low", "high"} with values already turned so that more is better, and shares for
    errors.
    """
    places, targets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("where", "target"))
    others = list(dict.fromkeys(row["other"] for row in rows))
    figure = new_figure(max(900, 250 + 300 * len(places)), 190 + 34 * len(targets))
    plots = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for axes, place in zip(plots, places, strict=True):
        quiet_axes(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=1)
        for row in (row for row in rows if row["where"] == place):
            number = others.index(row["other"])
            y = len(targets) - 1 - targets.index(row["target"]) + 0.16 - 0.32 * number
            colour = (BLUE, MUTED)[number % 2]
            axes.plot(row["value"], y, "o", color=colour, markersize=6, markeredgecolor="white", zorder=3)
            axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.set_title(place, loc="left", fontsize=11.5, fontweight="bold", color=INK)
        axes.xaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-12 else f"{100 * value:+.3g}")
        axes.set_ylim(-0.7, len(targets) - 0.3)
    labels = [
        f"{target.removeprefix('target_')} ({next(r['metric'] for r in rows if r['target'] == target).upper()})" for target in targets
    ]
    plots[0].set_yticks(np.arange(len(targets))[::-1], labels, fontsize=9.5, color=INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.supxlabel(
        "worse  ←  0  →  better   (AUC: points; errors: % of the baseline's; lines: 95 % intervals)", fontsize=9.5, color=MUTED
    )
    handles = [
        figure.axes[0].plot([], [], color=(BLUE, MUTED)[k % 2], marker="o", label=f"against {name}")[0] for k, name in enumerate(others)
    ]
    top = 1 - 40 / (100 * figure.get_figheight())
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, top), ncols=2, frameon=False, fontsize=9.5, labelcolor=INK)
    figure.tight_layout(rect=(0, 0, 1, top))
    save_figure(figure, path, scale=1.3)
