"""Tiny files in the layout of the Kaggle competition, for anybody's tests: daily bars of New York's calendar, deterministic in the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["Ticker", "Date", "Open", "High", "Low", "Close", "Volume", "Dividends", "Stock Splits"]
PRICES = ["Open", "High", "Low", "Close"]


def make_bars(tickers: int | list[str] = 3, days: int | list[int] = 40, seed: int = 0, start: str = "2001-03-26") -> pd.DataFrame:
    """Valid bars in order of date, tickers interleaved. days: of each ticker, to one last day. Dates: `2001-04-02 00:00:00-04:00`."""
    names = [f"T{i}" for i in range(tickers)] if isinstance(tickers, int) else list(tickers)
    lengths = [days] * len(names) if isinstance(days, int) else list(days)
    calendar = pd.bdate_range(start, periods=max(lengths))
    frames = []
    for number, (name, length) in enumerate(zip(names, lengths, strict=True)):
        rng = np.random.default_rng([seed, number])
        close = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, length)))
        opens = close * np.exp(rng.normal(0, 0.005, length))
        frame = pd.DataFrame({"Ticker": name, "day": calendar[len(calendar) - length :], "Open": opens, "Close": close})
        frame["High"] = np.maximum(opens, close) * 1.01
        frame["Low"] = np.minimum(opens, close) * 0.99
        frame["Volume"] = rng.integers(1000, 100_000, length)
        frames.append(frame)
    bars = pd.concat(frames).sort_values("day", kind="stable").reset_index(drop=True)
    bars["Date"] = [text[:-2] + ":" + text[-2:] for text in bars.pop("day").dt.tz_localize("America/New_York").dt.strftime("%F %T%z")]
    bars["Dividends"], bars["Stock Splits"] = 0.0, 0.0
    return bars[COLUMNS]


def rows_of(bars: pd.DataFrame, ticker: str) -> list[int]:
    """Index labels of one ticker's bars, in order of date."""
    return bars.index[bars["Ticker"] == ticker].tolist()


def write_train(path: Path, bars: pd.DataFrame) -> Path:
    """The bars as a CSV, in their order."""
    bars.to_csv(path, index=False)
    return path


def write_test(path: Path, rows: list[tuple[str, str]]) -> Path:
    """(ID, date) of each row."""
    pd.DataFrame(rows, columns=["ID", "Date"]).to_csv(path, index=False)
    return path


def make_folder(folder: Path, bars: pd.DataFrame, *, test: list[tuple[str, str]] | None = None, say=lambda text: None, **settings) -> Path:
    """`folder`/data as preprocessing makes it of these bars; settings as of KaggleSettings, with a lookback of 8."""
    from finetune.data.kaggle_panel import KaggleSettings, prepare

    last = bars["Date"].iloc[-1][:10]
    asked = test if test is not None else [(name, last) for name in bars["Ticker"].unique()]
    files = write_train(folder / "train.csv", bars), write_test(folder / "test.csv", asked)
    prepare(*files, folder / "data", KaggleSettings(**{"lookback": 8, **settings}), say=say)
    return folder / "data"
