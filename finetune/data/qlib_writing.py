"""Bars → a Qlib store on disk, as pyqlib 0.9.7 reads it: a folder written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.qlib_store import OTHER_NAMES, listed, read_text
from kronos.errors import InputError
from kronos.files import explained, new_folder

PRICES = ("open", "high", "low", "close")
REQUIRED = (*PRICES, "volume")
FIELDS = (*REQUIRED, "amount", "vwap", "factor", "change")
BENCHMARK = "BENCHMARK"  # the instrument that holds the equal weight of all symbols
# What pandas, through which pyqlib reads its lists of symbols, takes for a missing value.
_MISSING = {"na", "nan", "-nan", "null", "none", "n/a", "<na>", "#na", "#n/a", "#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"}
_FORBIDDEN = re.compile(r'[\s/\\:*?"<>|\x00-\x1f]')
_LONGEST = 100  # bytes of a symbol's name: it becomes a folder
_RECENT = 60  # bars whose weekdays and times of day are continued into the future
_MINUTE = 60 * 10**9
Members = Sequence[str] | Mapping[str, Sequence[tuple[object, object]]]
Pools = Mapping[str, Members]


def write_store(
    folder: str | os.PathLike[str],
    frames: Mapping[str, pd.DataFrame],
    *,
    freq: str = "day",
    pools: Pools | None = None,
    benchmark: str | None = None,
    future_days: int = 30,
) -> Path:
    """Write a store of one frequency and return its folder.

    frames: symbol → bars, index times of the wall clock (naive, increasing), columns open high low close volume and, where known, amount,
    vwap, factor (adjusted price / price), change. NaN is a bar that was not traded. pools: name → its symbols, or symbol → (first, last)
    day of each membership (none: its whole life); "all" is made of every symbol. Where not given, factor is 1 and change is close / close
    before - 1: without them pyqlib's exchange knows neither trade units nor price limits, and does not say so.
    benchmark: "equal" also writes an instrument named BENCHMARK, the mean return of all symbols, outside "all"; a symbol is only checked.
    future_days: days that the calendar goes on after the last bar, with the weekdays and hours of late, for backtests up to that bar.
    Raises InputError for names and frames that a store cannot hold, an unknown benchmark, or a folder that exists and is not empty.
    """
    target, pools = Path(os.path.abspath(Path(folder).expanduser())), pools or {}
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists, and is not overwritten; choose another folder or remove it")
    if not re.fullmatch(r"day|[1-9]\d*min", freq):
        known = f", as {OTHER_NAMES[freq]}" if freq in OTHER_NAMES else ""
        raise InputError(f"freq: {freq!r} is none of Qlib's names; write day, 60min (one hour), 240min (four hours){known}")
    check_names(frames, pools, benchmark)
    bars = {symbol: _checked(frame, symbol, freq) for symbol, frame in frames.items()}
    calendar = pd.DatetimeIndex(np.unique(np.concatenate([frame.index.to_numpy() for frame in bars.values()])))
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    with explained(target, "cannot write the store"):
        try:
            new_folder(fresh)
            _write_calendar(fresh, calendar, freq, future_days)
            _write_pools(fresh, bars, pools, freq)
            if benchmark == "equal":
                bars[BENCHMARK] = equal_weight(bars, calendar)
            for symbol, frame in bars.items():
                _write_bars(fresh, symbol, frame, calendar, freq)
            os.replace(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def read_pool(file: str | os.PathLike[str]) -> dict[str, list[tuple[str, str]]]:
    """A text file of one symbol per line, alone or with its first and last day (Qlib's own lists too), as a pool for `write_store`.

    Tabs, commas or spaces lie between; a symbol may have several lines; # begins a comment. Raises InputError naming the line.
    """
    members: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(read_text(Path(file)).splitlines(), 1):
        parts = re.split(r"[\t,; ]+", line.partition("#")[0].strip())
        if parts == [""]:
            continue
        days = [part for part in parts[1:] if not re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", part)]  # of 2020-01-02 23:59:59, the day
        if len(days) not in (0, 2):
            raise InputError(f"{file}, line {number}: {line[:80]!r} is not a symbol, or a symbol with its first and last day")
        members.setdefault(parts[0], []).extend([(days[0], days[1])] if days else [])
    if not members:
        raise InputError(f"{file}: names no symbol; write one per line")
    return members


def check_names(symbols: Mapping[str, object], pools: Pools, benchmark: str | None) -> None:
    """InputError for names that pyqlib would lose, mix up or write elsewhere."""
    if not symbols:
        raise InputError("a store needs at least one symbol; give bars")
    _told_apart(symbols, "symbol")
    _told_apart(pools, "pool")
    for name, members in pools.items():
        if name.lower() == "all":
            raise InputError("pool 'all' is made of every symbol; give your pool another name")
        _told_apart(members, f"pool {name!r}: symbol")
        if not any(symbol in symbols for symbol in members):
            raise InputError(f"pool {name!r}: none of its symbols ({listed(members)}) has bars; the bars are of {listed(symbols)}")
    if benchmark == "equal" and any(symbol.upper() == BENCHMARK for symbol in symbols):
        raise InputError(f"a symbol is named {BENCHMARK}, as the equal-weight benchmark would be; rename it")
    if benchmark not in (None, "equal") and benchmark not in symbols:
        raise InputError(f"benchmark: {benchmark!r} is neither 'equal' nor one of the symbols {listed(symbols)}")


def _told_apart(names: Mapping[str, object] | Sequence[str], what: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"{what} {name!r} is not a name; write it as text, such as 'SH600000'")
        if name.lower() in _MISSING:
            raise InputError(f"{what} {name!r}: pyqlib reads this name as a missing value; rename it, e.g. to '{name}_'")
        found = _FORBIDDEN.search(name)
        if found or name in (".", "..") or name.startswith((".", "-")) or len(name.encode()) > _LONGEST:
            why = f"holds {found.group()!r}" if found else f"begins with {name[0]!r}" if name[0] in ".-" else "is too long"
            raise InputError(f"{what} {name!r} {why}, and names become folders of the store; rename it, e.g. BTC/USDT to BTC_USDT")
        if name.lower() in seen:
            other = seen[name.lower()]
            told = "is there twice" if other == name else f"and {other!r} differ only by case, and would share a folder of the store"
            raise InputError(f"{what} {name!r} {told}; rename or remove one")
        seen[name.lower()] = name


def _checked(frame: pd.DataFrame, symbol: str, freq: str) -> pd.DataFrame:
    """The frame's FIELDS as float64, its index in ns; InputError for what a store cannot hold."""
    times = frame.index
    if not isinstance(times, pd.DatetimeIndex) or times.tz is not None or times.hasnans:
        raise InputError(f"{symbol}: the index must be times of the exchange's wall clock without a zone (a DatetimeIndex without NaT)")
    if lacks := [name for name in REQUIRED if name not in frame.columns]:
        raise InputError(f"{symbol}: lacks the columns {', '.join(lacks)}; a store needs {', '.join(REQUIRED)}")
    times = times.as_unit("ns")
    times = times.normalize() if freq == "day" else times
    steps = np.diff(times.asi8)
    if (steps <= 0).any():
        at = int((steps <= 0).argmax())
        kind = "two bars of one day" if freq == "day" and steps[at] == 0 else "times that do not increase"
        raise InputError(f"{symbol}: {kind}, {frame.index[at]} and {frame.index[at + 1]}; sort the bars, or name their length as freq")
    if freq != "day":
        _check_length(times, int(freq.removesuffix("min")), symbol)
    values = frame[[name for name in FIELDS if name in frame.columns]].astype(np.float64).set_axis(times)
    with np.errstate(over="ignore"):
        wrong = np.isinf(values.to_numpy(np.float32))
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        told = values.iloc[row, column]
        raise InputError(f"{symbol}, {frame.index[row]}: {values.columns[column]} is {told}, beyond what float32 holds; correct it")
    if not len(values) or values["close"].isna().all():
        raise InputError(f"{symbol}: there is no bar with a close; leave the symbol out")
    return _completed(values)


def _check_length(times: pd.DatetimeIndex, minutes: int, symbol: str) -> None:
    """Bars nearer to each other than their length, or never so near within a day, are bars of another length. A lunch break is shorter."""
    steps = np.diff(times.asi8) // _MINUTE
    within = steps[np.diff(times.normalize().asi8) == 0]
    if (steps < minutes).any() or (len(within) and within.min() >= 2 * minutes):
        told = f"bars are {int(steps.min()):,} minutes apart, but freq is {minutes}min"
        raise InputError(f"{symbol}: {told}; name their length, or resample them before")


def _completed(bars: pd.DataFrame) -> pd.DataFrame:
    """With factor and change, which pyqlib's exchange needs."""
    traded = bars["close"].dropna()
    if "factor" not in bars:
        bars = bars.assign(factor=1.0)
    return bars if "change" in bars else bars.assign(change=traded.pct_change().reindex(bars.index))


def equal_weight(bars: Mapping[str, pd.DataFrame], calendar: pd.DatetimeIndex) -> pd.DataFrame:
    """Bars of an instrument whose return is each bar's mean return of the symbols traded then; it begins at 1,000, without volume."""
    total, count = np.zeros(len(calendar)), np.zeros(len(calendar))
    for frame in bars.values():
        returns = frame["close"].dropna().pct_change().dropna()
        at = calendar.get_indexer(returns.index)
        total[at] += returns.to_numpy()
        count[at] += 1
    close = pd.Series(1000.0 * np.cumprod(1 + total / np.maximum(count, 1)), calendar)
    return _completed(pd.DataFrame(dict.fromkeys(PRICES, close) | {"volume": 0.0}))


def _write_calendar(folder: Path, calendar: pd.DatetimeIndex, freq: str, future_days: int) -> None:
    known = _shown(calendar, freq)
    ahead = _shown(future_bars(calendar, future_days), freq)
    (folder / "calendars").mkdir()
    _write_lines(folder / "calendars" / f"{freq}.txt", known)
    _write_lines(folder / "calendars" / f"{freq}_future.txt", [*known, *ahead])  # pyqlib reads one or the other, so the second holds all


def future_bars(calendar: pd.DatetimeIndex, days: int) -> pd.DatetimeIndex:
    """Times of the bars after the calendar's last one, to the end of `days` further days, on the weekdays and at the hours of late."""
    dates = calendar.normalize()
    recent = dates.unique()[-_RECENT:]
    late = calendar[dates >= recent[0]]
    hours = (late - late.normalize()).value_counts()
    hours = hours.index[hours >= len(recent) / 2].sort_values()
    coming = pd.date_range(dates[-1], periods=7 * (days + 1), freq="D")
    coming = coming[coming.day_of_week.isin(recent.day_of_week.unique()) | (coming == dates[-1])][: days + 1]
    bars = pd.DatetimeIndex((coming.to_numpy()[:, None] + hours.to_numpy()[None, :]).ravel())
    return bars[bars > calendar[-1]]


def _write_pools(folder: Path, bars: Mapping[str, pd.DataFrame], pools: Pools, freq: str) -> None:
    (folder / "instruments").mkdir()
    lives = {symbol: [(frame.index[0], frame.index[-1])] for symbol, frame in bars.items()}
    whole = (min(first for ((first, _),) in lives.values()), max(last for ((_, last),) in lives.values()))
    for name, members in {**pools, "all": list(bars)}.items():
        over_time = isinstance(members, Mapping)
        lines = []
        for symbol in members:
            spans = (over_time and members[symbol]) or lives.get(symbol, [whole])
            lines += [f"{symbol}\t{first}\t{last}" for first, last in (_span(*span, symbol, name, freq) for span in spans)]
        _write_lines(folder / "instruments" / f"{name.lower()}.txt", lines)


def _span(first: object, last: object, symbol: str, pool: str, freq: str) -> tuple[str, str]:
    """First and last moment as text; intraday the last day counts until 23:59:59, since pyqlib takes a date for its midnight."""
    try:
        begin, end = pd.Timestamp(first), pd.Timestamp(last)
        good = begin <= end
    except (ValueError, TypeError):
        good = False
    if not good:
        raise InputError(f"pool {pool!r}, {symbol}: {first} to {last} is not a first and a last day; write 2020-01-02 and a later one")
    return (f"{begin:%Y-%m-%d}", f"{end:%Y-%m-%d}") if freq == "day" else (f"{begin:%Y-%m-%d %H:%M:%S}", f"{end:%Y-%m-%d} 23:59:59")


def _write_bars(folder: Path, symbol: str, bars: pd.DataFrame, calendar: pd.DatetimeIndex, freq: str) -> None:
    """One file per field: the number of the first bar, then a value per bar of the calendar until the symbol's last."""
    from qlib.utils import code_to_fname

    place = folder / "features" / code_to_fname(symbol).lower()
    place.mkdir(parents=True)
    at = calendar.get_indexer(bars.index)
    for name in bars.columns:
        values = np.full(at[-1] - at[0] + 2, np.nan, "<f4")
        values[0], values[1 + at - at[0]] = at[0], bars[name].to_numpy(np.float32)
        values.tofile(place / f"{name}.{freq}.bin")


def _shown(times: pd.DatetimeIndex, freq: str) -> list[str]:
    return list(times.strftime("%Y-%m-%d" if freq == "day" else "%Y-%m-%d %H:%M:%S"))


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
