"""Synthetic bars for anybody's tests: deterministic in the seed and always valid (low <= open, close <= high; all above zero)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from finetune.data.panel import KRONOS_NAMES, Panel, SeriesInfo


def make_frame(n: int, seed: int = 0, freq: str = "1h", start: str = "2020-01-01") -> pd.DataFrame:
    """`n` bars of a random walk: timestamps (naive datetime64[ns]), open, high, low, close, volume, amount (float64)."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    open_ = np.concatenate([[100.0], close[:-1]])
    high = np.maximum(open_, close) * (1 + rng.uniform(0, 0.01, n))
    low = np.minimum(open_, close) * (1 - rng.uniform(0, 0.01, n))
    volume = rng.uniform(1e3, 1e5, n)
    amount = volume * (open_ + high + low + close) / 4
    times = pd.date_range(start, periods=n, freq=freq).as_unit("ns")
    return pd.DataFrame({"timestamps": times, "open": open_, "high": high, "low": low, "close": close, "volume": volume, "amount": amount})


def make_panel(
    n_series: int = 3, n_rows: int | list[int] = 200, seed: int = 0, freq: str = "1h", start: str = "2020-01-01", stamp: str = "open"
) -> Panel:
    """A panel of `n_series` series named S00, S01, ...; `n_rows` is one length for all or a list of lengths. Wall clock UTC."""
    lengths = [n_rows] * n_series if isinstance(n_rows, int) else list(n_rows)
    frames = [make_frame(length, seed * 1000 + i, freq, start) for i, length in enumerate(lengths)]
    bars = pd.concat(frames, ignore_index=True)
    clock = bars["timestamps"].dt
    return Panel.build(
        features=bars[list(KRONOS_NAMES)].to_numpy(np.float32),
        stamps=np.stack([clock.minute, clock.hour, clock.day_of_week, clock.day, clock.month], axis=1).astype(np.uint8),
        times=bars["timestamps"].to_numpy("datetime64[ns]").astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        series=[SeriesInfo(f"S{i:02d}", freq) for i in range(len(lengths))],
        stamp=stamp,
    )
