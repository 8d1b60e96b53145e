"""Which column of a file is which: names as people write them, an explicit mapping first, and one clear error when it cannot be told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.data.problems import shown
from kronos.errors import InputError

# In order of preference; compared in lower case, with spaces and dashes as underscores, without <> around and, where that finds none,
# without a unit in brackets behind: 成交量(手). Documented in docs/training.md.
ALIASES: dict[str, tuple[str, ...]] = {
    "timestamps": (
        *("timestamps", "timestamp", "datetime", "date_time", "date", "time", "trade_time", "trade_date", "trading_date", "open_time"),
        *("bar_time", "dt", "时间", "日期", "交易时间", "交易日期"),
    ),
    "open": ("open", "o", "open_price", "开盘", "开盘价"),
    "high": ("high", "h", "high_price", "最高", "最高价"),
    "low": ("low", "l", "low_price", "最低", "最低价"),
    "close": ("close", "c", "close_price", "收盘", "收盘价"),
    "volume": ("volume", "vol", "v", "成交量"),
    "amount": ("amount", "amt", "money", "turnover", "quote_volume", "quote_asset_volume", "成交额", "成交金额"),
}
_DATES, _CLOCKS = ("date", "trade_date", "trading_date", "日期", "交易日期"), ("time", "trade_time", "bar_time", "时间", "交易时间")
SYMBOL_ALIASES = ("symbol", "ticker", "code", "ts_code", "instrument", "代码", "股票代码", "证券代码")
_UNIT = re.compile(r"_*[(（\[][^()（）\[\]]*[)）\]]$")
_NAMED = 40  # columns that a message lists
REQUIRED = ("timestamps", "open", "high", "low", "close")


@dataclass(frozen=True)
class Chosen:
    """names: canonical name → the file's own name (volume and amount only if there). symbol: name of the symbol column, or "".

    clock: column with the time of day, where names["timestamps"] holds a date; or "". others: columns that are not used.
    """

    names: dict[str, str]
    symbol: str
    clock: str = ""
    others: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return [*self.names.values(), *(name for name in (self.symbol, self.clock) if name)]


def check_mapping(mapping: Mapping[str, str]) -> None:
    """InputError if `data.columns` names something that is not a column of bars."""
    for key in mapping:
        if key not in ALIASES:
            near = difflib.get_close_matches(key, ALIASES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"data.columns: {key!r} is not one of {', '.join(ALIASES)}{hint}")


def choose_columns(found: Sequence[str], source: str, *, mapping: Mapping[str, str], symbol_column: str = "") -> Chosen:
    """Match a header with the columns of bars. `mapping` (canonical → the file's name) and `symbol_column` come before any alias.

    Raises InputError, naming `source` and what was found, for a name given twice, a missing column, or a choice that cannot be made.
    """
    check_mapping(mapping)
    plain = {name: _plain(name) for name in found}
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    here = f"{source}: found columns {', '.join(map(shown, found[:_NAMED]))}{more}"
    names = {key: _named(name, found, plain, here, f"data.columns.{key}") for key, name in mapping.items() if name}
    for key, aliases in ALIASES.items():
        if key not in names:
            name = _by_alias(key, aliases, plain, here)
            if name:
                names[key] = name
    lacking = [key for key in REQUIRED if key not in names]
    if lacking:
        raise InputError(f"{here}, but none for {', '.join(lacking)}; rename them or map them with data.columns, e.g. {lacking[0]}: NAME")
    if len(set(names.values())) < len(names):
        raise InputError(f"{here}, and one of them is used twice: {names}; correct data.columns")
    clock = "" if "timestamps" in mapping else _part_of_time(names, plain)
    free = {name: text for name, text in plain.items() if name not in (*names.values(), clock)}
    symbol = _named(symbol_column, found, plain, here, "data.symbol_column") if symbol_column else _first(SYMBOL_ALIASES, free)
    return Chosen(names, symbol, clock, tuple(name for name in free if name != symbol))


def _part_of_time(names: dict[str, str], plain: Mapping[str, str]) -> str:
    """Where a date and a time of day stand in two columns: names["timestamps"] becomes the date's, and the other's name is returned."""
    if plain[names["timestamps"]] not in (*_DATES, *_CLOCKS):
        return ""
    date, clock = _first(_DATES, plain), _first(_CLOCKS, plain)
    if not date or not clock:
        return ""
    names["timestamps"] = date
    return clock


def _plain(name: str) -> str:
    return name.strip().strip("<>").lower().replace(" ", "_").replace("-", "_")


def _matching(aliases: Sequence[str], plain: Mapping[str, str]) -> list[str]:
    """The names that are known under one of the aliases, in the aliases' order."""
    return [name for alias in aliases for name in plain if plain[name] == alias]


def _first(aliases: Sequence[str], plain: Mapping[str, str]) -> str:
    return next(iter(_matching(aliases, plain)), "")


def _named(name: str, found: Sequence[str], plain: Mapping[str, str], here: str, key: str) -> str:
    """The column a user named, exactly or apart from case."""
    matches = [name] if name in found else [column for column in found if plain[column] == _plain(name)]
    if len(matches) == 1 and list(found).count(matches[0]) == 1:
        return matches[0]
    near = difflib.get_close_matches(name, found, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; correct {key}"
    raise InputError(f"{here}, {'more than one' if matches else 'none'} of them {name!r} as {key} says{hint}")


def _by_alias(key: str, aliases: Sequence[str], plain: Mapping[str, str], here: str) -> str:
    matches = _matching(aliases, plain)
    if not matches:
        plain = {name: _UNIT.sub("", text) for name, text in plain.items()}
        matches = _matching(aliases, plain)
    if not matches:
        return ""
    twins = [name for name in matches if plain[name] == plain[matches[0]]]
    if len(twins) > 1:
        raise InputError(f"{here}; {' and '.join(map(repr, twins))} could both be {key}; join or rename them, or set data.columns.{key}")
    return matches[0]
