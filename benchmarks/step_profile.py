"""Where a training step's time goes: torch.profiler's events, each counted once under the part of the model that it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# an event belongs to the first kind that any event around it is named after; then to its own name's kind, then to its parents'
_AROUND = (
    ("attention", ("kronos::attend",)),  # with its turns and its dropout
    ("norm", ("_RMSNorm",)),
    ("loss and drawn token", ("_CrossEntropy",)),
    ("dropout", ("_Dropout", "_DroppedSum")),
    ("rotation", ("_Rotate",)),
    ("optimiser", ("Optimizer.", "aten::_foreach", "aten::_fused_adam")),
)
_NAMES = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::linear", "aten::matmul")),
    ("attention", ("aten::bmm", "aten::_softmax", "aten::softmax", "aten::scaled_dot", "aten::_scaled_dot")),
    ("loss and drawn token", ("aten::_log_soft", "aten::log_soft", "aten::nll_loss", "aten::cumsum", "aten::searchsorted", "aten::rand")),
    ("gates", ("aten::silu",)),
    ("embeddings", ("aten::embedding", "aten::index_select")),
    ("sums of residuals, casts, copies", ("aten::add", "aten::_to_copy", "aten::copy_", "aten::clone", "aten::contiguous", "aten::cat")),
)


def profiler() -> profile:
    """One for `run_once(watch=)`."""
    return profile(activities=[ProfilerActivity.CPU], acc_events=True)


def shares(watched: profile) -> dict[str, str]:
    """Share of the main thread's time per kind, as text, largest first."""
    spent = _spent(watched.events())
    total = sum(spent.values()) or 1.0
    return {kind: f"{value / total:.1%}" for kind, value in spent.most_common()}


def _spent(events: Iterable[Any]) -> Counter[str]:
    spent: Counter[str] = Counter()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            spent[_kind(event)] += event.self_cpu_time_total
    return spent


def _kind(event: Any) -> str:
    chain = []
    while event is not None:
        chain.append(event.name)
        event = event.cpu_parent
    for kind, starts in _AROUND:
        if any(name.startswith(starts) for name in chain):
            return kind
    for name in chain:
        for kind, starts in _NAMES:
            if name.startswith(starts):
                return kind
    return "other"
