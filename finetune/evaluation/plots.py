"""Pictures of forecasts: what went before as candles, what was forecast as a fan, what came as candles again.

Bars stand side by side on the horizontal axis, whatever lies between them: no holes for nights and weekends. Dates are labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from finetune.engine.curves import INK, MUTED, new_figure, quiet_axes, save_figure
from kronos.errors import InputError

PRICES = ("open", "high", "low", "close")
FIELDS = (*PRICES, "volume", "amount")
UP, DOWN = "#2A9D8F", "#C8553D"  # green and red as everywhere, yet of different lightness and hue to colour-blind eyes
CAME_UP, CAME_DOWN, CAME_EDGE = "#FFFFFF", "#3B4452", "#3B4452"  # what came: hollow and filled, readable on top of the fan
FAN = "#5B4B9E"
FEWEST_FOR_BANDS = 20  # with fewer paths a 90 % band is a guess: the paths themselves are shown


@dataclass(frozen=True)
class ForecastView:
    """One series with its forecast.

    history: bars up to the origin, the last one is the origin. Columns open, high, low, close, optionally volume; times in the index or a
        column `timestamps`.
    paths: [samples, H, 6] in the order open, high, low, close, volume, amount; or a DataFrame of H bars (one path).
    truth: the bars that came, at most H; None where nobody knows yet.
    times: of the H forecast bars; by default those of `paths` (DataFrame) or of `truth`.
    unit: of the prices, for the axis ("USD", "index points").
    """

    history: pd.DataFrame
    paths: np.ndarray | pd.DataFrame
    truth: pd.DataFrame | None = None
    title: str = ""
    times: pd.DatetimeIndex | None = None
    unit: str = ""


def forecast_picture(
    path: Path,
    history: pd.DataFrame,
    truth: pd.DataFrame | None,
    paths: np.ndarray | pd.DataFrame,
    title: str,
    *,
    times: pd.DatetimeIndex | None = None,
    unit: str = "",
    note: str = "",
    show_bars: int | None = None,
) -> None:
    """Draws one forecast; see `ForecastView` and `forecast_pictures`."""
    forecast_pictures(path, [ForecastView(history, paths, truth, title, times, unit)], note=note, show_bars=show_bars)


def forecast_pictures(path: Path, views: Sequence[ForecastView], *, note: str = "", show_bars: int | None = None) -> None:
    """Draws forecasts side by side, one column a series, as a PNG of 1600 × 800 pixels and more, written atomically.

    Above: candles of the last `show_bars` bars of history (three times the horizon by default, 40 at least) and of the truth, the median
    close of the paths and the bands that hold 50 and 90 % of them at each step (the paths themselves where there are fewer than 20).
    Below: volume, where there is any. note: a line under the picture, for instance the model and its training data.
    Raises InputError for missing columns, wrong shapes, an unwritable folder.
    """
    prepared = [_prepare(view, show_bars) for view in views]
    if not prepared:
        raise InputError("forecast picture: there is no forecast to draw")
    count = len(prepared)
    with_volume = any(item.has_volume for item in prepared)
    figure = new_figure(1000 if count == 1 else 620 * count, 520)
    grid = figure.add_gridspec(2 if with_volume else 1, count, height_ratios=(3.6, 1) if with_volume else (1,), hspace=0.06, wspace=0.13)
    edge = 0.06 if count == 1 else 0.1 / count
    grid.update(left=edge, right=1 - 0.3 * edge, top=0.815, bottom=0.15 if note else 0.1)
    for column, item in enumerate(prepared):
        prices = figure.add_subplot(grid[0, column])
        _draw_prices(prices, item)
        lowest = prices
        if with_volume:
            lowest = figure.add_subplot(grid[1, column], sharex=prices)
            _draw_volume(lowest, item)
            prices.tick_params(labelbottom=False)
        _label_dates(lowest, item)
    _add_legend(figure, prepared)
    if note:
        figure.text(0.012, 0.018, note, fontsize=9, color=MUTED, ha="left", va="bottom")
    save_figure(figure, path, scale=1.6)


@dataclass(frozen=True)
class _Prepared:
    """A view with its bars numbered: x = 0 is the origin, history to the left of it, the forecast to the right."""

    title: str
    unit: str
    history: pd.DataFrame  # [L, 4 or 5] the bars shown
    lookback: int  # bars of history there are
    truth: pd.DataFrame | None
    paths: np.ndarray  # [samples, H, 6]
    times: dict[int, pd.Timestamp]  # x -> time

    @property
    def horizon(self) -> int:
        return self.paths.shape[1]

    @property
    def fan(self) -> bool:
        return len(self.paths) >= FEWEST_FOR_BANDS

    @property
    def subtitle(self) -> str:
        shown, count = len(self.history), len(self.paths)
        parts = [
            self.unit,
            f"{count} sampled paths, {self.horizon} bars ahead" if count > 1 else f"one forecast, {self.horizon} bars ahead",
        ]
        parts.append(f"last {shown} of {self.lookback} bars shown" if shown < self.lookback else "")
        return "  ·  ".join(part for part in parts if part)

    @property
    def has_volume(self) -> bool:
        return "volume" in self.history and bool((self.history["volume"] > 0).any())


def _prepare(view: ForecastView, show_bars: int | None) -> _Prepared:
    name = view.title or "forecast"
    history = _bars(view.history, f"{name}: history")
    truth = _bars(view.truth, f"{name}: truth") if view.truth is not None and len(view.truth) else None
    paths, times = _paths(view.paths, name), view.times
    if times is None and isinstance(view.paths, pd.DataFrame):
        times = _times(view.paths)
    if times is None and truth is not None:
        times = _times(truth)
    if truth is not None:
        truth = truth.iloc[: paths.shape[1]]
    if history.empty:
        raise InputError(f"{name}: history has no bars; give at least the last bar before the forecast")
    shown = history.iloc[-(show_bars or max(40, 3 * paths.shape[1])) :]
    known = _times(shown)
    labels = {} if known is None else {x - len(shown) + 1: known[x] for x in range(len(shown))}
    labels |= {} if times is None else {x + 1: times[x] for x in range(min(len(times), paths.shape[1]))}
    return _Prepared(view.title, view.unit, shown, len(history), truth, paths, labels)


def _bars(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    missing = [name for name in PRICES if name not in frame]
    if missing:
        raise InputError(f"{what} lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    return frame


def _paths(paths: np.ndarray | pd.DataFrame, name: str) -> np.ndarray:
    """[samples, H, 6] float64; columns that a DataFrame lacks are NaN."""
    if isinstance(paths, pd.DataFrame):
        _bars(paths, f"{name}: forecast")
        return paths.reindex(columns=list(FIELDS)).to_numpy(float)[None]
    if paths.ndim != 3 or paths.shape[2] != len(FIELDS) or 0 in paths.shape:
        raise InputError(f"{name}: paths have shape {tuple(paths.shape)}; give [samples, horizon, 6] in the order {', '.join(FIELDS)}")
    return np.asarray(paths, float)


def _times(frame: pd.DataFrame) -> pd.DatetimeIndex | None:
    if "timestamps" in frame:
        return pd.DatetimeIndex(frame["timestamps"])
    return frame.index if isinstance(frame.index, pd.DatetimeIndex) else None


def _draw_prices(axes: Axes, item: _Prepared) -> None:
    quiet_axes(axes)
    axes.set_title(item.title, loc="left", fontsize=13.5, fontweight="bold", color=INK, pad=23)
    axes.text(0, 1.025, item.subtitle, transform=axes.transAxes, fontsize=9.5, color=MUTED)
    close = item.paths[:, :, PRICES.index("close")]  # [samples, H]
    origin = float(item.history["close"].iloc[-1])
    steps = np.arange(item.horizon + 1)
    _mark_origin(axes, item)
    _candles(axes, item.history, 1 - len(item.history))
    if item.truth is not None:
        _candles(axes, item.truth, 1, came=True)
    # every path starts at the last known close, so the fan opens from there
    fan = np.concatenate([np.full((len(close), 1), origin), close], axis=1)
    if item.fan:
        for share, alpha in ((0.9, 0.17), (0.5, 0.27)):
            low, high = np.quantile(fan, (0.5 - share / 2, 0.5 + share / 2), axis=0)
            axes.fill_between(steps, low, high, color=FAN, alpha=alpha, linewidth=0, zorder=3)
    elif len(fan) > 1:
        axes.add_collection(LineCollection([np.column_stack([steps, one]) for one in fan], colors=FAN, linewidths=0.9, alpha=0.4, zorder=3))
    axes.plot(steps, np.median(fan, axis=0), color=FAN, linewidth=2.2, zorder=5, solid_capstyle="round")
    axes.set_xlim(0.5 - len(item.history) - 0.5, item.horizon + 0.8)
    limits = _price_limits(item, fan)
    axes.set_ylim(*limits)
    locator = MaxNLocator(6, steps=(1, 2, 5, 10))
    axes.yaxis.set_major_locator(locator)
    decimals = max(0, -math.floor(math.log10(np.diff(locator.tick_values(*limits))[0]) + 1e-9))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.{decimals}f}")


def _draw_volume(axes: Axes, item: _Prepared) -> None:
    quiet_axes(axes)
    axes.text(0.003, 0.97, "volume" if item.has_volume else "no volume", transform=axes.transAxes, fontsize=9.5, color=MUTED, va="top")
    _mark_origin(axes, item)
    if not item.has_volume:
        axes.set_yticks([])
        return
    highest = _volume_bars(axes, item.history, 1 - len(item.history))
    if item.truth is not None and "volume" in item.truth:
        highest = max(highest, _volume_bars(axes, item.truth, 1, came=True))
    volume = item.paths[:, :, FIELDS.index("volume")]
    steps = np.arange(1, item.horizon + 1)
    if np.isfinite(volume).all():
        middle = np.median(volume, axis=0)
        if item.fan:
            axes.fill_between(steps, *np.quantile(volume, (0.05, 0.95), axis=0), color=FAN, alpha=0.25, linewidth=0, zorder=3)
        axes.plot(steps, middle, color=FAN, linewidth=1.8, zorder=4)
        highest = max(highest, float(middle.max()))
    axes.set_ylim(0, 1.32 * highest)  # room for the label above the bars
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(_short_number)


def _mark_origin(axes: Axes, item: _Prepared) -> None:
    axes.axvspan(0.5, item.horizon + 0.8, color="#F5F4FA", linewidth=0, zorder=0)
    axes.axvline(0.5, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)


def _candles(axes: Axes, bars: pd.DataFrame, first: int, came: bool = False) -> None:
    """Candles at x = first, first + 1, ..., drawn as two collections: a thousand bars cost no more than one."""
    opens, highs, lows, closes = (bars[name].to_numpy(float) for name in PRICES)
    x = np.arange(first, first + len(bars))
    fills, edges = _colours(bars, came)
    wicks = np.stack([np.column_stack([x, lows]), np.column_stack([x, highs])], axis=1)  # [bars, 2 ends, (x, y)]
    axes.add_collection(LineCollection(wicks, colors=edges, linewidths=0.9, zorder=4 if came else 2))
    smallest = 0.0015 * (highs.max() - lows.min())  # a bar that closes where it opened still shows a line
    body = np.maximum(np.abs(closes - opens), smallest)
    boxes = [Rectangle((at - 0.34, low), 0.68, height) for at, low, height in zip(x, np.minimum(opens, closes), body, strict=True)]
    axes.add_collection(
        PatchCollection(boxes, facecolors=fills, edgecolors=edges, linewidths=0.8 if came else 0.3, zorder=4 if came else 2)
    )


def _volume_bars(axes: Axes, bars: pd.DataFrame, first: int, came: bool = False) -> float:
    """Draws them and returns the highest."""
    fills, edges = _colours(bars, came)
    volume = bars["volume"].to_numpy(float)
    style = {"edgecolor": edges, "linewidth": 0.6, "alpha": 0.55} if came else {"linewidth": 0, "alpha": 0.75}
    axes.bar(np.arange(first, first + len(bars)), volume, width=0.68, color=fills, zorder=2, **style)
    return float(np.nanmax(volume))


def _colours(bars: pd.DataFrame, came: bool) -> tuple[np.ndarray, np.ndarray]:
    """(fill, edge) of each bar."""
    up = bars["close"].to_numpy(float) >= bars["open"].to_numpy(float)
    if came:
        return np.where(up, CAME_UP, CAME_DOWN), np.full(len(bars), CAME_EDGE)
    return np.where(up, UP, DOWN), np.where(up, UP, DOWN)


def _price_limits(item: _Prepared, fan: np.ndarray) -> tuple[float, float]:
    shown = [item.history["low"], item.history["high"], *np.quantile(fan, (0.05, 0.95) if item.fan else (0, 1), axis=0)]
    if item.truth is not None:
        shown += [item.truth["low"], item.truth["high"]]
    values = np.concatenate([np.asarray(part, float) for part in shown])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.05 * (high - low) or 0.01 * abs(high) or 1.0
    return low - room, high + room


def _label_dates(axes: Axes, item: _Prepared) -> None:
    """A few dates under the bars, the origin's and the last one among them; clock times too where bars are shorter than a day."""
    times = item.times
    if not times:
        axes.set_xlabel("bars from the forecast's origin", fontsize=10, color=MUTED)
        return
    stride = max(1, round((len(item.history) + item.horizon) / 6))
    at = [x for x in sorted(times) if (x <= 0 and x % stride == 0) or (x == item.horizon and x > 0.6 * stride)]
    gaps_h = np.diff([times[x].timestamp() for x in sorted(times)]) / 3600
    daily = len(gaps_h) == 0 or np.median(gaps_h) >= 20
    labels, year = [], None
    for x in at:
        day, told = f"{times[x].day} {times[x]:%b}", times[x].year == year
        year = times[x].year  # told once, and again where it changes
        if daily:
            labels.append(f"{day}\n{' ' if told else year}")  # two lines everywhere keep the first ones level
        else:
            labels.append(f"{day if told else f'{day} {year}'}\n{times[x]:%H:%M}")
    axes.set_xticks(at, labels)
    if at and at[-1] == item.horizon:
        axes.get_xticklabels()[-1].set_ha("right")  # else it would run out of the picture


def _add_legend(figure: Figure, prepared: Sequence[_Prepared]) -> None:
    """One line above the panels, where it covers nothing."""
    came = (Patch(facecolor=CAME_UP, edgecolor=CAME_EDGE), Patch(facecolor=CAME_DOWN, edgecolor=CAME_EDGE))
    line = Line2D([], [], color=FAN, linewidth=2.2)
    entries: list[tuple[object, str]] = [((Patch(facecolor=UP), Patch(facecolor=DOWN)), "history: up, down")]
    if any(item.truth is not None for item in prepared):
        entries.append((came, "what came"))
    entries.append((line, "median forecast of the close" if any(len(item.paths) > 1 for item in prepared) else "forecast of the close"))
    if any(item.fan for item in prepared):
        entries += [(Patch(facecolor=FAN, alpha=0.4), "50 % of paths"), (Patch(facecolor=FAN, alpha=0.17), "90 % of paths")]
    if any(1 < len(item.paths) < FEWEST_FOR_BANDS for item in prepared):
        entries.append((Line2D([], [], color=FAN, linewidth=0.9, alpha=0.5), "each path"))
    entries.append((Line2D([], [], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3))), "forecast begins"))
    handles, labels = zip(*entries, strict=True)
    place = {"loc": "upper left", "bbox_to_anchor": (0.004, 0.995), "ncols": len(handles)}
    pairs = {tuple: HandlerTuple(ndivide=None, pad=0.15)}
    figure.legend(
        handles, labels, frameon=False, fontsize=9.8, labelcolor=INK, handlelength=1.5, columnspacing=1.3, handler_map=pairs, **place
    )


def _short_number(value: float, _: int | None = None) -> str:
    """1.5B, 20k, 300: volumes in the letters that traders use."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
