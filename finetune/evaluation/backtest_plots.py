"""performance_plot.png: what the signals earned, against the benchmark and the baselines: cumulative, excess, drawdown, turnover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from finetune.engine.curves import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, new_figure, quiet_axes, save_figure
from finetune.evaluation.backtest import Backtests
from finetune.evaluation.backtest_stats import drawdown, to_days

_SCALE = 1.6  # as the other pictures
_COLOURS = (VERMILION, GREEN, ORANGE, PURPLE, SKY, "#A65628", "#4D4D9F")  # of the signals beside the deciding one
_GREYS = ("#9AA1AC", "#6B7280")
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_SMOOTH_DAYS = 20


def draw_performance(found: Backtests, path: Path, title: str = "") -> None:
    """Four panels over the same days, after cost: running sums of returns, of excess returns, drawdowns, and turnover (mean of 20 days).

    The deciding signal is heavy, others thin, baselines grey, what is only held black. Raises InputError for an unwritable folder.
    """
    days = {name: to_days(one.report) for name, one in {**found.signals, **found.baselines}.items()}
    figure = new_figure(1000, 1080)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2.4, 1.4, 1.2))
    figure.subplots_adjust(left=0.068, right=0.8, top=0.925, bottom=0.045, hspace=0.3)
    head = f"Backtest of {title}" if title else "Backtest"
    figure.text(0.018, 0.979, head, fontsize=15, fontweight="bold", color=INK)
    figure.text(0.018, 0.962, found.verdict, fontsize=9.5, color=MUTED)
    held = {name: line.groupby(line.index.normalize()).sum() for name, line in found.lines.items()}
    _lines(panels[0], "Return after cost, summed", {name: one["net"].cumsum() for name, one in days.items()}, found, held)
    _lines(
        panels[1],
        f"Excess return over {found.benchmark}, after cost, summed",
        {name: one["excess"].cumsum() for name, one in days.items()},
        found,
        {},
    )
    _drawdowns(panels[2], days, found, held)
    _turnover(panels[3], days, found)
    panels[-1].tick_params(axis="x", pad=8)
    locator = AutoDateLocator(minticks=4, maxticks=9)
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    shown = days[found.headline].index
    if len(shown) > 1:
        panels[-1].set_xlim(shown[0], shown[-1])
    save_figure(figure, path, scale=_SCALE)


def _lines(axes: Axes, title: str, curves: dict[str, pd.Series], found: Backtests, held: dict[str, pd.Series]) -> None:
    _headed(axes, title)
    axes.axhline(0, color="#C4C9D1", linewidth=1, zorder=1)
    ends = []
    for name, curve in {**curves, **{name: line.cumsum() for name, line in held.items()}}.items():
        style = _style(found, name)
        axes.plot(curve.index, curve.to_numpy(), **style)
        ends.append((float(curve.iloc[-1]), name, style["color"]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(_per_cent)
    _name_ends(axes, ends, found)


def _drawdowns(axes: Axes, days: dict[str, pd.DataFrame], found: Backtests, held: dict[str, pd.Series]) -> None:
    _headed(axes, f"Drawdown of the summed return: {found.headline} and {found.benchmark}")
    one = days[found.headline]
    low = drawdown(one["net"].to_numpy())
    axes.fill_between(one.index, low, 0, color=BLUE, alpha=0.22, linewidth=0)
    axes.plot(one.index, low, color=BLUE, linewidth=1.4)
    line = drawdown(held[found.benchmark].to_numpy())
    axes.plot(one.index, line, color=INK, linewidth=1.2)
    axes.set_ylim(min(low.min(), line.min(), -0.01) * 1.08, 0)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(_per_cent)
    _name_ends(axes, [(float(low[-1]), found.headline, BLUE), (float(line[-1]), found.benchmark, INK)], found)


def _turnover(axes: Axes, days: dict[str, pd.DataFrame], found: Backtests) -> None:
    _headed(axes, f"Turnover a day, mean of {_SMOOTH_DAYS} days")
    ends, highest = [], 0.0
    for name, one in days.items():
        # the first day buys everything; it would flatten the rest
        curve = one["turnover"].iloc[1:].rolling(_SMOOTH_DAYS, min_periods=1).mean()
        style = _style(found, name)
        axes.plot(curve.index, curve.to_numpy(), **style)
        if len(curve):
            highest = max(highest, float(curve.max()))
            ends.append((float(curve.iloc[-1]), name, style["color"]))
    axes.set_ylim(0, 1.08 * highest or 1)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(_per_cent)
    _name_ends(axes, [end for end in ends if end[1] == found.headline], found)


def _style(found: Backtests, name: str) -> dict[str, object]:
    if name == found.headline:
        return {"color": BLUE, "linewidth": 2.4, "zorder": 5}
    if name in found.signals:
        others = [one for one in found.signals if one != found.headline]
        return {"color": _COLOURS[others.index(name) % len(_COLOURS)], "linewidth": 1.1, "alpha": 0.9, "zorder": 3}
    if name in found.baselines:
        at = list(found.baselines).index(name)
        return {"color": _GREYS[at % 2], "linewidth": 1.3, "linestyle": _DASHES[1 + at % 2], "zorder": 2}
    at = list(found.lines).index(name)
    return {"color": INK, "linewidth": 1.7, "linestyle": _DASHES[at % 2], "zorder": 4}


def _name_ends(axes: Axes, ends: list[tuple[float, str, object]], found: Backtests) -> None:
    """Each line's name beside its end, to the right of the panel, pushed apart where they would overlap: no legend over lines."""
    low, high = axes.get_ylim()
    height_px = axes.get_position().height * axes.figure.get_figheight() * 100
    step = 13.5 / height_px  # of the panel's height
    ordered = sorted(ends)
    wanted = np.array([(value - low) / (high - low) for value, _, _ in ordered])
    for (_, name, colour), at in zip(ordered, _apart(wanted, step), strict=True):
        weight = "bold" if name == found.headline else "normal"
        axes.text(1.012, at, name, transform=axes.transAxes, fontsize=9.2, color=colour, va="center", fontweight=weight)


def _apart(wanted: np.ndarray, step: float) -> np.ndarray:
    """Increasing places as near as they can be to those wanted, at least `step` apart (pool adjacent violators)."""
    blocks: list[list[float]] = []  # [sum of wanted less own offset, count]
    for number, place in enumerate(wanted):
        blocks.append([place - number * step, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    base = np.concatenate([np.full(int(count), total / count) for total, count in blocks]) if blocks else np.empty(0)
    return base + step * np.arange(len(wanted))


def _headed(axes: Axes, title: str) -> None:
    quiet_axes(axes)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=7)


def _per_cent(value: float, _: int | None = None) -> str:
    return f"{100 * value:.4g} %"
