"""Panel: the only form in which bars travel. Rows are sorted by series, then by time; consumers read these arrays and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data import panel_store
from kronos.errors import InputError

COLUMN_KINDS = ("past", "known", "categorical")
STAMP_NAMES = ("minute", "hour", "weekday", "day", "month")
_STAMP_LOW = np.array([0, 0, 0, 1, 1], dtype=np.uint8)
_STAMP_HIGH = np.array([59, 23, 6, 31, 12], dtype=np.uint8)
_CHUNK_ROWS = 1 << 20  # checks and hashes walk the arrays in pieces, so that a memory-mapped panel never has to be in memory at once


@dataclass(frozen=True)
class Column:
    """One feature column. `kind`: "past" (seen up to now), "known" (known ahead, such as a calendar flag) or "categorical"."""

    name: str
    kind: str = "past"


@dataclass(frozen=True)
class SeriesInfo:
    """What does not change over a series: its symbol, the spacing of its bars ("5min", "1d"), its market and its trading calendar."""

    symbol: str
    period: str = ""
    market: str = ""
    calendar: str = ""


KRONOS_NAMES = ("open", "high", "low", "close", "volume", "amount")
KRONOS_COLUMNS = tuple(Column(name) for name in KRONOS_NAMES)


@dataclass(frozen=True, eq=False)
class Panel:
    """Bars of S series, N rows in all, read-only. Make one with `Panel.build`, `finetune.data.build_panel` or `Panel.open`.

    features [N, F] float32, finite | stamps [N, 5] uint8: minute, hour, weekday (Monday 0), day, month on the exchange's wall clock
    times [N] int64, nanoseconds UTC, strictly increasing inside a series | origin [N] bool: a forecast may start after this row
    offsets [S + 1] int64: series s owns rows offsets[s]:offsets[s + 1] | breaks [G] int64, sorted: rows just after an excluded gap
    targets [N, K] float32 (NaN where unknown) or None | stamp "open" or "close": which edge of the bar its time names
    fingerprint: hex blake2b over arrays and metadata, computed once by `build` and stored, not recomputed by `open`.
    """

    features: np.ndarray
    stamps: np.ndarray
    times: np.ndarray
    origin: np.ndarray
    offsets: np.ndarray
    breaks: np.ndarray
    columns: tuple[Column, ...]
    series: tuple[SeriesInfo, ...]
    targets: np.ndarray | None
    target_names: tuple[str, ...]
    stamp: str
    timezone: str
    fingerprint: str

    @property
    def n_rows(self) -> int:
        return int(self.times.shape[0])

    @property
    def n_series(self) -> int:
        return len(self.series)

    @classmethod
    def build(
        cls,
        *,
        features: np.ndarray,
        stamps: np.ndarray,
        times: np.ndarray,
        offsets: np.ndarray,
        series: Sequence[SeriesInfo],
        columns: Sequence[Column] = KRONOS_COLUMNS,
        origin: np.ndarray | None = None,
        breaks: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        target_names: Sequence[str] = (),
        stamp: str = "open",
        timezone: str = "UTC",
    ) -> Panel:
        """Check the arrays (shapes in the class docstring), freeze them, compute the fingerprint; arrays of the right dtype are not copied.

        `origin` defaults to all true, `breaks` to none. Raises InputError for non-finite features, times that do not increase inside a
        series, or two equal series; plain ValueError for arrays that do not fit each other, which is a fault of the calling code.
        """
        n_rows = len(times)
        arrays = {
            "features": _frozen(features, "<f4"),
            "stamps": _frozen(stamps, "u1"),
            "times": _frozen(times, "<i8"),
            "origin": _frozen(np.ones(n_rows, bool) if origin is None else origin, "|b1"),
            "offsets": _frozen(offsets, "<i8"),
            "breaks": _frozen(np.empty(0) if breaks is None else breaks, "<i8"),
        }
        if targets is not None:
            arrays["targets"] = _frozen(targets, "<f4")
        meta = meta_of(columns, series, target_names, stamp, timezone)
        check_shapes(arrays, meta)
        check_rows(arrays, series, columns)
        return cls._of(arrays, meta, fingerprint_of(arrays, meta))

    @classmethod
    def _of(cls, arrays: dict[str, np.ndarray], meta: dict[str, Any], fingerprint: str) -> Panel:
        return cls(
            **{"targets": None, **arrays},
            columns=tuple(Column(*column) for column in meta["columns"]),
            series=tuple(SeriesInfo(*info) for info in meta["series"]),
            target_names=tuple(meta["target_names"]),
            stamp=meta["stamp"],
            timezone=meta["timezone"],
            fingerprint=fingerprint,
        )

    def save(self, folder: str | Path) -> Path:
        """Write a folder of .npy files and a panel.json, all or nothing; an earlier panel there is replaced, anything else is left alone.

        Raises InputError if `folder` holds something that is not a panel, or cannot be written.
        """
        meta = meta_of(self.columns, self.series, self.target_names, self.stamp, self.timezone)
        return panel_store.write_folder(Path(folder), self._arrays(), {**meta, "fingerprint": self.fingerprint})

    @classmethod
    def open(cls, folder: str | Path) -> Panel:
        """Open a saved panel memory-mapped: nothing is read until a row is used, and processes on one machine share the pages.

        Raises MissingFileError if there is no such folder, InputError (naming the file) if it is damaged, foreign or of another version.
        """
        folder = Path(folder)
        arrays, meta = panel_store.read_folder(folder)
        try:
            _check_meta(meta)
            check_shapes(arrays, meta)
        except (KeyError, TypeError, ValueError) as error:
            raise panel_store.damaged(folder / panel_store.META_FILE, str(error) or type(error).__name__) from error
        return cls._of(arrays, meta, meta["fingerprint"])

    def verify(self) -> None:
        """Read and check every row, and compare with the stored fingerprint (a second per GB). Raises InputError for what is wrong."""
        meta = meta_of(self.columns, self.series, self.target_names, self.stamp, self.timezone)
        found = fingerprint_of(self._arrays(), meta)
        if found != self.fingerprint:
            raise InputError(f"panel fingerprint is {found} but {self.fingerprint} was stored: its files changed; make the panel again")
        try:
            check_rows(self._arrays(), self.series, self.columns)  # whoever forged the arrays may have forged the fingerprint
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{error}; make the panel again") from error

    def _arrays(self) -> dict[str, np.ndarray]:
        names = ("features", "stamps", "times", "origin", "offsets", "breaks", "targets")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def fingerprint_of(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> str:
    """Hex blake2b (16 bytes) over metadata and every array's dtype, shape and bytes, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(meta, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        for first in range(0, len(array), _CHUNK_ROWS):
            digest.update(np.ascontiguousarray(array[first : first + _CHUNK_ROWS]).data)
    return digest.hexdigest()


def meta_of(
    columns: Sequence[Column], series: Sequence[SeriesInfo], target_names: Sequence[str], stamp: str, timezone: str
) -> dict[str, Any]:
    """What a panel's JSON holds beside fingerprint and shapes."""
    return {
        "columns": [[column.name, column.kind] for column in columns],
        "series": [[info.symbol, info.period, info.market, info.calendar] for info in series],
        "target_names": list(target_names),
        "stamp": stamp,
        "timezone": timezone,
    }


def _frozen(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes inf here and is refused by name in check_rows
        view = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view


def _expect(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(f"panel arrays do not fit: {what}")


def _check_meta(meta: dict[str, Any]) -> None:
    """The types of everything read from a panel.json, so that a damaged one is refused here and not somewhere in training."""
    _expect(all(len(column) == 2 and all(isinstance(part, str) for part in column) for column in meta["columns"]), "columns")
    _expect(all(len(info) == 4 and all(isinstance(part, str) for part in info) for info in meta["series"]), "series")
    _expect(all(isinstance(name, str) for name in meta["target_names"]), "target_names")
    _expect(all(isinstance(meta[key], str) for key in ("stamp", "timezone", "fingerprint")), "stamp, timezone, fingerprint")
    _expect(re.fullmatch("[0-9a-f]{32}", meta["fingerprint"]), "fingerprint")


def check_shapes(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Everything that can be known without reading the rows."""
    n_rows, n_series = len(arrays["times"]), len(meta["series"])
    offsets, breaks = arrays["offsets"], arrays["breaks"]
    _expect(arrays["times"].ndim == 1 and arrays["times"].dtype == np.int64, "times is not [N] int64")
    _expect(arrays["features"].shape == (n_rows, len(meta["columns"])), "features is not [N, columns]")
    _expect(arrays["stamps"].shape == (n_rows, 5) and arrays["origin"].shape == (n_rows,), "stamps is not [N, 5] or origin not [N]")
    _expect(offsets.shape == (n_series + 1,) and offsets[0] == 0 and offsets[-1] == n_rows, "offsets do not cover the rows")
    _expect((np.diff(offsets) > 0).all(), "a series has no rows")
    _expect(breaks.ndim == 1 and (np.diff(breaks) > 0).all(), "breaks are not sorted")
    _expect(not len(breaks) or (breaks[0] > 0 and breaks[-1] < n_rows), "breaks lie outside the rows")
    _expect(("targets" in arrays) == bool(meta["target_names"]), "targets and target_names do not go together")
    _expect("targets" not in arrays or arrays["targets"].shape == (n_rows, len(meta["target_names"])), "targets is not [N, names]")
    _expect(meta["stamp"] in ("open", "close"), "stamp is neither open nor close")
    _expect(all(kind in COLUMN_KINDS for _, kind in meta["columns"]), f"a column kind is not one of {COLUMN_KINDS}")


def check_rows(arrays: dict[str, np.ndarray], series: Sequence[SeriesInfo], columns: Sequence[Column]) -> None:
    """Everything that needs the rows: finite features, times that increase inside each series, stamps in range, series told apart."""
    if len(set(series)) < len(series):
        twice = next(info for i, info in enumerate(series) if info in series[:i])
        raise InputError(f"two series are both named {twice.symbol!r} (period {twice.period!r}); give each its own name")
    for info in series:
        if not (info.symbol + info.period + info.market + info.calendar).isprintable():
            raise InputError(f"series {info.symbol!r}: its name, period, market or calendar holds characters that nobody sees; rename it")
    n_rows, offsets = len(arrays["times"]), arrays["offsets"]

    def where(row: int) -> str:
        number = int(np.searchsorted(offsets, row, side="right")) - 1
        time = np.datetime_as_string(np.datetime64(int(arrays["times"][row]), "ns"), unit="s")
        return f"series {series[number].symbol!r}, row {row - int(offsets[number])} of it ({time} UTC)"

    for first in range(0, n_rows, _CHUNK_ROWS):
        piece = slice(first, first + _CHUNK_ROWS)
        finite = np.isfinite(arrays["features"][piece])
        if not finite.all():  # seldom: looking for places takes ten times as long as looking whether there are any
            bad = np.argwhere(~finite)
            row, column = first + int(bad[0, 0]), int(bad[0, 1])
            value = arrays["features"][row, column]
            raise InputError(f"{where(row)}: column {columns[column].name!r} is {value} in float32; features must be finite numbers")
        stamps = arrays["stamps"][piece]
        _expect((stamps >= _STAMP_LOW).all() and (stamps <= _STAMP_HIGH).all(), "a stamp is out of range")
        times = arrays["times"][first : first + _CHUNK_ROWS + 1]  # one row of overlap joins the pieces
        stuck = first + 1 + np.flatnonzero(np.diff(times) <= 0)
        stuck = stuck[~np.isin(stuck, offsets)]
        if len(stuck):
            raise InputError(f"{where(int(stuck[0]))}: its time is not later than the row before it; times must increase inside a series")
