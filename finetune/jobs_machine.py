"""What this machine has to train with: GPUs, cores, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from finetune.engine.devices import may_have_gpu

GIB = 2**30
_LEAST_DISK_GIB, _LEAST_MEMORY_GIB = 5.0, 2.0


@dataclass(frozen=True)
class Machine:
    """gpus: as CUDA_VISIBLE_DEVICES takes them. gpu_gib: memory of the smallest."""

    gpus: tuple[str, ...]
    gpu_gib: float
    cores: int
    memory_gib: float  # available now

    @property
    def shown(self) -> str:
        gpus = f"{len(self.gpus)} GPUs of {self.gpu_gib:.0f} GiB" if self.gpus else "no GPU"
        return f"{gpus}, {self.cores} cores, {self.memory_gib:.1f} GiB memory available"


def this_machine() -> Machine:
    """GPUs that CUDA_VISIBLE_DEVICES allows, cores that this process may use."""
    count, smallest = _gpus()
    allowed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    gpus = tuple(allowed[:count]) if allowed else tuple(map(str, range(count)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(gpus, smallest / GIB, cores, psutil.virtual_memory().available / GIB)


def _gpus() -> tuple[int, int]:
    """How many GPUs torch sees, and the bytes of the smallest's memory."""
    if not may_have_gpu():
        return 0, 0
    import torch  # more than a second, which a plan on a machine without a GPU need not wait for

    count = torch.cuda.device_count()
    return count, min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0)


def free_gib(folder: str | Path) -> float:
    """Free space on the disk that holds `folder`, which need not be there yet."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / GIB


def checks(machine: Machine, folder: str | Path) -> Iterator[tuple[bool, str]]:
    """(fine?, what was found) of everything that training needs."""
    import torch

    version = platform.python_version()
    yield sys.version_info >= (3, 10), f"Python {version}"
    yield True, f"torch {torch.__version__}" + (f" with CUDA {torch.version.cuda}" if torch.version.cuda else " without CUDA")
    if machine.gpus:
        name = torch.cuda.get_device_name(0)
        yield True, f"{len(machine.gpus)} GPU{'s' if len(machine.gpus) > 1 else ''} ({name}, {machine.gpu_gib:.0f} GiB)"
    else:
        yield (
            True,
            (
                f"no GPU: training runs on {machine.cores} CPU cores, which is slow for published sizes; Kronos-mini, a short --stage, "
                "or --set training.epochs=3 data.window_stride=8 make it bearable"
            ),
        )
    yield machine.memory_gib >= _LEAST_MEMORY_GIB, f"{machine.memory_gib:.1f} GiB memory available"
    free = free_gib(folder)
    yield free >= _LEAST_DISK_GIB, f"{free:.1f} GiB free on the disk of {Path(folder).absolute()}"
