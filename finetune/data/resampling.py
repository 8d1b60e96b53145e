"""Coarser bars from finer ones: first, highest, lowest, last and sum, over a whole panel at once.

A bar is only made of finer bars that were there: nothing is filled. The first and the last bar of a series are left out where the finer
bars do not reach to their edge; a bar inside that lacks some is kept (the exchange's own has the same trades) and counted; where whole bars
are missing a new stretch begins (`Panel.breaks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from finetune.data.checks import AMOUNT, CLOSE, HIGH, LOW, OPEN, VOLUME
from finetune.data.frames import wall_clock
from finetune.data.load import build_panel
from finetune.data.panel import KRONOS_COLUMNS, Panel, SeriesInfo
from finetune.data.resampling_grid import DAY, Grid, exchange_of, is_zone, make_grid, period_ns
from finetune.data.resampling_report import Left, Placed, SeriesReport, series_reports
from finetune.data.timestamps import stamp_features
from kronos.errors import InputError

_OUTSIDE = 0.7  # a larger share of rows outside all sessions is no after-hours trading (0.6 in New York), but another exchange or zone
_MOST = 0.9  # of the rows
_MONOTONE = 24  # so many steps of the same multiple of the period in a row are bars of another period, not pauses
_WEEKS_NS = 14 * DAY
_SECOND, _MINUTE = 10**9, 60 * 10**9


@dataclass(frozen=True)
class Resampled:
    """The bars made. opens, closes [N]: edges of each (ns UTC); found, expected [N]: finer bars it is made of, and those of a whole one."""

    panel: Panel
    opens: np.ndarray
    closes: np.ndarray
    found: np.ndarray
    expected: np.ndarray
    series: tuple[SeriesReport, ...]
    left: tuple[Left, ...] = ()


def resample(
    bars: Panel | Mapping[SeriesInfo | str, pd.DataFrame], period: str, *, stamp: str = "auto", timezone: str = "", calendar: str = ""
) -> Resampled:
    """Bars of `period` ("15min", "4h", "1d": a divisor of a day) from a panel's finer bars, or from frames as `build_panel` takes them.

    calendar: the exchange's name in exchange_calendars: bars begin at its sessions' opens and after its breaks, a day is a session (night
    sessions only where the calendar has them; rows outside are left out and counted). "24/7": from midnight UTC. "": around the clock; days
    begin at midnight of the panel's zone, shorter bars lie on UTC's grid. stamp, timezone: of frames; a panel has its own.
    The bars are stamped at the same edge as the finer ones, days by their date. Amounts are summed.
    Raises InputError for periods that do not fit, several periods in one source, bars of another calendar or zone, and if none is whole.
    """
    fine = bars if isinstance(bars, Panel) else build_panel(bars, timezone=timezone, stamp=stamp)
    finer = _finer(fine, period)
    first, last = int(fine.times.min()), int(fine.times.max())
    exchange = exchange_of(calendar, first)
    zone = fine.timezone if is_zone(fine.timezone) else "" if exchange is None else exchange.tz.key
    if not calendar:
        _refuse_closing_market(fine)
    grid = make_grid(first - finer, last + finer, period_ns(period), finer, calendar=calendar, zone=zone)
    placed = _place(fine, finer, grid, calendar)
    return _made(fine, period, calendar, zone, grid, placed)


def _finer(fine: Panel, period: str) -> int:
    """Length of the finer bars in ns, once it fits the one wanted."""
    wanted = period_ns(period)
    if fine.columns != KRONOS_COLUMNS or fine.targets is not None:
        raise InputError(f"the panel has columns {', '.join(column.name for column in fine.columns)}; only open to amount can be resampled")
    if not wanted or DAY % wanted:
        raise InputError(
            f"timeframe.period: {period!r} does not divide a day; choose e.g. 5min, 15min, 30min, 1h, 2h, 4h, 6h, 8h, 12h or 1d"
        )
    periods = {info.period: info.symbol for info in fine.series if info.period}
    if len(periods) > 1:
        told = ", ".join(f"{name} ({symbol})" for name, symbol in periods.items())
        raise InputError(f"timeframe.source: mixes periods: {told}; name the files of one period, e.g. 'bars/*_1h.csv'")
    if not periods:
        raise InputError("timeframe.source: no series has two bars, so their period cannot be told; give longer files")
    name, symbol = periods.popitem()
    finer = period_ns(name)
    if finer > wanted:
        raise InputError(
            f"timeframe.source: {symbol} has bars of {name}, which are coarser than timeframe.period {period}; give finer bars"
        )
    if not finer or wanted % finer:
        raise InputError(f"timeframe.source: {symbol} has bars of {name}, of which {period} is no multiple; give others")
    return finer


def _refuse_closing_market(fine: Panel) -> None:
    """Without a calendar's name, a market that never trades on weekends is no market around the clock."""
    long = int(fine.times.max()) - int(fine.times.min()) >= _WEEKS_NS
    if long and not (np.asarray(fine.stamps[:, 2]) >= 5).any():
        raise InputError(
            "timeframe.calendar is empty, which means around the clock, but there are no bars on weekends: this market closes; name its "
            "calendar, e.g. XSHG, XHKG, XNYS, or 24/5 for currencies (24/7: take the bars as they are)"
        )


def _place(fine: Panel, finer: int, grid: Grid, calendar: str) -> Placed:
    times, closing = np.array(fine.times), fine.stamp == "close"
    series = np.repeat(np.arange(fine.n_series), np.diff(fine.offsets))
    joined = series[1:] == series[:-1]
    if closing:  # a session's last bar may be shorter, so it begins where the one before ends
        if (times // _SECOND % 60 == 59).mean() > _MOST:  # 09:59:59 is meant to be 10:00
            times = -(-times // _MINUTE) * _MINUTE
        begin, end = times - finer, times
        begin[1:] = np.where(joined, np.maximum(begin[1:], end[:-1]), begin[1:])
        piece = np.searchsorted(grid.rights, end, side="left")
        inside = (piece < len(grid.rights)) & (end > grid.lefts[np.minimum(piece, len(grid.lefts) - 1)])
        piece = np.minimum(piece, len(grid.lefts) - 1)
        place = -(-(end - grid.lefts[piece]) // finer) - 1
        across = inside & (piece > 0) & (begin < grid.rights[piece - 1])
        across |= ~inside & (piece > 0) & (begin < grid.rights[piece - 1]) & (end > grid.rights[piece - 1])
    else:
        begin, end = times, times + finer
        end[:-1] = np.where(joined, np.minimum(end[:-1], begin[1:]), end[:-1])
        follows = np.searchsorted(grid.lefts, begin, side="right")
        piece = np.maximum(follows - 1, 0)
        inside = (follows > 0) & (begin < grid.rights[piece])
        place = (begin - grid.lefts[piece]) // finer
        across = (follows < len(grid.lefts)) & (end > grid.lefts[np.minimum(follows, len(grid.lefts) - 1)])
    _refuse_misplaced(fine, across, inside, calendar)
    rows = np.flatnonzero(inside)
    placed = Placed(rows, series[rows], grid.bars[piece[rows]], grid.before[piece[rows]] + place[rows])
    _refuse_mixed(fine, placed)
    return placed


def _at(fine: Panel, row: int) -> str:
    """A row, as a message names it."""
    number = int(np.searchsorted(fine.offsets, row, side="right")) - 1
    return f"{fine.series[number].symbol}, {wall_clock(fine, row, row + 1)[0]}"


def _refuse_misplaced(fine: Panel, across: np.ndarray, inside: np.ndarray, calendar: str) -> None:
    market = calendar or "a market around the clock"
    if across.any():
        raise InputError(
            f"{_at(fine, int(np.argmax(across)))}: this bar (stamped at its {fine.stamp}) reaches across the edge of a bar or session of "
            f"{market}, and so do {int(across.sum()) - 1:,} others; is it the right timeframe.calendar, timeframe.stamp and data.timezone?"
        )
    if inside.mean() < 1 - _OUTSIDE:
        row = int(np.argmin(inside))
        raise InputError(
            f"{_at(fine, row)}: this bar lies outside the sessions of {market}, and so do {1 - inside.mean():.0%} of all; "
            f"is it the right timeframe.calendar, and data.timezone (now {fine.timezone})?"
        )


def _refuse_mixed(fine: Panel, placed: Placed) -> None:
    """Bars of another period in a series: shorter ones share a slot, longer ones leave the same number of slots again and again."""
    steps = np.where(placed.series[1:] == placed.series[:-1], np.diff(placed.slots), 1)
    if (steps <= 0).any():
        row = int(placed.rows[1 + int(np.argmax(steps <= 0))])
        period = fine.series[int(np.searchsorted(fine.offsets, row, side="right")) - 1].period
        raise InputError(
            f"{_at(fine, row)}: lies in the same {period} as the bar before it; the source mixes periods, or its bars do not begin at the "
            "session's open: give bars of one period that do"
        )
    starts = np.flatnonzero(np.diff(steps, prepend=0))
    lengths = np.diff(np.append(starts, len(steps)))
    mixed = (steps[starts] > 1) & (lengths >= _MONOTONE) if len(steps) else np.zeros(0, bool)
    if mixed.any():
        at = int(starts[int(np.argmax(mixed))])
        period = fine.series[int(placed.series[at])].period
        raise InputError(
            f"{_at(fine, int(placed.rows[at]))}: from here on bars are {int(steps[at])} x {period} apart, {int(lengths[mixed][0]):,} times "
            "in a row; the source mixes periods: give bars of one period"
        )


def _made(fine: Panel, period: str, calendar: str, zone: str, grid: Grid, placed: Placed) -> Resampled:
    new = (np.diff(placed.series, prepend=-1) != 0) | (np.diff(placed.bars, prepend=-1) != 0)
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(placed.rows)) - 1
    series, bars = placed.series[starts], placed.bars[starts]
    found, expected = ends - starts + 1, grid.expected[bars]
    lacks_start = (np.diff(series, prepend=-1) != 0) & (placed.slots[starts] > grid.first[bars])
    lacks_end = (np.diff(series, append=fine.n_series) != 0) & (placed.slots[ends] < grid.first[bars] + expected - 1)
    keep = ~(lacks_start | lacks_end)
    if not keep.any():
        raise InputError(f"timeframe.source: not one whole bar of {period} can be made of {fine.n_rows:,} rows; give more")
    labels = (grid.labels if fine.stamp == "open" or period_ns(period) == DAY else grid.closes)[bars]
    walls = labels + _offsets(fine, placed.rows[ends if fine.stamp == "close" else starts], labels, zone)
    edge = [("first" if lacks_start[i] else "last", int(i)) for i in np.flatnonzero(~keep)]
    left = tuple(
        Left(
            fine.series[series[i]].symbol,
            which,
            *map(int, (labels[i], walls[i], grid.opens[bars[i]], grid.closes[bars[i]], found[i], expected[i])),
        )
        for which, i in edge
    )
    made = _Bars(series[keep], bars[keep], found[keep], expected[keep], labels[keep], walls[keep])
    features = _aggregate(np.asarray(fine.features), placed.rows, starts, ends)[keep]
    stamp = "open" if period_ns(period) == DAY else fine.stamp
    panel = _panel(fine, features, made, period=period, calendar=calendar, zone=zone, stamp=stamp)
    told = series_reports(fine, placed, made.series, made.bars, made.found, made.expected, made.walls, left)
    return Resampled(panel, grid.opens[made.bars], grid.closes[made.bars], made.found, made.expected, told, left)


@dataclass(frozen=True)
class _Bars:
    """The bars to keep, [N] each: series, number in the grid, finer bars found and expected, time (ns UTC) and wall clock (ns)."""

    series: np.ndarray
    bars: np.ndarray
    found: np.ndarray
    expected: np.ndarray
    labels: np.ndarray
    walls: np.ndarray


def _panel(fine: Panel, features: np.ndarray, made: _Bars, *, period: str, calendar: str, zone: str, stamp: str) -> Panel:
    present, first = np.unique(made.series, return_index=True)
    missing = (np.diff(made.bars) > 1) & (np.diff(made.series) == 0)
    return Panel.build(
        features=features,
        stamps=stamp_features(made.walls),
        times=made.labels,
        offsets=np.append(first, len(made.series)),
        series=[replace(fine.series[number], period=period, calendar=calendar) for number in present],
        breaks=np.flatnonzero(missing) + 1,
        stamp=stamp,
        timezone=zone or fine.timezone,
    )


def _aggregate(features: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[B, 6] float64 of finer bars [n, 6] at `rows`, where bar b is made of rows[starts[b]] to rows[ends[b]]."""
    made = np.empty((len(starts), 6))
    whole = len(rows) == len(features)
    columns = [features[:, place] if whole else features[rows, place] for place in range(6)]
    made[:, OPEN], made[:, CLOSE] = columns[OPEN][starts], columns[CLOSE][ends]
    made[:, HIGH] = np.maximum.reduceat(columns[HIGH], starts)
    made[:, LOW] = np.minimum.reduceat(columns[LOW], starts)
    for place in (VOLUME, AMOUNT):
        made[:, place] = np.add.reduceat(columns[place].astype(np.float64), starts)
    return made


def _offsets(fine: Panel, rows: np.ndarray, labels: np.ndarray, zone: str) -> np.ndarray:
    """ns from UTC to the wall clock at each label: by the zone, else as the finer bar at that edge of the bar was written."""
    if zone:
        return _wall(labels, zone) - labels
    clock = wall_clock(fine, 0, fine.n_rows).as_unit("ns").to_numpy().astype(np.int64)
    return (clock - np.asarray(fine.times))[rows]


def _wall(times: np.ndarray, zone: str) -> np.ndarray:
    local = pd.DatetimeIndex(times, tz="UTC").tz_convert(zone).tz_localize(None)
    return local.as_unit("ns").to_numpy().astype(np.int64)
