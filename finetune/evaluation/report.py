"""What an evaluation leaves behind: evaluation.json with every number, report.md to read, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.engine.files import write_json, write_text
from finetune.engine.provenance import git_state, versions
from finetune.evaluation.charts import draw_all, pit_reading
from finetune.evaluation.evaluate import Evaluation, describe
from finetune.evaluation.scores import BANDS, LEVELS
from finetune.evaluation.skill import Skill, percent, sentence, signed
from finetune.evaluation.tables import FEWEST_SYMBOLS, coverage_of, mean_pinball

_MOST_ROWS = 12  # steps shown in report.md; evaluation.json has all
_SETTINGS = ("stride", "max_origins", "max_series", "samples", "T", "top_p", "seed")


def write_report(found: Evaluation, folder: Path) -> list[Path]:
    """Writes evaluation.json, report.md and four pictures, each whole or not at all; returns their paths.

    Raises InputError if the folder cannot be written to.
    """
    pictures = draw_all(found, folder)
    numbers = as_numbers(found)
    write_json(folder / "evaluation.json", numbers)
    write_text(folder / "report.md", as_markdown(found, numbers))
    return [folder / "evaluation.json", folder / "report.md", *pictures.values()]


def verdicts(found: Evaluation) -> list[str]:
    """The plain sentences, the deciding one first."""
    label = {one.name: one.label for one in found.baselines}
    lines = [sentence(found.title, found.skills[found.best], label[found.best], "CRPS")]
    for name in dict.fromkeys([found.best_point, *(["persistence"] if "persistence" in label else [])]):
        lines.append(sentence("Its median", found.point_skills[name], label[name], "absolute-error"))
    held = coverage_90(found)
    interval = f"95 % interval {percent(held['low'], unit='')} to {percent(held['high'])}"
    after = f"; calibrated on earlier outcomes only, {percent(held['after'])}" if "after" in held else ""
    return [*lines, f"Its 90 % band held {percent(held['before'])} of what came ({interval}){after}."]


def coverage_90(found: Evaluation) -> dict[str, float]:
    """Share of outcomes in the 90 % band before calibration with its 95 % interval, and after calibration."""
    low, high = (found.model.quantiles[found.keep][:, :, LEVELS.index(level)] for level in BANDS[0.9])
    inside = ((low <= found.returns) & (found.returns <= high)).mean(1)
    stages = {"before": found.model.quantiles} | ({"after": found.calibrated.quantiles} if found.calibrated else {})
    shares = {name: coverage_of(of[found.keep], found.returns)["90%"]["coverage"]["overall"] for name, of in stages.items()}
    return {**shares, **dict(zip(("low", "high"), map(float, found.resampler.interval(inside)[1:]), strict=True))}


def as_numbers(found: Evaluation) -> dict[str, Any]:
    """Everything as plain values. Scores are those of the scored origins; `crps_before` those that chose the baseline."""
    origins = found.origins
    panel = origins.panel
    return {
        "title": found.title,
        "verdict": {
            "sentences": verdicts(found),
            "crps": found.skills[found.best].verdict,
            "absolute_error": found.point_skills[found.best_point].verdict,
            "best_baseline": found.best,
            "best_point_baseline": found.best_point,
        },
        "origins": {
            "split": origins.unit,
            "scored": int(found.keep.sum()),
            "moments": found.resampler.size,
            "before": int((~found.keep).sum()),
            "first": _time(origins.moments[origins.moment[found.keep][0]]),
            "last": _time(origins.moments[-1]),
            "lookback": origins.lookback,
            "horizon": origins.horizon,
            "block": found.resampler.block,
            "series": sorted({panel.series[number].symbol for number in origins.series[found.keep].tolist()}),
        },
        "settings": {name: getattr(found.settings, name) for name in _SETTINGS},
        "data": panel.fingerprint,
        "crps_before": {one.name: float(one.crps_return[~found.keep].mean()) for one in found.forecasts.values()},
        "skill": {name: one.table() for name, one in found.skills.items()},
        "absolute_error_skill": {name: one.table() for name, one in found.point_skills.items()},
        "methods": {name: {"label": found.forecasts[name].label, **table} for name, table in found.tables.items()},
        "coverage_90": coverage_90(found),
        "pit_reading": pit_reading(found),
        "calibration": _calibration(found),
        "levels": list(LEVELS),
        "notes": found.notes,
        "versions": versions(),
        "git": git_state(),
    }


def _calibration(found: Evaluation) -> dict[str, Any] | None:
    """Bands and pinball loss before and after, and by how much the next forecast's quantiles should be moved (in scales, [H][levels])."""
    if found.calibrated is None:
        return None
    table: dict[str, Any] = {}
    for name, quantiles in (("before", found.model.quantiles), ("after", found.calibrated.quantiles)):
        loss = mean_pinball(quantiles[found.keep], found.returns)
        table[name] = {"bands": coverage_of(quantiles[found.keep], found.returns), "pinball": float(loss.mean())}
    return {**table, "shift": found.calibrated.shift, "shift_unit": "deviation of the last 60 log returns × √step"}


def as_markdown(found: Evaluation, numbers: dict[str, Any]) -> str:
    """report.md: the verdict, tables, the pictures beside it, and how it was measured."""
    first, *further = verdicts(found)
    parts = [f"# Evaluation of {found.title}", f"**{first}**", "\n".join(f"- {line}" for line in further), describe(found.origins) + "."]
    if found.notes:
        parts.append("\n>\n".join(f"> Note: {text}" for text in found.notes))
    parts += ["## Beside the baselines", _methods_by_returns(found), _methods_by_prices(found), "![Skill](skill.png)"]
    parts += ["## The distribution", _calibration_table(numbers["calibration"]), "![Calibration](calibration.png)"]
    parts += [f"Where outcomes fell in the forecast distribution: {pit_reading(found)}.", "![PIT histogram](pit.png)"]
    parts += ["## By step", _steps(found), _across_symbols(found), "## The newest forecasts", "![Forecasts](forecasts.png)"]
    return "\n\n".join([*parts, "## How this was measured", _method_text(found)]) + "\n"


def _methods_by_returns(found: Evaluation) -> str:
    head = ["log returns", "CRPS", "the model's skill", "MAE", "RMSE", "R²", "correlation", "direction", "in 50 %", "in 80 %", "in 90 %"]
    rows = []
    for name, one in found.forecasts.items():
        scores = {key: value["overall"] for key, value in found.tables[name]["returns"].items()}
        label = f"**{one.label}**" if name in (found.best, found.model.name) else one.label
        rows.append(
            [
                label,
                percent(scores["crps"], 3),
                _skill_text(found.skills.get(name)),
                *(percent(scores[key], 3) for key in ("mae", "rmse")),
                *(_number(scores[key]) for key in ("r2", "correlation")),
                percent(scores["directional_accuracy"]),
                *_shares(found.tables[name]["bands"], "coverage", 1),
            ]
        )
    return _table(head, rows)


def _methods_by_prices(found: Evaluation) -> str:
    head = ["prices", "CRPS", "MAE", "RMSE", "MAPE", "R²", "correlation", "volatility: MAE", "its bias", "its correlation"]
    rows = []
    for name, one in found.forecasts.items():
        scores = {key: value["overall"] for key, value in found.tables[name]["prices"].items()}
        moved = found.tables[name]["volatility"]
        rows.append(
            [
                one.label,
                *(f"{scores[key]:,.5g}" for key in ("crps", "mae", "rmse")),
                percent(scores["mape"], 2),
                *(_number(scores[key]) for key in ("r2", "correlation")),
                percent(moved["mae"], 3),
                signed(moved["bias"], 3),
                _number(moved["correlation"]),
            ]
        )
    return _table(head, rows)


def _calibration_table(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "Calibration is switched off (evaluation.calibrate)."
    names = [f"{band:.0%}".replace("%", " %") for band in BANDS]
    head = ["calibration", *(f"in {name}" for name in names), *(f"width of {name}" for name in names), "pinball loss"]
    rows = []
    for name in ("before", "after"):
        bands = calibration[name]["bands"]
        rows.append([name, *_shares(bands, "coverage", 1), *_shares(bands, "width", 2), percent(calibration[name]["pinball"], 4)])
    return _table(head, rows)


def _steps(found: Evaluation) -> str:
    """The model by step: at most 12 steps, the first and the last among them."""
    table, against = found.tables[found.model.name], found.skills[found.best]
    returns, prices, held = table["returns"], table["prices"], table["bands"]["90%"]["coverage"]
    rows = []
    for h in np.unique(np.linspace(0, found.origins.horizon - 1, _MOST_ROWS).round().astype(int)).tolist():
        errors = [percent(returns[key]["by_step"][h], 3) for key in ("crps", "mae", "rmse")]
        rows.append(
            [
                str(h + 1),
                errors[0],
                f"{signed(against.by_step[h])} ({signed(against.low_by_step[h], unit='')} to {signed(against.high_by_step[h])})",
                *errors[1:],
                percent(prices["mape"]["by_step"][h], 2),
                _number(returns["correlation"]["by_step"][h]),
                percent(returns["directional_accuracy"]["by_step"][h]),
                percent(held["by_step"][h]),
            ]
        )
    return _table(["bars ahead", "CRPS", "skill", "MAE", "RMSE", "MAPE of prices", "correlation", "direction", "in 90 %"], rows)


def _across_symbols(found: Evaluation) -> str:
    table = found.tables[found.model.name]["ic"]
    if table is None:
        return (
            f"No information coefficient: it needs {FEWEST_SYMBOLS} symbols at a moment. Correlations above are each series' own, averaged."
        )
    names = {"IC": "ic", "ICIR": "icir", "RankIC": "rank_ic", "RankICIR": "rank_icir"}
    values = ", ".join(f"{name} {table[key]['overall']:+.4f}" for name, key in names.items())
    return f"Across symbols at {table['moments']} moments, mean over steps, not annualised: {values}."


def _method_text(found: Evaluation) -> str:
    settings, origins = found.settings, found.origins
    lines = [
        f"Every method draws {settings.samples} paths from the same origins, from bars up to each origin (model: T {settings.T:g}, top-p "
        f"{settings.top_p:g}, seed {settings.seed}). The autoregression is fitted before the first origin.",
        "Returns are log returns from the origin's close. CRPS is the fair one (Ferro 2014), quantiles stand at ranks p (M + 1), PIT is "
        "randomised (Czado, Gneiting and Held 2009).",
        "MAE, MAPE and direction take the median; RMSE, R², correlation and IC take the mean.",
        "Prices of several series are averaged as they are: the dearest weighs most. R² and correlation are taken in each series.",
        f"Skill is 1 - score / score of the baseline. The deciding baseline ({found.forecasts[found.best].label}) was the best on the bars "
        "before the scored ones.",
        f"Intervals: 2,000 circular bootstraps over blocks of {found.resampler.block} moments (two horizons of {origins.horizon} bars "
        "where they overlap), all series of a moment together, widened by Student's t for the number of blocks.",
        "Calibration is adaptive conformal: quantiles are moved by what past errors ask for, each used from the moment on at which its "
        "outcome was known.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _skill_text(one: Skill | None) -> str:
    return f"{signed(one.overall)} ({signed(one.low, unit='')} to {signed(one.high)})" if one else ""


def _shares(bands: dict[str, Any], what: str, digits: int) -> list[str]:
    return [percent(bands[f"{band:.0%}"][what]["overall"], digits) for band in BANDS]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _time(time: np.int64) -> str:
    return str(np.datetime_as_string(time.astype("datetime64[ns]"), unit="s")) + "Z"
