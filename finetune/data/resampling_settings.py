"""What a panel made of finer bars depends on besides their files, and what the manifest beside it says of that. Needs no pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.engine.files import jsonable, read_json

MANIFEST = "manifest.json"
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
