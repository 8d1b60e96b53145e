"""Malformed tables of bars: valid ones in every layout, mutated, and tables drawn by hypothesis; and what must come of those accepted."""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from finetune.data.columns import choose_columns
from finetune.data.load import load_panel
from finetune.data.panel import KRONOS_NAMES, Panel
from tests.bars import make_frame
from tests.drills.common import expect
from tests.drills.mutations import drawn, mutated

ZONES = ("", "", "UTC", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe")
_CELLS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.floats(1, 1000).map(lambda value: f"{value:.4f}"),
    st.integers(-5, 10**20).map(str),
    st.datetimes().map(str),
    st.text(max_size=12),
    st.sampled_from(["", "nan", "None", "1,5", "1e400", '"', "2024-02-30", "24:00", "1_000", "٣", "½", "0x1p3", "+5", "1e-320"]),
)
_NAMES = st.sampled_from(["timestamps", "date", "time", "open", "high", "low", "close", "volume", "vol", "symbol", "", "x", "开盘"])


def section(folder: Path | str, draw: random.Random) -> SimpleNamespace:
    """A `data` section over everything in `folder`."""
    return SimpleNamespace(
        data_path=str(folder),
        symbol_column="",
        columns={},
        timezone=draw.choice(ZONES),
        stamp=draw.choice(("auto", "auto", "open", "close")),
        missing=draw.choice(("error", "error", "drop", "ffill")),
        max_ffill=draw.choice((1, 5)),
        drop_suspended=draw.random() < 0.2,
        lookback_window=6,
        predict_window=2,
    )


def table(draw: random.Random, seed: int) -> pd.DataFrame:
    """Valid bars: a symbol column, other names, times in one of the known layouts."""
    frame = make_frame(draw.randrange(9, 40), seed=seed, freq=draw.choice(("1h", "5min", "1D", "1min")))
    layout = draw.choice(("iso", "zone", "epoch", "slashes", "compact"))
    times = frame["timestamps"].dt
    if layout == "zone":
        frame["timestamps"] = times.strftime("%Y-%m-%d %H:%M:%S+08:00")
    elif layout == "epoch":
        frame["timestamps"] = frame["timestamps"].astype("int64") // draw.choice((10**9, 10**6, 1))
    elif layout != "iso":
        frame["timestamps"] = times.strftime("%Y/%m/%d %H:%M" if layout == "slashes" else "%Y%m%d%H%M%S")
    if draw.random() < 0.3:
        frame = pd.concat([frame.assign(symbol=name) for name in ("AAA", "BBB")])
    if draw.random() < 0.3:
        frame = frame.drop(columns=draw.choice((["amount"], ["volume", "amount"])))
    return frame


def encoded(frame: pd.DataFrame, draw: random.Random) -> tuple[str, bytes]:
    """(suffix, bytes) of a table as people store it."""
    if draw.random() < 0.15:
        stream = io.BytesIO()
        frame.to_parquet(stream, index=False)
        return ".parquet", stream.getvalue()
    text = frame.to_csv(index=False, sep=draw.choice(",,,;\t|"), lineterminator=draw.choice(("\n", "\r\n")))
    data = text.encode(draw.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "gb18030")))
    return (".csv.gz", gzip.compress(data)) if draw.random() < 0.1 else (".csv", data)


def invented(draw: random.Random, seed: int) -> bytes:
    """A table that hypothesis drew: any header over any cells, or plausible columns over any cells."""
    names = drawn(st.lists(_NAMES, max_size=9), seed) if draw.random() < 0.4 else ["timestamps", *KRONOS_NAMES]
    rows = drawn(st.lists(st.lists(_CELLS, min_size=max(0, len(names) - 1), max_size=len(names) + 1), max_size=14), seed)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([names, *rows])
    return stream.getvalue().encode("utf-8", "surrogatepass")


def prepare(seed: int, folder: Path) -> tuple[Path, random.Random]:
    """Write one malformed file into `folder`/in; the file, and the generator for the rest."""
    draw = random.Random(seed)
    if draw.random() < 0.2:
        suffix, data = ".csv", invented(draw, seed)
    else:
        suffix, data = encoded(table(draw, seed), draw)
        data = data if draw.random() < 0.03 else mutated(draw, data)  # now and then a valid one: the reader must not be a wall
    if suffix == ".csv.gz" and draw.random() < 0.5:  # a whole archive of a damaged table
        data = gzip.compress(mutated(draw, data[:0] or table(draw, seed).to_csv(index=False).encode()))
    (folder / "in").mkdir(parents=True)
    file = folder / "in" / f"bars{suffix}"
    file.write_bytes(data)
    return file, draw


def case(seed: int, folder: Path) -> Callable[[], Any]:
    """One reading of one malformed table."""
    file, draw = prepare(seed, folder)
    how = section(file, draw)

    def read() -> str:
        panel = load_panel(how, say=lambda _: None)
        _check(panel)
        if how.missing == "error" and file.suffix == ".csv":
            _compare(panel, file)
        return "read"

    return read


def _check(panel: Panel) -> None:
    """What holds of every panel."""
    features, inside = np.asarray(panel.features), np.ones(panel.n_rows, bool)
    expect(np.isfinite(features).all(), "a feature is not finite")
    expect((features[:, :4] > 0).all() and (features[:, 4:] >= 0).all(), "a price is not above 0, or a volume below it")
    expect((features[:, 1] >= features[:, 2] * (1 - 1e-4)).all(), "a high is below its low")
    inside[panel.offsets[:-1]] = False
    expect((np.diff(panel.times, prepend=panel.times[0])[inside] > 0).all(), "times do not increase")
    expect((np.diff(panel.offsets) >= 9).all(), "a series is too short")


def _compare(panel: Panel, file: Path) -> None:
    """Every bar of the file is in the panel with the numbers that Python's own reader finds, and no other bar."""
    text = _text(file.read_bytes())
    if text is None or '"' in text:  # a quote may hide a line end: another reader's word against ours
        return
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    separator = max((",", ";", "\t", "|"), key=lines[0].count)
    names = [name.strip() for name in lines[0].split(separator)]
    names = [name or f"unnamed_{place}" for place, name in enumerate(names, 1)]
    chosen = choose_columns(names, "the file", mapping={})
    rows = [dict(zip(names, line.split(separator), strict=True)) for line in lines[1:]]
    rows = [row for row in rows if any(row[name].strip().lower() not in ("", "nan", "nat", "na", "n/a", "null") for name in chosen.all)]
    if chosen.symbol:  # series that are too short are left out, and told
        kept = {info.symbol for info in panel.series}
        rows = [row for row in rows if row[chosen.symbol].strip() in kept]
    theirs = np.array([[float(row[chosen.names[name]]) for name in KRONOS_NAMES[:4]] for row in rows], np.float64).astype(np.float32)
    ours = np.asarray(panel.features[:, :4])
    expect(len(ours) == len(theirs), f"{len(ours)} bars of {len(theirs)}")
    same = np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    expect(same, "the prices are not those of the file")


def _text(data: bytes) -> str | None:
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None
