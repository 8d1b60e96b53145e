"""DataFrames out of .pkl files that anybody may have written: only what a DataFrame of numbers, texts and times is made of may load.

A pickle is a program: it may call any importable function. Here a name that is not on the list below stops the load before anything is
called. Names are compared as written in the file; none of them calls what it is given, opens files or imports.
Nor may numpy be made to take bytes for objects (a type whose flags lie, an array over a buffer), or small things become large ones.
"""

from __future__ import annotations

import importlib
import io
import pickle
import re
import zoneinfo
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from kronos.errors import InputError, MissingFileError
from kronos.files import atomic_path

_TYPES = {
    *("DataFrame", "Series", "Index", "RangeIndex", "DatetimeIndex", "MultiIndex", "CategoricalIndex", "Categorical", "CategoricalDtype"),
    *("DatetimeTZDtype", "StringDtype", "Timestamp", "Int8Dtype", "Int16Dtype", "Int32Dtype", "Int64Dtype", "UInt8Dtype", "UInt16Dtype"),
    *("UInt32Dtype", "UInt64Dtype", "Float32Dtype", "Float64Dtype", "BooleanDtype"),
}
_ARRAYS = {
    *("DatetimeArray", "Categorical", "StringArray", "ArrowStringArray", "IntegerArray", "FloatingArray", "BooleanArray"),
    "NumpyExtensionArray",
}
_HOMES = ("datetimes", "categorical", "string_", "string_arrow", "integer", "floating", "boolean")
# module → names. The same class has another home in each pandas, so types may come from any module of pandas that is named here.
ALLOWED: dict[str, set[str]] = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "pandas": _TYPES,
    "pandas.arrays": _ARRAYS,
    "pandas.core.frame": _TYPES,
    "pandas.core.series": _TYPES,
    "pandas.core.internals.managers": {"BlockManager", "SingleBlockManager"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked"},
    "pandas.core.indexes.base": {"Index", "_new_Index"},
    "pandas.core.indexes.range": _TYPES,
    "pandas.core.indexes.multi": _TYPES,
    "pandas.core.indexes.category": _TYPES,
    "pandas.core.indexes.datetimes": {"DatetimeIndex", "_new_DatetimeIndex"},
    **{f"pandas.core.arrays.{home}": _ARRAYS | _TYPES for home in _HOMES},
    "pandas.core.dtypes.dtypes": _TYPES,
    "pandas._libs.tslibs.timestamps": {"_unpickle_timestamp"},
    "pandas._libs.tslibs.nattype": {"_nat_unpickle"},
    "pandas._libs.tslibs.offsets": {"Hour", "Day", "Minute", "Second", "Week", "BusinessDay"},
    "builtins": {"slice", "range", "set", "frozenset", "bytearray", "complex"},
    "collections": {"OrderedDict"},
    "datetime": {"datetime", "date", "timedelta", "timezone"},
    "zoneinfo": {"ZoneInfo"},
    "_codecs": {"encode"},  # how protocols before 3 write bytes
    "pyarrow.lib": {"type_for_alias", "py_buffer"},
}


def _zone_attribute(owner: Any, name: str) -> Any:
    """What a time zone needs of getattr, and no more."""
    if owner is zoneinfo.ZoneInfo and name == "_unpickle":
        return zoneinfo.ZoneInfo._unpickle
    raise pickle.UnpicklingError(f"it wants to use the attribute {name!r} of {owner!r}, which a table does not need")


def _checked_arrow(data: Any) -> Any:
    """An Arrow array from its buffers; offsets that point outside them would read foreign memory, so every one is checked."""
    array = importlib.import_module("pyarrow.lib")._restore_array(data)
    array.validate(full=True)
    return array


def _plain_dtype(text: str, align: object = False, copy: object = False) -> np.dtype:
    """A type of numbers, texts or times. That of objects is numpy's own, which ignores what a pickle says of its flags."""
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise pickle.UnpicklingError(f"it wants to use numbers of type {text!r}, which a table does not need")
    return np.dtype(text) if "O" in text else np.dtype(text, copy=True)


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What numpy begins an array with; its contents follow."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"it wants to make an array of {shape!r} without contents, which a table does not need")
    return np.ndarray((0,), np.int8)


def _gathered(kind: type) -> Any:
    """A set or bytearray of what stands in the file; not of a number or range, which may stand for any amount of memory."""

    def make(items: object = ()) -> Any:
        if not isinstance(items, list | tuple | bytes | set | frozenset):
            raise pickle.UnpicklingError(f"it wants to make a {kind.__name__} of a {type(items).__name__}, which a table does not need")
        return kind(items)

    return make


_DTYPE = re.compile(r"[<>=|]?(?:[biufcmMSU]\d*|O8?)")
_PLAIN_FLAGS = (0, 8)  # 8: memory is cleared, of text
# names that are handed out in a narrower form than they are asked for
_NARROWED: dict[tuple[str, str], Any] = {
    ("builtins", "getattr"): _zone_attribute,
    ("pyarrow.lib", "_restore_array"): _checked_arrow,
    ("numpy", "dtype"): _plain_dtype,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    **{("builtins", kind.__name__): _gathered(kind) for kind in (set, frozenset, bytearray)},
}
_NOT_CALLED = (np.ndarray, pd.DataFrame, pd.Series)  # pickles make these without calling them


class _Unpickler(pickle._Unpickler):  # in Python: the faster one cannot be told what to look at before it is done
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_reduce(self) -> None:
        if (called := self.stack[-2]) in _NOT_CALLED:
            raise pickle.UnpicklingError(f"it wants to call {called.__name__}, which a table does not need")
        super().load_reduce()

    def load_build(self) -> None:
        made, state = self.stack[-2], self.stack[-1]
        if isinstance(made, np.dtype) and not made.hasobject and not _is_plain(state):
            raise pickle.UnpicklingError(f"it describes the type {made} in a way that a table does not need")
        super().load_build()

    def load_bytearray8(self) -> None:
        claimed = int.from_bytes(self.read(8), "little")
        found = self.read(claimed)  # less than claimed costs nothing here; a bytearray of that size would be made first
        if len(found) < claimed:
            raise pickle.UnpicklingError("its data were truncated")
        self.append(bytearray(found))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.REDUCE[0]], dispatch[pickle.BUILD[0]] = load_reduce, load_build

    def find_class(self, module: str, name: str) -> Any:
        module = re.sub(r"^numpy\.core\b", "numpy._core", module)  # numpy 1
        module = "builtins" if module == "__builtin__" else module  # protocol 2
        if (module, name) in _NARROWED:
            return _NARROWED[module, name]
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}, which a table does not need")
        return super().find_class(module, name)


def _is_plain(state: object) -> bool:
    """Whether a type's state, (version, byte order, sub-type, names, fields, size, alignment, flags, unit of time), is of plain values."""
    if not isinstance(state, tuple) or len(state) < 8:
        return False
    return state[2:5] == (None, None, None) and type(state[5]) is int and -1 <= state[5] < 1 << 20 and state[7] in _PLAIN_FLAGS


def safe_load(path: str | Path) -> Any:
    """The object in a pickle file, if it is made of allowed parts only.

    Raises MissingFileError, or InputError naming the first part that is not allowed, or saying that the file is damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"{file}: there is no such file; give a .pkl file")
    try:
        return _Unpickler(io.BytesIO(file.read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise InputError(f"{file}: is not read, because {error}; write it again with tft/csv2Pkl.py, or as parquet") from error
    except Exception as error:  # a damaged pickle may fail in any way; nothing of ours runs inside
        raise InputError(f"{file}: is damaged or of another pandas ({type(error).__name__}: {error}); write it again as parquet") from error


def read_pickle(path: str | Path) -> pd.DataFrame:
    """The DataFrame in a .pkl file. Raises as `safe_load`, and InputError if it holds something else."""
    loaded = safe_load(path)
    if not isinstance(loaded, pd.DataFrame):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a DataFrame; write the table itself")
    try:
        return loaded.copy()  # touches all of it: a DataFrame can be put together of parts that do not fit
    except Exception as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error}); write it again as parquet") from error


def write_pickle(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a DataFrame that `read_pickle`, and any pandas since 1.5, reads: protocol 4, texts as plain objects."""
    plain = frame.copy(deep=False)
    for name in plain.columns:
        if isinstance(plain[name].dtype, pd.StringDtype):
            plain[name] = plain[name].astype(object)
    plain.columns = pd.Index(list(plain.columns), dtype=object)
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
        pickle.dump(plain, file, protocol=4)
