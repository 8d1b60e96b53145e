"""Pictures of an evaluation: skill, calibration, PIT histogram; the fan on candles is `plots.forecast_pictures`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from finetune.data.frames import bars_frame
from finetune.engine.curves import BLUE, FAINT, INK, MUTED, VERMILION, new_figure, quiet_axes, save_figure
from finetune.evaluation.evaluate import Evaluation
from finetune.evaluation.plots import ForecastView, forecast_pictures
from finetune.evaluation.scores import BANDS, LEVELS
from finetune.evaluation.tables import PIT_BINS

_SCALE = 1.6  # as the fan chart
_NICE = (1, 2, 5, 10)  # whole per cents only
_GOAL = (0.87, 0.93)  # where calibration should bring the 90 % band


def draw_all(found: Evaluation, folder: Path) -> dict[str, Path]:
    """Draws every picture into a folder and returns them by name. Raises InputError if it cannot be written to."""
    paths = {name: folder / f"{name}.png" for name in ("forecasts", "skill", "calibration", "pit")}
    draw_forecasts(found, paths["forecasts"])
    draw_skill(found, paths["skill"])
    draw_calibration(found, paths["calibration"])
    draw_pit(found, paths["pit"])
    return paths


def draw_forecasts(found: Evaluation, path: Path) -> None:
    """The newest forecasts as fans on candles, with what came."""
    origins, views = found.origins, []
    for origin, paths in found.views.items():
        row = int(origins.rows[origin])
        history = bars_frame(origins.panel, row + 1 - origins.lookback, row + 1)
        truth = bars_frame(origins.panel, row + 1, row + 1 + origins.horizon)
        views.append(ForecastView(history, paths, truth, origins.panel.series[int(origins.series[origin])].symbol))
    settings = found.settings
    forecast_pictures(path, views, note=f"{found.title}; T {settings.T:g}, top-p {settings.top_p:g}, seed {settings.seed}")


def draw_skill(found: Evaluation, path: Path) -> None:
    """Left: CRPS skill against the best baseline at each step. Right: over all steps, against every baseline. With 95 % intervals."""
    figure = new_figure(1000, 430)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    figure.subplots_adjust(left=0.065, right=0.98, top=0.835, bottom=0.135, wspace=0.42)
    best = found.skills[found.best]
    _headed(left, "Skill by step", f"above 0: better than {_short(found, found.best)} by CRPS; shaded: 95 % interval")
    steps = np.arange(1, len(best.by_step) + 1)
    left.axhline(0, color=INK, linewidth=1)
    left.fill_between(steps, best.low_by_step, best.high_by_step, color=BLUE, alpha=0.18, linewidth=0)
    left.plot(steps, best.by_step, color=BLUE, linewidth=2, marker="o" if len(steps) <= 30 else None, markersize=5, markeredgecolor="white")
    left.set_xlabel("bars ahead", fontsize=10, color=MUTED)
    left.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    low, high = min([0.0, *best.low_by_step]), max([0.0, *best.high_by_step])
    room = 0.08 * (high - low) or 0.01
    left.set_ylim(low - room, high + room)
    left.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    left.yaxis.set_major_formatter(_signed)
    _forest(right, found)
    save_figure(figure, path, scale=_SCALE)


def _forest(axes: Axes, found: Evaluation) -> None:
    """One row a baseline: skill over all steps with its interval; the baseline chosen on earlier bars in bold."""
    _headed(axes, "Skill against each baseline", "all steps; bold: best on earlier bars, decides", vertical=True)
    names = [one.name for one in found.baselines]
    at = np.arange(len(names))[::-1]
    axes.axvline(0, color=INK, linewidth=1)
    for y, name in zip(at, names, strict=True):
        one = found.skills[name]
        colour = BLUE if name == found.best else MUTED
        axes.plot([one.low, one.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(one.overall, y, "o", color=colour, markersize=7.5, markeredgecolor="white")
    axes.set_yticks(at, [_short(found, name) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set(color=INK, fontsize=10, fontweight="bold" if name == found.best else "normal")
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), min_n_ticks=3))
    axes.xaxis.set_major_formatter(_signed)
    axes.set_xlabel("model worse  ←  0  →  model better", fontsize=10, color=MUTED)


def draw_calibration(found: Evaluation, path: Path) -> None:
    """Left: how many outcomes central bands held, against what they claim. Right: the 90 % band by step, before and after calibration."""
    figure = new_figure(1000, 460)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    figure.subplots_adjust(left=0.065, right=0.985, top=0.8, bottom=0.125, wspace=0.19)
    _headed(left, "Do bands hold what they claim?", "share of outcomes inside central bands; dashed: as claimed", legend=True)
    claimed = np.linspace(0, 1, 41)
    left.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    value, low, high = found.resampler.interval(_inside(found.model.pit[found.keep], claimed))
    left.fill_between(claimed, low, high, color=BLUE, alpha=0.16, linewidth=0)
    left.plot(claimed, value, color=BLUE, linewidth=2.2, label=found.title)
    baseline = found.forecasts[found.best]
    held = _inside(baseline.pit[found.keep], claimed).mean(0)
    left.plot(claimed, held, color=MUTED, linewidth=1.6, linestyle="--", label=_short(found, found.best))
    if found.calibrated is not None:
        bands = list(BANDS)
        after = [_held(found, found.calibrated.quantiles, band).mean() for band in bands]
        left.plot(bands, after, "D", color=VERMILION, markersize=8, markeredgecolor="white", label="calibrated", zorder=5)
    left.set(xlim=(0, 1), ylim=(0, 1))
    left.set_xlabel("claimed", fontsize=10, color=MUTED)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))
    _legend(left)
    _coverage_by_step(right, found)
    save_figure(figure, path, scale=_SCALE)


def _coverage_by_step(axes: Axes, found: Evaluation) -> None:
    _headed(axes, "The 90 % band by step", "share of outcomes inside; shaded: 87 to 93 %", legend=True)
    steps = np.arange(1, found.origins.horizon + 1)
    axes.axhspan(*_GOAL, color=FAINT, linewidth=0, zorder=0)
    axes.axhline(0.9, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    shown = [("before calibration", found.model.quantiles, BLUE, "o")]
    if found.calibrated is not None:
        shown.append(("after", found.calibrated.quantiles, VERMILION, "D"))
    lowest = 0.8
    for label, quantiles, colour, marker in shown:
        value, low, high = found.resampler.interval(_held(found, quantiles, 0.9))
        axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
        marks = {"marker": marker, "markersize": 5.5, "markeredgecolor": "white"} if len(steps) <= 30 else {}
        axes.plot(steps, value, color=colour, linewidth=2, label=label, **marks)
        lowest = min(lowest, float(low.min()))
    axes.set_ylim(max(0.0, lowest - 0.03), 1.005)
    axes.set_xlabel("bars ahead", fontsize=10, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_NICE))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    _legend(axes)


def draw_pit(found: Evaluation, path: Path) -> None:
    """Where outcomes fell in the forecast distribution, 20 bins with 95 % intervals; flat if the distribution is right."""
    figure = new_figure(1000, 400)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.06, right=0.975, top=0.85, bottom=0.145)
    pit = found.model.pit[found.keep]
    line = f"{found.title}, all steps: {pit_reading(found)}; dashed: a right distribution; lines: 95 % intervals"
    _headed(axes, "Where outcomes fell in the forecast distribution (PIT)", line)
    edges = np.linspace(0, 1, PIT_BINS + 1)
    number = np.minimum((pit * PIT_BINS).astype(int), PIT_BINS - 1)
    share = (number[:, :, None] == np.arange(PIT_BINS)).mean(1)  # [O, bins]
    value, low, high = found.resampler.interval(share)
    middle = (edges[1:] + edges[:-1]) / 2
    axes.bar(middle, value, width=0.92 / PIT_BINS, color=BLUE, alpha=0.75, linewidth=0)
    axes.vlines(middle, low, high, color=INK, linewidth=1.4)
    axes.axhline(1 / PIT_BINS, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_NICE))
    axes.set_xlabel("share of sampled paths below the outcome", fontsize=10, color=MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))
    save_figure(figure, path, scale=_SCALE)


def pit_reading(found: Evaluation) -> str:
    """The histogram's shape in words; nothing is claimed that its interval does not allow."""
    pit = found.model.pit[found.keep]
    _, low, high = found.resampler.interval(np.column_stack([(np.abs(pit - 0.5) > 0.4).mean(1), pit.mean(1)]))
    spread = "bands are too narrow" if low[0] > 0.2 else "bands are too wide" if high[0] < 0.2 else ""
    side = "forecasts are too low" if low[1] > 0.5 else "forecasts are too high" if high[1] < 0.5 else ""
    return " and ".join(filter(None, (spread, side))) or "no fault that these origins can show"


def _inside(pit: np.ndarray, claimed: np.ndarray) -> np.ndarray:
    """[O, H], [C] → share of steps whose outcome lies in the central band that claims c, [O, C]."""
    return (np.abs(pit - 0.5)[:, :, None] <= claimed / 2).mean(1)


def _held(found: Evaluation, quantiles: np.ndarray, band: float) -> np.ndarray:
    """[scored O, H]: 1 where the outcome lies inside the band."""
    low, high = (quantiles[found.keep][:, :, LEVELS.index(level)] for level in BANDS[band])
    return ((low <= found.returns) & (found.returns <= high)).astype(float)


def _headed(axes: Axes, title: str, line: str, *, legend: bool = False, vertical: bool = False) -> None:
    quiet_axes(axes)
    axes.tick_params(axis="x", pad=6)
    if vertical:
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_title(title, loc="left", fontsize=13.5, fontweight="bold", color=INK, pad=42 if legend else 25)
    axes.text(0, 1.095 if legend else 1.03, line, transform=axes.transAxes, fontsize=9.5, color=MUTED)


def _legend(axes: Axes) -> None:
    place = {"loc": "lower left", "bbox_to_anchor": (-0.015, 1.0), "borderaxespad": 0.2}
    axes.legend(ncols=3, frameon=False, fontsize=9.5, labelcolor=INK, handlelength=1.6, columnspacing=1.4, **place)


def _short(found: Evaluation, name: str) -> str:
    return found.forecasts[name].label.partition(" (")[0]


def _signed(value: float, _: int | None = None) -> str:
    return "0" if value == 0 else f"{100 * value:+.3g} %"
