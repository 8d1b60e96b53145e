"""A file in the layout of the Kaggle competition, of any size: ordered by date with tickers interleaved, deterministic in the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

HEADER = "Ticker,Date,Open,High,Low,Close,Volume,Dividends,Stock Splits\n"
_FIRST_DAY = "2001-01-02"
_ROWS_AT_ONCE = 400_000
_FAULTS = 2000  # one bar in so many is faulty: empty cells, a price of 0, or high below low
_SPLIT_DAYS = 1500  # one bar in so many is the day of a split
_RATIOS = np.array([2.0, 3.0, 1.5, 4.0, 0.1])


def write_train(path: Path, tickers: int, rows: int, *, seed: int = 0, adjusted: bool = True) -> None:
    """Write `rows` bars of `tickers` tickers, from different first days to one last day; every tenth ticker stops trading early.

    adjusted: False leaves the jumps of splits in prices and volume, as an unadjusted source has them.
    """
    rng = np.random.default_rng(seed)
    first, last = _lives(tickers, rows, rng)
    dates = _date_texts(int(last.max()))
    names = np.array([f"{chr(65 + i % 26)}{i:04d}" for i in range(tickers)])
    state = {"price": np.log(rng.uniform(5, 300, tickers)), "unit": np.ones(tickers), "volume": np.exp(rng.normal(13, 1.5, tickers))}
    step = max(1, _ROWS_AT_ONCE // tickers)
    with open(path, "wb") as file:
        file.write(HEADER.encode())
        for day in range(0, int(last.max()), step):
            days = np.arange(day, min(day + step, int(last.max())))
            table = _block(days, first, last, state, names, dates, rng, adjusted)
            pa.csv.write_csv(table, file, pa.csv.WriteOptions(include_header=False, quoting_style="none"))


def write_test(path: Path, tickers: int, rows: int, seed: int = 0) -> None:
    """ID, Date of the last day for every ticker, and one ticker that train.csv does not have."""
    _, last = _lives(tickers, rows, np.random.default_rng(seed))
    date = str(_days(int(last.max()) + 1)[-1].date())
    names = [f"{chr(65 + i % 26)}{i:04d}" for i in range(tickers)]
    path.write_text("ID,Date\n" + "".join(f"{name},{date}\n" for name in [*names, "UNKNOWN"]))


def _lives(tickers: int, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last day [tickers] each; together they have `rows` days."""
    mean = rows / tickers
    length = np.maximum(1, rng.uniform(0.4, 1.6, tickers) * mean).astype(np.int64)
    spare = rows - int(length.sum())
    length += spare // tickers
    length[: spare - spare // tickers * tickers] += 1
    length = np.maximum(1, length)
    end = np.full(tickers, int(length.max()) + int(mean / 10) + 1)
    end[::10] -= rng.integers(0, int(mean / 10) + 1, len(end[::10]))
    return end - length, end


def _days(n: int) -> pd.DatetimeIndex:
    return pd.bdate_range(_FIRST_DAY, periods=n)


def _date_texts(n: int) -> np.ndarray:
    """ "2001-01-02 00:00:00-05:00" and so on, with New York's offset of that day."""
    local = _days(n).tz_localize("America/New_York")
    return np.array([text[:-2] + ":" + text[-2:] for text in local.strftime("%Y-%m-%d %H:%M:%S%z")])


def _block(
    days: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    state: dict[str, np.ndarray],
    names: np.ndarray,
    dates: np.ndarray,
    rng: np.random.Generator,
    adjusted: bool,
) -> pa.Table:
    """The bars of some days, every ticker that trades on them."""
    shape = (len(days), len(names))
    closes = state["price"] + np.cumsum(rng.normal(0, 0.02, shape), axis=0)
    opens = np.concatenate([state["price"][None], closes[:-1]]) + rng.normal(0, 0.004, shape)
    state["price"] = np.clip(closes[-1], np.log(0.5), np.log(5000))  # walks of 20 years would leave every range
    high = np.maximum(opens, closes) + rng.exponential(0.005, shape)
    low = np.minimum(opens, closes) - rng.exponential(0.005, shape)
    volume = np.round(state["volume"] * np.exp(rng.normal(0, 0.4, shape)))
    splits = np.where(rng.integers(0, _SPLIT_DAYS, shape) == 0, _RATIOS[rng.integers(0, len(_RATIOS), shape)], 0.0)
    unit = np.ones(shape)
    if not adjusted:
        unit = state["unit"] * np.cumprod(np.where(splits > 0, splits, 1.0), axis=0)
        state["unit"] = unit[-1]
    day, ticker = np.nonzero((days[:, None] >= first) & (days[:, None] < last))
    prices = [np.round(np.exp(values)[day, ticker] / unit[day, ticker], 4) for values in (opens, high, low, closes)]
    fault = rng.integers(0, _FAULTS * 3, len(day))
    prices[0][fault == 0] = 0.0
    prices[1][fault == 1] = prices[2][fault == 1] / 2
    empty = fault == 2
    columns = {"Ticker": pa.array(names).take(pa.array(ticker)), "Date": pa.array(dates).take(pa.array(days[day]))}
    for name, values in zip(("Open", "High", "Low", "Close"), prices, strict=True):
        columns[name] = pa.array(values, mask=empty)
    columns["Volume"] = pa.array(np.round(volume[day, ticker] * unit[day, ticker]).astype(np.int64))
    columns["Dividends"] = pa.array(np.zeros(len(day)))
    columns["Stock Splits"] = pa.array(splits[day, ticker])
    return pa.table(columns)
