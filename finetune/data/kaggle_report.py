"""What preprocessing tells: report.json, report.md, and the manifest by which a finished folder is known again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.data.panel import Panel
from finetune.engine.files import jsonable, read_json
from kronos.errors import InputError

FORMAT, VERSION = "kronos-kaggle-data", 1  # the version counts up when the same files would give another folder
FILES = ("panel/panel.json", "test.parquet", "report.json", "report.md")
_PIECES, _PIECE_BYTES = 64, 1 << 16
_NAMED = 10


def identity(train: Path, test: Path, settings: Any, skip_truncated: bool) -> dict[str, Any]:
    """What a folder is made from: both files, the settings, and how this program makes it."""
    return jsonable(
        {
            "format": FORMAT,
            "version": VERSION,
            "train": _file_facts(train),
            "test": _file_facts(test),
            "settings": {**asdict(settings), "skip_truncated": skip_truncated},
            "libraries": {"numpy": np.__version__, "pyarrow": pa.__version__},
        }
    )


def _file_facts(path: Path) -> dict[str, Any]:
    """Size, time of the last change, and a hash over head, tail and pieces between them: reading all of a large file would take seconds."""
    facts = path.stat()
    digest = hashlib.blake2b(digest_size=16)
    last = max(0, facts.st_size - _PIECE_BYTES)
    with open(path, "rb") as file:
        for at in sorted({last * piece // (_PIECES - 1) for piece in range(_PIECES)}):
            file.seek(at)
            digest.update(file.read(_PIECE_BYTES))
    return {"bytes": facts.st_size, "changed_ns": facts.st_mtime_ns, "hash": digest.hexdigest()}


def is_made_from(out: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report in `out`, if that is finished and was made from just this; None if it must be made (again)."""
    try:
        manifest, report = read_json(out / "manifest.json"), read_json(out / "report.json")
        if not manifest or not report or not all((out / name).is_file() for name in FILES):
            return None
        found = {key: manifest.get(key) for key in made_from}
        return report if found == made_from and Panel.open(out / "panel").fingerprint == manifest.get("panel") else None
    except InputError:  # something of it is damaged: it is made again
        return None


def report_of(
    settings: Any,
    reader: Any,
    clean: Any,
    verdict: Any,
    panel: Panel,
    asked: Any,
    notes: Sequence[str],
    speed: Mapping[str, Any],
) -> dict[str, Any]:
    """All facts of one run. Rows read = rows kept + rows dropped, whatever the reason; that they add up is checked."""
    tickers = list(reader.tickers)
    dropped = dict(reader.dropped)
    for what, per_ticker in clean.counts.items():
        if what.startswith("dropped, ") and per_ticker.total():
            dropped[what.removeprefix("dropped, ")] = per_ticker.total()
    short_rows = sum(clean.short.values())
    if clean.short:
        dropped[f"ticker shorter than {settings.needed}"] = short_rows
    assert reader.rows == panel.n_rows + sum(dropped.values()), "rows read are not rows kept and dropped"
    worst = Counter()
    for what, per_ticker in clean.counts.items():
        if what.startswith("dropped, "):
            worst.update(per_ticker)
    kept = {info.symbol for info in panel.series}
    changed = {what: per for what, per in clean.counts.items() if not what.startswith("dropped, ")}
    report = {
        "rows": {"read": reader.rows, "kept": panel.n_rows, "dropped": dropped, **_kept_as(changed)},
        "tickers": {
            "found": len(tickers),
            "kept": panel.n_series,
            f"left out, shorter than lookback {settings.lookback} + predict {settings.predict} + 1 = {settings.needed}": len(clean.short),
            "left out, longest first": dict(Counter(clean.short).most_common(_NAMED)),
            "most rows dropped": dict(worst.most_common(_NAMED)),
        },
        "splits": {
            "verdict": verdict.kind,
            "what was done": verdict.text,
            "closes jump by 1/ratio": verdict.jumped,
            "closes do not jump": verdict.smooth,
            "too small, or too far apart, to tell": verdict.unclear,
            "adjusted": int(verdict.applied.sum()),
            "tickers that disagree": len(verdict.dissent),
            "for example": [tickers[code] for code in verdict.dissent[:_NAMED]],
        },
        "dates": {
            "first": str(np.datetime64(clean.span[0], "D")),
            "last": str(np.datetime64(clean.span[1], "D")),
            "written as": reader.way_of_dates,
            "clock": f"the date as written, midnight in {settings.timezone}",
        },
        "test": _shortened(asked.facts(reader.tickers, kept)),
        "panel": {"fingerprint": panel.fingerprint, "series": panel.n_series, "rows": panel.n_rows, "breaks": len(panel.breaks)},
        "speed": dict(speed),
        "settings": asdict(settings),
        "notes": list(notes),
    }
    return jsonable(report)


def _kept_as(changed: Mapping[str, Counter[str]]) -> dict[str, int]:
    """Rows that were kept although something was done to them or is odd, without advice that belongs to other commands."""
    return {what.split(" (")[0]: per_ticker.total() for what, per_ticker in changed.items() if per_ticker.total()}


def _shortened(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of names cut to a readable length, with their number before them."""
    short: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, list):
            short[f"number of {key}"], value = len(value), value[:_NAMED]
        short[key] = value
    return short


def as_markdown(report: Mapping[str, Any], short: bool = False) -> str:
    """The report as text for people; short: the few lines that the command ends with."""
    rows, tickers, test = report["rows"], report["tickers"], report["test"]
    dropped = sum(rows["dropped"].values())
    why = "; ".join(f"{what} {number:,}" for what, number in rows["dropped"].items()) or "none"
    lines = [
        f"rows: {rows['read']:,} read, {rows['kept']:,} kept, {dropped:,} dropped ({why})",
        f"tickers: {tickers['found']:,} found, {tickers['kept']:,} kept, {tickers['found'] - tickers['kept']:,} too short",
        f"splits: {report['splits']['verdict']}; {report['splits']['what was done']}",
        f"dates: {report['dates']['first']} to {report['dates']['last']}, {report['dates']['clock']}",
        f"test: {test['rows']:,} rows of {test['tickers']:,} tickers",
    ]
    for what in ("not in train.csv", "left out of the panel"):
        if test[f"rows of tickers {what}"]:
            names = ", ".join(test[f"tickers {what}"])
            more = ", ..." if test[f"number of tickers {what}"] > len(test[f"tickers {what}"]) else ""
            count = test[f"number of tickers {what}"]
            lines.append(f"warning: tickers of test.csv {what}: {count:,} ({test[f'rows of tickers {what}']:,} rows): {names}{more}")
    speed = report["speed"]
    lines.append(f"speed: {speed['seconds']:.1f} s, {speed['rows per second']:,} rows/s, peak {speed['peak MB']:,} MB")
    if short:
        return "\n".join(lines)
    text = ["# Preprocessed bars", "", *(f"- {line}" for line in lines)]
    for title, part in report.items():
        text += ["", f"## {title}", ""]
        text += [f"- {item}" for item in part] if isinstance(part, list) else [f"- {key}: {_plain(value)}" for key, value in part.items()]
    return "\n".join(text) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
