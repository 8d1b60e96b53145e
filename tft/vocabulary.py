"""Names and codes: which symbols, periods and category values there are. Code 0 is kept for what was never registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.data.panel import Panel
from kronos.errors import InputError

STATICS = ("symbol", "period")


@dataclass(frozen=True)
class Vocabulary:
    """symbols, periods: the name at position i has code i + 1. categories: {column: its values, increasing}, likewise.

    Made over all splits, so that a value seen first in validation has a code of its own (one that training never moved).
    """

    symbols: tuple[str, ...]
    periods: tuple[str, ...]
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def register(cls, panels: Panel | Iterable[Panel], categorical: Sequence[str] | None = None) -> Vocabulary:
        """Every symbol, period and category of one or more panels, sorted. categorical: columns; None: those of kind categorical.

        Raises InputError for a missing column or a category that is not a whole number from 0.
        """
        panels = [panels] if isinstance(panels, Panel) else list(panels)
        symbols, periods = (sorted({getattr(info, name) for panel in panels for info in panel.series}) for name in STATICS)
        columns = list(categorical) if categorical is not None else [c.name for c in panels[0].columns if c.kind == "categorical"]
        found: dict[str, set[int]] = {column: set() for column in columns}
        for panel in panels:
            for column in columns:
                found[column] |= set(_values(panel, column).tolist())
        return cls(tuple(symbols), tuple(periods), {column: tuple(sorted(values - {0})) for column, values in found.items()})

    @property
    def statics(self) -> tuple[int, int]:
        """`TftSizes.statics`: codes of (symbol, period), 0 included."""
        return len(self.symbols) + 1, len(self.periods) + 1

    @property
    def period_names(self) -> list[str]:
        """`TftTask(periods=...)`: the name of each period code, "" for 0."""
        return ["", *self.periods]

    def sizes(self, columns: Sequence[str]) -> tuple[int, ...]:
        """`TftSizes.categories` of these columns: codes of each, 0 included."""
        return tuple(len(self.categories[column]) + 1 for column in columns)

    def static_codes(self, panel: Panel) -> np.ndarray:
        """[S, 2] int64 codes of each series' (symbol, period), 0 where not registered."""
        codes = [{name: i for i, name in enumerate(names, 1)} for names in (self.symbols, self.periods)]
        pairs = [(codes[0].get(info.symbol, 0), codes[1].get(info.period, 0)) for info in panel.series]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def codes(self, column: str, values: np.ndarray) -> np.ndarray:
        """int64 codes of a column's values, of any shape; 0 where not registered (and for the value 0, which says so itself)."""
        known = np.array(self.categories[column], np.float64)
        place = np.searchsorted(known, values)
        found = (place < len(known)) & (np.append(known, np.nan)[place] == values)
        return np.where(found, place + 1, 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` takes them."""
        categories = {column: list(values) for column, values in self.categories.items()}
        return {"symbols": list(self.symbols), "periods": list(self.periods), "categories": categories}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Vocabulary:
        categories = {column: tuple(values) for column, values in plain["categories"].items()}
        return cls(tuple(plain["symbols"]), tuple(plain["periods"]), categories)


def _values(panel: Panel, column: str) -> np.ndarray:
    """The different values of a categorical column, as whole numbers."""
    names = [c.name for c in panel.columns]
    if column not in names:
        raise InputError(f"categoricals: the panel has no column {column!r}; it has {', '.join(names[:12])} ...")
    values = np.unique(panel.features[:, names.index(column)])
    odd = values[(values < 0) | (values != np.floor(values))]
    if len(odd):
        raise InputError(
            f"categoricals: column {column!r} holds {odd[0]:g}; categories are whole numbers from 0 (0 = unknown), "
            "name it under reals instead or encode it"
        )
    return values.astype(np.int64)
