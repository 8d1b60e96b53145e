"""A node's bars: where they are, and what of them the node owns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from federated.partitions import Partition, cut, only, partition
from federated.settings import Settings, absolute_paths, names
from federated.task import Node
from finetune.data.panel import Panel
from kronos.errors import InputError


def paths_of(node: Node, default: Sequence[str]) -> tuple[str, ...]:
    """Where the node's bars are: its own data-path, or what all nodes were told."""
    return tuple(absolute_paths(node.data_path) or default)


def partitions_of(settings: Settings, panel: Panel, node: Node, run: int) -> list[Partition]:
    """All partitions of the bars; a node takes the one of its number."""
    return partition(
        panel,
        settings.partitions,
        settings.num_clients or node.partitions,
        alpha=settings.dirichlet_alpha,
        seed=settings.seed,
        run=run,
    )


def own_panel(settings: Settings, panel: Panel, node: Node, run: int) -> tuple[str, Panel]:
    """Name and bars of the node's partition. run: of partitions=iid, see `partitions.Deal`. Raises InputError if it has none."""
    panel = only(panel, names(settings.symbols), names(settings.periods))
    parts = partitions_of(settings, panel, node, run)
    number = 0 if settings.partitions == "node" else node.partition
    if number >= len(parts):
        raise InputError(f"there are {len(parts)} partitions and this node is number {node.partition}, counted from 0")
    if not parts[number].rows:
        raise InputError("no bars")
    return parts[number].name, cut(panel, parts[number])


def group_count(settings: Settings, panel: Panel) -> int:
    """How many clients there are if num-clients does not say: one per group (dirichlet, iid: per series)."""
    panel = only(panel, names(settings.symbols), names(settings.periods))
    how = settings.partitions
    return panel.n_series if how in ("dirichlet", "iid") else len(partition(panel, how, settings.num_clients))


def stamps(paths: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Tell files and folders that were written anew: part of the key that a process keeps a panel under."""
    return tuple(_stamp(Path(path)) for path in paths)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
