"""The macro report: do a model's forecasts have the seasons and the regimes that the market had?

Forecasts start at held-out moments one horizon apart, so that each bar is forecast once. Set beside what came, and beside the bars before:
the mean return and the typical move of a bar by month and by weekday; and how often a horizon's trend is down, flat or up, and its
volatility calm, normal or turbulent, as the share of sampled paths and as what came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.config import PipelineConfig
from finetune.data.panel import STAMP_NAMES, Panel
from finetune.engine.files import ensure_writable_folder, write_json
from finetune.engine.splits import make_splits
from finetune.evaluation.forecasts import ModelForecaster
from finetune.evaluation.macro_plots import draw_macro
from finetune.evaluation.origins import CLOSE, Origins, rolling_origins
from finetune.evaluation.scores import realised_volatility
from finetune.evaluation.skill import Resampler, sentence, skill
from kronos import KronosPredictor

REGIMES = {"trend": ("down", "flat", "up"), "volatility": ("calm", "normal", "turbulent")}
SEASONS = {"month": tuple(range(1, 13)), "weekday": tuple(range(7))}
_FLAT = 0.43  # deviations: a third of a normal distribution lies below, between and above ± this
_FEWEST_MOMENTS, _FEWEST_BEFORE = 10, 30
_FLOOR = 1e-3  # as in forecasts: a sampled price at or below 0 has no return
_CHUNK = 64  # origins whose paths are held together
Say = Callable[[str], Any]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is kept of the sampled paths at O origins: step [O, H] mean return of each bar, size [O, H] mean absolute return of each bar;
    trend and volatility [O, S]: each path's return and realised volatility over the horizon."""

    step: np.ndarray
    size: np.ndarray
    trend: np.ndarray
    volatility: np.ndarray


@dataclass(frozen=True, eq=False)
class Before:
    """Bars before the first forecast. rows and steps [n]: those with a return, and it; limits: regime → [series, 2] edges between its three
    states, NaN where a series has too few bars; shares: regime → [3] how often each state was there."""

    rows: np.ndarray
    steps: np.ndarray
    limits: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]


def macro_report(config: PipelineConfig, panel: Panel, predictor: KronosPredictor, folder: Path, say: Say = print) -> dict[str, Any] | None:
    """Writes macro.json and macro.png into a folder and returns the numbers; None where too few bars are held out: macro.json says so.

    Validation and test are both forecast: no weight was fitted to either, though the best epoch was chosen on validation.
    Raises InputError if the folder cannot be written to.
    """
    origins = held_out_origins(config, panel, say)
    before = None if origins is None else what_was_before(origins)
    if before is not None:
        known = ~np.isnan(before.limits["trend"][origins.series]).any(axis=1)
        origins = origins.chosen(known)
    if before is None or len(origins.moments) < _FEWEST_MOMENTS:
        told = f"fewer than {_FEWEST_MOMENTS} horizons are held out, or fewer than {_FEWEST_BEFORE} lie before them"
        say(f"macro report left out: {told}")
        write_json(ensure_writable_folder(folder) / "macro.json", {"title": config.experiment.name, "left_out": told})
        (folder / "macro.png").unlink(missing_ok=True)  # an earlier one's
        return None
    settings = config.evaluation
    model = ModelForecaster(predictor, label=config.experiment.name, T=settings.T, top_p=settings.top_p, seed=settings.seed)
    say(f"macro report: {len(origins):,} forecasts of {origins.horizon} bars, one after the other, {settings.samples} paths each")
    drawn = draw_paths(model, origins, settings.samples)
    numbers = {
        "title": config.experiment.name,
        "horizon": origins.horizon,
        "samples": settings.samples,
        "forecasts": len(origins),
        "moments": len(origins.moments),
        "first": str(origins.moments[0].astype("datetime64[ns]"))[:16],
        "last": str(origins.moments[-1].astype("datetime64[ns]"))[:16],
        "series": sorted({panel.series[number].symbol for number in origins.series.tolist()}),
        "seasonality": {name: seasonality(name, origins, drawn, before) for name in SEASONS},
        "regimes": {name: regimes(name, origins, drawn, before, settings.seed) for name in REGIMES},
    }
    draw_macro(numbers, ensure_writable_folder(folder) / "macro.png")
    write_json(folder / "macro.json", numbers)  # last: it says that the report is whole
    for found in numbers["regimes"].values():
        say(found["sentence"])
    say(f"macro report: {folder / 'macro.json'}, picture {folder / 'macro.png'}")
    return numbers


def held_out_origins(config: PipelineConfig, panel: Panel, say: Say) -> Origins | None:
    """Origins one horizon apart over validation, then test; None if there are none."""
    data, settings = config.data, config.evaluation
    splits = make_splits(
        panel, data.lookback_window, data.predict_window, data.ratios, split=data.split, clip=data.clip, say=lambda text: None
    )
    how = dict(stride=data.predict_window, max_origins=settings.max_origins, max_series=settings.max_series, seed=settings.seed, say=say)
    parts = [rolling_origins(part, **how) for part in (splits.val, splits.test) if len(part)]
    parts = [part for part in parts if len(part)]
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    first, second = parts  # a bar ahead is in one split only, so none is forecast twice
    joined = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("rows", "series", "moments", "scored")}
    moment = np.concatenate([first.moment, second.moment + len(first.moments)])
    return Origins(panel, first.lookback, first.horizon, moment=moment, unit="val and test", **joined)


def what_was_before(origins: Origins) -> Before:
    """Returns and regimes of every series up to the first origin's moment."""
    panel, horizon = origins.panel, origins.horizon
    limits = {name: np.full((panel.n_series, 2), np.nan) for name in REGIMES}
    rows, steps, states = [], [], {name: [] for name in REGIMES}
    for number in range(panel.n_series):
        first, end = panel.offsets[number : number + 2]
        end = first + np.searchsorted(panel.times[first:end], origins.now.min())
        returns = _steps(panel, int(first), int(end))  # [n - 1], NaN across a gap
        rows.append(np.arange(first + 1, end)[np.isfinite(returns)])
        steps.append(returns[np.isfinite(returns)])
        whole = np.lib.stride_tricks.sliding_window_view(returns, horizon) if len(returns) >= horizon else np.empty((0, horizon))
        whole = whole[np.isfinite(whole).all(axis=1)]
        if len(whole) < _FEWEST_BEFORE + horizon:
            continue
        trend, volatility = whole.sum(1), np.sqrt(np.square(whole).sum(1))
        limits["trend"][number] = np.array([-_FLAT, _FLAT]) * trend.std()
        limits["volatility"][number] = np.quantile(volatility, (1 / 3, 2 / 3))
        for name, values in (("trend", trend), ("volatility", volatility)):
            states[name].append(state(values, limits[name][number]))
    shares = {name: _shares(np.concatenate(found)) if found else np.full(3, np.nan) for name, found in states.items()}
    return Before(np.concatenate(rows), np.concatenate(steps), limits, shares)


def draw_paths(model: ModelForecaster, origins: Origins, samples: int) -> Drawn:
    """The model's paths at every origin, a chunk at a time, reduced to what is compared."""
    pieces: list[tuple[np.ndarray, ...]] = []
    for first in range(0, len(origins), _CHUNK):
        index = np.arange(first, min(first + _CHUNK, len(origins)))
        ratio = model.paths(origins, index, samples) / origins.closes[index, :1, None]  # [B, S, H]
        returns = np.log(np.maximum(ratio, _FLOOR))
        steps = np.diff(returns, axis=-1, prepend=0.0)
        pieces.append((steps.mean(1), np.abs(steps).mean(1), returns[:, :, -1], realised_volatility(returns)))
    return Drawn(*(np.concatenate(part) for part in zip(*pieces, strict=True)))


def seasonality(name: str, origins: Origins, drawn: Drawn, before: Before) -> dict[str, Any]:
    """Mean return and typical move of a bar by month or weekday (its own, on the panel's wall clock): what came, forecast, before.

    se: standard error of a mean over moments, all series at one moment counting once, for they move together.
    """
    column = STAMP_NAMES.index(name)
    ahead = origins.rows[:, None] + np.arange(1, origins.horizon + 1)  # [O, H]
    stamps, times = (np.asarray(part)[ahead].ravel() for part in (origins.panel.stamps[:, column], origins.panel.times))
    truth = np.diff(origins.returns, axis=1, prepend=0.0).ravel()
    earlier, earlier_times = (np.asarray(part)[before.rows] for part in (origins.panel.stamps[:, column], origins.panel.times))
    groups = {}
    for value in SEASONS[name]:
        here, there = stamps == value, earlier == value
        if not here.any():
            continue
        groups[str(value)] = {
            "bars": int(here.sum()),
            "moments": len(np.unique(times[here])),
            "truth": _moves(truth[here], np.abs(truth)[here], times[here]),
            "forecast": _moves(drawn.step.ravel()[here], drawn.size.ravel()[here], times[here]),
            "before": _moves(before.steps[there], np.abs(before.steps)[there], earlier_times[there]),
        }
    return {"groups": groups, "correlation": {what: _agreement(groups, what) for what in ("mean", "move")}}


def regimes(name: str, origins: Origins, drawn: Drawn, before: Before, seed: int) -> dict[str, Any]:
    """How often each state of a regime came and was forecast, the forecast's shares by what came, and their Brier skill.

    The skill is against the shares seen before; the edges between states are each series' own, from the bars before.
    """
    limits = before.limits[name][origins.series]  # [O, 2]
    paths = drawn.trend if name == "trend" else drawn.volatility
    came_value = origins.returns[:, -1] if name == "trend" else realised_volatility(origins.returns)
    came = state(came_value, limits)
    likely = np.stack([(state(paths, limits[:, None]) == number).mean(1) for number in range(3)], axis=1)  # [O, 3]
    outcome = np.eye(3)[came]
    brier, climate = (np.square(guess - outcome).sum(1, keepdims=True) for guess in (likely, before.shares[name]))
    found = skill(brier, climate, Resampler(origins, np.ones(len(origins), bool), seed))
    table = {state_name: likely[came == number].mean(0) for number, state_name in enumerate(REGIMES[name]) if (came == number).any()}
    return {
        "states": list(REGIMES[name]),
        "truth": _shares(came).tolist(),
        "forecast": likely.mean(0).tolist(),
        "before": before.shares[name].tolist(),
        "forecast_where_it_came": {state_name: row.tolist() for state_name, row in table.items()},
        "hit_rate": float((likely.argmax(1) == came).mean()),
        "brier": float(brier.mean()),
        "brier_before": float(climate.mean()),
        "skill": {"overall": found.overall, "low": found.low, "high": found.high, "verdict": found.verdict},
        "sentence": sentence(f"Its forecast of the {name} regime", found, "the shares seen before", "Brier"),
    }


def state(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """0 below the first edge, 2 above the second, else 1. limits [..., 2]."""
    return (values > limits[..., 0]).astype(np.int64) + (values > limits[..., 1])


def _steps(panel: Panel, first: int, end: int) -> np.ndarray:
    """Log returns between rows first..end-1 of one series, NaN across an excluded gap or where a close is not above zero."""
    close = np.asarray(panel.features[first:end, CLOSE], np.float64)
    log = np.log(np.where(close > 0, close, np.nan))
    steps = np.diff(log)
    gaps = np.asarray(panel.breaks)
    steps[gaps[(gaps > first) & (gaps < end)] - first - 1] = np.nan
    return steps


def _shares(states: np.ndarray) -> np.ndarray:
    return np.bincount(states, minlength=3) / len(states)


def _moves(returns: np.ndarray, sizes: np.ndarray, times: np.ndarray) -> dict[str, float]:
    """Mean return, its standard error, and mean absolute return."""
    if not len(returns):
        return {"mean": float("nan"), "se": float("nan"), "move": float("nan")}
    _, moment = np.unique(times, return_inverse=True)
    means = np.bincount(moment, returns) / np.bincount(moment)
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
    return {"mean": float(means.mean()), "se": float(error), "move": float((np.bincount(moment, sizes) / np.bincount(moment)).mean())}


def _agreement(groups: dict[str, Any], what: str) -> float:
    """Correlation over months or weekdays of forecast and truth; NaN with fewer than 3 of them."""
    pairs = np.array([[group["truth"][what], group["forecast"][what]] for group in groups.values()])
    if len(pairs) < 3 or (pairs.std(0) == 0).any():
        return float("nan")
    return float(np.corrcoef(pairs.T)[0, 1])
