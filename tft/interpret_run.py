"""What a trained run looks at, as tables and as pictures in one folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.engine.files import ensure_writable_folder, write_json
from kronos.errors import InputError
from tft import importance as measure
from tft.importance import Looked
from tft.prediction_table import series_columns, write_table
from tft.training import Prepared


def look_at(prepared: Prepared, split: str, most: int) -> Looked:
    """Run at most `most` windows of a split, evenly spread. Raises InputError if the split has no window."""
    source = prepared.windows[split]
    if not len(source):
        raise InputError(f"--split {split}: has no window; set {split}_ratio or {split}_days in training, or name another split")
    columns = prepared.data.columns
    index = measure.spread(len(source), most)
    looked = measure.look(prepared.task, source, columns.past, columns.known, columns.categorical, index)
    named = series_columns(prepared.panel, looked.row)
    return replace(looked, period=named["period"], symbol=named["symbol"])


def tables_of(looked: Looked, times: np.ndarray) -> dict[str, pd.DataFrame]:
    """{name: table}: importance overall, over time, by symbol and by period; attention by lag overall and by period. times [W] ns UTC."""
    spans = measure.time_spans(times)
    return {
        "importance": measure.importance(looked),
        "importance_over_time": measure.importance(looked, spans.astype(str)),
        "importance_by_symbol": measure.importance(looked, looked.symbol),
        "importance_by_period": measure.importance(looked, looked.period),
        "attention": measure.attention_by_lag(looked),
        "attention_by_period": measure.attention_by_lag(looked, looked.period),
    }


def write_interpretation(looked: Looked, times: np.ndarray, folder: Path, split: str) -> list[Path]:
    """Every table as .csv, the two main ones as JSON too, and five pictures. Raises InputError if the folder cannot be written to."""
    from tft import pictures  # matplotlib, only where something is drawn

    ensure_writable_folder(folder)
    tables = tables_of(looked, times)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    facts = {"split": split, "windows": len(looked.row), "encoder": looked.encoder, "percentiles": list(measure.PERCENTILES)}
    records = {name: tables[name].to_dict("records") for name in ("importance", "importance_by_period", "attention_by_period")}
    write_json(folder / "interpretation.json", {**facts, **records})
    drawn = {name: folder / f"{name}.png" for name in tables if name != "attention"}
    pictures.draw_importance(drawn["importance"], tables["importance"])
    pictures.draw_over_time(drawn["importance_over_time"], tables["importance_over_time"])
    pictures.draw_by_group(drawn["importance_by_symbol"], tables["importance_by_symbol"], "symbol")
    pictures.draw_by_group(drawn["importance_by_period"], tables["importance_by_period"], "period")
    pictures.draw_attention(drawn["attention_by_period"], tables["attention_by_period"])
    return [*(folder / f"{name}.csv" for name in tables), folder / "interpretation.json", *drawn.values()]
