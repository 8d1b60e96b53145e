"""Rolling-origin evaluation of a model beside baselines: all methods on the same origins, through the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from finetune.engine.windows import Splits
from finetune.evaluation.baselines import make_baselines
from finetune.evaluation.calibration import Calibrated, calibrate
from finetune.evaluation.forecasts import Forecaster, Forecasts, ModelForecaster, forecast_all
from finetune.evaluation.origins import Origins, OriginSettings, choose_origins
from finetune.evaluation.skill import Resampler, Skill, best_of, skill
from finetune.evaluation.tables import score_table
from kronos import KronosPredictor

ENOUGH_SAMPLES = 100
_FEW_BLOCKS = 20  # stretches of a horizon; with fewer an interval is a rough guess
_MOST_VIEWS = 2
Say = Callable[[str], Any]


class Settings(OriginSettings, Protocol):
    """What is read of a configuration's `evaluation` section."""

    samples: int
    T: float
    top_p: float
    baselines: Sequence[str]
    calibrate: bool


@dataclass(eq=False)
class Evaluation:
    """Everything found. `forecasts` holds the model's first, then the baselines', at all origins; scores count the scored ones only.

    best, best_point: the baselines with the lowest CRPS and the lowest absolute error of the median, on the origins before the scored ones.
    skills: CRPS skill of the model against each baseline; point_skills: of its median, by absolute error.
    views: whole bars [samples, horizon, 6] of the model's newest forecasts, by origin, for the picture.
    """

    title: str
    settings: Settings
    origins: Origins
    forecasts: dict[str, Forecasts]
    resampler: Resampler
    best: str
    best_point: str
    skills: dict[str, Skill]
    point_skills: dict[str, Skill]
    calibrated: Calibrated | None
    views: dict[int, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def keep(self) -> np.ndarray:
        """[O] which origins are scored."""
        return self.origins.scored

    @property
    def model(self) -> Forecasts:
        return next(iter(self.forecasts.values()))

    @property
    def baselines(self) -> list[Forecasts]:
        return list(self.forecasts.values())[1:]

    @property
    def returns(self) -> np.ndarray:
        """[scored O, H] log returns that came."""
        return self.origins.returns[self.keep]

    @cached_property
    def tables(self) -> dict[str, dict[str, Any]]:
        """All scores by method, on the scored origins."""
        return {name: score_table(found, self.origins, self.keep) for name, found in self.forecasts.items()}


def evaluate(
    splits: Splits,
    predictor: KronosPredictor,
    settings: Settings,
    *,
    title: str = "model",
    say: Say = print,
) -> Evaluation:
    """Forecast the held-out bars of `splits` (windows from `make_splits`) from rolling origins and score that beside baselines.

    The cost is moments × 2 (scored and before) × series × samples × horizon steps of the model; nothing else counts.
    Raises InputError if there are too few origins.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    origins = choose_origins(splits, settings, note)
    if settings.samples < ENOUGH_SAMPLES:
        note(f"only {settings.samples} sample paths: bands and CRPS are rough below {ENOUGH_SAMPLES} (evaluation.samples)")
    model = ModelForecaster(predictor, label=title, T=settings.T, top_p=settings.top_p, seed=settings.seed)
    say(f"evaluation: {describe(origins)}, {settings.samples} paths each")
    made: list[Forecaster] = [model, *make_baselines(settings.baselines, origins, settings.seed, note)]
    found = compare(made, origins, settings, title=title, notes=notes, say=say)
    last = newest(origins)
    found.views = dict(zip(last.tolist(), model.bars(origins, last, settings.samples), strict=True))
    return found


def compare(
    forecasters: Sequence[Forecaster], origins: Origins, settings: Settings, *, title: str, notes: list[str], say: Say | None = None
) -> Evaluation:
    """Score forecasters of different names on the same origins: the first one against the others."""
    assert len({one.name for one in forecasters}) == len(forecasters) > 1, "one model and at least one baseline, told apart by name"
    found = {one.name: forecast_all(one, origins, settings.samples, settings.seed, say=say) for one in forecasters}
    model, *baselines = found.values()
    keep = origins.scored
    resampler = Resampler(origins, keep, settings.seed)
    if resampler.size < _FEW_BLOCKS * resampler.overlap[-1]:
        notes.append(
            f"the scored bars hold fewer than {_FEW_BLOCKS} horizons that do not overlap: intervals are rough and coverage is partly luck"
        )
    if model.floored:
        notes.append(f"{model.floored:,} sampled closes were not above zero and count as 0.1 % of the origin's close")
    points = {one.name: np.abs(origins.returns - one.median) for one in found.values()}
    return Evaluation(
        title=title,
        settings=settings,
        origins=origins,
        forecasts=found,
        resampler=resampler,
        best=best_of({one.name: one.crps_return for one in baselines}, ~keep),
        best_point=best_of({one.name: points[one.name] for one in baselines}, ~keep),
        skills={one.name: skill(model.crps_return[keep], one.crps_return[keep], resampler) for one in baselines},
        point_skills={one.name: skill(points[model.name][keep], points[one.name][keep], resampler) for one in baselines},
        calibrated=calibrate(model.quantiles, origins) if settings.calibrate else None,
        notes=notes,
    )


def describe(origins: Origins) -> str:
    """How many origins there are, and where."""
    scored = origins.chosen(origins.scored)
    first, last = (np.datetime_as_string(time.astype("datetime64[ns]"), unit="D") for time in scored.moments[[0, -1]])
    series = len(np.unique(scored.series))
    return (
        f"{len(scored):,} forecasts at {len(scored.moments)} moments of the {origins.unit} split, {first} to {last} "
        f"({series} series, {origins.horizon} steps ahead), after {len(origins) - len(scored):,} to choose and calibrate on"
    )


def newest(origins: Origins) -> np.ndarray:
    """Origins for the picture: the newest of the first two series, or the newest and a middle one of a single series."""
    of_first = np.flatnonzero(origins.scored & (origins.series == origins.series[origins.scored][0]))
    symbols = np.unique(origins.series[origins.scored])[:_MOST_VIEWS]
    if len(symbols) == 1:
        return of_first[[len(of_first) // 2, -1]]
    return np.array([np.flatnonzero(origins.scored & (origins.series == number))[-1] for number in symbols])
