"""A panel of random walks of several symbols and periods with everything a fused one has, and its windows, for tests of these."""

from __future__ import annotations

import numpy as np
import pandas as pd

from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.timestamps import stamp_features
from tft.indicators_calendar import calendar_rows
from tft.windows import make_windows

HOUR = 3_600 * 10**9
START = pd.Timestamp("2022-03-01").value
LENGTH = {"1h": 1, "4h": 4, "1d": 24}
AHEAD = {"1h": 5, "4h": 3, "1d": 2}  # the horizon of target_up; target_move looks one bar less ahead
E, P, DAYS = 6, 1, 60
TARGETS = ("target_up", "target_move")
CALENDAR = {"time_of_day_sin": ["time_of_day", "sin"], "time_of_day_cos": ["time_of_day", "cos"], "hour_category": ["hour_category", ""]}
MANIFEST = {
    "calendar": CALENDAR,
    "targets": {"target_up": {"horizon": AHEAD}, "target_move": {"horizon": {period: h - 1 for period, h in AHEAD.items()}}},
}
NAMES = {"x": "past", "time_of_day_sin": "known", "regime": "categorical", "y@1d": "past", "time_of_day_cos": "known"}
NAMES |= {"hour_category": "categorical"}
quiet = lambda text: None  # noqa: E731


def labels(path: np.ndarray, period: str) -> np.ndarray:
    """[n, 2] of a random walk: whether it rises over the horizon, and by how much over one bar less."""
    out = np.full((len(path), 2), np.nan)
    h = AHEAD[period]
    out[:-h, 0] = path[h:] > path[:-h]
    out[: -(h - 1), 1] = path[h - 1 :] - path[: -(h - 1)]
    return out


def world(symbols=("BTC", "ETH"), periods=("1h", "4h", "1d"), days=DAYS, seed=0, breaks=(), short=None) -> Panel:
    """Walks of several symbols at several periods, a level and a spread of their own each; `short` (symbol, period, rows)."""
    draw = np.random.default_rng(seed)
    series, parts, marks, times = [], [], [], []
    for number, (symbol, period) in enumerate((symbol, period) for symbol in symbols for period in periods):
        count = short[2] if short and short[:2] == (symbol, period) else 24 * days // LENGTH[period]
        opens = START + np.arange(count) * LENGTH[period] * HOUR
        path = np.cumsum(draw.normal(0.1 * number, 1 + number, count))
        columns = {"x": path, "y@1d": draw.normal(size=count), "regime": draw.integers(0, 4, count)}
        known = calendar_rows(CALENDAR, list(CALENDAR), stamp_features(opens))
        columns |= {name: known[:, k] for k, name in enumerate(CALENDAR)}
        parts.append(np.stack([columns[name] for name in NAMES], 1))
        marks.append(labels(path, period))
        times.append(opens)
        series.append(SeriesInfo(symbol, period))
    return Panel.build(
        features=np.concatenate(parts),
        stamps=stamp_features(np.concatenate(times)),
        times=np.concatenate(times),
        offsets=np.cumsum([0, *map(len, times)]),
        breaks=np.array(breaks),
        series=series,
        columns=[Column(name, kind) for name, kind in NAMES.items()],
        targets=np.concatenate(marks),
        target_names=TARGETS,
    )


def changed(panel: Panel, **arrays) -> Panel:
    names = ("features", "stamps", "times", "offsets", "breaks", "origin", "series", "columns", "targets", "target_names", "stamp")
    return Panel.build(**{**{name: getattr(panel, name) for name in names}, **arrays})


def windows(panel=None, manifest=MANIFEST, **options):
    plain = dict(targets=TARGETS, real_targets=["target_move"], encoder=E, prediction=P, say=quiet)
    return make_windows(world() if panel is None else panel, manifest, **{**plain, **options})


def everything(source) -> dict:
    return source.gather(np.arange(len(source)))


def period_of(panel, rows) -> np.ndarray:
    return np.array([panel.series[s].period for s in np.searchsorted(panel.offsets, rows, side="right") - 1])


def column(panel, name) -> np.ndarray:
    return panel.features[:, list(NAMES).index(name)]
