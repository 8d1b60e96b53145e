"""From a panel of bars to a panel of bars and features: every line of `features.use` for every series, warm-ups dropped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.frames import wall_clock
from finetune.data.panel import KRONOS_NAMES, Column, Panel, SeriesInfo
from kronos.errors import InputError
from tft.data_config import FeaturesSection
from tft.indicators import Bars, Chosen, choose
from tft.normalise import normalised
from tft.rows import Say, check_constant, columns_named, keep_rows, period_of_series, plain_symbol, series_rows


@dataclass(frozen=True)
class Plan:
    """The lines of `features.use`, checked for one period."""

    chosen: tuple[Chosen, ...]
    clip: float = 5.0

    @property
    def columns(self) -> list[Column]:
        return [Column(name, chosen.kind) for chosen in self.chosen for name in chosen.names]

    @property
    def calendar(self) -> dict[str, list[str]]:
        """Column → [feature, output] of what is known ahead; `calendar_rows` computes it for moments that have no bar yet."""
        known = [chosen for chosen in self.chosen if chosen.kind != "past"]
        return {name: [c.feature.name, out] for c in known for name, out in zip(c.names, c.feature.outputs or ("",), strict=True)}

    @property
    def warm_up(self) -> int:
        return max((chosen.warm_up for chosen in self.chosen), default=0)


def plan(
    lines: Sequence[Mapping[str, Any] | str],
    period: str = "",
    *,
    normalise: str = "none",
    normalise_window: int | Mapping[str, int] = 240,
    clip: float = 5.0,
) -> Plan:
    """Check every line. Raises one InputError with all that is wrong: unknown features and parameters, two columns of one name."""
    chosen, wrong, users = [], [], dict.fromkeys(KRONOS_NAMES, "the bars")
    for number, line in enumerate(lines, 1):
        where = f"features.use, line {number}"
        try:
            made = choose(line, period, normalise=normalise, window=normalise_window)
        except InputError as error:
            wrong.append(f"{where}: {error}")
            continue
        for name in made.names:
            if name in users:
                wrong.append(f"{where}: column {name!r} is also made by {users[name]}; give one another name with as: NAME")
            users.setdefault(name, f"line {number}")
        chosen.append(made)
    if wrong:
        raise InputError("\n  ".join(wrong))
    return Plan(tuple(chosen), clip)


def compute(bars: Bars, plan: Plan, out: np.ndarray | None = None) -> np.ndarray:
    """[n, F] float32 features, NaN in each column's warm-up. out: where to write them."""
    out = np.empty((len(bars), len(plan.columns)), np.float32) if out is None else out
    place = 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # a bad value is found and named by the caller
        for chosen in plan.chosen:
            for values in chosen.compute(bars):
                out[:, place] = normalised(values, chosen.normalise, chosen.window, plan.clip)
                place += 1
    return out


def calendar_of(panel: Panel, section: FeaturesSection) -> dict[str, list[str]]:
    """`Plan.calendar` of the columns that the panel has."""
    there = {column.name for column in panel.columns}
    made = plan(section.use, panel.series[0].period, normalise=section.normalise, normalise_window=section.normalise_window)
    return {column: how for column, how in made.calendar.items() if column in there}


def feature_panel(panel: Panel, section: FeaturesSection, say: Say = print) -> Panel:
    """The bars of `panel` with the features of `section` behind their six columns.

    A gap inside a series (`breaks`) does not restart the averages: the bars on its sides count as neighbours, and the break stays.
    Raises InputError: unknown features, missing bar columns, values that are not finite after the warm-up, constant columns, no row left.
    """
    bar_columns = columns_named(panel, list(KRONOS_NAMES), "the bars")
    series = [plain_symbol(info) for info in panel.series]
    settings = dict(normalise=section.normalise, normalise_window=section.normalise_window, clip=section.clip)
    plans = {info.period: plan(section.use, info.period, **settings) for info in series}
    columns = next(iter(plans.values())).columns
    n_bars = len(KRONOS_NAMES)
    features = np.empty((panel.n_rows, n_bars + len(columns)), np.float32)
    features[:, :n_bars] = panel.features[:, bar_columns]
    ready = np.ones(panel.n_rows, bool)
    for info, rows in zip(series, series_rows(panel), strict=True):
        if plans[info.period].columns != columns:
            raise InputError(
                f"features.use: columns differ between {series[0].period} and {info.period}; name columns with as: where numbers differ"
            )
        times = np.asarray(panel.times[rows])
        bars = Bars.of(features[rows, :n_bars], times, np.asarray(panel.stamps[rows]), period_of_series(info, times))
        compute(bars, plans[info.period], out=features[rows, n_bars:])
        ready[rows.start : min(rows.stop, rows.start + plans[info.period].warm_up)] = False
    _check_finite(panel, features, ready, [*map(Column, KRONOS_NAMES), *columns])
    return _without_warm_up(panel, features, ready, series, plans, columns, section, say)


def _check_finite(panel: Panel, features: np.ndarray, ready: np.ndarray, columns: Sequence[Column]) -> None:
    """InputError naming the columns with a value that is not a number after the warm-up, and their first rows."""
    bad = ~np.isfinite(features).all(axis=1) & ready
    if not bad.any():
        return
    rows = np.flatnonzero(bad)
    told = []
    for k in np.flatnonzero(~np.isfinite(features[rows]).all(axis=0))[:10]:
        here = rows[~np.isfinite(features[rows, k])]
        shown = ", ".join(_row_name(panel, int(row)) for row in here[:3])
        told.append(f"{columns[k].name}: {features[here[0], k]} in {len(here):,} rows, first {shown}")
    raise InputError("features that are not finite numbers after their warm-up; look at the bars there:\n  " + "\n  ".join(told))


def _row_name(panel: Panel, row: int) -> str:
    number = int(np.searchsorted(panel.offsets, row, side="right")) - 1
    return f"{panel.series[number].symbol} {wall_clock(panel, row, row + 1)[0]:%Y-%m-%d %H:%M}"


def _without_warm_up(
    panel: Panel,
    features: np.ndarray,
    ready: np.ndarray,
    series: Sequence[SeriesInfo],
    plans: Mapping[str, Plan],
    columns: Sequence[Column],
    section: FeaturesSection,
    say: Say,
) -> Panel:
    lengths = np.diff(panel.offsets)
    kept = keep_rows(ready, panel.offsets, panel.breaks)
    for period, made in plans.items():
        slowest = max(made.chosen, key=lambda chosen: chosen.warm_up)
        n = sum(info.period == period for info in series)
        say(f"warm-up of {period or 'bars'}: {made.warm_up:,} rows of each of {n} series dropped (the longest is {slowest.names[0]})")
    lost = [
        f"{series[i].symbol} {series[i].period} ({lengths[i]:,} rows)" for i in range(len(series)) if i not in set(kept.series.tolist())
    ]
    if not len(kept.rows):
        raise InputError(
            f"no row is left: every series is shorter than its warm-up: {', '.join(lost[:5])}; give more bars or shorter windows"
        )
    if lost:
        say(f"left out, shorter than the warm-up: {len(lost)} series ({', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''})")
    n_bars = len(KRONOS_NAMES)
    features = features[kept.rows] if len(kept.rows) < len(features) else features
    stay = check_constant(features[:, n_bars:], list(columns), section.constant, say)
    places = [*range(n_bars), *(n_bars + k for k in stay)]
    if len(stay) < len(columns):
        features = features[:, places]
    doubles = Counter((series[i].symbol, series[i].period) for i in kept.series.tolist())
    twice = next((name for name, count in doubles.items() if count > 1), None)
    if twice:
        raise InputError(f"two series are {twice[0]!r} with {twice[1]} bars; leave one file out or rename its symbol")
    return Panel.build(
        features=features,
        stamps=panel.stamps[kept.rows],
        times=panel.times[kept.rows],
        offsets=kept.offsets,
        breaks=kept.breaks,
        origin=panel.origin[kept.rows],
        series=[series[i] for i in kept.series.tolist()],
        columns=[*map(Column, KRONOS_NAMES), *(columns[k] for k in stay)],
        stamp=panel.stamp,
        timezone=panel.timezone,
    )
