"""Bars whose date stands in one column and whose time of day in another, as terminals export them: the two joined into one text."""

from __future__ import annotations

import pandas as pd

from kronos.errors import InputError

_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
_WHOLE = r"\d{4}[-/.]?\d{1,2}[-/.]?\d{1,2}[T ]?\d.*"  # a date and something after it
_MIDNIGHT = r"[T ]0?0:00(?::00(?:\.0+)?)?$"
_WIDTHS = (4, 6, 9)  # HHMM, HHMMSS, HHMMSSmmm


def join_clock(dates: pd.Series, clocks: pd.Series, source: str) -> pd.Series:
    """Date and time of day as one text per row: 2024/01/02 and 0935, 935, 9:35, 09:35:00, 93500 or 093500000.

    Digits may have lost their leading zeros; the longest cell of the column tells hours and minutes from seconds. A column of whole moments
    is taken as it is. An empty cell makes the row's time empty. Raises InputError if it cannot be told which of the columns is the time.
    """
    date, clock = text_of(dates), text_of(clocks)
    date = date.str.replace(_MIDNIGHT, "", regex=True)
    given = clock[clock != ""]
    if given.str.fullmatch(_WHOLE).all() and (given.str.len() > _WIDTHS[-1]).all():
        return clocks
    width = next((width for width in _WIDTHS if given.str.len().max() <= width), 0)
    digits = clock.str.fullmatch(r"\d+")
    if width and digits.any():
        padded = clock.str.zfill(width)
        colons = padded.str[:2] + ":" + padded.str[2:4] + (":" + padded.str[4:6] if width > 4 else "")
        clock = clock.mask(digits, colons + ("." + padded.str[6:] if width > 6 else ""))
    if not given.size or date.str.fullmatch(_WHOLE + ":.*").any() or not clock[clock != ""].str.fullmatch(_CLOCK).mean() > 0.5:
        raise InputError(
            f"{source}: columns {dates.name!r} and {clocks.name!r} could both be timestamps, and are no date and time of day such as "
            "2024-01-02 and 09:35; join or rename them, or set data.columns.timestamps"
        )
    return (date + " " + clock).mask((date == "") | (clock == ""), "").rename(dates.name)


def text_of(column: pd.Series) -> pd.Series:
    """As text without surrounding blanks; "" where empty. Whole numbers that were read as floats lose their fraction."""
    text = column.astype(str).mask(column.isna(), "").str.strip()
    return text.str.replace(r"\.0+$", "", regex=True) if pd.api.types.is_float_dtype(column.dtype) else text
