"""Stock splits: is a file adjusted for them already? If not, prices before a split are divided by its ratio and volumes multiplied.

The verdict is for the whole file, not for each ticker. Whether prices are adjusted is a property of the source, which made every row in
one way; a file has thousands of splits to judge by, a ticker one or two, and one crash on the day of a split would decide for it. A wrong
verdict for a ticker makes a jump of 1/ratio where there was none, and that is worse than leaving one that the source has.

So a split is adjusted only if nothing speaks against it: the file's majority says "not adjusted", and its own close does jump (or its
ratio is too near 1 to tell). A split that disagrees with its file is left as it is, counted and named: in an unadjusted file it is most
often a wrong record or an adjusted ticker, in an adjusted one a jump that the source missed, or a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kronos.errors import InputError

CHOICES = ("auto", "adjust", "keep")
TELLING = np.log(1.5) - 1e-9  # a 3:2 split; smaller ones drown in an ordinary day's return
_NEAR_DAYS = 10  # bars further apart than this do not tell a split from what else happened


@dataclass
class SplitEvents:
    """Splits [k]: the first real bar at or after the split's day (a row number; rows before it are older shares), new shares for one old,
    the ticker's number, and what its close did: 1 jumped by 1/ratio, 0 did not, -1 cannot tell.
    """

    rows: np.ndarray
    ratios: np.ndarray
    codes: np.ndarray
    jumped: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[SplitEvents]) -> SplitEvents:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "ratios", "codes", "jumped")))


def is_split(ratios: np.ndarray) -> np.ndarray:
    """[n] bool: cells of the Stock Splits column that name a split (0, 1 and empty do not)."""
    return np.isfinite(ratios) & (ratios > 0) & (ratios != 1)


def find_events(codes: np.ndarray, days: np.ndarray, closes: np.ndarray, real: np.ndarray, ratios: np.ndarray) -> SplitEvents:
    """Splits in bars sorted by ticker and day, each [n]; real: the bar was kept and is not a filled one. Rows are positions in these.

    Splits before a ticker's first real bar or after its last change nothing and are left out.
    """
    at = np.flatnonzero(is_split(ratios))
    rows = np.flatnonzero(real)
    place = np.searchsorted(rows, at)  # the first real bar at or after the split
    fits = (place > 0) & (place < len(rows))
    at, place = at[fits], place[fits]
    after, before = rows[place], rows[place - 1]
    fits = (codes[after] == codes[at]) & (codes[before] == codes[at])
    at, after, before = at[fits], after[fits], before[fits]
    expected = -np.log(ratios[at])
    seen = np.log(closes[after] / closes[before])
    tells = (np.abs(expected) >= TELLING) & (days[after] - days[before] <= _NEAR_DAYS)
    jumped = np.where(tells, np.abs(seen - expected) < np.abs(seen), -1).astype(np.int8)
    return SplitEvents(after, ratios[at], codes[at], jumped)


@dataclass(frozen=True)
class Verdict:
    """kind: "adjusted", "not adjusted", "unknown" (no split tells) or as the setting said. jumped, smooth, unclear: numbers of splits.

    applied [k] bool: splits to adjust by. dissent: numbers of the tickers whose splits disagree with the file, each once.
    """

    kind: str
    jumped: int
    smooth: int
    unclear: int
    applied: np.ndarray
    dissent: tuple[int, ...]
    text: str


def judge(events: SplitEvents, setting: str = "auto") -> Verdict:
    """Whether the file is adjusted, by the majority of its splits; a tie counts as adjusted. Raises InputError for another setting."""
    if setting not in CHOICES:
        raise InputError(f"--splits: {setting!r} is not one of {', '.join(CHOICES)}")
    jumped, smooth = int((events.jumped == 1).sum()), int((events.jumped == 0).sum())
    counts = f"of {jumped + smooth:,} splits of 3:2 or more, closes jump by 1/ratio at {jumped:,} and do not at {smooth:,}"
    raw = jumped > smooth
    odd = events.codes[events.jumped == (0 if raw else 1)]
    everything = np.ones(len(events.rows), bool)
    if setting == "adjust":
        kind, applied, text = "not adjusted (as --splits adjust says)", everything, "every split adjusted"
    elif setting == "keep":
        kind, applied, text = "left as it is (as --splits keep says)", ~everything, "nothing adjusted"
    elif jumped + smooth == 0:
        kind, applied, text = "unknown", ~everything, "left as it is"
    elif raw:
        kind, applied = "not adjusted", events.jumped != 0
        text = f"{int(applied.sum()):,} splits adjusted backwards in time"
    else:
        kind, applied, text = "adjusted", ~everything, "adjusted already: left as it is"
    differ = f"; {len(odd):,} splits of {len(np.unique(odd)):,} tickers disagree and are left as they are" if len(odd) else ""
    if setting != "auto":
        differ = ""
    return Verdict(
        kind, jumped, smooth, int((events.jumped < 0).sum()), applied, tuple(np.unique(odd).tolist()), f"{text} ({counts}){differ}"
    )


def adjust(features: np.ndarray, firsts: np.ndarray, rows: np.ndarray, ratios: np.ndarray) -> None:
    """Divide prices by a split's ratio and multiply volumes by it, in place, in rows firsts[k] to rows[k] - 1 of features [n, 6].

    Several splits of one ticker multiply. The amount stays: it is price times volume.
    """
    for first, row, ratio in zip(firsts.tolist(), rows.tolist(), ratios.tolist(), strict=True):
        features[first:row, :4] /= ratio
        features[first:row, 4] *= ratio
