"""From bars as read to bars that can be trained on: what is wrong is an error, or (`missing: drop | ffill`) is dropped and counted.

Nothing here looks ahead: a gap is filled from the bar before it or not at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from finetune.data.checks import AMOUNT, VOLUME, Bars, bars_of_table, impossible, note_impossible, note_missing, usual_amount
from finetune.data.csv_bars import Table
from finetune.data.timestamps import stamp_features
from kronos.errors import InputError

MISSING = ("error", "drop", "ffill")
_DAY = 86_400 * 10**9
Counts = dict[str, Counter[str]]  # what was done → series → number of bars


@dataclass(frozen=True)
class Policy:
    """What to do with bars that cannot be used. missing: one of MISSING. max_ffill: a longer run of incomplete bars is not filled."""

    missing: str = "error"
    max_ffill: int = 5
    drop_suspended: bool = False

    def __post_init__(self) -> None:
        if self.missing not in MISSING:
            raise InputError(f"data.missing: {self.missing!r} is not one of {', '.join(MISSING)}")
        if self.max_ffill < 1:
            raise InputError(f"data.max_ffill: {self.max_ffill} is not at least 1; to fill nothing set data.missing: drop")


@dataclass
class CleanBars:
    """Usable bars of one source, sorted by series, then time; a series that lost all its bars is not among them.

    names [S]; offsets [S + 1]; features [N, 6] float32; stamps [N, 5] uint8; times, wall [N] int64 ns; breaks [G]: rows after an excluded
    gap. counts: what was done to how many bars. notes: the rest of what a user should hear.
    """

    source: str
    names: list[str]
    offsets: np.ndarray
    features: np.ndarray
    stamps: np.ndarray
    times: np.ndarray
    wall: np.ndarray
    breaks: np.ndarray
    zone: str
    counts: Counts
    notes: list[str]


@dataclass
class Rows:
    """Bars sorted by series and time, while rows are being given up. codes [n]: number of the series in `names`; values [n, 6] float64.

    lost [n] bool: will not be kept. counts: what was done to how many bars of which series.
    """

    codes: np.ndarray
    names: list[str]
    values: np.ndarray
    lost: np.ndarray
    counts: Counts

    def count(self, what: str, rows: np.ndarray) -> None:
        if rows.any():
            numbers = np.bincount(self.codes[rows])
            self.counts[what].update({self.names[code]: int(numbers[code]) for code in np.flatnonzero(numbers)})

    def lose(self, why: str, rows: np.ndarray) -> None:
        rows = rows & ~self.lost
        self.count(f"dropped, {why}", rows)
        self.lost |= rows


def clean(table: Table, name: str, *, policy: Policy, timezone: str = "") -> CleanBars:
    """Check and clean one source; without a symbol column its one series is called `name`.

    Text that is not a number or a time, and a time that is there twice, is always an InputError. Empty or infinite cells, prices <= 0,
    high < low, open or close outside them and negative volumes are one under `missing: error`; otherwise such bars are dropped, and under
    `ffill` empty cells of at most `max_ffill` bars in a row take the value before. All problems of the source come in one message.
    """
    bars = bars_of_table(table, name, timezone=timezone)
    if bars.times.assumed and (bars.times.wall % _DAY).any():
        bars.notes.append(f"{bars.problems.source}: times carry no zone and count as UTC; data.timezone names another")
    if policy.missing == "error":
        note_missing(bars)
        note_impossible(bars)
    bars.problems.raise_if_any()
    order = _order(bars)
    rows = Rows(bars.codes[order], bars.names, bars.values[order], np.zeros(len(order), bool), defaultdict(Counter))
    rows.lose("time missing", bars.times.missing[order])
    discard_unusable(rows, policy, amount_given="amount" in bars.given)
    return _kept(rows, bars, order)


def discard_unusable(rows: Rows, policy: Policy, *, amount_given: bool) -> None:
    """Mark, count and (under `ffill`) fill in place the bars that cannot be used as they are, by the rules of `clean`.

    amount_given: False sets amounts from volume and prices, filled ones too.
    """
    rows.values[~np.isfinite(rows.values)] = np.nan
    for found in impossible(rows.values):
        rows.lose(found.kind, found.rows)
    if policy.missing == "ffill":
        _fill(rows, policy.max_ffill)
    rows.lose("value missing", np.isnan(rows.values).any(axis=1))
    _suspended(rows, policy)
    if not amount_given:
        rows.values[:, AMOUNT] = usual_amount(rows.values)  # again, now that cells are filled


def _order(bars: Bars) -> np.ndarray:
    """Source positions in order of series, then time. A row without a time stays behind the row it follows, to leave its gap there."""
    n, missing = len(bars.codes), bars.times.missing
    grouped = np.argsort(bars.codes, kind="stable")
    codes, known = bars.codes[grouped], ~missing[grouped]
    before = np.maximum.accumulate(np.where(known, np.arange(n), 0))
    anchored = known[before] & (codes[before] == codes)
    clock = np.where(anchored, bars.times.times[grouped][before], np.iinfo(np.int64).min)
    late = grouped[1:][(clock[1:] < clock[:-1]) & (codes[1:] == codes[:-1])]
    if not len(late):
        return grouped
    line = bars.problems.lines[late.min()]
    bars.notes.append(f"{bars.problems.source}: {len(late):,} rows were earlier than the row above (first: row {line}); sorted by time")
    return grouped[np.lexsort((clock, codes))]


def _fill(rows: Rows, max_ffill: int) -> None:
    """Forward fill: missing cells of a run of incomplete bars take the values of the complete bar just before the run."""
    gap = np.isnan(rows.values).any(axis=1) & ~rows.lost
    if not gap.any():
        return
    new_series = np.diff(rows.codes, prepend=-1) != 0
    starts = gap & (new_series | ~np.concatenate([[False], gap[:-1]]))
    run = np.cumsum(starts) - 1  # [n] number of the run a gap row belongs to
    first = np.flatnonzero(starts)
    length = np.bincount(run[gap])
    follows = np.maximum(first - 1, 0)
    leading, behind_lost = new_series[first], rows.lost[follows]
    at = np.flatnonzero(gap)
    mine = run[at]

    def where(chosen: np.ndarray) -> np.ndarray:
        mask = np.zeros(len(gap), bool)
        mask[at[chosen[mine]]] = True
        return mask

    rows.lose("nothing before to fill from", where(leading | behind_lost))
    rows.lose(f"gap longer than max_ffill {max_ffill}", where(length > max_ffill))
    filled = gap & ~rows.lost
    source = follows[run[filled]]
    rows.values[filled] = np.where(np.isnan(rows.values[filled]), rows.values[source], rows.values[filled])
    for found in impossible(np.where(filled[:, None], rows.values, np.nan)):
        rows.lose("filled bar contradicts itself", found.rows)
    rows.count("filled forward", filled & ~rows.lost)


def _suspended(rows: Rows, policy: Policy) -> None:
    """Bars without volume in a series that otherwise has it."""
    silent = (rows.values[:, VOLUME] == 0) & ~rows.lost
    trades = np.bincount(rows.codes[(rows.values[:, VOLUME] > 0) & ~rows.lost], minlength=len(rows.names)) > 0
    silent &= trades[rows.codes]
    if policy.drop_suspended:
        rows.lose("suspended (volume 0)", silent)
    else:
        rows.count("kept although volume is 0 (data.drop_suspended leaves them out)", silent)


def _kept(rows: Rows, bars: Bars, order: np.ndarray) -> CleanBars:
    keep = np.flatnonzero(~rows.lost)
    codes, lost_before = rows.codes[keep], np.cumsum(rows.lost)[keep]
    breaks = np.flatnonzero((np.diff(lost_before) > 0) & (np.diff(codes) == 0)) + 1
    present, first = np.unique(codes, return_index=True)
    rows.count("series without a usable bar", np.isin(rows.codes, present, invert=True))
    wall = bars.times.wall[order[keep]]
    return CleanBars(
        source=bars.problems.source,
        names=[rows.names[code] for code in present],
        offsets=np.append(first, len(keep)).astype(np.int64),
        features=rows.values[keep].astype(np.float32),
        stamps=stamp_features(wall),
        times=bars.times.times[order[keep]],
        wall=wall,
        breaks=breaks.astype(np.int64),
        zone=bars.times.zone,
        counts=rows.counts,
        notes=bars.notes,
    )
