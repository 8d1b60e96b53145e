"""From an epoch's order to micro-batches on the device, prepared ahead by a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from .distributed import World
from .settings import FitSettings
from .windows import Source, epoch_order

T = TypeVar("T")


class Micro(NamedTuple):
    """One forward pass of this rank. `share` is the part of a full micro-batch that is real: 0 marks a filler."""

    index: np.ndarray  # int64 [b]
    number: int  # global micro-batch = accumulation index × world + rank; the random numbers are drawn by it
    real: bool


class Plan(NamedTuple):
    """Sizes of an epoch."""

    per_epoch: int  # windows
    effective_batch: int  # windows per optimiser step
    steps: int  # optimiser steps of a whole epoch


def plan_epoch(source: Source, settings: FitSettings, world: World) -> Plan:
    per_epoch = settings.n_train_iter or len(source)
    effective = settings.batch_size * settings.accumulation_steps * world.size
    return Plan(per_epoch, effective, -(-per_epoch // effective))


def step_micros(source: Source, settings: FitSettings, world: World, epoch: int, first: int, last: int) -> list[Micro]:
    """This rank's micro-batches for the optimiser step that takes positions first..last-1 of the epoch.

    The step's windows are dealt in slices of batch_size; the last slices of an epoch may be short or empty. A rank whose
    slices are all empty still runs one filler window of weight 0, because the other ranks wait for its gradients.
    """
    order = epoch_order(source, plan_epoch(source, settings, world).per_epoch, epoch, settings.seed, first, last)
    size, micros = settings.batch_size, []
    for accumulation in range(settings.accumulation_steps):
        number = accumulation * world.size + world.rank
        piece = order[number * size : (number + 1) * size]
        if len(piece):
            micros.append(Micro(piece, number, True))
    return micros or [Micro(order[:1], world.rank, False)]


def prepared(items: Iterable[T], prepare: Callable[[T], object], threads: int) -> Iterator[tuple[T, object]]:
    """(item, prepare(item)) in order, with up to threads + 1 of them prepared ahead; 0 threads prepares in the caller."""
    if threads <= 0:
        for item in items:
            yield item, prepare(item)
        return
    waiting: deque[tuple[T, Future]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(prepare, item)))
                if len(waiting) > threads + 1:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:  # the consumer stopped early: nothing more is started
            for _, future in waiting:
                future.cancel()


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a batch; from pinned memory and without waiting where the device is CUDA."""
    if device.type != "cuda":
        return {k: v.to(device) for k, v in batch.items()}
    return {k: v if v.is_cuda else v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
