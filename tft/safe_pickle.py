"""DataFrames out of .pkl files that anybody may have written: only what a DataFrame of numbers, texts and times is made of may load.

A pickle is a program: it may call any importable function. Here a name that is not on the list below stops the load before anything is
called. Names are compared as written in the file; none of them calls what it is given, opens files or imports.
"""

from __future__ import annotations

import importlib
import io
import pickle
import re
import zoneinfo
from pathlib import Path
from typing import Any

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


# names that are handed out in a narrower form than they are asked for
_NARROWED: dict[tuple[str, str], Any] = {("builtins", "getattr"): _zone_attribute, ("pyarrow.lib", "_restore_array"): _checked_arrow}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = re.sub(r"^numpy\.core\b", "numpy._core", module)  # numpy 1
        module = "builtins" if module == "__builtin__" else module  # protocol 2
        if (module, name) in _NARROWED:
            return _NARROWED[module, name]
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}, which a table does not need")
        return super().find_class(module, name)


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
    return loaded


def write_pickle(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a DataFrame that `read_pickle`, and any pandas since 1.5, reads: protocol 4, texts as plain objects."""
    plain = frame.copy(deep=False)
    for name in plain.columns:
        if isinstance(plain[name].dtype, pd.StringDtype):
            plain[name] = plain[name].astype(object)
    plain.columns = pd.Index(list(plain.columns), dtype=object)
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
        pickle.dump(plain, file, protocol=4)
