"""The fused panel as one long table, and tables as panels: parquet, .pkl (through the allow-list reader) and CSV.

symbol · period · time (UTC) · datetime (wall clock) · time_idx · stretch · features ... · target_...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from finetune.data.frames import wall_clock
from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.panel_store import is_panel_folder
from finetune.data.stamps import period_name, period_of
from finetune.data.timestamps import parse_times, stamp_features
from kronos.errors import InputError, MissingFileError
from kronos.files import atomic_path
from tft.csv_tables import read_csv
from tft.indicators import registry
from tft.indicators_calendar import calendar_columns
from tft.rows import open_with_manifest, series_rows, with_kinds
from tft.safe_pickle import read_pickle
from tft.target_panel import stretches

_META = b"tft"
_TIMES = ("time", "datetime", "timestamp", "timestamps", "date")
_HEAD = ("symbol", "period", *_TIMES, "time_idx", "stretch")
_NAMED = 5
_COLUMNS, _ROWS = 16, 4096  # copied together: a line of the cache wide, and few enough rows to stay in it


def panel_to_table(panel: Panel, manifest: Mapping[str, Any] | None = None) -> pa.Table:
    """Every row of a panel; its column kinds, stamp, zone and manifest in the table's metadata."""
    slices = series_rows(panel)
    counts = np.diff(panel.offsets)
    who = np.repeat(np.arange(panel.n_series), counts)
    walls = np.concatenate([wall_clock(panel, rows.start, rows.stop).to_numpy("datetime64[ns]") for rows in slices])
    arrays: dict[str, Any] = {
        "symbol": _dictionary([info.symbol for info in panel.series], who),
        "period": _dictionary([info.period for info in panel.series], who),
        "time": pa.array(np.asarray(panel.times), pa.timestamp("ns", "UTC")),
        "datetime": pa.array(walls),
        "time_idx": pa.array(np.concatenate([np.arange(count) for count in counts])),
        "stretch": pa.array(stretches(panel)),
    }
    arrays.update({column.name: pa.array(np.ascontiguousarray(panel.features[:, k])) for k, column in enumerate(panel.columns)})
    arrays.update({name: pa.array(np.ascontiguousarray(panel.targets[:, k])) for k, name in enumerate(panel.target_names)})
    kinds = {column.name: column.kind for column in panel.columns}
    noted = {"kinds": kinds, "targets": list(panel.target_names), "stamp": panel.stamp, "timezone": panel.timezone}
    noted["manifest"] = dict(manifest or {})
    return pa.table(arrays).replace_schema_metadata({_META: json.dumps(noted)})


def _dictionary(names: list[str], who: np.ndarray) -> pa.DictionaryArray:
    """names[who] as a dictionary array."""
    codes, different = pd.factorize(np.array(names, dtype=object))
    return pa.DictionaryArray.from_arrays(pa.array(codes[who].astype(np.int32)), pa.array(list(different), pa.string()))


def write_parquet(panel: Panel, path: str | Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Write the long table and what is noted about it. Raises InputError if the file cannot be written."""
    with atomic_path(Path(path)) as temporary:
        pa.parquet.write_table(panel_to_table(panel, manifest), temporary)


def read_table(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(table, what its metadata says: kinds, targets, stamp, timezone; {} if nothing) of a .parquet, .pkl or .csv file, or a panel folder.

    Raises MissingFileError, or InputError for another kind of file or a damaged one.
    """
    file = Path(path)
    if is_panel_folder(file):
        table = panel_to_table(Panel.open(file))
        return table.to_pandas(), json.loads(table.schema.metadata[_META])
    if not file.is_file():
        raise MissingFileError(
            f"{file}: there is no such file or panel; python tft/data_fusion.py makes one, or give a panel folder, .parquet, .pkl or .csv"
        )
    suffix = file.name.lower()
    if suffix.endswith((".csv", ".csv.gz")):
        return read_csv(file).to_pandas(), {}
    try:
        if suffix.endswith(".parquet"):
            table = pa.parquet.read_table(file)
            return table.to_pandas(), json.loads((table.schema.metadata or {}).get(_META, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as a table ({error}); write it again") from error
    if suffix.endswith((".pkl", ".pickle")):
        return read_pickle(file), {}
    raise InputError(f"{file}: is not a table that can be read; give a panel folder, .parquet, .pkl or .csv")


def open_dataset(path: str | Path, *, known: Sequence[str] = (), categorical: Sequence[str] = ()) -> tuple[Panel, dict[str, Any]]:
    """What `data_path` or TFM_DATA_PATH names, as a panel, and its manifest: a panel folder, .parquet, .pkl or .csv.

    A parquet file of data_fusion.py brings its manifest along. Of other tables it holds the columns that are the calendar's: they are
    known by name and checked against the rows' times. known, categorical: columns of such a table that are of these kinds; the rest are
    past, and target_... are targets.
    """
    if Path(path).is_dir():
        return open_with_manifest(path, "python tft/data_fusion.py --config ...")
    frame, noted = read_table(path)
    kinds = {**noted.get("kinds", {}), **dict.fromkeys(known, "known"), **dict.fromkeys(categorical, "categorical")}
    times = {"stamp": noted.get("stamp", "open"), "timezone": noted.get("timezone", "")}
    panel = table_to_panel(frame, kinds=kinds, source=str(path), **times)
    if noted.get("manifest"):
        return panel, noted["manifest"]
    calendar = calendar_columns([column.name for column in panel.columns], panel.features, panel.stamps)
    found = {name: registry()[how[0]].kind for name, how in calendar.items() if name not in kinds}
    return with_kinds(panel, found), {"calendar": calendar} if calendar else {}


def table_to_panel(
    frame: pd.DataFrame, *, kinds: dict[str, str] | None = None, source: str = "table", stamp: str = "open", timezone: str = ""
) -> Panel:
    """A long table as a panel: sorted by symbol, period (as they first appear) and time; `stretch`, where it changes, makes breaks.

    Raises InputError: no symbol or time column, text in a column, NaN in features (column, count, first rows), a time that comes twice.
    """
    kinds = dict(kinds or {})
    missing = [name for name in kinds if name not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns[:12]))
        raise InputError(f"{source}: has no column {', '.join(map(repr, missing[:_NAMED]))}; it has {there} ...")
    if not len(frame):
        raise InputError(f"{source}: holds no row")
    order, series, times = _order(frame, source)
    names = [str(name) for name in frame.columns if name not in _HEAD and not str(name).startswith("target_")]
    targets = [str(name) for name in frame.columns if str(name).startswith("target_")]
    features = _numbers(frame, names, source, order)
    _refuse_nan(features, names, order, source)
    codes = series.codes[order]
    offsets = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes))
    breaks = np.empty(0, np.int64)
    if "stretch" in frame.columns:
        changed = np.flatnonzero(np.diff(frame["stretch"].to_numpy()[order]) != 0) + 1
        breaks = np.setdiff1d(changed, offsets)
    wall = parse_times(frame["datetime"], source=source).wall if "datetime" in frame.columns else times.wall
    return Panel.build(
        features=features,
        stamps=stamp_features(wall[order]),
        times=times.times[order],
        offsets=offsets,
        breaks=breaks,
        series=_infos(series, times.times[order], offsets, frame),
        columns=[Column(name, kinds.get(name, "past")) for name in names],
        targets=_numbers(frame, targets, source, order) if targets else None,
        target_names=targets,
        stamp=stamp,
        timezone=timezone or times.zone,
    )


def _order(frame: pd.DataFrame, source: str) -> tuple[np.ndarray, pd.Categorical, Any]:
    """([N] rows by series and time, the series of each row, times as read)."""
    where = next((name for name in _TIMES if name in frame.columns), None)
    if where is None or "symbol" not in frame.columns:
        wanted = "symbol" if where else f"time (one of {', '.join(_TIMES)})"
        raise InputError(f"{source}: has no column {wanted}; it has {', '.join(map(str, frame.columns[:12]))}")
    times = parse_times(frame[where], source=f"{source}, column {where!r}")
    codes, symbols = pd.factorize(frame["symbol"], use_na_sentinel=False)
    names = [str(symbol) for symbol in symbols]
    if "period" in frame.columns:
        second, periods = pd.factorize(frame["period"], use_na_sentinel=False)
        codes, pairs = pd.factorize(codes.astype(np.int64) * len(periods) + second)
        names = [f"{names[pair // len(periods)]}\t{periods[pair % len(periods)]}" for pair in pairs]
    series = pd.Categorical.from_codes(codes, categories=pd.Index(names))
    return np.lexsort((times.times, codes)), series, times


def _infos(series: pd.Categorical, times: np.ndarray, offsets: np.ndarray, frame: pd.DataFrame) -> list[SeriesInfo]:
    infos = []
    for name, first, end in zip(series.categories, offsets[:-1], offsets[1:], strict=True):
        symbol, _, period = str(name).partition("\t")
        infos.append(SeriesInfo(symbol, period or period_name(period_of(times[first:end]))))
    return infos


def _numbers(frame: pd.DataFrame, names: list[str], source: str, order: np.ndarray) -> np.ndarray:
    """[n, len(names)] float32: columns, their rows put in order [n] on the way, so that nothing is held twice.

    Some columns and rows at a time: a single column written by itself would touch every line of the cache for four bytes of it.
    """
    out = np.empty((len(frame), len(names)), np.float32)
    sorted_already = bool((np.diff(order) == 1).all())
    for left in range(0, len(names), _COLUMNS):
        columns = [_column(frame, name, source) for name in names[left : left + _COLUMNS]]
        columns = columns if sorted_already else [values[order] for values in columns]
        for first in range(0, len(frame), _ROWS):
            part = slice(first, first + _ROWS)
            np.stack([values[part] for values in columns], axis=1, out=out[part, left : left + len(columns)])
    return out


def _column(frame: pd.DataFrame, name: str, source: str) -> np.ndarray:
    """[n] float32. Raises InputError if it holds text."""
    try:
        return pd.to_numeric(frame[name]).to_numpy(np.float32, na_value=np.nan)
    except (ValueError, TypeError) as error:
        what = f"holds something that is not a number ({error})"
        raise InputError(f"{source}: column {name!r} {what}; take it out or encode it") from error


def _refuse_nan(features: np.ndarray, names: list[str], order: np.ndarray, source: str) -> None:
    if not len(names) or np.isfinite(features.sum(dtype=np.float64)):  # one pass; NaN and inf survive a sum
        return
    told = []
    for k in np.flatnonzero(~np.isfinite(features).all(axis=0))[: 2 * _NAMED]:
        rows = np.sort(order[~np.isfinite(features[:, k])])
        told.append(f"{names[k]}: {len(rows):,} rows, first {', '.join(str(row + 1) for row in rows[:3])} (rows count from 1)")
    if told:
        raise InputError(f"{source}: features without a number; drop those rows or columns:\n  " + "\n  ".join(told))
