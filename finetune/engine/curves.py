"""The picture of a training run: loss of training and validation over the steps, the learning rate below.

Figures are made without pyplot: no global state, no window, safe in threads and servers.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator

from finetune.engine.files import read_json_lines, write_with

# Okabe and Ito's palette, which people with any colour vision tell apart, and three greys
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8E4585", "#56B4E9"
INK, MUTED, FAINT = "#22272E", "#6B7280", "#E5E7EB"
_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Noto Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
_NICE = (1, 2, 5, 10)  # ticks at round numbers only
_FEW = 25  # logged points; fewer are drawn one by one instead of smoothed


def new_figure(width_px: int, height_px: int) -> Figure:
    """An empty white figure of that size."""
    return Figure(figsize=(width_px / 100, height_px / 100), dpi=100, facecolor="white")


def save_figure(figure: Figure, path: Path, scale: float = 1.0) -> None:
    """Writes a PNG atomically; `scale` 2 doubles the pixels (for documents). Raises InputError if the folder cannot be written to.

    Texts are drawn as they are: a symbol named $x^ is no formula. Chinese is drawn in a font that has it; where none is installed, one line
    on stderr says so, and question marks stand for it.
    """
    texts = figure.findobj(Text)
    for text in texts:
        text.set_parse_math(False)
    _draw_chinese(texts, path)
    with rc_context({"text.parse_math": False}):  # of the labels that are made while drawing
        write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100 * scale, metadata={"Software": None}))


def _draw_chinese(texts: list[Text], path: Path) -> None:
    """Gives texts that the usual font has not all letters of one more; what neither has becomes question marks, and is told."""
    usual, lost = ["DejaVu Sans"], {}
    for text in texts:
        letters = {letter for letter in text.get_text() if not letter.isspace() and ord(letter) not in _characters(*usual)}
        if letters:
            fonts = [*usual, *_chinese()]
            text.set_fontfamily(fonts)
            missing = {letter for letter in letters if ord(letter) not in _characters(*fonts)}
            lost.update(dict.fromkeys(letter for letter in text.get_text() if letter in missing))
            text.set_text("".join("?" if letter in missing else letter for letter in text.get_text()))
    if lost:
        print(f"{path}: no font here has {''.join(lost)}; install one such as Noto Sans CJK", file=sys.stderr)


@cache
def _chinese() -> list[str]:
    """The first font with Chinese that is installed. Matplotlib's list is as old as its cache: newer fonts are added to it."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # such fonts have no bold, which is no news to a user
    if {font.name for font in fontManager.ttflist}.isdisjoint(_CHINESE):
        for file in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}):
            with suppress(OSError, RuntimeError):  # a font that cannot be read draws nothing
                fontManager.addfont(file)
    return [name for name in _CHINESE if any(font.name == name for font in fontManager.ttflist)][:1]


@cache
def _characters(*fonts: str) -> frozenset[int]:
    """The code points that these fonts can draw."""
    return frozenset().union(*(get_font(findfont(FontProperties(family=name))).get_charmap() for name in fonts))


def quiet_axes(axes: Axes) -> None:
    """Only what helps reading: a faint horizontal grid, no box, small grey tick labels."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#C4C9D1")
    axes.tick_params(axis="both", colors=MUTED, labelsize=10, length=0)


def draw_curves(path: Path, runs: Mapping[str, Path]) -> None:
    """Draws the metrics.jsonl of one or more stages, one column each, 1200 × 700 pixels a column.

    runs: title -> metrics.jsonl. A run without training or without validation lines, or with none at all, is drawn with what there is.
    Raises InputError if a file is damaged or the folder cannot be written to.
    """
    figure = new_figure(1200 * max(1, len(runs)), 700)
    grid = figure.add_gridspec(2, max(1, len(runs)), height_ratios=(3.2, 1), hspace=0.16, wspace=0.16)
    grid.update(left=0.075 / max(1, len(runs)), right=1 - 0.03 / max(1, len(runs)), top=0.875, bottom=0.09)
    for column, (title, metrics) in enumerate(runs.items()):
        lines = read_json_lines(metrics)
        losses = figure.add_subplot(grid[0, column])
        rates = figure.add_subplot(grid[1, column], sharex=losses)
        _draw_losses(losses, title, lines)
        _draw_rates(rates, lines)
    save_figure(figure, path)


def _draw_losses(axes: Axes, title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    quiet_axes(axes)
    axes.tick_params(labelbottom=False)
    axes.set_title(title, loc="left", fontsize=16, fontweight="bold", color=INK, pad=32)
    axes.set_ylabel("loss", fontsize=11, color=MUTED)
    steps, losses = _series(lines, "train", "loss")
    marks, scores = _series(lines, "val", "loss")
    whole_marks, whole = _series(lines, "val", "window_loss")
    smooth = _smoothed(losses)
    if len(losses) >= _FEW:
        axes.plot(steps, losses, color=SKY, linewidth=0.8, alpha=0.45, label="training, as logged")
        axes.plot(steps, smooth, color=BLUE, linewidth=2.0, label="smoothed")
    elif len(losses):
        axes.plot(steps, losses, color=BLUE, linewidth=2.0, marker="o", markersize=4, label="training")
    if len(whole):
        axes.plot(
            whole_marks, whole, color=MUTED, linewidth=1.2, linestyle="--", marker="s", markersize=4, label="validation, whole window"
        )
    if len(scores):
        best = int(np.argmin(scores))
        what = "validation, lookahead" if len(whole) else "validation"
        label = f"{what}: best {scores[best]:.4g} at step {marks[best]:,.0f}"
        axes.plot(marks, scores, color=VERMILION, linewidth=1.6, marker="o", markersize=6, markeredgecolor="white", label=label)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": VERMILION, "markeredgewidth": 1.6}
        axes.plot(marks[best], scores[best], marker="o", linestyle="none", **ring)
    if len(losses) or len(scores):
        axes.set_xlim(0, 1.02 * max([*steps, *marks]))
        axes.set_ylim(*_limits(losses, smooth, scores, whole))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_NICE))
        place = {"loc": "lower left", "bbox_to_anchor": (-0.008, 1.0), "borderaxespad": 0.3}
        axes.legend(ncols=4, frameon=False, fontsize=10.5, labelcolor=INK, handlelength=1.6, columnspacing=1.6, **place)
    else:
        axes.text(0.5, 0.5, "no loss was logged", transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=13)
        axes.set_yticks([])


def _draw_rates(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    quiet_axes(axes)
    steps, rates = _series(lines, "train", "lr")
    if len(rates):
        axes.plot(steps, rates, color=GREEN, linewidth=1.8, marker="o" if len(rates) == 1 else None)
        axes.set_ylim(0, max(rates) * 1.12 or 1.0)
    else:
        axes.set_yticks([])
    axes.set_ylabel("learning rate", fontsize=11, color=MUTED)
    axes.set_xlabel("optimiser step", fontsize=11, color=MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=_NICE))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value else "0")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=_NICE))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _series(lines: Sequence[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one number, without lines where it is missing or was not finite (null)."""
    points = [(line["step"], line[name]) for line in lines if line.get("split") == split and isinstance(line.get(name), int | float)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, float), np.array(values, float)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a window of 4 % of the points centred on each (so that it does not lag), cut off at both ends."""
    half = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _limits(losses: np.ndarray, smooth: np.ndarray, *marks: np.ndarray) -> tuple[float, float]:
    """Room for every validation mark and for the training loss except its rarest spikes, which would flatten the rest."""
    inner = [np.percentile(losses, (0.5, 99) if len(losses) >= _FEW else (0, 100))] if len(losses) else []
    everything = np.concatenate([*inner, smooth[len(smooth) // 50 :], *marks])
    low, high = float(everything.min()), float(everything.max())
    room = 0.07 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room
