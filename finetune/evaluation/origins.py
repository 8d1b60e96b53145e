"""Rolling origins: the moments at which forecasts start, the same for all series, spread evenly over the bars that are scored.

Forecasts are scored on one set of origins and prepared on an earlier one, on which the best baseline is chosen and calibration begins:
validation before test, or the earlier half of validation before the later half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.engine.randomness import permute
from finetune.engine.windows import Splits, Windows
from kronos.errors import InputError

CLOSE = KRONOS_NAMES.index("close")
Say = Callable[[str], Any]
FEWEST_SCORED, FEWEST_CHOOSING = 10, 5  # moments; an interval over fewer means nothing


class OriginSettings(Protocol):
    """What is read here of a configuration's `evaluation` section."""

    split: str
    stride: int
    max_origins: int
    max_series: int
    seed: int


@dataclass(frozen=True, eq=False)
class Origins:
    """O forecast origins of D moments, sorted by moment, then by series.

    rows [O]: the last known row of each in the panel. series [O]: which series. moment [O]: which moment, 0..D-1. scored [O]: whether it is
    scored, or comes before and only prepares. moments [D]: int64 ns UTC at which everything up to `rows` is known. unit: "test" or "val".
    """

    panel: Panel
    lookback: int
    horizon: int
    rows: np.ndarray
    series: np.ndarray
    moment: np.ndarray
    scored: np.ndarray
    moments: np.ndarray
    unit: str

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def closes(self) -> np.ndarray:
        """[O, 1 + horizon] float64: the origin's close, then those that came."""
        rows = self.rows[:, None] + np.arange(self.horizon + 1)
        return self.panel.features[rows, CLOSE].astype(np.float64)

    @cached_property
    def returns(self) -> np.ndarray:
        """[O, horizon] float64: log returns from the origin's close."""
        return np.log(self.closes[:, 1:] / self.closes[:, :1])

    @cached_property
    def now(self) -> np.ndarray:
        """[O] int64 ns: when the origin's bar is known."""
        return known_at(self.panel, self.rows)

    @cached_property
    def realised(self) -> np.ndarray:
        """[O, horizon] int64 ns: when each outcome is known."""
        return known_at(self.panel, self.rows[:, None] + np.arange(1, self.horizon + 1))

    @cached_property
    def overlap(self) -> np.ndarray:
        """[horizon]: how many moments pass, the origin's own among them, before the outcome of each step is known; 1: none overlaps."""
        after = np.searchsorted(self.moments, self.realised)  # the first moment that knows it
        return np.maximum(1, np.quantile(after - self.moment[:, None], 0.5, axis=0, method="higher"))

    @property
    def block(self) -> int:
        """Moments in a resampled block: those of two horizons, and no fewer than D^(1/3) (Künsch 1989).

        Scores that overlap by a horizon need blocks longer than it: with one horizon 95 % intervals of overlapping sums held 82 to 90 %.
        """
        return int(max(2 * self.overlap[-1] if self.overlap[-1] > 1 else 1, np.ceil(len(self.moments) ** (1 / 3))))

    def chosen(self, keep: np.ndarray) -> Origins:
        """Only the origins of a boolean mask [O] or index; moments are numbered anew."""
        used, moment = np.unique(self.moment[keep], return_inverse=True)
        picked = {name: getattr(self, name)[keep] for name in ("rows", "series", "scored")}
        return replace(self, **picked, moment=moment, moments=self.moments[used])


def known_at(panel: Panel, rows: np.ndarray) -> np.ndarray:
    """When bars are complete, int64 ns: at their own time if stamped at the close, else at the next bar's."""
    return np.asarray(panel.times)[rows + (panel.stamp == "open")]


def rolling_origins(
    windows: Windows, *, stride: int = 1, max_origins: int = 0, max_series: int = 0, seed: int = 0, say: Say = print
) -> Origins:
    """Origins over a split: every `stride`-th moment at which a bar completes, thinned evenly to `max_origins` moments (0: all).

    At each moment every series (or `max_series` drawn by the seed) is forecast from its latest origin, if it has one since the moment
    before. Origins with a close of 0 or below, where returns mean nothing, are left out and counted. The result may be empty.
    """
    panel = windows.panel
    assert windows.length > windows.lookback + windows.horizon, "the row after the last outcome says when it was known"
    rows = windows.start_rows(np.arange(len(windows))) + windows.lookback - 1
    series = np.searchsorted(panel.offsets, rows, side="right") - 1
    if 0 < max_series < panel.n_series:
        drawn = permute(np.arange(max_series), panel.n_series, seed)
        rows, series = rows[np.isin(series, drawn)], series[np.isin(series, drawn)]
    now = known_at(panel, rows)
    grid = np.unique(now)[::stride]
    if 0 < max_origins < len(grid):
        grid = grid[np.linspace(0, len(grid) - 1, max_origins).round().astype(np.int64)]
    parts = []
    for s in np.unique(series):
        of_s = np.flatnonzero(series == s)
        latest = np.searchsorted(now[of_s], grid, side="right") - 1
        moment = np.flatnonzero(np.diff(latest, prepend=-1) > 0)
        parts.append(np.stack([moment, np.full(len(moment), s), rows[of_s[latest[moment]]]], axis=1))
    moment, series, rows = (np.concatenate(parts) if parts else np.empty((0, 3), np.int64)).T
    order = np.lexsort((series, moment))
    found = Origins(
        panel,
        windows.lookback,
        windows.horizon,
        rows[order],
        series[order],
        moment[order],
        np.ones(len(order), bool),
        grid,
        windows.name,
    )
    priced = (found.closes > 0).all(axis=1)
    if not priced.all():
        say(f"left out: {(~priced).sum():,} origins of the {windows.name} split with a close of 0 or below, where returns mean nothing")
    return found.chosen(priced)


def choose_origins(splits: Splits, settings: OriginSettings, say: Say = print) -> Origins:
    """The origins that are scored and the earlier ones that prepare, in one object (`scored` tells them apart).

    No outcome of a preparing origin is known later than the first scored moment. Raises InputError if there are too few of either.
    """
    wanted = settings.split
    if wanted == "auto":
        wanted = "test" if len(splits.test) else "val"
        if wanted == "val":
            say("there is no test split (data.test_ratio is 0): scoring the later half of val, on which the model was chosen too")
    if wanted == "test" and not len(splits.test):
        raise InputError("evaluation: the test split has no window; set data.test_ratio (e.g. 0.1, and lower train_ratio), or --split val")
    how = dict(stride=settings.stride, max_series=settings.max_series, seed=settings.seed, say=say)
    if wanted == "test":
        scored = rolling_origins(splits.test, max_origins=settings.max_origins, **how)
        before = rolling_origins(splits.val, max_origins=settings.max_origins, **how)
    else:
        both = rolling_origins(splits.val, max_origins=2 * settings.max_origins, **how)
        later = both.moment >= len(both.moments) // 2
        scored, before = both.chosen(later), both.chosen(~later)
    _enough(scored, before, wanted)
    first = scored.now.min()
    before = before.chosen((before.realised <= first).all(axis=1))
    _enough(scored, before, wanted)
    return _joined(before, scored)


def _enough(scored: Origins, before: Origins, split: str) -> None:
    if len(scored.moments) >= FEWEST_SCORED and len(before.moments) >= FEWEST_CHOOSING:
        return
    raise InputError(
        f"evaluation: too few forecast origins: {len(scored.moments)} to score in the {split} split (at least {FEWEST_SCORED}) and "
        f"{len(before.moments)} before them (at least {FEWEST_CHOOSING}); raise data.val_ratio and data.test_ratio, lower "
        "evaluation.stride or data.predict_window, or give more bars"
    )


def _joined(before: Origins, scored: Origins) -> Origins:
    both = {name: np.concatenate([getattr(before, name), getattr(scored, name)]) for name in ("rows", "series", "moments")}
    moment = np.concatenate([before.moment, scored.moment + len(before.moments)])
    return replace(scored, **both, moment=moment, scored=np.arange(len(moment)) >= len(before))
