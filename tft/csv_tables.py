"""CSV files as typed tables: what csv2Parquet.py and csv2Pkl.py share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from finetune.data.columns import SYMBOL_ALIASES
from finetune.data.source_facts import named_sources
from finetune.data.sources import Source
from kronos.errors import InputError

_NAME = re.compile(r"(?P<symbol>.+?)[_\-. ](?P<period>[1-9]\d{0,3}(?:s|min|m|h|d|w|mo))(?:[_\-. ]all)?", re.IGNORECASE)

_TEXTS = [spelling for name in (*SYMBOL_ALIASES, "period") for spelling in dict.fromkeys((name, name.upper(), name.capitalize()))]


def csv_arguments(parser: argparse.ArgumentParser, suffix: str) -> None:
    """The arguments of both commands."""
    parser.add_argument("source", nargs="+", help="CSV files, folders or patterns such as 'bars/*.csv'")
    parser.add_argument("--out", metavar="PATH", help=f"a {suffix} file, or a folder for several; default: beside each CSV file")
    parser.add_argument("--merge", action="store_true", help="one table of all files, with columns symbol and period from BTCUSDT_1h.csv")
    parser.add_argument("--float32", action="store_true", help="store decimal numbers in 32 bits")


def convert(args: argparse.Namespace, suffix: str, write: Callable[[pa.Table, Path], None]) -> None:
    """Read what the arguments name and write it; one line of report per file. Raises InputError (see `read_csv`)."""
    sources = [source for source in named_sources(args.source, "source") if str(source.path).lower().endswith((".csv", ".csv.gz"))]
    if not sources:
        raise InputError(f"{', '.join(args.source)}: holds no CSV file; give .csv or .csv.gz files")
    for table, target in _merged(sources, args, suffix) if args.merge else _one_by_one(sources, args, suffix):
        target.parent.mkdir(parents=True, exist_ok=True)
        write(table, target)
        print(f"{target}: {table.num_rows:,} rows, {table.num_columns} columns, {target.stat().st_size / 1e6:.1f} MB")


def _one_by_one(sources: Sequence[Source], args: argparse.Namespace, suffix: str) -> Iterator[tuple[pa.Table, Path]]:
    to_file = args.out and args.out.lower().endswith(suffix)
    if to_file and len(sources) > 1:
        raise InputError(f"--out {args.out}: is one file, but {len(sources)} CSV files were named; give a folder, or --merge them")
    for source in sources:
        stem = source.name.rpartition("/")[2]
        target = Path(args.out) if to_file else Path(args.out or Path(source.path).parent) / f"{stem}{suffix}"
        yield read_csv(Path(source.path), args.float32), target


def _merged(sources: Sequence[Source], args: argparse.Namespace, suffix: str) -> Iterator[tuple[pa.Table, Path]]:
    if not args.out or not args.out.lower().endswith(suffix):
        raise InputError(f"--merge needs --out FILE{suffix}; it is {args.out!r}")
    tables: list[pa.Table] = []
    for source in sources:
        table = _named(read_csv(Path(source.path), args.float32), source)
        first = tables[0].column_names if tables else table.column_names
        if set(table.column_names) != set(first):
            differ = ", ".join(sorted(set(table.column_names) ^ set(first))[:6])
            raise InputError(f"{source.path}: has not the columns of {sources[0].path} (they differ in {differ}); merge files of one kind")
        tables.append(table.select(first))
    try:
        merged = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise InputError(f"{args.out}: a column is of another kind in one file than in another ({error}); correct it there") from error
    yield merged, Path(args.out)


def _named(table: pa.Table, source: Source) -> pa.Table:
    """With the columns symbol and period, from the file's name where the file has none."""
    found = _NAME.fullmatch(source.name)
    names = {"symbol": found["symbol"] if found else source.name, "period": found["period"].lower() if found else ""}
    for place, (name, value) in enumerate(names.items()):
        if name not in table.column_names:
            table = table.add_column(place, name, pa.array([value] * table.num_rows, pa.string()))
    return table


def read_csv(file: Path, float32: bool = False) -> pa.Table:
    """A CSV file with the types that its cells show (numbers, times, text); symbols and periods are text: 000001, NA and 1E5 stay so.

    Raises InputError if it cannot be read or has no rows.
    """
    try:
        table = pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(_TEXTS, pa.string())))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read as a table ({error}); check its separators and quotes, and that it is UTF-8") from error
    if not table.num_rows:
        raise InputError(f"{file}: holds no row")
    if float32:
        types = [pa.field(f.name, pa.float32() if pa.types.is_float64(f.type) else f.type) for f in table.schema]
        table = table.cast(pa.schema(types))
    return table
