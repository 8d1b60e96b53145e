"""What a client hands back after its local work, and how it travels in Flower's records.

A reply of a training or evaluation request carries
    "arrays"   ArrayRecord: the client's weights by name, float32 (training only)
    "metrics"  MetricRecord: "num-examples" and every metric of the update
    "client"   ConfigRecord: "partition-id" and "version" of who replies
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict

ARRAYS, METRICS, CONFIG, CLIENT = "arrays", "metrics", "config", "client"  # names of the records in a message
EXAMPLES = "num-examples"
PARTITION, VERSION = "partition-id", "version"
MALFORMED = (ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError)  # what reading a stranger's reply can raise


def table(value: Any) -> dict[str, Any]:
    """What a stranger sent as a JSON table. Raises TypeError (one of MALFORMED) for anything else."""
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where a table is expected")
    return value


@dataclass(frozen=True)
class Update:
    """The result of a client's local work in one round.

    arrays: float32 by name, the client's weights after local work (not the difference). Every client has the same names and shapes.
    examples: training windows seen, the client's weight in the mean. metrics: means over the client's windows, names as in the engine.
    """

    arrays: dict[str, np.ndarray]
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays by name as Flower sends them, in the order of the names: two runs send the same bytes."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(np.asarray(arrays[name], order="C")) for name in sorted(arrays)})


def from_record(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a record by name, in the order of the names."""
    return {name: record[name].numpy() for name in sorted(record)}


def content_of(update: Update, partition: int, version: str = "") -> RecordDict:
    """An update as the content of a reply in clear."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    metrics = MetricRecord({EXAMPLES: update.examples, **{name: float(value) for name, value in update.metrics.items()}})
    content = RecordDict({METRICS: metrics, CLIENT: ConfigRecord({PARTITION: partition, VERSION: version})})
    if update.arrays:
        content[ARRAYS] = to_record(update.arrays)
    return content


def update_of(content: RecordDict) -> Update:
    """The update that a reply in clear carries."""
    metrics = {name: float(value) for name, value in content[METRICS].items() if name != EXAMPLES}
    arrays = from_record(content[ARRAYS]) if ARRAYS in content else {}
    return Update(arrays, int(content[METRICS][EXAMPLES]), metrics)


def last_line(text: str) -> str:
    """The last line of a client's error, which names it."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
