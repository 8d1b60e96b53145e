"""Series of unequal length drawn more equally: a source with repeats, so that order, resuming and ranks stay as they are.

Each series gets places in proportion to its weight, at least one per window; a place leads to a window. An epoch's order runs over places,
so a short series' windows come up several times while each window of the longest comes up once.
"""

from __future__ import annotations

import numpy as np
import torch

from .cuts import Starts, places, series_counts
from .settings import Sampling
from .windows import Source, Windows


def balanced(windows: Windows, how: Sampling) -> Source:
    """windows as they are ("rows": every window equally likely), or so that every series is ("symbols"), or by the root of its windows."""
    if how == "rows":
        return windows
    return Balanced(windows, series_counts(windows.panel.offsets, Starts(windows.run_starts, np.diff(windows.first_of_run))), how)


def distinct(source: Source) -> int:
    """How many different windows there are, however often each is drawn, and where an item is several, each of them."""
    return len(source.source) if isinstance(source, Balanced) else getattr(source, "distinct", len(source))


def per_item(source: Source) -> int:
    """Windows that one item of a source stands for: 1, or as many as it says."""
    return getattr(source, "per_item", 1)


class Balanced:
    """`source`, whose windows lie series by series in numbers `counts` [S], with every series as likely as `how` says."""

    def __init__(self, source: Source, counts: np.ndarray, how: Sampling):
        assert counts.sum() == len(source)
        self.source, self.counts, self.how = source, counts, how
        self._places = places(counts, how)
        self._first_place = np.concatenate([[0], np.cumsum(self._places)])
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.facts = {**source.facts, "sampling": how}

    def over(self, other: Source) -> Balanced:
        """The same choice from another source of the same windows, such as their cached tokens."""
        return Balanced(other, self.counts, self.how)

    def __len__(self) -> int:
        return int(self._first_place[-1])

    def windows_at(self, index: np.ndarray) -> np.ndarray:
        """Window of each place. Places of a series go round its windows, so that each window has one more at most than any other."""
        series = np.searchsorted(self._first_place, index, side="right") - 1
        return self._first[series] + (index - self._first_place[series]) % self.counts[series]

    def to(self, device: torch.device) -> None:
        self.source.to(device)

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return self.source.gather(self.windows_at(index))

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        return self.source.stamps(self.windows_at(index))

    def describe(self, index: np.ndarray) -> list[str]:
        return self.source.describe(self.windows_at(index))
