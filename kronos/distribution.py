"""What a forecast is: sampled paths of bars, and what can be read off them (means, quantiles, probabilities)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos.bars import COLUMNS
from kronos.errors import InputError

_CLOSE = COLUMNS.index("close")


@dataclass(frozen=True)
class Repairs:
    """How often sampled bars had to be made consistent: counts over all paths and steps."""

    bars: int  # bars looked at
    high: int = 0  # high raised to open or close
    low: int = 0  # low lowered to open or close
    volume: int = 0  # negative volume set to 0
    amount: int = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {getattr(self, name)}" for name in ("high", "low", "volume", "amount"))
        return f"repaired of {self.bars} sampled bars: {counts}"


def make_consistent(paths: np.ndarray) -> tuple[np.ndarray, Repairs]:
    """Paths [..., 6] with low <= open, close <= high and volume, amount >= 0; and what was changed. The input stays as it is.

    Open and close are the forecast's; high and low give way. So means and quantiles of the columns are consistent, too.
    """
    fixed = paths.copy()
    open_, high, low, close = (paths[..., i] for i in range(4))
    fixed[..., 1] = np.maximum(high, np.maximum(open_, close))
    fixed[..., 2] = np.minimum(low, np.minimum(open_, close))
    fixed[..., 4:] = np.maximum(paths[..., 4:], 0.0)
    changed = (fixed != paths).reshape(-1, len(COLUMNS)).sum(0)
    counts = {name: int(changed[COLUMNS.index(name)]) for name in ("high", "low", "volume", "amount")}
    return fixed, Repairs(paths.size // len(COLUMNS), **counts)


@dataclass(frozen=True)
class Forecast:
    """Sampled paths of one series.

    paths: [samples, horizon, 6] float64, columns open, high, low, close, volume, amount. times: of the forecast bars, [horizon].
    last: the bar the forecast starts from, [6]. repairs: what `consistent=True` changed, None where it was off.
    """

    paths: np.ndarray
    times: pd.Index
    last: np.ndarray
    repairs: Repairs | None = None

    def mean(self) -> pd.DataFrame:
        """Mean over paths, one row per bar."""
        return self._frame(self.paths.mean(0))

    def quantiles(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> pd.DataFrame:
        """Quantiles over paths per bar, in columns open_q5, open_q50, open_q95, high_q5, ... Raises InputError for wrong levels."""
        levels = checked_levels(levels, len(self.paths))
        values = np.quantile(self.paths, levels, axis=0)  # [levels, horizon, 6]
        names = [f"{column}_q{100 * level:g}" for column in COLUMNS for level in levels]
        return pd.DataFrame(values.transpose(1, 2, 0).reshape(len(self.times), -1), columns=names, index=self.times)

    def prob_up(self) -> pd.Series:
        """Share of paths whose close lies above the last known close, per bar; ties count half."""
        close, last = self.paths[:, :, _CLOSE], self.last[_CLOSE]
        share = (close > last).mean(0) + 0.5 * (close == last).mean(0)
        return pd.Series(share, index=self.times, name="prob_up")

    def frame(self, quantiles: Sequence[float] = (), prob_up: bool = False) -> pd.DataFrame:
        """Means, followed by the quantiles and the probability asked for. `attrs["repairs"]` holds the repairs as a dictionary."""
        parts: list[pd.DataFrame | pd.Series] = [self.mean()]
        if levels := checked_levels(quantiles, len(self.paths)):
            parts.append(self.quantiles(levels))
        if prob_up:
            parts.append(self.prob_up())
        frame = pd.concat(parts, axis=1) if len(parts) > 1 else parts[0]
        if self.repairs is not None:
            frame.attrs["repairs"] = vars(self.repairs)
        return frame

    def _frame(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, columns=list(COLUMNS), index=self.times)


def checked_levels(levels: Sequence[float], paths: int) -> list[float]:
    """Quantile levels as given, in (0, 1). Raises InputError naming the wrong one, or if one path is all there is."""
    if isinstance(levels, int | float):
        levels = [levels]
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int | float | np.number) or not 0 < level < 1:
            raise InputError(f"quantile {level!r}: it must lie between 0 and 1, e.g. quantiles=(0.05, 0.5, 0.95)")
    if len(levels) and paths < 2:
        raise InputError(f"quantiles of {paths} path: draw more, e.g. sample_count=100")
    return [float(level) for level in levels]
