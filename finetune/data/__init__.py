"""Bars: the Panel, and every way into it. Names are imported when first used (PEP 562), as in `kronos`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.data.cleaning import Policy
    from finetune.data.load import build_panel, describe, load_panel, summary
    from finetune.data.panel import KRONOS_COLUMNS, KRONOS_NAMES, Column, Panel, SeriesInfo

_HOMES = {
    "cleaning": ("Policy",),
    "load": ("build_panel", "describe", "load_panel", "summary"),
    "panel": ("KRONOS_COLUMNS", "KRONOS_NAMES", "Column", "Panel", "SeriesInfo"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["KRONOS_COLUMNS", "KRONOS_NAMES", "Column", "Panel", "Policy", "SeriesInfo", "build_panel", "describe", "load_panel", "summary"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'finetune.data' has no attribute {name!r}")
    return getattr(import_module(f"finetune.data.{_HOME_OF[name]}"), name)
