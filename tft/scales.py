"""Mean and deviation per (symbol, period), from training rows alone, and their inverse for forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.panel import Panel

_LEAST = 20  # values that a deviation is made of
_POOLED = ""  # the symbol under which a period's pooled statistics stand; ("", "") pools everything


@dataclass(frozen=True)
class Scales:
    """names: columns. values: {(symbol, period): [2, K] float64, mean and deviation}; ("", period) pools a period, ("", "") all.

    A series with fewer than 20 training values takes its period's pooled statistics, an unknown period those of everything.
    A column that does not vary has deviation 1.
    """

    names: tuple[str, ...]
    values: Mapping[tuple[str, str], np.ndarray]

    @classmethod
    def fit(cls, panel: Panel, columns: np.ndarray, names: Sequence[str], rows: np.ndarray) -> Scales:
        """Statistics of columns [N, K] (NaN = unknown) over rows [n] (int64, increasing: training rows of `panel`)."""
        ends = np.searchsorted(rows, panel.offsets)
        sums: dict[tuple[str, str], np.ndarray] = {}
        for info, first, end in zip(panel.series, ends[:-1], ends[1:], strict=True):
            moments = _moments(np.asarray(columns[rows[first:end]], np.float64))
            for key in ((info.symbol, info.period), (_POOLED, info.period), (_POOLED, _POOLED)):
                sums[key] = _merged(sums[key], moments) if key in sums else moments
        pooled_all = _finished(sums[_POOLED, _POOLED], None)
        values = {(_POOLED, _POOLED): pooled_all}
        for (symbol, period), moments in sums.items():
            if symbol == _POOLED and period != _POOLED:
                values[symbol, period] = _finished(moments, pooled_all)
        for (symbol, period), moments in sums.items():
            if symbol != _POOLED:
                values[symbol, period] = _finished(moments, values[_POOLED, period])
        return cls(tuple(names), values)

    def beside(self, other: Scales) -> Scales:
        """Both columns' statistics of the same series as one."""
        values = {key: np.concatenate([both, other.values[key]], axis=1) for key, both in self.values.items()}
        return Scales(self.names + other.names, values)

    def of(self, symbol: str, period: str) -> np.ndarray:
        """[2, K] mean and deviation of a series, or the pooled ones of its period, or of everything."""
        for key in ((symbol, period), (_POOLED, period), (_POOLED, _POOLED)):
            if key in self.values:
                return self.values[key]
        raise KeyError((symbol, period))

    def per_series(self, panel: Panel, names: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(mean, deviation) [S, k] float64 of each series of a panel and each of `names` (None: all); 0 and 1 for names without."""
        names = self.names if names is None else names
        both = np.tile(np.array([0.0, 1.0])[:, None, None], (1, panel.n_series, len(names)))
        place = [(k, self.names.index(name)) for k, name in enumerate(names) if name in self.names]
        for s, info in enumerate(panel.series):
            found = self.of(info.symbol, info.period)
            for k, own in place:
                both[:, s, k] = found[:, own]
        return both[0], both[1]

    def inverse(self, panel: Panel, rows: np.ndarray, name: str, values: np.ndarray) -> np.ndarray:
        """Forecasts in the target's own unit, float64: values [n] or [n, q] (quantiles) as the network gave them, rows [n] of `panel`.

        A target that was not standardised comes back as it is.
        """
        series = np.searchsorted(panel.offsets, rows, side="right") - 1
        mean, deviation = (part[series, 0] for part in self.per_series(panel, [name]))
        extra = (...,) + (None,) * (np.ndim(values) - 1)
        return np.asarray(values, np.float64) * deviation[extra] + mean[extra]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` takes them."""
        series = [
            {"symbol": symbol, "period": period, "mean": both[0].tolist(), "std": both[1].tolist()}
            for (symbol, period), both in self.values.items()
        ]
        return {"names": list(self.names), "series": series}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Scales:
        values = {(entry["symbol"], entry["period"]): np.array([entry["mean"], entry["std"]]) for entry in plain["series"]}
        return cls(tuple(plain["names"]), values)


def _moments(values: np.ndarray) -> np.ndarray:
    """[3, K]: how many are known, their mean, their summed squared distance from it."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.stack([count, mean, np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)])


def _merged(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Moments of two sets together (Chan, Golub and LeVeque 1983)."""
    count = a[0] + b[0]
    apart, share = b[1] - a[1], b[0] / np.maximum(count, 1)
    return np.stack([count, a[1] + apart * share, a[2] + b[2] + apart**2 * a[0] * share])


def _finished(moments: np.ndarray, fallback: np.ndarray | None) -> np.ndarray:
    """[2, K] mean and population deviation; `fallback`, or 0 and 1, where fewer than two values are known."""
    count, mean, squares = moments
    deviation = np.sqrt(squares / np.maximum(count, 1))
    deviation = np.where(deviation > 1e-12 * np.maximum(1.0, np.abs(mean)), deviation, 1.0)
    otherwise = np.stack([np.zeros_like(mean), np.ones_like(mean)]) if fallback is None else fallback
    return np.where(count >= _LEAST, np.stack([mean, deviation]), otherwise)
