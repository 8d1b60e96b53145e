"""What the transformer has to beat, on the same training rows: LightGBM by target and period, and a constant that knows no feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kronos.errors import InputError
from tft.forecasts import Rows
from tft.losses import TargetLoss

LIGHTGBM, CONSTANT = "LightGBM", "class prior or training mean"
_HELD_OUT = 0.15  # latest share of the training rows on which the number of trees is chosen
_FEWEST = 200  # labelled training rows of a period below which nothing is fitted
_MOST_TREES, _PATIENCE, _PLAIN_TREES = 400, 30, 60
_SETTINGS = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "max_bin": 127,
}

Say = Callable[[str], Any]


def constants(train: Rows, scored: Rows, losses: Mapping[str, TargetLoss]) -> dict[str, np.ndarray]:
    """{target: [W]} of the scored rows: share of class 1, or the mean, among the training labels of the row's period (NaN without any)."""
    found = {}
    for k, target in enumerate(losses):
        values = np.full(len(scored.row), np.nan)
        for period in np.unique(scored.period):
            labels = train.labels[train.period == period, k]
            labels = labels[~np.isnan(labels)]
            if len(labels):
                values[scored.period == period] = labels.mean(dtype=float)
        found[target] = values
    return found


def lightgbm(
    train: Rows,
    scored: Rows,
    losses: Mapping[str, TargetLoss],
    times: np.ndarray,
    reach: Mapping[str, Sequence[int]],
    *,
    seed: int = 0,
    threads: int = 1,
    say: Say = print,
) -> dict[str, np.ndarray]:
    """{target: [W]} of the scored rows: probability of class 1, or the value in the units of the labels; a model per target and period.

    times [W of train] int64 ns: when each training row's bar is known. reach {target: ns by period number}: how much later its label is
    known. The number of trees is chosen on the latest 15 % of the training rows, which no label of the earlier ones touches; then all
    training rows are used. A period with too few labels gets the constant, and `say` tells so.
    Raises InputError if the package is not installed.
    """
    try:
        import lightgbm as package  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: its library does not load (no libgomp)
        raise InputError(
            f"LightGBM cannot be imported ({error}); pip install lightgbm, or leave the baseline out: --baselines prior"
        ) from error
    found = constants(train, scored, losses)
    how = {**_SETTINGS, "num_threads": threads, "seed": seed, "verbosity": -1, "deterministic": True, "force_row_wise": True}
    for k, (target, loss) in enumerate(losses.items()):
        for period in np.unique(scored.period).tolist():
            rows = np.flatnonzero((train.period == period) & ~np.isnan(train.labels[:, k]))
            labels = train.labels[rows, k]
            if len(rows) < _FEWEST or labels.min() == labels.max():
                say(f"LightGBM: {target} of period {period} has {len(rows):,} training labels, too few or all alike: the constant instead")
                continue
            early, late = held_out(times[rows], reach[target][period])
            model = _Trees(train.features[rows], labels, train.codes, {**how, **_objective(loss)})
            trees = model.choose(early, late) if min(len(early), len(late)) >= _FEWEST // 4 else _PLAIN_TREES
            here = scored.period == period
            found[target][here] = model.predict(trees, scored.features[here])
    return found


def held_out(times: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(earlier, latest) positions in times [n]: the latest 15 %, and those whose label was known before the first of them."""
    first = np.quantile(times, 1 - _HELD_OUT, method="higher")
    return np.flatnonzero(times + reach < first), np.flatnonzero(times >= first)


class _Trees:
    """One gradient boosting over features [n, F] and labels [n]."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, codes: Sequence[int], settings: Mapping[str, Any]):
        self.features, self.labels, self.codes, self.settings = features, labels, list(codes), dict(settings)

    def _data(self, chosen: np.ndarray | slice, reference: Any = None) -> Any:
        from lightgbm import Dataset

        how = {"categorical_feature": self.codes, "params": {"verbosity": -1}, "reference": reference}
        return Dataset(self.features[chosen], self.labels[chosen], **how)

    def choose(self, early: np.ndarray, late: np.ndarray) -> int:
        """The number of trees that serves the late rows best, at least 1."""
        from lightgbm import early_stopping, train

        data = self._data(early)
        stop = early_stopping(_PATIENCE, verbose=False)
        return train(self.settings, data, _MOST_TREES, valid_sets=[self._data(late, data)], callbacks=[stop]).best_iteration

    def predict(self, trees: int, features: np.ndarray) -> np.ndarray:
        from lightgbm import train

        return train(self.settings, self._data(slice(None)), trees).predict(features)


def _objective(loss: TargetLoss) -> dict[str, Any]:
    """What suits the number that is judged. Preferences of a loss for a class are left to the threshold, not to the trees."""
    if loss.classification:
        return {"objective": "binary"}
    if loss.kind == "quantile":
        return {"objective": "quantile", "alpha": min(loss.quantiles, key=lambda level: abs(level - 0.5))}
    return {"objective": "regression"}  # squares, as RMSE judges
