"""What a backtest leaves behind: every number as JSON, a report to read, days and positions as CSV, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.engine.files import write_json, write_text, write_with
from finetune.engine.provenance import git_state, versions
from finetune.evaluation.backtest import Backtest, Backtests
from finetune.evaluation.backtest_plots import draw_performance
from finetune.evaluation.backtest_stats import LEVEL, risk, to_days, verdict
from finetune.evaluation.skill import percent, signed

_SIZES = ("n_symbol_hold", "n_symbol_drop", "hold_thresh", "interval_draws")
_RULES = (
    "account",
    "deal_price",
    "limit_threshold",
    "open_cost",
    "close_cost",
    "min_cost",
    "trade_unit",
    "impact_cost",
    "volume_threshold",
    "risk_degree",
    "annual_days",
)
_DAY_COLUMNS = ["return", "cost", "bench", "turnover", "net", "excess", "account", "value", "cash"]
_WIDTH = 132


def write_reports(
    found: Backtests, folder: Path, *, scores: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None, title: str = ""
) -> list[Path]:
    """Writes backtest_results.json, analysis_report.txt, daily.csv, positions/NAME.csv and performance_plot.png; returns their paths.

    scores: {signal: {bars ahead: `SignalScore.table()`}}. settings: the whole configuration for the JSON. title: of the report
    and the picture, such as the model's name. Each file is written whole or not at all. Raises InputError for an unwritable folder.
    """
    everything = {**found.signals, **found.baselines}
    paths = [folder / name for name in ("backtest_results.json", "analysis_report.txt", "daily.csv", "performance_plot.png")]
    write_json(paths[0], as_numbers(found, scores, settings, title))
    write_text(paths[1], as_text(found, title, scores))
    write_with(paths[2], lambda file: _days(everything).to_csv(file, index=False, float_format="%.10g", lineterminator="\n"))
    draw_performance(found, paths[3], title)
    for name, one in everything.items():
        paths.append(folder / "positions" / f"{name}.csv")
        write_with(paths[-1], lambda file, held=one.positions: held.to_csv(file, index=False, float_format="%.10g", lineterminator="\n"))
    return paths


def as_numbers(
    found: Backtests, scores: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None, title: str = ""
) -> dict[str, Any]:
    """Everything as plain values; NaN where there is no number (null in the JSON)."""
    return {
        "title": title,
        "verdict": found.verdict,
        "headline": found.headline,
        "benchmark": found.benchmark,
        "pool": found.pool,
        "store": {"path": str(found.store.path), "freq": found.store.freq},
        "backtest": {name: getattr(found.backtest, name) for name in ("backtest_time_range", "signal", *_SIZES)},
        "exchange": {name: getattr(found.exchange, name) for name in _RULES},
        "signals": {name: _one(one, found.benchmark) for name, one in found.signals.items()},
        "baselines": {name: _one(one, found.benchmark) for name, one in found.baselines.items()},
        "held": {name: risk(_by_day(line), found.exchange.annual_days, "sharpe") for name, line in found.lines.items()},
        "scores": dict(scores or {}),
        "notes": found.notes,
        "settings": dict(settings or {}),
        "versions": {**versions(), "pyqlib": metadata.version("pyqlib"), "arch": metadata.version("arch")},
        "git": git_state(),
    }


def as_text(found: Backtests, title: str = "", scores: Mapping[str, Any] | None = None) -> str:
    """analysis_report.txt: the verdict, the tables, and what to know before believing them. scores: as for `write_reports`."""
    figures = found.signals[found.headline].figures
    head = (
        f"Backtest{f' of {title}' if title else ''}: {figures['first']} to {figures['last']}, {figures['days']:,} days, pool {found.pool}"
    )
    others = [verdict(name, found.benchmark, one.figures) for name, one in found.signals.items() if name != found.headline]
    beside = [verdict(name, found.benchmark, one.figures) for name, one in found.baselines.items()]
    parts = [
        f"{head}\n{'=' * len(head)}\n{found.verdict}",
        _section("Strategy and exchange", _settings(found)),
        _section(f"Signals and baselines against {found.benchmark}", _ratios(found)),
        _section("Returns and risk", _returns(found)),
        _section(f"Year by year: {found.headline}", _years(found.signals[found.headline])),
        *(_section(f"How they rank symbols: returns from the next open, {_bars(ahead)} ahead", lines) for ahead, lines in _ranks(scores)),
    ]
    if len(found.signals) + len(found.baselines) > 1:
        parts.append(_section("Year by year: excess return after cost", _years_of_all(found)))
        parts.append(_section("What the intervals allow to say of the others", [f"- {line}" for line in [*others, *beside]]))
    parts.append(_section("Before you believe it", [f"- {line}" for line in _caveats(found)]))
    return "\n\n".join(parts) + "\n"


def _one(one: Backtest, benchmark: str) -> dict[str, Any]:
    return {"verdict": verdict(one.name, benchmark, one.figures), **one.figures, "notes": one.notes}


def _days(everything: Mapping[str, Backtest]) -> pd.DataFrame:
    """One row per signal and day."""
    frames = [to_days(one.report)[_DAY_COLUMNS].reset_index().assign(signal=name) for name, one in everything.items()]
    return pd.concat(frames)[["signal", "datetime", *_DAY_COLUMNS]]


def _by_day(line: pd.Series) -> pd.Series:
    return line.groupby(line.index.normalize()).sum()


def _settings(found: Backtests) -> list[str]:
    rules, sizes = found.exchange, found.backtest
    limit = f"those that move by {percent(rules.limit_threshold)} or more" if rules.limit_threshold is not None else "no price limit"
    share = f"up to {percent(rules.volume_threshold)}" if rules.volume_threshold is not None else "any share"
    rows = {
        "store": f"{found.store.path}, {found.store.freq} bars",
        "strategy": f"TopkDropout: holds {sizes.n_symbol_hold}, replaces up to {sizes.n_symbol_drop} a bar, each held "
        f"{sizes.hold_thresh} bars or longer; spends {percent(rules.risk_degree, 0)} of its cash",
        "orders": f"a signal of bar t is known at its close and dealt at the {rules.deal_price} of bar t + 1",
        "costs": f"{percent(rules.open_cost, 3)} buying, {percent(rules.close_cost, 3)} selling, at least {rules.min_cost:g} an order; "
        f"impact {rules.impact_cost:g} × (order / volume)²",
        "not traded": f"suspended symbols; {limit}",
        "size": f"account {rules.account:,.0f}, trade unit {rules.trade_unit or 'any fraction'}, an order takes {share} of a bar's volume",
        "year": f"{rules.annual_days:g} days",
    }
    return [f"{name:<12}{value}" for name, value in rows.items()]


def _ratios(found: Backtests) -> list[str]:
    """Excess returns with their information ratio; the deciding signal first and marked."""
    head = [
        "",
        "excess/year",
        "before cost",
        "inf. ratio",
        f"{100 * LEVEL:.0f} % interval",
        "volatility",
        "drawdown",
        "win rate",
        "turnover/day",
    ]
    rows = []
    for name, one in {**found.signals, **found.baselines}.items():
        figures, excess = one.figures, one.figures["excess_with_cost"]
        ends = figures["interval"]
        rows.append(
            [
                _label(found, name),
                signed(excess["annual_return"]),
                signed(figures["excess_without_cost"]["annual_return"]),
                _number(excess["information_ratio"]),
                f"{ends['low']:+.2f} to {ends['high']:+.2f}" if ends else "–",
                percent(excess["volatility"]),
                percent(excess["max_drawdown"]),
                percent(figures["win_rate"]),
                percent(figures["turnover"]["per_day"]),
            ]
        )
    return _table(head, rows, after=len(found.signals))


def _returns(found: Backtests) -> list[str]:
    """Each strategy's own account after cost, and what is only held."""
    head = ["", "return/year", "before cost", "volatility", "Sharpe", "drawdown", "cost/year", "compounded", "invested"]
    rows = []
    for name, one in {**found.signals, **found.baselines}.items():
        figures, net = one.figures, one.figures["with_cost"]
        rows.append(
            [
                _label(found, name),
                signed(net["annual_return"]),
                signed(figures["without_cost"]["annual_return"]),
                percent(net["volatility"]),
                _number(net["sharpe"]),
                percent(net["max_drawdown"]),
                percent(figures["cost_per_year"]),
                signed(figures["compounded_return"]),
                percent(figures["invested"]),
            ]
        )
    for name, line in found.lines.items():
        held = risk(_by_day(line), found.exchange.annual_days, "sharpe")
        compounded = signed(float((1 + line).prod() - 1))
        rows.append(
            [
                name,
                signed(held["annual_return"]),
                "",
                percent(held["volatility"]),
                _number(held["sharpe"]),
                percent(held["max_drawdown"]),
                "",
                compounded,
                "",
            ]
        )
    return _table(head, rows, after=len(found.signals))


def _ranks(scores: Mapping[str, Any] | None) -> Iterator[tuple[int, list[str]]]:
    """(bars ahead, a table of every signal's IC and what its best and worst groups then returned)."""
    head = ["", "IC", "RankIC", "95 % interval", "RankICIR", "hit rate", "lowest group", "highest group", "turnover/day", "days"]
    for ahead in sorted({ahead for one in (scores or {}).values() for ahead in one}):
        rows = []
        for name, one in (scores or {}).items():
            found, rank = one[ahead], one[ahead]["rank_ic"]
            interval = f"{rank['low']:+.3f} to {rank['high']:+.3f}" if np.isfinite(rank["low"]) else "–"
            groups = [signed(value, 2) for value in (found["groups"] or [np.nan])]
            means = [_number(found[key]["value"], 3) for key in ("ic", "rank_ic")]
            rates = [_number(found["rank_icir"]["value"]), percent(found["hit_rate"]["value"])]
            rows.append([name, *means, interval, *rates, groups[0], groups[-1], percent(found["turnover"]), f"{found['days']:,}"])
        yield ahead, _table(head, rows)


def _bars(count: int) -> str:
    return f"{count} bar" if count == 1 else f"{count} bars"


def _years(one: Backtest) -> list[str]:
    head = ["", "days", "return", "benchmark", "excess", "before cost", "inf. ratio", "drawdown", "win rate", "turnover/day", "cost"]
    rows = [
        [
            str(row["year"]),
            f"{row['days']:,}",
            *(signed(row[key]) for key in ("return_with_cost", "benchmark", "excess_with_cost", "excess_without_cost")),
            _number(row["information_ratio"]),
            *(percent(row[key]) for key in ("max_drawdown", "win_rate", "turnover_per_day")),
            percent(row["cost"], 2),
        ]
        for row in one.figures["yearly"]
    ]
    return _table(head, rows)


def _years_of_all(found: Backtests) -> list[str]:
    years = [str(row["year"]) for row in found.signals[found.headline].figures["yearly"]]
    rows = [
        [_label(found, name), *(signed(row["excess_with_cost"]) for row in one.figures["yearly"])]
        for name, one in {**found.signals, **found.baselines}.items()
    ]
    return _table(["", *years], rows, after=len(found.signals))


def _caveats(found: Backtests) -> list[str]:
    count, days = len(found.signals), found.signals[found.headline].figures["days"]
    told: dict[str, list[str]] = {}  # what several signals have in common is said once
    for name, one in {**found.signals, **found.baselines}.items():
        for note in one.notes:
            told.setdefault(note, []).append(name)
    lines = [f"{', '.join(names)}: {note}" for note, names in told.items()] + found.notes
    if count > 1:
        lines.append(
            f"{count} signals were run. The deciding one ({found.headline}) was named beforehand; the best of {count} looks better than "
            "it is, and its interval does not know that it was picked."
        )
    if days < 2 * found.exchange.annual_days:
        lines.append(f"{days:,} days are few: an information ratio of 1 needs about four years to be told from 0.")
    if found.store.freq != "day":
        lines.append(
            "A symbol may be sold on the day it was bought: hold_thresh counts bars. Where shares are held overnight (T+1), let it be as "
            "many as a day has."
        )
    lines += [
        "Returns are summed, not compounded, as in pyqlib's risk_analysis; the column compounded is the account's growth. A drawdown is "
        "that of the sum, counted from 0.",
        "Intervals: circular block bootstrap of the daily excess return after cost (arch), blocks of "
        f"{(found.signals[found.headline].figures['interval'] or {}).get('block', '–')} days or longer, widened by Student's t.",
        "Turnover is bought plus sold value over the account: replacing everything once is 200 %.",
        "pyqlib does not trade a symbol at a bar that closes at its limit, which is not known when it opens. Orders do not move prices "
        "beyond impact_cost. Dividends are those in the adjusted prices. The benchmark pays no cost.",
        "Amounts and prices of positions are adjusted as the store's: multiply an amount by $factor for shares, divide a price by it.",
    ]
    return lines


def _label(found: Backtests, name: str) -> str:
    return f"{name} *" if name == found.headline and len(found.signals) > 1 else name


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "-" * len(title), *(part for line in lines for part in _wrapped(line))])


def _wrapped(line: str) -> list[str]:
    """Sentences (they begin with a dash) at word ends within the page, later lines indented; tables as they are."""
    if not line.startswith("- "):
        return [line]
    done, current = [], ""
    for word in line.split(" "):
        if current and len(current) + 1 + len(word) > _WIDTH:
            done.append(current)
            current = f"  {word}"
        else:
            current = f"{current} {word}" if current else word
    return [*done, current]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], after: int = 0) -> list[str]:
    """Columns aligned, the first to the left; a blank line after the first `after` rows, where there are more."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    lines = [
        "   ".join(f"{cell:<{width}}" if not at else f"{cell:>{width}}" for at, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *rows]
    ]
    lines = [line.rstrip() for line in lines]
    return lines[: after + 1] + [""] * (0 < after < len(rows)) + lines[after + 1 :]


def _number(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}" if np.isfinite(value) else "–"
