"""From a panel, a test's rows and a pair of models to the probability of a rise for each row, with scores on bars held out of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.panel import Panel
from finetune.engine.files import write_with
from finetune.engine.windows import Splits
from finetune.evaluation.day_forecasts import Draws, forecast_days
from finetune.evaluation.origins import Origins
from finetune.evaluation.rise import Rule, choose_rule, class_prior, mean_log_loss, rose_after
from finetune.evaluation.rise_origins import held_out, market_calendar, only_from, rows_to_forecast
from finetune.evaluation.rise_report import plain_table
from finetune.evaluation.rise_scores import Called, baselines, differences, reliability, rise_scores
from kronos import KronosPredictor

COIN = 0.5
_STALE_DAYS = 30
Say = Callable[[str], Any]


@dataclass(eq=False)
class RiseForecaster:
    """A Kronos pair that forecasts closes `horizon` bars ahead of rows of a panel. folder: keeps what is finished, so that it resumes."""

    predictor: KronosPredictor
    panel: Panel
    lookback: int
    horizon: int
    draws: Draws
    folder: Path
    say: Say = print
    _calendar: np.ndarray | None = field(default=None, repr=False)

    def closes(self, rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Sampled closes [len(rows), samples] `horizon` bars after each row, and the rows' closes [len(rows)]. Rows may repeat."""
        if self._calendar is None:
            self._calendar = market_calendar(self.panel)
        wanted = np.unique(rows)
        found = forecast_days(
            self.predictor,
            only_from(self.panel, wanted),
            calendar=self._calendar,
            folder=self.folder / name,
            lookback=self.lookback,
            horizon=self.horizon,
            settings=self.draws,
            say=self.say,
        )
        order = np.argsort(found.rows)
        assert len(found) == len(wanted), "every row was checked before"
        place = order[np.searchsorted(found.rows[order], rows)]
        return found.closes[place, :, -1], found.last[place]


@dataclass(eq=False)
class Held:
    """What the held-out bars told: the rule, scores by method, the model's accuracy less the baselines', and the words for it."""

    rule: Rule
    prior: float
    report: dict[str, Any]
    verdicts: list[str]


def evaluate_rise(
    forecaster: RiseForecaster, splits: Splits, *, title: str, moments: int, per_moment: int, seed: int, notes: list[str]
) -> Held:
    """Choose a rule on earlier held-out bars and score it on later ones. With too few of them: the plain rule, and a note."""
    say, horizon = forecaster.say, forecaster.horizon
    prior = class_prior(splits.train, horizon)
    origins = held_out(splits, moments=moments, per_moment=per_moment, seed=seed)
    if origins is None:
        notes.append("too few held-out bars to choose a threshold on and to score: 0.5 is the threshold, and nothing was scored")
        say(notes[-1])
        return Held(Rule(), prior, {}, [])
    if origins.unit == "val":
        notes.append(
            "no test split (data.test_ratio is 0): scored on the later half of validation, on which the best weights were chosen too"
        )
    say(f"held-out bars: {_in_words(origins)}")
    closes, last = forecaster.closes(origins.rows, "held_out")
    rose = rose_after(origins.panel, origins.rows, horizon)
    keep = origins.scored
    rule = choose_rule(closes[~keep], last[~keep], rose[~keep], origins.moment[~keep])
    raw = rule.raw(closes, last)
    probability = rule.probability(closes, last)
    model = Called(title, probability, rule.decide(probability), raw)
    others = baselines(origins, rose, prior)
    scores = {name: {"label": one.label, **rise_scores(one.part(keep), rose[keep])} for name, one in {"model": model, **others}.items()}
    found = differences(model, others, rose, origins, seed)
    best = max(others, key=lambda name: float((others[name].decision == rose)[~keep].mean()))
    ordered = [best, *(name for name in found if name != best)]
    report = {
        "held_out": _facts(origins),
        "held_out_in_words": _in_words(origins),
        "scores": scores,
        "accuracy_differences": {name: {**vars(one), "verdict": one.verdict} for name, one in found.items()},
        "best_baseline": best,
        "raw_log_loss": mean_log_loss(raw[keep], rose[keep]),
        "reliability": reliability(probability[keep], rose[keep]),
        "share_of_rises": {"training": prior, "chosen on": float(rose[~keep].mean()), "scored": float(rose[keep].mean())},
    }
    for line in plain_table(scores):
        say(line)
    return Held(rule, prior, report, [found[name].sentence(title) for name in ordered])


def predict_rise(
    forecaster: RiseForecaster, ids: Sequence[str], symbols: Sequence[str], dates: np.ndarray, held: Held
) -> tuple[pd.DataFrame, Counter[str]]:
    """ID, prob_up, Pred, reason for every row of a test, in its order; and how many rows have which reason for the prior.

    symbols, dates [T] datetime64 (wall clock): each row is forecast from the symbol's last bar on or before the date. Rows without enough
    bars get the class prior of training, and the class that is the commoner there.
    """
    dates = dates.astype("datetime64[ns]")
    rows, reasons = rows_to_forecast(forecaster.panel, np.asarray(symbols, object), dates, forecaster.lookback)
    able = rows >= 0
    probability = np.full(len(ids), held.prior)
    decision = np.full(len(ids), int(held.prior >= COIN))
    if able.any():
        closes, last = forecaster.closes(rows[able], "test")
        probability[able] = held.rule.probability(closes, last)
        decision[able] = held.rule.decide(probability[able])
    frame = pd.DataFrame({"ID": list(ids), "prob_up": probability, "Pred": decision, "reason": np.where(able, "model", "prior")})
    counts = Counter(str(reason) for reason in reasons[~able])
    if stale := _stale(forecaster.panel, rows[able], dates[able]):
        counts[f"(of the model's) last bar more than {_STALE_DAYS} days before the date"] = stale
    return frame, counts


def counts_in_words(frame: pd.DataFrame, counts: Counter[str], prior: float) -> list[str]:
    """What is said about the predictions."""
    by_model = int((frame["reason"] == "model").sum())
    lines = [f"{len(frame):,} rows: {by_model:,} by the model, {len(frame) - by_model:,} by the class prior of training ({prior:.4f})"]
    lines += [f"{reason}: {number:,}" for reason, number in counts.most_common()]
    lines.append(f"called a rise: {int(frame['Pred'].sum()):,} of {len(frame):,}")
    return lines


def write_predictions(frame: pd.DataFrame, out: Path) -> None:
    """predictions.csv, all or nothing. Raises InputError if it cannot be written."""
    write_with(out, lambda path: frame.to_csv(path, index=False, float_format="%.6f"))


def _stale(panel: Panel, rows: np.ndarray, dates: np.ndarray) -> int:
    ago = dates - np.asarray(panel.times)[rows].astype("datetime64[ns]")
    return int((ago > np.timedelta64(_STALE_DAYS, "D")).sum())


def _facts(origins: Origins) -> dict[str, Any]:
    keep = origins.scored
    first, last = (np.datetime_as_string(t.astype("datetime64[ns]"), unit="D") for t in origins.now[keep][[0, -1]])
    return {
        "split": origins.unit,
        "forecasts": int(keep.sum()),
        "moments": len(np.unique(origins.moment[keep])),
        "series": len(np.unique(origins.series[keep])),
        "chosen_on": int((~keep).sum()),
        "first": first,
        "last": last,
    }


def _in_words(origins: Origins) -> str:
    facts = _facts(origins)
    return (
        f"{facts['forecasts']:,} forecasts at {facts['moments']} moments of the {facts['split']} split, "
        f"{facts['first']} to {facts['last']} "
        f"({facts['series']:,} series, {origins.horizon} bars ahead), after {facts['chosen_on']:,} to choose the rule on"
    )
