"""One bucket of raw bars, cleaned over all its tickers at once. Nothing looks ahead: a gap is filled from the bar before or not at all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.checks import AMOUNT, CLOSE, usual_amount
from finetune.data.cleaning import Counts, Policy, Rows, discard_unusable
from finetune.data.kaggle_reading import NUMBERS, take
from finetune.data.kaggle_splits import SplitEvents, find_events

SAME, OTHER = "dropped, date there twice with the same values", "dropped, date there twice with other values (the first is kept)"


@dataclass
class CleanBucket:
    """Usable bars, sorted by ticker number, then day. codes, lengths [T]: tickers left and their rows. features [n, 6] float32; days [n].

    breaks [G]: rows after an excluded gap. events: splits, their rows counted here. counts: what was done → ticker → number of bars.
    short: ticker → rows, of tickers left out for being too short (0: no usable bar).
    """

    codes: np.ndarray
    lengths: np.ndarray
    features: np.ndarray
    days: np.ndarray
    breaks: np.ndarray
    events: SplitEvents
    counts: Counts
    short: dict[str, int]


def policy_of(max_ffill: int) -> Policy:
    """Fill at most `max_ffill` bars in a row from the bar before; 0 fills none."""
    return Policy("ffill", max_ffill) if max_ffill else Policy("drop")


def clean_bucket(bars: np.ndarray, tickers: Sequence[str], *, policy: Policy, needed: int) -> CleanBucket:
    """Sort, drop and count, fill forward, and leave out tickers with fewer than `needed` rows.

    bars: array of BAR holding all bars of its tickers, those of one day in the file's order. Of bars for one day the first is kept: it is
    what the source said first, and no later row can change what was known that day. An open or close outside low to high drops the bar,
    for a repaired one would be invented; a tolerance lets rounding pass (`finetune.data.checks`).
    """
    counts: Counts = defaultdict(Counter)
    bars = _once(_sorted(bars), tickers, counts)
    values = np.empty((AMOUNT + 1, len(bars))).T  # columns lie together: they are checked one by one
    values[:, : len(NUMBERS)] = bars["values"]
    values[:, AMOUNT] = usual_amount(values)
    present, codes = np.unique(bars["code"], return_inverse=True)
    rows = Rows(codes, [tickers[code] for code in present], values, np.zeros(len(bars), bool), counts)
    incomplete = ~np.isfinite(values).all(axis=1)
    discard_unusable(rows, policy, amount_given=False)
    lengths = np.bincount(codes[~rows.lost], minlength=len(present))
    long = lengths >= needed
    keep = ~rows.lost & long[codes]
    at = np.cumsum(keep) - 1  # [n] where a kept row goes
    events = find_events(codes, bars["day"], values[:, CLOSE], keep & ~incomplete, bars["split"])
    events.rows, events.codes = at[events.rows], bars["code"][keep][at[events.rows]]
    lost_before = np.cumsum(rows.lost)[keep]
    kept_codes = codes[keep]
    return CleanBucket(
        codes=present[long],
        lengths=lengths[long],
        features=_features(values, np.flatnonzero(keep)),
        days=bars["day"][keep],
        breaks=np.flatnonzero((np.diff(lost_before) > 0) & (np.diff(kept_codes) == 0)) + 1,
        events=events,
        counts=counts,
        short={tickers[code]: int(length) for code, length in zip(present[~long], lengths[~long], strict=True)},
    )


def _features(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    features = np.empty((len(rows), values.shape[1]), np.float32)
    for place in range(values.shape[1]):
        features[:, place] = values[rows, place]
    return features


def _sorted(bars: np.ndarray) -> np.ndarray:
    """By ticker, then day; bars of one day stay in the file's order. A file in order of days needs no more than the first, cheap sort."""
    codes = bars["code"]
    narrow = codes.astype(np.uint16) if len(codes) and codes.max() < 1 << 16 else codes  # numpy sorts 16 bits by radix
    bars = take(bars, np.argsort(narrow, kind="stable"))
    backwards = (np.diff(bars["day"]) < 0) & (np.diff(bars["code"]) == 0)
    if backwards.any():
        bars = take(bars, np.lexsort((bars["day"], bars["code"])))
    return bars


def _once(bars: np.ndarray, tickers: Sequence[str], counts: Counts) -> np.ndarray:
    """The first bar of each ticker and day. No break is left: the day is there."""
    again = np.flatnonzero((np.diff(bars["day"]) == 0) & (np.diff(bars["code"]) == 0)) + 1
    if not len(again):
        return bars
    left, right = bars["values"][again], bars["values"][again - 1]
    same = ((left == right) | (np.isnan(left) & np.isnan(right))).all(axis=1)
    for what, rows in ((SAME, again[same]), (OTHER, again[~same])):
        counts[what].update(Counter(tickers[code] for code in bars["code"][rows].tolist()))
    first = np.ones(len(bars), bool)
    first[again] = False
    return take(bars, np.flatnonzero(first))
