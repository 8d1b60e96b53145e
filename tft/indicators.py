"""Features of bars: a registry of functions, and the lines of YAML that choose among them.

    @feature(warm_up=lambda window: window)
    def log_return(bars, window=1): ...                    arrays in, arrays out

    - {name: log_return, window: 5, normalise: zscore}     one line of `features.use`

Every feature at row t is made of rows <= t (tests/test_tft_indicators.py perturbs the future of each registered one and demands equal
bits). Beyond its warm-up a feature does not depend on how much history stands before: windows are finite, recursive averages are shown
only once the weight of their first row is below 1e-3, so that a forecast from the last few hundred bars sees what training saw. The
exceptions, marked `anchored`, are raw cumulative sums. Values are free of price level and volume unit, except where `raw: true` asks
for the level itself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from kronos.errors import InputError

Outputs = np.ndarray | dict[str, np.ndarray]
_LEFT = 1e-3  # weight of the first row that a recursive average may still carry when it is first shown
_HOMES = ("tft.indicators_trend", "tft.indicators_volume", "tft.indicators_volatility", "tft.indicators_calendar", "tft.anomalies")
KINDS = ("past", "known", "categorical")
METHODS = ("none", "zscore", "minmax")


@dataclass(frozen=True)
class Bars:
    """Bars of one series, [n] float64 each, times [n] int64 ns UTC, stamps [n, 5] uint8 (wall clock), period in ns (0: unknown).

    Prices and volumes are multiplied by powers of two (`price_unit`, `volume_unit` undo it), which costs no bit and keeps them clear of
    the absolute thresholds in TA-Lib releases that take any variance below 1e-14 for none (a coin at 0.00001 would have no Bollinger band;
    0.8.2 was seen to be free of that).
    """

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    times: np.ndarray
    stamps: np.ndarray
    period: int = 0
    price_unit: float = 1.0
    volume_unit: float = 1.0
    memory: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what several features share, such as log returns

    @classmethod
    def of(cls, values: np.ndarray, times: np.ndarray, stamps: np.ndarray, period: int = 0) -> Bars:
        """values [n, >= 5]: open, high, low, close, volume as stored in a panel."""
        price = _unit(float(values[0, 3]))
        traded = np.flatnonzero(values[:, 4] > 0)
        volume = _unit(float(values[traded[0], 4])) if len(traded) else 1.0
        columns = [np.ascontiguousarray(values[:, k], np.float64) / (price if k < 4 else volume) for k in range(5)]
        return cls(*columns, times=np.asarray(times), stamps=np.asarray(stamps), period=period, price_unit=price, volume_unit=volume)

    def __len__(self) -> int:
        return len(self.close)

    def shared(self, key: Any, make: Callable[[], Any]) -> Any:
        """`make()`, computed once per bars and `key`; treat it as read-only."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


def _unit(first: float) -> float:
    """The power of two that brings the first value of a series into [512, 1024)."""
    return 2.0 ** (math.floor(math.log2(first)) - 9) if first > 0 else 1.0


@dataclass(frozen=True)
class Feature:
    """A registered function. parameters: name → default. warm_up(**parameters): rows at the beginning without a value.

    outputs: suffixes of the columns, () for a single one. kind: past, known or categorical. anchored(**parameters): whether the value
    depends on where the series begins.
    """

    name: str
    function: Callable[..., Outputs]
    parameters: Mapping[str, Any]
    warm_up: Callable[..., int]
    outputs: tuple[str, ...] = ()
    kind: str = "past"
    anchored: Callable[..., bool] = lambda **_: False


_REGISTRY: dict[str, Feature] = {}


def feature(
    *, warm_up: Callable[..., int], outputs: Sequence[str] = (), kind: str = "past", anchored: Callable[..., bool] = lambda **_: False
) -> Callable[[Callable[..., Outputs]], Callable[..., Outputs]]:
    """Registers a function under its own name; its keyword parameters with their defaults are those of its line in YAML."""

    def register(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        parameters = {p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]}
        assert kind in KINDS and function.__name__ not in _REGISTRY and inspect.Parameter.empty not in parameters.values()
        takes = inspect.signature(warm_up).parameters

        def needed(**given: Any) -> int:
            return int(warm_up(**{name: value for name, value in given.items() if name in takes}))

        _REGISTRY[function.__name__] = Feature(function.__name__, function, parameters, needed, tuple(outputs), kind, anchored)
        return function

    return register


@cache
def registry() -> dict[str, Feature]:
    """Every feature by name."""
    for home in _HOMES:
        importlib.import_module(home)
    return dict(sorted(_REGISTRY.items()))


def ta() -> ModuleType:
    """TA-Lib. Raises InputError if it is not installed."""
    try:
        return importlib.import_module("talib")
    except ModuleNotFoundError as error:
        raise InputError("the features need the package TA-Lib, which is not installed; run: pip install TA-Lib") from error


def fading(alpha: float, stages: int = 1) -> int:
    """Rows after which a recursive average of that weight (or one of another, `stages` in all) has forgotten its start down to 1e-3.

    The response of k equal averages after n rows with a = -ln(1 - alpha) is close to the Poisson sum e^(-an) Σ_{i<k} (an)^i / i!.
    """
    if not 0 < alpha < 1:
        return stages
    decay = -math.log1p(-alpha)
    rows = 1
    while math.exp(-decay * rows) * sum((decay * rows) ** i / math.factorial(i) for i in range(stages)) > _LEFT:
        rows += 1
    return rows


def wilder(window: int, stages: int = 1) -> int:
    """As `fading`, for Wilder's average of that window, and the rows before its first value."""
    return stages * window + fading(1 / window, stages)


@dataclass(frozen=True)
class Chosen:
    """One line of `features.use`, checked. names: its columns; parameters complete; window of its rolling normalisation in rows."""

    feature: Feature
    names: tuple[str, ...]
    parameters: dict[str, Any]
    normalise: str = "none"
    window: int = 0

    @property
    def kind(self) -> str:
        return self.feature.kind

    @property
    def warm_up(self) -> int:
        return self.feature.warm_up(**self.parameters) + (self.window - 1 if self.normalise != "none" else 0)

    def compute(self, bars: Bars) -> list[np.ndarray]:
        """Its columns, [n] float64 each, NaN in the warm-up of the function (not of the normalisation)."""
        made = self.feature.function(bars, **self.parameters)
        columns = [made[name] for name in self.feature.outputs] if isinstance(made, dict) else [made]
        first = self.feature.warm_up(**self.parameters)
        result = []
        for column in columns:
            column = np.array(column, np.float64)  # a copy: what functions return may be shared between features
            column[:first] = np.nan
            result.append(column)
        return result


_OWN_KEYS = ("name", "as", "kind", "normalise", "normalise_window")


def choose(line: Mapping[str, Any] | str, period: str, *, normalise: str = "none", window: int | Mapping[str, int] = 240) -> Chosen:
    """Check one line of `features.use` for series of `period` ("1h"). Parameters may be mappings {1h: 48, 1d: 30}.

    Raises InputError: unknown name or parameter (naming the nearest), wrong type, a kind that the feature cannot have.
    """
    line = {"name": line} if isinstance(line, str) else dict(line)
    known = _known(line)
    given = {key: of_period(value, period, f"{known.name}: {key}") for key, value in line.items() if key not in _OWN_KEYS}
    per_period = any(isinstance(value, Mapping) for value in line.values())
    parameters = {**known.parameters, **given}
    for key, value in given.items():
        _check_parameter(known, key, value)
    method = str(line.get("normalise", normalise if known.kind == "past" else "none"))
    if method not in METHODS:
        raise InputError(f"{known.name}: normalise is {method!r}; expected one of {', '.join(METHODS)}")
    if known.kind != "past" and method != "none":
        raise InputError(f"{known.name}: normalise is {method!r}, but it is made of the calendar and needs none; leave the key out")
    if line.get("kind", known.kind) != known.kind:
        why = "it is made of bars, which are not known ahead" if known.kind == "past" else "it is made of the calendar"
        raise InputError(f"{known.name}: kind is {line['kind']!r}; expected {known.kind} ({why})")
    rows = of_period(line.get("normalise_window", window), period, f"{known.name}: normalise_window")
    if method != "none" and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 2):
        raise InputError(f"{known.name}: normalise_window is {rows!r}; expected a whole number of at least 2 bars")
    base = str(line.get("as") or column_name(known, {} if per_period else parameters))
    names = tuple(f"{base}_{suffix}" for suffix in known.outputs) or (base,)
    return Chosen(known, names, parameters, method, rows if method != "none" else 0)


def _known(line: Mapping[str, Any]) -> Feature:
    name = line.get("name")
    found = registry().get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(f"{name!r} is not a feature{nearest(str(name), registry())}")
    for key in line:
        if key not in _OWN_KEYS and key not in found.parameters:
            takes = ", ".join(found.parameters) or "none"
            raise InputError(f"{name}: has no parameter {key!r}{nearest(str(key), [*found.parameters, *_OWN_KEYS])}; it takes: {takes}")
    return found


def _check_parameter(known: Feature, key: str, value: Any) -> None:
    default = known.parameters[key]
    if isinstance(default, bool):
        good, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000
        wanted = "a whole number from 1 to 100,000"
    elif isinstance(default, float):
        good, wanted = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6, "a number above 0"
    else:
        return _check_inputs(known, key, value)
    if not good:
        raise InputError(f"{known.name}: {key} is {value!r}; expected {wanted}")


def _check_inputs(known: Feature, key: str, value: Any) -> None:
    """A list of further features by name."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise InputError(f"{known.name}: {key} is {value!r}; expected a list of features, such as {list(known.parameters[key])}")
    for name in value:
        inner = registry().get(name)
        if inner is None:
            raise InputError(f"{known.name}: {key} names {name!r}, which is not a feature{nearest(name, registry())}")
        if inner.kind != "past" or any(isinstance(default, tuple) for default in inner.parameters.values()):
            raise InputError(f"{known.name}: {key} names {name!r}; expected features made of bars, such as {list(known.parameters[key])}")


def of_period(value: Any, period: str, what: str) -> Any:
    """`value` itself, or where it is a mapping by period the entry of `period`. Raises InputError if there is none."""
    if not isinstance(value, Mapping):
        return value
    if period not in value:
        raise InputError(f"{what} has no entry for {period or 'series without a period'!r} (it has {', '.join(map(str, value))}); add one")
    return value[period]


def column_name(known: Feature, parameters: Mapping[str, Any]) -> str:
    """ "macd_12_26_9", "bollinger_20_2", "ma_20_raw": the name and the numbers of the parameters."""
    numbers = [f"{value:g}" for value in parameters.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    return "_".join([known.name, *numbers, *(key for key, value in parameters.items() if value is True)])


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" or the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 2, 0.6) or [other for other in names if len(name) >= 3 and name in other][:2]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(names[:60])}" + (f" and {len(names) - 60} more" if len(names) > 60 else "")
