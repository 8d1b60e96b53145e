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

from .errors import LostRank

T = TypeVar("T")
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")  # torch has no class for a rank that is gone


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


@contextmanager
def world(
    device: str = "cpu", backend: str | None = None, timeout_s: float = 1800, *, again: str = "The same command with --resume"
) -> Iterator[World]:
    """Join the process group that torchrun announces through the environment, if any, and leave it at the end.

    backend: nccl or gloo; None takes DIST_BACKEND's meaning from the configuration layer: nccl on CUDA, gloo elsewhere.
    timeout_s: longest wait for another rank. again: what goes on from the last checkpoint, for a message. Raises LostRank if a rank has
    ended, or takes longer.
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
    try:
        if owner:
            _join(backend, timedelta(seconds=timeout_s))
        yield World(dist.get_rank(), dist.get_world_size(), place)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)):
            raise
        raise LostRank(
            f"another process of this training has ended, or did not answer for {timeout_s:g} s (distributed.timeout_s); this one ends "
            f"without saving ({str(error).strip().splitlines()[0][:200]}). {again} goes on from the last checkpoint"
        ) from error
    finally:
        if owner and dist.is_initialized():
            dist.destroy_process_group()


def _join(backend: str, timeout: timedelta) -> None:
    """`init_process_group` by the environment, with keys of this attempt alone in torchrun's store.

    torch 2.13's torchrun keeps one store over its restarts: restarted ranks would find the addresses of the killed ones there, and be
    refused by them, or wait for ever.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=timeout)
