"""What configs/tft/data.yaml may hold: bars, features, targets, fusion, and where the results go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas as pd

from finetune.data.config import CsvSection
from finetune.data.load import load_panel
from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.engine.config import Section, key

PerPeriod = int | dict[str, int]


class BarsSection(CsvSection):
    """How bars are read and checked: each file a series of one symbol and one period."""

    def load(self, say: Callable[[str], Any] = print) -> Panel:
        """Read and clean the bars. Raises what `load_panel` raises."""
        columns = {name: theirs for name, theirs in self.columns if theirs != name}
        paths = self.data_path[0] if len(self.data_path) == 1 else self.data_path
        windows = {"lookback_window": 0, "predict_window": 0}  # features say themselves how many rows they need
        return load_panel(SimpleNamespace(**{**dict(self), "columns": columns, "data_path": paths, **windows}), say=say)


class OutputSection(Section):
    """Where each of the three commands leaves its panel, and a .json beside it."""

    folder: str = key("outputs/tft", "folder of the three panels: features, targets and fused", path="out")
    parquet: str = key("", "data_fusion.py also writes the fused table into this parquet file; empty: it does not", path="out")

    @property
    def features(self) -> Path:
        return Path(self.folder, "features")

    @property
    def targets(self) -> Path:
        return Path(self.folder, "targets")

    @property
    def fused(self) -> Path:
        return Path(self.folder, "fused")


class FeaturesSection(Section):
    """Which features are computed. `python tft/indicating.py --list` shows all there are."""

    use: list[dict[str, Any] | str] = key(
        ...,
        "one line per feature: its name, or {name: rsi, window: 14, as: my_rsi, normalise: zscore, normalise_window: 240}",
        example=["log_return", {"name": "rsi", "window": 14}],
    )
    normalise: Literal["none", "zscore", "minmax"] = key("none", "rolling normalisation of features of bars that do not say otherwise")
    normalise_window: PerPeriod = key(240, "its window in bars: a number, or one per period such as {1h: 240, 1d: 120}")
    clip: float = key(5.0, "z-scores are cut off at plus and minus this", gt=0, le=1000)
    constant: Literal["error", "drop"] = key("error", "columns with one value in all rows: stop, or leave them out and say so")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.use:
            yield "use", "is empty; name at least one feature (python tft/indicating.py --list shows them)"


class TargetsSection(Section):
    """What is to be forecast, how far ahead, and which bars count as training data for thresholds."""

    use: list[dict[str, Any] | str] = key(
        ["binarytrend", "logreturn"], "one line per target: its name, or {name: drawdown_prob, quantile: 0.75, horizon: {1h: 24}}"
    )
    horizon: PerPeriod = key(5, "bars ahead: a number, or one per period such as {1h: 12, 4h: 6, 1d: 5}")
    val_mode: Literal["ratio", "days"] = key("ratio", "how the end of the training data is found; give the same to the training command")
    val_ratio: float = key(0.2, "ratio: share of all rows, the latest before the test's, for validation", ge=0, lt=1)
    test_ratio: float = key(0.0, "ratio: share of all rows, the latest, for a test", ge=0, lt=1)
    val_days: float = key(30.0, "days: length of the validation period, the latest before the test's", ge=0)
    test_days: float = key(0.0, "days: length of the test period, the latest", ge=0)
    train_until: str = key("", "a date such as 2023-01-01 (UTC) that ends the training data; wins over val_mode")
    thresholds: str = key(
        "",
        "a targets.json of target_config.py whose thresholds are taken, so that several desks label alike; empty: of these bars",
        path="in",
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.use:
            yield "use", "is empty; name at least one target (python tft/target_config.py --list shows them)"
        if self.val_ratio + self.test_ratio >= 1:
            yield "val_ratio", f"and test_ratio add up to {self.val_ratio + self.test_ratio:g}; lower one so that training data is left"
        if self.train_until and pd.isna(pd.to_datetime(self.train_until, errors="coerce", utc=True)):
            yield "train_until", f"is {self.train_until!r}, not a date; write it as 2023-01-01"
        values = self.horizon.values() if isinstance(self.horizon, dict) else [self.horizon]
        if not all(1 <= value <= 100_000 for value in values):
            yield "horizon", f"is {self.horizon!r}; expected whole numbers of at least 1 bar"


class FusionSection(Section):
    """Which series become rows, and what is carried to them from slower ones and from the market."""

    rows: list[str] = key([], "periods whose bars become rows; empty: all that there are")
    symbols: list[str] = key([], "symbols whose bars become rows; empty: all; the others can still be named in fusion.market")
    carry: dict[str, list[str] | str] = key(
        {}, "slower period → columns carried down to every faster row, or all, e.g. {4h: [rsi_14], 1d: all}: column rsi_14@4h"
    )
    max_age: float = key(15.0, "a carried value is unknown once it is older than this many of its own bars", gt=0)
    market: list[dict[str, str]] = key(
        [], "columns equal for all symbols: {column: log_return_1, how: mean} over symbols, or {column: rsi_14, how: of, symbol: BTCUSDT}"
    )
    bars: list[Literal["open", "high", "low", "close", "volume", "amount"]] = key(
        [], "raw bar columns that stay among the features; they carry the price level"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        for period, columns in self.carry.items():
            if columns != "all" and isinstance(columns, str):
                yield f"carry.{period}", f"is {columns!r}; expected all, or a list of columns"
        for number, line in enumerate(self.market):
            how = line.get("how", "mean")
            if "column" not in line or how not in ("mean", "of") or (how == "of") != ("symbol" in line):
                text = f"line {number + 1} is {line}; expected {{column: C, how: mean}} or {{column: C, how: of, symbol: S}}"
                yield "market", text
            elif unknown := set(line) - {"column", "how", "symbol", "as"}:
                yield "market", f"line {number + 1} has the unknown key {sorted(unknown)[0]!r}; it takes column, how, symbol, as"


class TftDataConfig(Section):
    """A whole data.yaml."""

    data: BarsSection
    output: OutputSection = OutputSection()
    features: FeaturesSection
    targets: TargetsSection = TargetsSection()
    fusion: FusionSection = FusionSection()


BAR_NAMES = KRONOS_NAMES
