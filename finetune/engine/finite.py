"""Numbers that are not finite: which windows they come from, in words, and never in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from kronos.errors import InputError

from .distributed import World
from .windows import Source

_NAMED = 8  # windows of each micro-batch
_FIX = "Lower the learning rate, check these bars for extreme values, or use amp: off"


def suspects(source: Source, groups: Sequence[np.ndarray], world: World) -> str:
    """Symbols and times of windows that lead to a number that is not finite, of all ranks: those whose bars are not finite, if any.

    groups: indices into `source`, one array per micro-batch of this rank. Every rank must call this at the same place.
    """
    known = [source.describe(index[bad][:_NAMED]) for index in groups if (bad := _bad(source, index)).any()]
    found: list[Any] = [(bool(known), known or [source.describe(index[:_NAMED]) for index in groups])]
    if world.size > 1:
        everyone: list[Any] = [None] * world.size
        dist.all_gather_object(everyone, found[0])
        found = everyone
    culprits = [told for sure, told in found if sure]
    windows = "; ".join(text for told in (culprits or [told for _, told in found]) for group in told for text in group)
    return f"These windows hold bars that are not finite: {windows}" if culprits else f"Its windows ({_NAMED} per micro-batch): {windows}"


def non_finite_step(step: int, loss: float, norm: float, windows: str) -> InputError:
    """The error of a training step. windows: from `suspects`."""
    what = "loss" if not np.isfinite(loss) else "gradient"
    return InputError(
        f"step {step}: the {what} is not finite (loss {loss:g}, gradient norm {norm:g}); nothing was saved over the last checkpoint. "
        f"{windows}. {_FIX}"
    )


def non_finite_weights(module: nn.Module) -> str:
    """Name of the first weight that is not finite, or an empty string. One wait for the accelerator."""
    weights = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    if not weights or bool(torch.stack([value.isfinite().all() for value in weights.values()]).all()):
        return ""
    return next(name for name, value in weights.items() if not value.isfinite().all())


def weights_error(step: int, name: str, windows: str) -> InputError:
    """The error of weights that must not be saved. name: from `non_finite_weights`. windows: of the last step, from `suspects`."""
    return InputError(
        f"step {step}: the weight {name} is not finite after it; nothing was saved over the last checkpoint. {windows}. {_FIX}"
    )


def overflows(skipped: int, steps: int) -> str:
    """Steps of a run that fp16 left out, in words, if any. Raises InputError where it was all of them: nothing was learned."""
    if skipped and skipped == steps:
        raise InputError(
            f"fp16 gradients overflowed in every one of the {steps} steps: no weight has changed, and the best model holds those that "
            "training began with; use amp: bf16 or off, or train for longer (each such step halves the scale)"
        )
    return f"fp16 gradients overflowed in {skipped} of {steps} steps, which changed nothing" if skipped else ""


def _bad(source: Source, index: np.ndarray) -> np.ndarray:
    """Which windows hold a bar that is not finite. bool [len(index)]"""
    floats = [value for value in source.gather(index).values() if value.is_floating_point()]
    bad = np.zeros(len(index), bool)
    for value in floats:
        bad |= ~value.flatten(1).isfinite().all(1).cpu().numpy() if value.ndim > 1 else ~value.isfinite().cpu().numpy()
    return bad
