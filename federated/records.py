"""What happened in each round: a line of rounds.jsonl, numbers in metrics.jsonl and TensorBoard (through the engine's Run), one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.engine.files import LineFile, jsonable, read_json_lines, write_text
from finetune.engine.tracking import Run

FILE = "rounds.jsonl"


@dataclass
class RoundRecord:
    """One round. Partitions name clients; in a secure round nothing is known of a single one but whether it took part.

    asked, answered: partitions; failed: partition → why. samples: training windows in the mean, by partition, or their sum.
    loss: by partition. train: means over those who answered; score: the new global model's validation metrics (means over `evaluated`).
    bytes_down, bytes_up: of all messages of the round. epsilon: spent so far.
    """

    round: int
    asked: list[int]
    answered: list[int]
    failed: dict[int, str]
    samples: dict[int, int]
    samples_total: int | None
    model_bytes: int
    bytes_down: int
    bytes_up: int
    seconds: float
    train: dict[str, float] = field(default_factory=dict)
    train_loss: dict[int, float] = field(default_factory=dict)
    score: dict[str, float] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    evaluated: list[int] = field(default_factory=list)
    stages: dict[str, list[int]] = field(default_factory=dict)  # secure: who was lost at which stage
    epsilon: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return jsonable(asdict(self))

    @classmethod
    def read(cls, plain: dict[str, Any]) -> RoundRecord:
        """From `plain`, whose keys of partitions became text."""
        by_partition = {name: {int(k): v for k, v in plain[name].items()} for name in ("failed", "samples", "train_loss", "loss")}
        return cls(**{**plain, **by_partition})


class Records:
    """rounds.jsonl and the run's own logs. resume: goes on after round `done`, forgetting later ones."""

    def __init__(self, run: Run, done: int):
        self.run, self.path = run, run.folder / FILE
        kept = [line for line in read_json_lines(self.path) if line["round"] <= done] if done else []
        write_text(self.path, "".join(_line(line) for line in kept))
        self.all = [RoundRecord.read(line) for line in kept]
        if done:
            run.rewind(done)

    def add(self, record: RoundRecord) -> None:
        """Write a round down and say it."""
        self.all.append(record)
        file = LineFile(self.path)
        file.line(_line(record.plain()).rstrip("\n"))
        file.close()
        numbers = {
            "asked": len(record.asked),
            "answered": len(record.answered),
            "samples": record.samples_total or 0,
            "bytes_down": record.bytes_down,
            "bytes_up": record.bytes_up,
            "seconds": record.seconds,
            **record.train,
            **{f"train_loss_of_{k}": v for k, v in record.train_loss.items()},
        }
        self.run.log(record.round, record.round, "train", numbers | ({} if record.epsilon is None else {"epsilon": record.epsilon}))
        if record.score:
            scores = {name.removeprefix("val_"): value for name, value in record.score.items()}
            self.run.log(record.round, record.round, "val", scores | {f"loss_of_{k}": v for k, v in record.loss.items()})

    def table(self) -> str:
        """All rounds, one line each."""
        columns = ["round", "asked", "answered", "samples", "model MB", "down MB", "up MB", "s", "train loss", "val loss", "composite", "ε"]
        rows = []
        for r in self.all:
            epsilon = "" if r.epsilon is None else f"{r.epsilon:.3f}"
            volume = [f"{size / 1e6:.2f}" for size in (r.model_bytes, r.bytes_down, r.bytes_up)]
            losses = [_number(r.train.get("train_loss")), _number(r.score.get("val_loss")), _number(r.score.get("composite_score"))]
            samples = "hidden" if r.samples_total is None else f"{r.samples_total:,}"
            rows.append([str(r.round), str(len(r.asked)), str(len(r.answered)), samples, *volume, f"{r.seconds:.1f}", *losses, epsilon])
        return text_table(columns, rows)

    def write_table(self) -> Path:
        """rounds.md beside rounds.jsonl."""
        path = self.run.folder / "rounds.md"
        write_text(path, self.table() + "\n")
        return path


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _line(plain: dict[str, Any]) -> str:
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand under each other, numbers to the right; empty columns are left out."""
    keep = [k for k, name in enumerate(head) if any(row[k] for row in rows) or (name and not rows)]
    head, rows = [head[k] for k in keep], [[row[k] for k in keep] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    right = [all(not row[k] or row[k][0].isdigit() or row[k][0] == "-" for row in rows) for k in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])
