"""Bars → Qlib's binary store: from a folder of CSV or parquet files, one file with many symbols, or a saved panel.

It is read by pyqlib and by python finetune/qlib_data_preprocess.py (data.qlib_data_path). Times are the wall clock that the files show.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from finetune.data.frames import bars_frame
from finetune.data.load import load_panel
from finetune.data.panel import Panel
from finetune.data.qlib_writing import BENCHMARK, Members, read_pool, write_store
from finetune.engine.command import command_parser, run_command
from kronos.errors import InputError

EXAMPLES = [
    "python examples/make_qlib_store.py --from bars/ --freq day --out stores/mine --benchmark equal",
    "python examples/make_qlib_store.py --from crypto_daily_panel.csv.gz --freq day --out stores/crypto --pool majors=majors.txt",
]


# How the files are read: as training reads CSV files, but bars that cannot be used are left out, and no series is too short.
READING = dict(symbol_column="", columns={}, stamp="open", missing="drop", max_ffill=5, drop_suspended=False, lookback_window=0)


def main() -> None:
    """Parse, read, write, report."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--from", dest="source", metavar="DIR_OR_PANEL", required=True, help="folder, file, or folder of a saved panel")
    parser.add_argument("--freq", default="day", help="length of a bar as Qlib names it: day, 60min (1h), 240min (4h) (default: day)")
    parser.add_argument("--out", metavar="STORE", required=True, help="folder to write; it must not exist yet")
    pool = "a pool: text file of one symbol per line, with its first and last day of membership behind it where that changes"
    parser.add_argument("--pool", metavar="NAME=FILE", action="append", default=[], help=pool)
    parser.add_argument("--benchmark", metavar="equal|SYMBOL", help=f"equal: also write {BENCHMARK}, the mean return of all symbols")
    parser.add_argument("--timezone", default="", help="zone of the exchange's wall clock, for files in another (default: as written)")
    args = parser.parse_args()
    pools = dict(_pool(text) for text in args.pool)
    panel = load_panel(SimpleNamespace(data_path=args.source, timezone=args.timezone, predict_window=0, **READING))
    store = write_store(args.out, frames_of(panel), freq=args.freq, pools=pools, benchmark=args.benchmark)
    _report(args, store, panel, pools)


def frames_of(panel: Panel) -> dict[str, pd.DataFrame]:
    """symbol → bars of every series. Raises InputError where one symbol has several series."""
    frames: dict[str, pd.DataFrame] = {}
    for info, first, end in zip(panel.series, panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True):
        if info.symbol in frames:
            raise InputError(f"{info.symbol!r} has bars of several lengths ({info.period} and others); a store holds one: give one kind")
        frames[info.symbol] = bars_frame(panel, first, end)
    return frames


def _pool(text: str) -> tuple[str, Members]:
    name, found, file = text.partition("=")
    if not (name and found and file):
        raise InputError(f"--pool: {text!r} is not NAME=FILE; write for instance --pool majors=majors.txt")
    return name, read_pool(Path(file).expanduser())


def _report(args: argparse.Namespace, store: Path, panel: Panel, pools: dict[str, Members]) -> None:
    print(f"written to {store}: {panel.n_series:,} symbols, {panel.n_rows:,} {args.freq} bars; pools: {', '.join(['all', *pools])}")
    for name, members in pools.items():
        absent = sorted(set(members) - {info.symbol for info in panel.series})
        print(f"pool {name}: {len(members):,} symbols, {len(absent):,} of them without bars{': ' if absent else ''}{', '.join(absent[:5])}")
    benchmark = "equal" if args.benchmark is None else BENCHMARK if args.benchmark == "equal" else args.benchmark
    zone = args.timezone or "the zone of these times: UTC for crypto, Asia/Shanghai for A-shares"
    print(f"set: data.qlib_data_path={store} data.freq={args.freq} backtest.benchmark={benchmark}; data.timezone is {zone}")


if __name__ == "__main__":
    run_command(main)
