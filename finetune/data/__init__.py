"""Bars: the Panel, and every way into it."""

from finetune.data.cleaning import Policy
from finetune.data.load import build_panel, describe, load_panel, summary
from finetune.data.panel import KRONOS_COLUMNS, KRONOS_NAMES, Column, Panel, SeriesInfo

__all__ = ["KRONOS_COLUMNS", "KRONOS_NAMES", "Column", "Panel", "Policy", "SeriesInfo", "build_panel", "describe", "load_panel", "summary"]
