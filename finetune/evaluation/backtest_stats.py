"""What a backtest's report says: returns, ratios, drawdowns, and how sure the information ratio is.

All sums, no compounding, as pyqlib's `risk_analysis`: a year's return is the mean return times the days of a year, a drawdown is taken on
the running sum. With one difference: the running sum begins at 0, so that a loss on the first day is a drawdown too (Qlib begins at the
first day's own return). Reports of bars shorter than a day are summed to days first: every figure counts days.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from finetune.engine.randomness import numpy_generator

LEVEL = 0.95
FEWEST_DAYS = 20  # an interval from fewer would be a guess
_SEED = 17  # so that resampling does not share other draws' random numbers


def to_days(report: pd.DataFrame) -> pd.DataFrame:
    """One row a day of Qlib's report (index bars; columns return, cost, bench, turnover, account, value, cash), adding net and excess.

    Returns, costs and turnover are sums over the day's bars, each relative to the account before the bar; account, value and cash are
    those after its last bar. net = return - cost; excess = net - bench; excess_before_cost = return - bench.
    """
    day = report.index.normalize()
    sums = report[["return", "cost", "bench", "turnover"]].groupby(day).sum()
    days = sums.join(report[["account", "value", "cash"]].groupby(day).last())
    net = days["return"] - days["cost"]
    return days.assign(net=net, excess=net - days["bench"], excess_before_cost=days["return"] - days["bench"]).rename_axis("datetime")


def statistics(report: pd.DataFrame, *, annual_days: float, draws: int = 2000, seed: int = 100, block: int = 5) -> dict[str, Any]:
    """Every figure of one backtest as plain numbers; NaN where there is none (a ratio without deviation).

    report: Qlib's. annual_days: trading days in a year. block: least
    length of the bootstrap's blocks in days (how long positions are held at least). Sharpe ratio: of the return after cost, no risk-free
    rate taken off. Turnover: bought plus sold value over the account, so that replacing everything once is 2. Win rate: share of days on
    which the return after cost beat the benchmark.
    """
    days = to_days(report)
    return {
        "days": len(days),
        "first": f"{days.index[0]:%Y-%m-%d}",
        "last": f"{days.index[-1]:%Y-%m-%d}",
        "excess_with_cost": risk(days["excess"], annual_days, "information_ratio"),
        "excess_without_cost": risk(days["excess_before_cost"], annual_days, "information_ratio"),
        "with_cost": risk(days["net"], annual_days, "sharpe"),
        "without_cost": risk(days["return"], annual_days, "sharpe"),
        "benchmark": risk(days["bench"], annual_days, "sharpe"),
        "win_rate": float((days["excess"] > 0).mean()),
        "turnover": {"per_day": float(days["turnover"].mean()), "per_year": float(days["turnover"].mean() * annual_days)},
        "cost_per_year": float(days["cost"].mean() * annual_days),
        "invested": float((days["value"] / days["account"]).mean()),
        "account": float(days["account"].iloc[-1]),
        "compounded_return": float((1 + report["return"] - report["cost"]).prod() - 1),  # by bars: a day's sum is not what it grew by
        "interval": interval(days["excess"], annual_days=annual_days, draws=draws, seed=seed, block=block),
        "yearly": yearly(days, annual_days),
    }


def risk(returns: pd.Series, annual_days: float, ratio: str) -> dict[str, float]:
    """annual_return, volatility, their ratio (under the name given), max_drawdown (0 or below) and the sum of daily returns."""
    values = returns.to_numpy(np.float64)
    mean, spread = values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
    return {
        "annual_return": float(mean * annual_days),
        "volatility": float(spread * np.sqrt(annual_days)),
        ratio: _ratio(values, annual_days),
        "max_drawdown": float(drawdown(values).min()),
        "total": float(values.sum()),
    }


def drawdown(returns: np.ndarray) -> np.ndarray:
    """[D] → [D]: how far the running sum lies below its highest so far, the 0 before the first day included."""
    total = np.cumsum(returns)
    return total - np.maximum.accumulate(np.maximum(total, 0.0))


def yearly(days: pd.DataFrame, annual_days: float) -> list[dict[str, Any]]:
    """One row per calendar year of `to_days`: sums (not scaled up to a year where it is not whole), the ratio annualised."""
    rows = []
    for year, part in days.groupby(days.index.year):
        rows.append(
            {
                "year": int(year),
                "days": len(part),
                "return_with_cost": float(part["net"].sum()),
                "benchmark": float(part["bench"].sum()),
                "excess_with_cost": float(part["excess"].sum()),
                "excess_without_cost": float(part["excess_before_cost"].sum()),
                "information_ratio": _ratio(part["excess"].to_numpy(), annual_days),
                "max_drawdown": float(drawdown(part["net"].to_numpy()).min()),
                "win_rate": float((part["excess"] > 0).mean()),
                "turnover_per_day": float(part["turnover"].mean()),
                "cost": float(part["cost"].sum()),
            }
        )
    return rows


def interval(excess: pd.Series, *, annual_days: float, draws: int, seed: int, block: int) -> dict[str, Any] | None:
    """95 % interval of the annualised information ratio; None with fewer than 20 days or without deviation.

    Circular block bootstrap (Politis and Romano 1992) by the `arch` package, percentiles; blocks as long as Politis and White (2004) find
    best for this series, `block` days at least and a tenth of the days at most. Widened as Student's t is against the normal with a degree
    of freedom less than there are blocks, as `skill.Resampler` does: few blocks tell little about their own spread.
    """
    from arch.bootstrap import CircularBlockBootstrap, optimal_block_length
    from scipy.stats import norm, t

    values = excess.to_numpy(np.float64)
    if len(values) < FEWEST_DAYS or not values.std() > 0:
        return None
    best = float(optimal_block_length(values)["circular"].iloc[0])
    length = int(np.clip(np.ceil(best) if np.isfinite(best) else block, min(block, len(values) // 10), len(values) // 10))
    drawn = CircularBlockBootstrap(length, values, seed=numpy_generator(seed, _SEED)).apply(lambda one: _ratio(one, annual_days), draws)
    value = _ratio(values, annual_days)
    tail = (1 - LEVEL) / 2
    widening = t.ppf(1 - tail, len(values) / length - 1) / norm.ppf(1 - tail)
    low, high = value + widening * (np.nanquantile(drawn, (tail, 1 - tail)) - value)
    return {"low": float(low), "high": float(high), "level": LEVEL, "draws": draws, "block": length}


def judgement(found: dict[str, Any]) -> str:
    """What the interval of `statistics` allows to say: "better than", "worse than", "indistinguishable from"."""
    ends = found["interval"]
    if ends is None or ends["low"] <= 0 <= ends["high"]:
        return "indistinguishable from"
    return "better than" if ends["low"] > 0 else "worse than"


def verdict(title: str, benchmark: str, found: dict[str, Any]) -> str:
    """The plain sentence, e.g. "mean is worse than SH000300: information ratio -1.20 (95 % interval -2.31 to -0.12), 240 days."."""
    ends, ratio = found["interval"], found["excess_with_cost"]["information_ratio"]
    shown = f"information ratio {ratio:+.2f}" if np.isfinite(ratio) else "no information ratio, its excess return never changes"
    if ends:
        shown += f" ({100 * LEVEL:.0f} % interval {ends['low']:+.2f} to {ends['high']:+.2f})"
    few = "" if ends else f", too few for an interval (at least {FEWEST_DAYS} that differ)"
    return f"{title} is {judgement(found)} {benchmark}: {shown}, {found['days']:,} days{few}."


def _ratio(values: np.ndarray, annual_days: float) -> float:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return float(values.mean() / spread * np.sqrt(annual_days)) if spread > 1e-12 else float("nan")
