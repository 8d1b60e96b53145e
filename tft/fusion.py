"""Fusion of periods: what a row may know of slower bars and of the market at the moment its own bar closes, and nothing later.

A row's now is the moment its bar closes: its time plus its period where bars are stamped at their open, its time where at their close.
(On the two days of a clock change a daily bar's now is the earlier, and when others may see it the later, of what it could be.)
A slow bar is seen by rows whose now is at or after its close: 1h bars opening 20:00 to 22:00 see the 4h bar that opened at 16:00, the one
opening 23:00 closes together with the 4h bar 20:00 to 24:00 and sees that one; the daily bar of a day is seen from its last 1h bar on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune.data.panel import KRONOS_NAMES, Column, Panel, SeriesInfo
from kronos.errors import InputError
from tft.data_config import FusionSection
from tft.indicators import nearest
from tft.rows import Kept, Say, check_constant, columns_named, keep_rows, period_of_series, series_rows
from tft.target_panel import close_times

_NONE = -1  # no bar is visible


def visible(now: np.ndarray, closes: np.ndarray, max_age: float = np.inf) -> np.ndarray:
    """[n] index of the last bar that has closed by now [n], -1 if there is none or it closed more than max_age ns before.

    closes [m] int64, increasing.
    """
    found = np.searchsorted(closes, now, side="right") - 1
    age = now - closes[np.maximum(found, 0)]
    return np.where((found >= 0) & (age <= max_age), found, _NONE)


@dataclass
class _Fusion:
    """The panel being fused. closes, now [N] ns UTC. whose: (symbol, period) → number of the series."""

    panel: Panel
    section: FusionSection
    closes: np.ndarray
    now: np.ndarray
    slices: list[slice]
    periods: list[int]
    whose: dict[tuple[str, str], int]
    lost: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, panel: Panel, section: FusionSection) -> _Fusion:
        slices = series_rows(panel)
        periods = [period_of_series(info, np.asarray(panel.times[rows])) for info, rows in zip(panel.series, slices, strict=True)]
        whose = {(info.symbol, info.period): number for number, info in enumerate(panel.series)}
        return cls(panel, section, close_times(panel), _nows(panel, slices, periods), slices, periods, whose)

    def source(self, symbol: str, period: str, why: str) -> int:
        """Number of a series. Raises InputError if the panel does not have it."""
        if (symbol, period) not in self.whose:
            there = ", ".join(f"{info.symbol} {info.period}" for info in self.panel.series[:8])
            raise InputError(f"{why}: there are no {period} bars of {symbol}; the panel has {there}")
        return self.whose[symbol, period]

    def look_up(self, number: int, source: int) -> np.ndarray:
        """[n] row of the panel that the rows of series `number` see of series `source`, -1 if none."""
        rows = self.slices[source]
        found = visible(self.now[self.slices[number]], self.closes[rows], self.section.max_age * self.periods[source])
        return np.where(found >= 0, found + rows.start, _NONE)


def _nows(panel: Panel, slices: Sequence[slice], periods: Sequence[int]) -> np.ndarray:
    """[N] ns UTC: the moment from which each row looks back, never after its bar has closed.

    Under stamp "open" its time plus its period, or the next bar's time where that comes first: a day that a clock change shortens to 23
    hours must not see the hour after it.
    """
    now = np.array(panel.times, np.int64)
    if panel.stamp == "open":
        for rows, period in zip(slices, periods, strict=True):
            now[rows] += period
            now[rows][:-1] = np.minimum(now[rows][:-1], panel.times[rows][1:])
    return now


def fuse(panel: Panel, section: FusionSection, *, constant: str = "error", say: Say = print) -> Panel:
    """One panel of all rows: own features, carried ones (`rsi_14@4h`), the market's, targets.

    Rows for which a carried value does not exist yet, or is too old, are dropped and counted; a break is left where that happens inside a
    series. Raises InputError: periods, symbols or columns that are not there, two columns of one name, constant columns, no row left.
    """
    work = _Fusion.of(panel, section)
    chosen = _chosen(panel.series, section)
    own = [k for k, column in enumerate(panel.columns) if column.name not in KRONOS_NAMES or column.name in section.bars]
    groups = _groups(work)
    columns = [panel.columns[k] for k in own] + [Column(name) for group in groups for name in group.names]
    _told_apart(columns)
    sources, keep = _look_ups(work, chosen, groups)
    _say_lost(work, chosen, say)
    kept = keep_rows(keep, panel.offsets, panel.breaks)
    if not len(kept.rows):
        raise InputError(f"fusion leaves no row: {'; '.join(f'{why}: {n:,} rows' for why, n in work.lost.items())}; check fusion.carry")
    gone = [panel.series[i] for i in sorted(chosen - set(kept.series.tolist()))]
    if gone:
        say(f"left out, no row is complete: {', '.join(f'{info.symbol} {info.period}' for info in gone[:5])}")
    features = np.empty((len(kept.rows), len(columns)), np.float32)
    _fill(features[:, : len(own)], panel, kept.rows, own)
    place = len(own)
    for group, source in zip(groups, sources, strict=True):
        _fill_group(features[:, place : place + len(group.names)], work, group, source[kept.rows], kept)
        place += len(group.names)
    stay = check_constant(features, columns, constant, say)
    return _built(panel, features if len(stay) == len(columns) else features[:, stay], [columns[k] for k in stay], kept)


def _chosen(series: Sequence[SeriesInfo], section: FusionSection) -> set[int]:
    """Numbers of the series whose bars become rows."""
    for what, wanted, there in (
        ("fusion.rows", section.rows, {info.period for info in series}),
        ("fusion.symbols", section.symbols, {info.symbol for info in series}),
    ):
        unknown = [name for name in wanted if name not in there]
        if unknown:
            raise InputError(f"{what}: {unknown[0]!r} is not among the bars{nearest(unknown[0], there)}")
    return {
        number
        for number, info in enumerate(series)
        if (not section.rows or info.period in section.rows) and (not section.symbols or info.symbol in section.symbols)
    }


@dataclass(frozen=True)
class _Group:
    """Columns that come from one look-up. columns: positions in the panel; how: carry, of or mean; of_what: a period or a symbol."""

    how: str
    of_what: str
    columns: tuple[int, ...]
    names: tuple[str, ...]


def _groups(work: _Fusion) -> list[_Group]:
    panel, section = work.panel, work.section
    groups = []
    for period, wanted in section.carry.items():
        if period not in {info.period for info in panel.series}:
            raise InputError(f"fusion.carry: {period!r} is not among the bars{nearest(period, {info.period for info in panel.series})}")
        names = _past_names(panel) if wanted == "all" else list(wanted)
        places = _past_columns(panel, names, f"fusion.carry.{period}")
        groups.append(_Group("carry", period, tuple(places), tuple(f"{name}@{period}" for name in names)))
    for line in section.market:
        how, symbol = line.get("how", "mean"), line.get("symbol", "")
        if symbol and symbol not in {info.symbol for info in panel.series}:
            raise InputError(f"fusion.market: {symbol!r} is not among the bars{nearest(symbol, {info.symbol for info in panel.series})}")
        places = _past_columns(panel, [line["column"]], "fusion.market")
        name = line.get("as") or f"{symbol or 'market'}_{line['column']}"
        groups.append(_Group(how, symbol, tuple(places), (name,)))
    return groups


def _past_names(panel: Panel) -> list[str]:
    return [column.name for column in panel.columns if column.kind == "past" and column.name not in KRONOS_NAMES]


def _past_columns(panel: Panel, names: list[str], who: str) -> list[int]:
    places = columns_named(panel, names, who)
    for place in places:
        if panel.columns[place].kind != "past":
            raise InputError(f"{who}: {panel.columns[place].name!r} is made of the calendar, which every row has itself; leave it out")
    return places


def _told_apart(columns: Sequence[Column]) -> None:
    names = [column.name for column in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"fusion: two columns are called {twice!r}; give one another name with as: NAME")


def _look_ups(work: _Fusion, chosen: set[int], groups: Sequence[_Group]) -> tuple[list[np.ndarray], np.ndarray]:
    """(per group [N] the row of the panel that each row sees, [N] which rows are chosen and see everything)."""
    keep = np.zeros(work.panel.n_rows, bool)
    for number in chosen:
        keep[work.slices[number]] = True
    sources = []
    for group in groups:
        source = np.arange(work.panel.n_rows)
        for number in sorted(chosen) if group.how != "mean" else ():
            info = work.panel.series[number]
            wanted = (info.symbol, group.of_what, f"fusion.carry.{group.of_what}")
            wanted = wanted if group.how == "carry" else (group.of_what, info.period, "fusion.market")
            source[work.slices[number]] = work.look_up(number, work.source(*wanted))
        missing = (source < 0) & keep
        if missing.any():
            why = f"no {group.of_what} bar that has closed and is recent enough"
            work.lost[why] = work.lost.get(why, 0) + int(missing.sum())
            keep &= source >= 0
        sources.append(source)
    return sources, keep


def _say_lost(work: _Fusion, chosen: set[int], say: Say) -> None:
    total = sum(work.slices[number].stop - work.slices[number].start for number in chosen)
    for why, rows in work.lost.items():
        say(f"dropped, {why}: {rows:,} of {total:,} rows")


def _fill(out: np.ndarray, panel: Panel, rows: np.ndarray, columns: Sequence[int]) -> None:
    """out[i, j] = features[rows[i], columns[j]], in pieces."""
    columns = np.asarray(columns, np.int64)
    for first in range(0, len(rows), 1 << 15):
        part = slice(first, first + (1 << 15))
        out[part] = panel.features[rows[part]][:, columns]


def _fill_group(out: np.ndarray, work: _Fusion, group: _Group, source: np.ndarray, kept: Kept) -> None:
    if group.how != "mean":
        _fill(out, work.panel, source, group.columns)
        return
    values = _market_means(work, group.columns[0])
    out[:, 0] = values[kept.rows]


def _market_means(work: _Fusion, column: int) -> np.ndarray:
    """[N] float32 mean over all symbols with a bar of the same period that closes at the same time."""
    values = np.asarray(work.panel.features[:, column], np.float64)
    result = np.empty(work.panel.n_rows, np.float32)
    for period in {info.period for info in work.panel.series}:
        rows = np.concatenate([np.arange(s.start, s.stop) for i, s in enumerate(work.slices) if work.panel.series[i].period == period])
        _, moment = np.unique(work.now[rows], return_inverse=True)
        result[rows] = (np.bincount(moment, weights=values[rows]) / np.bincount(moment))[moment]
    return result


def _built(panel: Panel, features: np.ndarray, columns: Sequence[Column], kept: Kept) -> Panel:
    return Panel.build(
        features=features,
        stamps=panel.stamps[kept.rows],
        times=panel.times[kept.rows],
        offsets=kept.offsets,
        breaks=kept.breaks,
        origin=panel.origin[kept.rows],
        series=[panel.series[i] for i in kept.series.tolist()],
        columns=columns,
        targets=None if panel.targets is None else panel.targets[kept.rows],
        target_names=panel.target_names,
        stamp=panel.stamp,
        timezone=panel.timezone,
    )
