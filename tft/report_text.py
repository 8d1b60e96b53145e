"""A comparison written down: report.md to read, report.json with every number, and two pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from finetune.engine.files import ensure_writable_folder, write_json, write_text
from finetune.engine.provenance import git_state, versions
from finetune.evaluation.run_comparison import as_markdown
from tft.baselines import CONSTANT, LIGHTGBM
from tft.confusion import draw_confusion
from tft.metrics import CLASSIFICATION, REGRESSION
from tft.pictures import draw_comparison
from tft.report import EVERYWHERE, MODEL, Comparison
from tft.report_scores import Difference, decides


def write_report(found: Comparison, folder: Path, title: str) -> list[Path]:
    """report.md, report.json, comparison.png and, where there are classes, confusion.png. Raises InputError if they cannot be written."""
    from finetune.engine.curves import save_figure  # matplotlib, only where something is drawn

    ensure_writable_folder(folder)
    paths = [folder / name for name in ("report.md", "report.json", "comparison.png")]
    write_json(paths[1], as_numbers(found, title))
    draw_comparison(paths[2], picture_rows(found), f"{title} on {found.split}: against its baselines")
    if found.confusion:
        paths.append(folder / "confusion.png")
        whole = {name: counts for name, counts in found.confusion.items() if "@" not in name}
        save_figure(draw_confusion(whole), paths[3], scale=1.3)
    write_text(paths[0], as_text(found, title))
    return paths


def judge(found: Comparison) -> str:
    """The baseline that the verdicts are about: LightGBM if it was fitted."""
    return LIGHTGBM if LIGHTGBM in found.others else CONSTANT


def verdict(found: Comparison, target: str) -> str:
    """One line, e.g. "target_up: indistinguishable from LightGBM: AUC 0.531, +0.004 (95 % interval -0.010 to +0.018); better than ..."."""
    parts = []
    for other in dict.fromkeys((judge(found), *found.others)):
        one = found.deciding(target, other)
        if one is None:
            return f"{target}: has no known outcome here"
        own = found.metrics[MODEL].get(f"{target}_{one.metric}", float("nan"))
        value = f"{one.metric.upper()} {own:.4g}, {interval(one)}" if not parts else interval(one)
        parts.append(f"{one.verdict} {other} ({value})")
    return f"{target}: " + "; ".join(parts)


def interval(one: Difference) -> str:
    """For example: +0.0041, 95 % interval -0.0102 to +0.0184."""
    if not np.isfinite([one.low, one.high]).all():
        return f"{one.value:+.3g}, too few moments for an interval"
    return f"{one.value:+.3g}, 95 % interval {one.low:+.3g} to {one.high:+.3g}"


def verdicts(found: Comparison) -> list[str]:
    """The count over all targets, then a line for each."""
    other = judge(found)
    said = Counter(one.verdict for target in found.losses if (one := found.deciding(target, other)))
    order = ("better than", "indistinguishable from", "worse than", "not comparable with")
    counts = ", ".join(f"{word} it in {said[word]}" for word in order if said[word])
    return [
        f"Against {other}, of {len(found.losses)} targets: {counts or 'nothing to compare'}.",
        *(verdict(found, t) for t in found.losses),
    ]


def as_numbers(found: Comparison, title: str) -> dict[str, Any]:
    """Everything as plain values."""
    targets = {}
    for target, loss in found.losses.items():
        one = found.deciding(target, judge(found))
        places = found.differences[target].items()
        targets[target] = {
            "decides": decides(loss),
            "verdict": one.verdict if one else None,
            "against": judge(found),
            "differences": {p: {o: {m: d.table() for m, d in of.items()} for o, of in others.items()} for p, others in places},
            "coverage": {f"{level:g}": share for level, share in found.coverage.get(target, {}).items()},
        }
    facts = {key: getattr(found, key) for key in ("split", "windows", "moments", "first", "last", "periods", "notes", "metrics")}
    return {
        "title": title,
        "verdicts": verdicts(found),
        **facts,
        "targets": targets,
        "confusion": {name: counts.astype(int).tolist() for name, counts in found.confusion.items()},
        "versions": versions(),
        "git": git_state(),
    }


def picture_rows(found: Comparison) -> list[dict[str, Any]]:
    """Deciding differences, turned so that more is better; errors as shares of the baseline's."""
    rows = []
    for target in found.losses:
        for place in found.periods:
            for other in found.others:
                one = found.deciding(target, other, place)
                if one is None:
                    continue
                turn = 1.0
                if one.metric in REGRESSION:
                    where = "" if place == EVERYWHERE else f"@{place}"
                    turn = -1 / max(found.metrics[other].get(f"{target}_{one.metric}{where}", np.nan), 1e-300)
                low, high = sorted((turn * one.low, turn * one.high))
                rows.append(dict(where=place, target=target, other=other, metric=one.metric, value=turn * one.value, low=low, high=high))
    return rows


def as_text(found: Comparison, title: str) -> str:
    """report.md."""
    first, *lines = verdicts(found)
    parts = [f"# {title}: forecasts of the {found.split} split", f"**{first}**", "\n".join(f"- {line}" for line in lines)]
    parts.append(
        f"{found.windows:,} windows at {found.moments:,} moments, {found.first} to {found.last} UTC. Each interval is a 95 % interval by "
        f"itself: of {len(found.losses)} targets about one in twenty leaves 0 out by chance alone."
    )
    parts += [f"> Note: {text}" for text in found.notes]
    parts += ["![Differences from the baselines](comparison.png)"]
    for target in found.losses:
        parts += [f"## {target}", _table(found, target)]
        if target in found.coverage:
            held = ", ".join(f"{100 * share:.1f} % below the {level:g} quantile" for level, share in found.coverage[target].items())
            parts.append(f"Of the outcomes {held}.")
    if found.confusion:
        parts += ["## Confusion matrices", "![Confusion matrices](confusion.png)"]
    return "\n\n".join([*parts, "## How this was measured", _method(found)]) + "\n"


def _table(found: Comparison, target: str) -> str:
    """Methods by place, a column per metric, the deciding difference from each baseline behind the transformer."""
    names = CLASSIFICATION if found.losses[target].classification else REGRESSION
    rule = decides(found.losses[target])
    head = [
        "",
        *(f"**{name.upper()}**" if name == rule else name.upper() for name in names),
        f"transformer − it ({rule.upper()})",
        "verdict",
    ]
    rows = [head]
    for place in found.periods:
        where = "" if place == EVERYWHERE else f"@{place}"
        for method in (MODEL, *found.others):
            values = [found.metrics[method].get(f"{target}_{name}{where}", float("nan")) for name in names]
            one = found.deciding(target, method, place) if method != MODEL else None
            told = [interval(one), f"{one.verdict} it"] if one else ["", ""]
            rows.append([f"{place}: {method}", *("–" if np.isnan(value) else f"{value:.4g}" for value in values), *told])
    return as_markdown(rows).rstrip()


def _method(found: Comparison) -> str:
    boosted = (
        f"{LIGHTGBM} is one model per target and period, fitted to the last bar of the same training windows (all inputs of the "
        "transformer at that bar, the calendar of the next, symbol and category codes), its number of trees chosen on the latest 15 % of "
        "the training rows. "
    )
    return (
        (boosted if LIGHTGBM in found.others else "")
        + f"The {CONSTANT} is that of the training rows of the period. Classes are decided for all methods at the probability at which the "
        "transformer's loss decides, so that a positive weight favours nobody. Verdicts rest on AUC for classes, RMSE for values and MAE "
        "for the median of quantiles, chosen beforehand. Intervals are of paired differences by a circular block bootstrap over moments, "
        "all symbols and periods of a moment together, blocks of two label horizons. Errors are in the targets' own units."
    )
