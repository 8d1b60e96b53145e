"""Anomaly scores: how much sparser the surroundings of a bar are than those of its neighbours (LOF), measured against the past alone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np

from kronos.errors import InputError
from tft.indicators import Bars, choose, feature

INPUTS = ("log_return", "amplitude", "volume_ratio", "body")
_MOST = 10.0  # among equal bars densities are infinite and so are scores
_DAY = 86_400 * 10**9


def lof_scores(
    values: np.ndarray, times: np.ndarray, period: int, *, neighbours: int = 20, train_rows: int = 500, refit_every: int = 250
) -> np.ndarray:
    """[n] local outlier factors (Breunig et al. 2000; 1: as dense as its neighbours; cut off at 10) of values [n, d], NaN where unknown.

    scikit-learn's LocalOutlierFactor(novelty=True), fitted on the `train_rows` rows before a block and asked about the rows of the block,
    so no row is measured against itself or a later one. Blocks are `refit_every` periods long and begin at multiples of that since 1970:
    where the series begins does not move them. Columns are standardised with the mean and deviation of the fitted rows. The search is
    always a k-d tree: it answers each row by itself, while a brute-force search multiplies matrices, whose rounding may depend on the
    other rows of the block, later ones included.
    """
    try:
        neighbors = importlib.import_module("sklearn.neighbors")
    except ModuleNotFoundError as error:
        raise InputError("the feature lof needs the package scikit-learn, which is not installed; run: pip install scikit-learn") from error
    scores = np.full(len(values), np.nan)
    usable = np.isfinite(values).all(axis=1)
    first = len(values) if not usable.any() else int(np.argmax(usable))
    block = times // (refit_every * (period or _DAY))
    starts = np.flatnonzero(np.diff(block, prepend=block[:1] - 1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True):
        if start - train_rows < first:
            continue
        past = values[start - train_rows : start]
        mean, spread = past.mean(axis=0), past.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        model = neighbors.LocalOutlierFactor(n_neighbors=min(neighbours, train_rows - 1), algorithm="kd_tree", novelty=True)
        model.fit((past - mean) / spread)
        scores[start:end] = np.minimum(-model.score_samples((values[start:end] - mean) / spread), _MOST)
    return scores


def _rows(train_rows: int, refit_every: int, inputs: Sequence[str]) -> int:
    return train_rows + refit_every + max(choose(name, "").warm_up for name in inputs)


@feature(warm_up=_rows, outputs=("score", "flag"))
def lof(
    bars: Bars,
    neighbours: int = 20,
    train_rows: int = 500,
    refit_every: int = 250,
    threshold: float = 1.5,
    inputs: Sequence[str] = INPUTS,
) -> dict[str, np.ndarray]:
    """Local outlier factor of the features `inputs` (with their default parameters), see `lof_scores`; flag: 1 where score > threshold."""
    columns = [column for name in inputs for column in choose(name, "").compute(bars)]
    how = dict(neighbours=neighbours, train_rows=train_rows, refit_every=refit_every)
    score = lof_scores(np.stack(columns, axis=1), bars.times, bars.period, **how)
    return {"score": score, "flag": np.where(np.isnan(score), np.nan, score > threshold)}
