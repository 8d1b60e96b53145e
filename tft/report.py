"""The transformer against its baselines on one split: every metric by target and period, differences with intervals, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.engine.windows import Source
from tft.baselines import CONSTANT, LIGHTGBM, constants, lightgbm
from tft.forecasts import Outputs, last_rows, threshold
from tft.losses import TargetLoss
from tft.prediction_table import in_units, true_values
from tft.report_scores import Difference, Moments, decides, differences, metrics_of
from tft.rows import period_of_series, series_rows
from tft.target_panel import close_times
from tft.training import Prepared
from tft.window_splits import horizons_of

MODEL = "transformer"
EVERYWHERE = "all periods"
Say = Callable[[str], Any]
_LEAST = 1e-12  # probabilities are kept this far from 0 and 1


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found on one split of W windows.

    metrics {method: {"target_x_f1" or "target_x_f1@1h": value}}. differences {target: {place: {baseline: {metric: Difference}}}}, places
    "all periods", "1h" ... confusion: of the transformer, by the names of training. coverage {target: {level: share of outcomes below}}.
    """

    split: str
    losses: Mapping[str, TargetLoss]
    periods: list[str]
    windows: int
    moments: int
    first: str
    last: str
    metrics: dict[str, dict[str, float]]
    differences: dict[str, dict[str, dict[str, dict[str, Difference]]]]
    confusion: dict[str, np.ndarray]
    coverage: dict[str, dict[float, float]]
    notes: list[str]

    def deciding(self, target: str, other: str, place: str = EVERYWHERE) -> Difference | None:
        """The difference that the verdict on a target rests on; None where nothing was compared."""
        found = self.differences[target].get(place, {}).get(other)
        return found[decides(self.losses[target])] if found else None

    @property
    def others(self) -> list[str]:
        return [name for name in self.metrics if name != MODEL]


def compare(
    prepared: Prepared, split: str, source: Source, outputs: Outputs, *, with_lightgbm: bool = True, seed: int = 0, say: Say = print
) -> Comparison:
    """Judge a split's outputs beside baselines that learn from the training windows of `prepared`.

    Raises InputError if LightGBM is wanted and not installed.
    """
    losses, panel, rows = prepared.task.losses.losses, prepared.panel, outputs.row
    closes, reach = close_times(panel), label_reach(prepared)
    train, scored = last_rows(prepared.windows["train"]), last_rows(source)
    assert np.array_equal(scored.row, rows), "baselines and network see the same windows"
    guesses = {CONSTANT: constants(train, scored, losses)}
    if with_lightgbm:
        threads = max(1, _threads())
        guesses = {LIGHTGBM: lightgbm(train, scored, losses, closes[train.row], reach, seed=seed, threads=threads, say=say), **guesses}
    labels = np.column_stack([true_values(panel, target, rows) for target in losses])
    points = {MODEL: {name: _own_point(prepared, name, loss, outputs) for name, loss in losses.items()}}
    points |= {who: {n: baseline_point(prepared, n, loss, rows, guess[n]) for n, loss in losses.items()} for who, guess in guesses.items()}
    periods = prepared.task.periods
    judged = {who: metrics_of(losses, of, labels, outputs.period, periods) for who, of in points.items()}
    found: dict[str, dict[str, Any]] = {}
    for k, target in enumerate(losses):
        found[target] = {}
        for place, chosen in _places(outputs.period, periods):
            moments = Moments.of(closes[rows[chosen]], np.array(reach[target])[outputs.period[chosen]])
            others = {who: points[who][target][chosen] for who in guesses}
            found[target][place] = differences(losses[target], points[MODEL][target][chosen], others, labels[chosen, k], moments, seed)
    when = np.sort(np.asarray(panel.times)[rows]).astype("datetime64[ns]").astype("datetime64[s]").astype(str)
    return Comparison(
        split=split,
        losses=losses,
        periods=[place for place, _ in _places(outputs.period, periods)],
        windows=len(rows),
        moments=len(np.unique(closes[rows])),
        first=when[0],
        last=when[-1],
        metrics={who: of[0] for who, of in judged.items()},
        differences=found,
        confusion=judged[MODEL][1],
        coverage=_coverage(prepared, outputs, labels),
        notes=[],
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _places(period: np.ndarray, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """("all periods", all rows), then each period that has rows, if there is more than one."""
    yield EVERYWHERE, np.ones(len(period), bool)
    there = np.unique(period)
    for number in there.tolist() if len(there) > 1 else ():
        if names[number]:
            yield names[number], period == number


def _own_point(prepared: Prepared, target: str, loss: TargetLoss, outputs: Outputs) -> np.ndarray:
    """What metrics take: the logit, or the value in its own units. [W]"""
    import torch

    point = loss.point(torch.from_numpy(outputs.raw[target])).numpy().astype(np.float64)
    return in_units(prepared, target, outputs.row, point)


def baseline_point(prepared: Prepared, target: str, loss: TargetLoss, rows: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """A baseline's probabilities as logits that are above 0 where the transformer's would be; its values in their own units. [W]"""
    if not loss.classification:
        return in_units(prepared, target, rows, guess)
    share, cut = np.clip(guess, _LEAST, 1 - _LEAST), threshold(loss)
    return np.log(share / (1 - share)) - np.log(cut / (1 - cut))


def label_reach(prepared: Prepared) -> dict[str, list[int]]:
    """{target: ns by period number} from a bar's close until its label is known. Raises what `horizons_of` raises."""
    panel, targets = prepared.panel, list(prepared.task.losses.losses)
    horizons = horizons_of(panel, prepared.manifest, targets, None)
    reach = {target: [0] * len(prepared.task.periods) for target in targets}
    for info, rows, bars in zip(panel.series, series_rows(panel), horizons, strict=True):
        number = prepared.task.periods.index(info.period) if info.period in prepared.task.periods else 0
        length = period_of_series(info, np.asarray(panel.times[rows]))
        for target, ahead in zip(targets, bars.tolist(), strict=True):
            reach[target][number] = max(reach[target][number], ahead * length)
    return reach


def _coverage(prepared: Prepared, outputs: Outputs, labels: np.ndarray) -> dict[str, dict[float, float]]:
    """Share of outcomes below each quantile, of the targets whose heads have quantiles."""
    found = {}
    for k, (target, loss) in enumerate(prepared.task.losses.losses.items()):
        there = ~np.isnan(labels[:, k])
        if loss.kind == "quantile" and there.any():
            values = np.sort(in_units(prepared, target, outputs.row, outputs.raw[target]), 1)[there]
            found[target] = dict(zip(loss.quantiles, (labels[there, k, None] <= values).mean(0).tolist(), strict=True))
    return found
