"""An opened Qlib store: its calendar, pools and fields, read by pyqlib itself, with pyqlib's side effects kept away.

A store is a folder: calendars/day.txt (one bar's time per line), instruments/POOL.txt (symbol, first and last day of membership) and
features/SYMBOL/FIELD.day.bin (float32: the number of the first bar, then one value per bar). "day" is the frequency; "60min" is another.
"""

from __future__ import annotations

import atexit
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kronos.errors import InputError, MissingFileError

HOLDS = "a Qlib store holds calendars/day.txt, instruments/all.txt and features/SYMBOL/close.day.bin"
MAKE = "python examples/make_qlib_store.py makes one from CSV files"
OTHER_NAMES = {"1d": "day", "d": "day", "daily": "day", "1day": "day", "1h": "60min", "2h": "120min", "4h": "240min", "1m": "1min"}
_KEY = "data.qlib_data_path"
_NAMED = 12  # so many pools or symbols are listed in a message
Spans = dict[str, list[tuple[pd.Timestamp, pd.Timestamp]]]


@contextmanager
def quietly() -> Iterator[None]:
    """For importing pyqlib's parts and calling qlib.init: no banner of gym's on the terminal, and sys.excepthook as it was afterwards."""
    hook = sys.excepthook
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.excepthook = hook


@dataclass(frozen=True, eq=False)
class Store:
    """A store at one frequency. Times are the exchange's wall clock, naive.

    calendar [D] datetime64[ns]: the bars it has. future [D + n]: the same, followed by the further entries of FREQ_future.txt (none
    without that file; a backtest up to the store's last bar needs one).
    """

    path: Path
    freq: str
    calendar: np.ndarray
    future: np.ndarray

    def activate(self) -> None:
        """Make pyqlib's own functions (D.features, backtest) read this store; it knows one at a time."""
        from qlib.config import C

        if not C.registered or C.dpm.get_data_uri() != self.path:
            _initialise(self.path)

    def pools(self) -> list[str]:
        """Names of the pools, "all" among them."""
        return sorted(file.stem for file in (self.path / "instruments").glob("*.txt"))

    def members(self, pool: str) -> Spans:
        """symbol → (first, last) moments of its memberships, both inclusive, of every symbol that ever belonged to `pool`.

        Read here and not by pyqlib, to which a symbol named NA is missing and an intraday span that ends on a date ends at its midnight.
        Raises InputError naming the pools that exist, or the line that cannot be read.
        """
        file = self.path / "instruments" / f"{pool.lower()}.txt"
        if pool != os.path.basename(pool) or not file.is_file():
            raise InputError(f"data.instrument: the store {self.path} has no pool {pool!r}; it has {listed(self.pools())}")
        spans: Spans = {}
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                symbol, first, last = _member(line, f"{file}, line {number}")
                spans.setdefault(symbol, []).append((first, last))
        if not spans:
            raise InputError(f"{file}: the pool holds no symbol; write lines of symbol, first day and last day with tabs between")
        return spans

    def has(self, symbol: str, field: str = "close") -> bool:
        """Whether the store holds a field of a symbol."""
        return bool(symbol) and symbol == os.path.basename(symbol) and self._file(symbol, field).is_file()

    def features(self, symbols: Sequence[str], fields: Sequence[str], start: object = None, end: object = None) -> pd.DataFrame:
        """D.features: float32, index (instrument, datetime) from start to end inclusive, columns `fields` ("$close" or any expression).

        A field that a symbol lacks is NaN; a symbol without any of them is absent. Raises InputError naming a damaged file.
        """
        self.activate()
        from qlib.data import D

        try:
            return D.features(list(symbols), list(fields), start, end, freq=self.freq)
        except (ValueError, IndexError, OSError) as error:
            plain = [field[1:] for field in fields if re.fullmatch(r"\$\w+", field)]
            for file in (self._file(symbol, field) for symbol in symbols for field in plain):
                if file.is_file() and (file.stat().st_size < 4 or file.stat().st_size % 4):
                    told = f"{file}: damaged, {file.stat().st_size:,} bytes are not whole float32 values; fetch or make the store again"
                    raise InputError(told) from error
            raise

    def closes(self, symbol: str, key: str = "symbol") -> pd.Series:
        """Closes of one symbol, NaN where it has no bar, index `calendar`. Raises InputError (beginning with `key`), naming near ones."""
        if not self.has(symbol):
            known = sorted({name for pool in self.pools() for name in self.members(pool) if self.has(name)})
            near = difflib.get_close_matches(symbol.upper(), known, 5, 0.6)
            told = f"the nearest are {listed(near)}" if near else f"it has {listed(known)}"
            raise InputError(f"{key}: the store {self.path} has no {self.freq} bars of {symbol!r}; {told}")
        frame = self.features([symbol], ["$close"], self.calendar[0], self.calendar[-1])
        return frame["$close"].droplevel("instrument").reindex(pd.DatetimeIndex(self.calendar, name="datetime")).rename(symbol)

    def _file(self, symbol: str, field: str) -> Path:
        from qlib.utils import code_to_fname

        return self.path / "features" / code_to_fname(symbol).lower() / f"{field.lower()}.{self.freq}.bin"


def open_store(path: str | os.PathLike[str], freq: str = "day") -> Store:
    """Open a store through pyqlib: one thread, no recorder, nothing printed, no hook left behind.

    Raises MissingFileError if there is no such folder; InputError if it is no store (saying what one holds), lacks the frequency (naming
    those it has), or if pyqlib is not installed.
    """
    folder = Path(path).expanduser()
    if not str(path).strip() or not folder.exists():
        raise MissingFileError(f"{_KEY}: there is no folder {str(path)!r} (from {Path.cwd()}); {HOLDS}; {MAKE}")
    lacks = [part for part in ("calendars", "instruments", "features") if not (folder / part).is_dir()]
    if lacks:
        kind = "a folder without " + ", ".join(lacks) if folder.is_dir() else "a file"
        raise InputError(f"{_KEY}: {folder} is not a Qlib store but {kind}; {HOLDS}; {MAKE}")
    folder = folder.resolve()
    calendar = _calendar(folder, freq)
    ahead = folder / "calendars" / f"{freq}_future.txt"
    future = np.union1d(calendar, _times(ahead)) if ahead.is_file() else calendar
    _initialise(folder)
    return Store(folder, freq, calendar, future)


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) + more) or "none"


def _calendar(folder: Path, freq: str) -> np.ndarray:
    """Times of the bars at a frequency that the store has itself: pyqlib would make 60 minutes of 1 minute, but only half of the way."""
    found = sorted(file.stem for file in (folder / "calendars").glob("*.txt") if not file.stem.endswith("_future"))
    if freq not in found:
        name = OTHER_NAMES.get(freq.lower(), "")
        hint = f"; Qlib's name for {freq!r} is {name!r}" if name in found else f"; {HOLDS}" if not found else ""
        raise InputError(f"data.freq: the store {folder} has no {freq!r} bars, it has {listed(found)}{hint}")
    return _times(folder / "calendars" / f"{freq}.txt")


def _times(file: Path) -> np.ndarray:
    """[n] datetime64[ns], increasing, of a calendar file."""
    lines = [line.strip() for line in read_text(file).splitlines()]
    lines = lines[: len(lines) - next((i for i, line in enumerate(reversed(lines)) if line), len(lines))]
    times = pd.to_datetime(pd.Series(lines, dtype=object), errors="coerce", format="ISO8601")
    if not lines:
        raise InputError(f"{file}: the calendar is empty; {HOLDS}")
    if times.isna().any():
        at = int(times.isna().argmax())
        raise InputError(f"{file}, line {at + 1}: {lines[at]!r} is not a time; write one bar's time per line, such as 2020-01-02")
    values = times.to_numpy("datetime64[ns]")
    late = np.flatnonzero(np.diff(values) <= np.timedelta64(0))
    if len(late):
        raise InputError(f"{file}, line {late[0] + 2}: {lines[late[0] + 1]} is not later than the line above; sort the calendar")
    return values


def _member(line: str, where: str) -> tuple[str, pd.Timestamp, pd.Timestamp]:
    """symbol, first and last moment of a line of a pool; a date stands for its whole day."""
    parts = [part.strip() for part in line.split("\t")]
    try:
        symbol, first, last = parts[0], pd.Timestamp(parts[1]), pd.Timestamp(parts[2])
        good = bool(symbol) and first == first and last == last  # not NaT
    except (IndexError, ValueError):
        good = False
    if not good:
        raise InputError(f"{where}: {line[:80]!r} is not symbol, first day and last day with tabs between; correct the line")
    if len(parts[2]) <= len("2020-01-02"):
        last += pd.Timedelta(days=1) - pd.Timedelta(seconds=1)
    return symbol, first, last


def read_text(file: Path) -> str:
    """A text file. Raises MissingFileError or InputError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{file}: there is no such file (from {Path.cwd()}); check its name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); check that it is a text file you may read") from error


def _initialise(folder: Path) -> None:
    try:
        with quietly():
            import qlib
            import qlib.data
            from qlib.workflow import R
    except ModuleNotFoundError as error:
        raise InputError(f"a Qlib store is read by pyqlib, which is not there ({error}); pip install -r requirements.txt") from error
    with quietly():
        qlib.init(
            provider_uri=str(folder),
            region="cn",
            kernels=1,  # processes or threads cost more than they gain at this size
            joblib_backend="threading",
            logging_level=logging.ERROR,
            logging_config=None,  # its own handler would hold whatever sys.stderr is at this moment
        )
    atexit.unregister(R.end_exp)  # its recorder is never used; init registers it anew each time
