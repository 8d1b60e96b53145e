"""Everything wrong with one source of bars, gathered and told in one message instead of one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kronos.errors import InputError

_NAMED_ROWS = 5  # so many rows of one kind are listed after the first; the rest is a count


@dataclass(frozen=True)
class Fault:
    """One kind of fault. rows: positions in the source, from 0. what: about the first of them, value included. fix: what to do."""

    rows: np.ndarray
    what: str
    fix: str
    column: str = ""


@dataclass
class Problems:
    """The faults of one source. lines [n]: the row number a user sees for each position (in a CSV the header is line 1)."""

    source: str
    lines: np.ndarray
    told: list[str] = field(default_factory=list)

    def add(self, rows: np.ndarray, what: str, fix: str, column: str = "") -> None:
        """Note a fault at `rows` (positions; nothing is noted if there are none); `what` describes the first one."""
        self.add_lines(self.lines[rows], what, fix, column)

    def add_lines(self, lines: np.ndarray, what: str, fix: str, column: str = "") -> None:
        """The same for rows that have no position, because they could not be read at all."""
        if not len(lines):
            return
        others = ", ".join(str(line) for line in lines[1 : 1 + _NAMED_ROWS])
        left = len(lines) - 1 - _NAMED_ROWS
        more = f" (also row {others}{f' and {left:,} more' if left > 0 else ''})" if others else ""
        self.told.append(f"row {lines[0]}{f', column {column!r}' if column else ''}: {what}{more}; {fix}")

    def extend(self, faults: Sequence[Fault], column: str = "") -> None:
        """Take over faults found elsewhere, naming the column they were found in."""
        for fault in faults:
            self.add(fault.rows, fault.what, fault.fix, fault.column or column)

    def raise_if_any(self) -> None:
        """InputError with all of them: source, row numbers, column, value, fix."""
        if len(self.told) == 1:
            raise InputError(f"{self.source}, {self.told[0]}")
        if self.told:
            raise InputError("\n  ".join([f"{self.source}: {len(self.told)} kinds of problem", *self.told]))


def shown(value: object) -> str:
    """A value as an error message quotes it: its repr, cut to a readable length."""
    text = value if isinstance(value, str) else str(value)
    return repr(text[:57] + "..." if len(text) > 60 else text) if isinstance(value, str) or len(text) > 60 else repr(value)
