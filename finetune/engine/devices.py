"""Which device to train on. Torch is asked only where a GPU may be there: on any other machine a plan need not wait for its import."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path

from kronos.errors import InputError


def may_have_gpu() -> bool:
    """False only where it is certain that torch sees no GPU. What is loaded already is always asked."""
    return "torch" in sys.modules or has_driver()


@lru_cache(maxsize=1)
def has_driver() -> bool:
    """Whether NVIDIA's driver library or AMD's device is there, without which torch finds no GPU on Linux; elsewhere True."""
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def pick_device(use_cuda: bool = True, device_id: int = 0, name: str = "auto") -> str:
    """Name of the device to train on: `name` itself, or for "auto" CUDA, else MPS, else CPU.

    Raises InputError if a device is asked for that is not there.
    """
    if name == "cpu" or (name == "auto" and not (use_cuda and may_have_gpu())):
        return "cpu"
    import torch

    local_rank = int(os.environ.get("LOCAL_RANK", device_id))
    if name == "auto":
        if torch.cuda.is_available():
            return f"cuda:{_existing_gpu(local_rank)}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise InputError(f"device: '{name}' was asked for, but torch {torch.__version__} sees no CUDA device here; use 'auto' or 'cpu'")
        return name if ":" in name else f"cuda:{_existing_gpu(local_rank)}"
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: 'mps' was asked for, but it is not available here; use 'auto' or 'cpu'")
    return name


def _existing_gpu(index: int) -> int:
    import torch

    count = torch.cuda.device_count()
    if index >= count:
        raise InputError(
            f"device: GPU {index} was asked for, but there are {count}; use --nproc_per_node={count} or device.device_id below {count}"
        )
    return index
