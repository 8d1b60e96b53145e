"""Ranks: plain `python` is a world of one, torchrun is a world of many, and the rest of the engine asks only here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kronos.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is. `device` is where its model lives."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; a world of one changes nothing."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and give its (picklable, small) result to every rank; its InputError is raised on all of them,
        so that none waits for one that has ended."""
        if self.size == 1:
            return work()
        told: list[Any] = [None, None]
        if self.is_main:
            try:
                told[0] = work()
            except InputError as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, device=self.device if self.device.type == "cuda" else None)
        if told[1] is not None:
            raise InputError(told[1])
        return told[0]


def pick_device(use_cuda: bool = True, device_id: int = 0, name: str = "auto") -> str:
    """Name of the device to train on: `name` itself, or for "auto" CUDA, else MPS, else CPU.

    Raises InputError if a device is asked for that is not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", device_id))
    if name == "auto":
        if use_cuda and torch.cuda.is_available():
            return f"cuda:{_existing_gpu(local_rank)}"
        return "mps" if use_cuda and torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise InputError(f"device: '{name}' was asked for, but torch {torch.__version__} sees no CUDA device here; use 'auto' or 'cpu'")
        return name if ":" in name else f"cuda:{_existing_gpu(local_rank)}"
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: 'mps' was asked for, but it is not available here; use 'auto' or 'cpu'")
    return name


def _existing_gpu(index: int) -> int:
    count = torch.cuda.device_count()
    if index >= count:
        raise InputError(
            f"device: GPU {index} was asked for, but there are {count}; use --nproc_per_node={count} or device.device_id below {count}"
        )
    return index


@contextmanager
def world(device: str = "cpu", backend: str | None = None, timeout_s: float = 1800) -> Iterator[World]:
    """Join the process group that torchrun announces through the environment, if any, and leave it at the end.

    backend: nccl or gloo; None takes DIST_BACKEND's meaning from the configuration layer: nccl on CUDA, gloo elsewhere.
    """
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield World(device=place)
        return
    backend = backend or ("nccl" if place.type == "cuda" else "gloo")
    if backend == "nccl" and place.type != "cuda":
        backend = "gloo"  # nccl moves CUDA tensors only
    owner = not dist.is_initialized()
    if owner:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), place)
    finally:
        if owner:
            dist.destroy_process_group()
