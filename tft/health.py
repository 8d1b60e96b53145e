"""How healthy the columns of a table are: missing, constant, distribution, drift, correlation; as tables and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.engine.files import write_text
from kronos.errors import InputError
from tft.long_tables import _HEAD, _TIMES

_SAMPLE = 50_000  # rows looked at for correlations and drift, evenly spread; more would not change the picture
_LATEST = 0.2  # drift compares the latest fifth of all rows with the rest
_TWIN, _DRIFT, _RARE = 0.98, 0.25, 0.5
_MOST_SHOWN = 120  # distributions in one picture, which then is 3,040 pixels high


def numeric_columns(frame: pd.DataFrame) -> list[str]:
    """Features and targets: every numeric column that does not say which row it is."""
    return [str(name) for name in frame.columns if name not in _HEAD and pd.api.types.is_numeric_dtype(frame[name])]


def column_table(frame: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """One row per column: kind, missing rows, share, whether constant, moments, quantiles, share of zeros, drift.

    drift: Kolmogorov and Smirnov's distance (0 to 1) between the latest fifth of the rows by time and those before.
    Raises InputError for a table without numeric columns or rows.
    """
    names = numeric_columns(frame)
    if not names or not len(frame):
        raise InputError(f"the table has {len(names)} numeric columns and {len(frame):,} rows, so there is nothing to check")
    when = next((frame[name] for name in _TIMES if name in frame.columns), None)
    order = np.arange(len(frame)) if when is None else np.argsort(when.to_numpy(), kind="stable")
    late = order[int(len(order) * (1 - _LATEST)) :]
    early = order[: len(order) - len(late)]
    rows = []
    for name in names:
        values = frame[name].to_numpy(np.float64, na_value=np.nan)
        known = values[np.isfinite(values)]
        row = {"column": name, "kind": "target" if name.startswith("target_") else kinds.get(name, "past")}
        row.update(missing=len(values) - len(known), missing_share=1 - len(known) / len(values))
        row["constant"] = bool(len(known) == 0 or (known == known[0]).all())
        row.update(_moments(known))
        row["drift"] = _distance(values[early], values[late])
        rows.append(row)
    return pd.DataFrame(rows)


def _moments(known: np.ndarray) -> dict[str, float]:
    if not len(known):
        return {}
    spread = known.std()
    low, median, high = np.quantile(known, [0.01, 0.5, 0.99])
    skew = float((((known - known.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
    shape = {"mean": known.mean(), "std": spread, "min": known.min(), "q01": low, "median": median, "q99": high, "max": known.max()}
    return {**{name: float(value) for name, value in shape.items()}, "skew": skew, "zeros_share": float((known == 0).mean())}


def _spread_rows(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))


def _distance(early: np.ndarray, late: np.ndarray) -> float:
    """Largest distance between two distribution functions; NaN if one side has no values."""
    first, second = (np.sort(x[_spread_rows(len(x))]) if len(x) else x for x in (early[np.isfinite(early)], late[np.isfinite(late)]))
    if not len(first) or not len(second):
        return float("nan")
    points = np.concatenate([first, second])
    below = [np.searchsorted(side, points, side="right") / len(side) for side in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of all numeric columns, over at most 50,000 evenly spread rows; 0 with a constant one."""
    names = numeric_columns(frame)
    ranks = frame.iloc[_spread_rows(len(frame))][names].rank()
    ranks = ranks.fillna(ranks.mean()).to_numpy(np.float64)  # a missing value says nothing either way
    ranks = np.nan_to_num(ranks - ranks.mean(axis=0))
    norm = np.sqrt((ranks**2).sum(axis=0))
    ranks /= np.where(norm > 0, norm, 1.0)
    return pd.DataFrame(ranks.T @ ranks, names, names)


def findings(table: pd.DataFrame, related: pd.DataFrame) -> list[str]:
    """What a person should look at, one line each, the worst kind first."""
    found = [f"constant: {row.column} is {row.median:g} everywhere" for row in table[table.constant].itertuples()]
    for row in table[(table.missing > 0) & (table.kind != "target")].itertuples():
        found.append(f"missing: {row.column} in {row.missing:,} rows ({row.missing_share:.1%})")
    for row in table[(table.kind == "target") & (table.missing_share > _RARE)].itertuples():
        found.append(f"missing: {row.column} in {row.missing_share:.0%} of all rows")
    features = table.column[table.kind != "target"].tolist()
    values = related.loc[features, features].to_numpy()
    for i, j in np.argwhere(np.triu(np.abs(values) > _TWIN, 1)):
        found.append(f"twins: {features[i]} and {features[j]} say the same (rank correlation {values[i, j]:.3f})")
    targets = table.column[table.kind == "target"].tolist()
    for name in targets:
        for other in np.array(features)[np.abs(related.loc[name, features].to_numpy()) > 0.8]:
            found.append(f"leak?: {other} is nearly {name} (rank correlation {related.loc[name, other]:.3f})")
    for row in table[table.drift > _DRIFT].sort_values("drift", ascending=False).itertuples():
        found.append(f"drift: {row.column} is distributed otherwise in the latest fifth (distance {row.drift:.2f})")
    return found


def write_report(frame: pd.DataFrame, kinds: Mapping[str, str], folder: str | Path) -> list[str]:
    """columns.csv, correlations.csv, findings.txt and the pictures in `folder`; returns the findings. Raises InputError as its parts do."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    table, related = column_table(frame, kinds), correlations(frame)
    told = findings(table, related)
    write_text(out / "columns.csv", table.to_csv(index=False, float_format="%.6g"))
    write_text(out / "correlations.csv", related.to_csv(float_format="%.4f"))
    write_text(out / "findings.txt", "\n".join(told) + "\n" if told else "nothing to look at\n")
    draw_correlations(out / "correlations.png", related)
    draw_distributions(out / "distributions.png", frame, table.column.tolist())
    if table.missing.any():
        draw_missing(out / "missing.png", table)
    return told


def draw_correlations(path: Path, related: pd.DataFrame) -> None:
    """The matrix as a picture, blue below 0, red above."""
    from finetune.engine.curves import INK, new_figure, save_figure

    n = len(related)
    size = int(np.clip(16 * n + 320, 600, 2400))
    figure = new_figure(size, size - 60)
    axes = figure.add_axes((0.24, 0.22, 0.68, 0.72))
    image = axes.imshow(related.to_numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    small = float(np.clip(0.62 * 0.72 * size / n * 0.72, 4, 10))
    axes.set_xticks(range(n), related.columns, rotation=90, fontsize=small, color=INK)
    axes.set_yticks(range(n), related.columns, fontsize=small, color=INK)
    axes.tick_params(length=0)
    axes.set_title("rank correlation", loc="left", fontsize=14, fontweight="bold", color=INK)
    figure.colorbar(image, cax=figure.add_axes((0.935, 0.22, 0.015, 0.72)))
    save_figure(figure, path)


def draw_distributions(path: Path, frame: pd.DataFrame, names: Sequence[str]) -> None:
    """A histogram of each column between its 0.5 and 99.5 per cent quantiles; the first 120 columns."""
    from finetune.engine.curves import BLUE, INK, MUTED, new_figure, save_figure

    shown = list(names)[:_MOST_SHOWN]
    across = min(6, len(shown))
    down = -(-len(shown) // across)
    figure = new_figure(230 * across, 150 * down + 40)
    for place, name in enumerate(shown):
        axes = figure.add_subplot(down, across, place + 1)
        values = frame[name].to_numpy(np.float64, na_value=np.nan)
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.quantile(values, [0.005, 0.995])
            axes.hist(values, bins=40, range=(low, high) if high > low else None, color=BLUE)
        axes.set_title(name, fontsize=7.5, color=INK, pad=3)
        axes.tick_params(labelsize=6, colors=MUTED, length=0)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)


def draw_missing(path: Path, table: pd.DataFrame) -> None:
    """Share of missing rows of the columns that have any."""
    from finetune.engine.curves import INK, MUTED, VERMILION, new_figure, save_figure

    worst = table[table.missing > 0].sort_values("missing_share").tail(_MOST_SHOWN)
    figure = new_figure(900, 90 + 20 * len(worst))
    axes = figure.add_subplot()
    axes.barh(worst.column, 100 * worst.missing_share, color=VERMILION)
    axes.set_xlabel("rows without a value, %", fontsize=9, color=MUTED)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)
