"""Predictions against the test's rows: every ID once, nothing missing, nothing unknown, only 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from finetune.data.kaggle_test_rows import read_test_file
from finetune.engine.files import write_with
from kronos.errors import InputError, MissingFileError

_NAMED = 5
_SEPARATORS = (",", ";", "\t", "|")
Say = Callable[[str], Any]


def make_submission(predictions: Path, test: Path, out: Path, say: Say = print) -> pd.DataFrame:
    """Write and return ID, Pred in the order of `test`. Raises InputError naming what does not fit."""
    wanted, made = pd.Series(read_test_file(test).ids, name="ID"), read_text_columns(predictions, ("ID", "Pred"))
    values = made["Pred"].str.strip()
    wrong = ~values.isin(["0", "1"])
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(f"{predictions}: Pred of ID {made['ID'].iloc[row]!r} (row {row + 1}) is {values.iloc[row]!r}; expected: 0 or 1")
    if wanted.tolist() == made["ID"].tolist():  # row by row, so that a ticker may come again with another date
        frame = made.assign(Pred=values.astype(int))
    else:
        _fit(wanted, made["ID"], predictions, test)
        frame = made.assign(Pred=values.astype(int)).set_index("ID").loc[wanted].reset_index()
    write_with(out, lambda path: frame.to_csv(path, index=False))
    say(f"submission: {out}, {len(frame):,} rows, {int(frame['Pred'].sum()):,} rises")
    return frame


def _fit(wanted: pd.Series, made: pd.Series, predictions: Path, test: Path) -> None:
    """Raises InputError unless both hold the same IDs, each once."""
    both = (
        (wanted[wanted.duplicated()], f"IDs come again in {test}"),
        (made[made.duplicated()], f"IDs come again in {predictions}"),
        (wanted[~wanted.isin(made)], "IDs of the test are missing"),
        (made[~made.isin(wanted)], "IDs are not in the test"),
    )
    told = [f"{len(ids):,} {what} ({_some(ids)})" for ids, what in both if len(ids)]
    if told:
        raise InputError(
            f"{predictions} does not fit {test}: {', '.join(told)}; make the predictions from this test.csv: "
            "kaggle_data_preprocess.py, then kaggle_inference.py"
        )


def read_text_columns(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """Columns of a CSV as text (a ticker may be called NA). Raises MissingFileError, or InputError naming the columns found."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            separator = max(_SEPARATORS, key=file.readline().count)
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=separator)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file") from None
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        why = str(error).strip() or type(error).__name__
        raise InputError(f"{path}: cannot be read as a CSV ({why}); write it as UTF-8, with commas") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    missing = [name for name in names if name not in frame]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}; found: {', '.join(frame.columns) or 'none'}")
    if not len(frame):
        raise InputError(f"{path}: has no rows")
    return frame[list(names)]


def _some(ids: pd.Series) -> str:
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return ", ".join(ids.iloc[:_NAMED]) + more
