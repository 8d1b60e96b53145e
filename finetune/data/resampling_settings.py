"""What a panel made of finer bars depends on besides their files, and what the manifest beside it says of that. Needs no pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.data.source_facts import named_sources, what_changed
from finetune.engine.files import jsonable, read_json

MANIFEST = "manifest.json"
SOURCE_KEY = "timeframe.source (or KRONOS_DATA_PATH)"
_TIMEFRAME = ("period", "stamp", "calendar")
_READING = ("symbol_column", "timezone", "missing", "max_ffill", "drop_suspended")


def panel_settings(config: Any) -> dict[str, Any]:
    """Everything but the files that the panel of a model's configuration depends on."""
    frame, data = config.timeframe, config.data
    return {
        **{name: getattr(frame, name) for name in _TIMEFRAME},
        **{name: getattr(data, name) for name in _READING},
        "columns": dict(data.columns),
    }


def changed_settings(config: Any) -> list[str]:
    """The keys, each with the value that a panel was made with and the one asked for now; none where there is no manifest."""
    known = (read_json(Path(config.timeframe.panel, MANIFEST)) or {}).get("settings") or {}
    return [
        f"{'timeframe' if name in _TIMEFRAME else 'data'}.{name} {known[name]!r} (now {value!r})"
        for name, value in jsonable(panel_settings(config)).items()
        if name in known and known[name] != value
    ]


def changed_source(config: Any) -> str:
    """Which files of timeframe.source are not those that a panel was made of, in words; empty where they are, or cannot be read."""
    manifest = read_json(Path(config.timeframe.panel, MANIFEST)) or {}
    try:
        told = what_changed(named_sources(config.timeframe.source, SOURCE_KEY), manifest) if manifest else ""
    except OSError:  # bars that were made may outlive their source
        return ""
    return f"files of timeframe.source are {told}" if told else ""
