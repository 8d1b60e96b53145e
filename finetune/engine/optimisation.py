"""One optimiser step: autocast, accumulation without communication, exact weighting, clipping, scaling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kronos.errors import InputError

from .batches import Micro
from .distributed import World
from .randomness import reseed
from .settings import FitSettings
from .task import Outcome, Task

# buffers are constants here (rotary frequencies, powers of two); torch 2.13 renamed the switch that keeps DDP from sending them every step
_BUFFER_SWITCH = "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers"
_FEWEST_MIB, _MOST_MIB, _PIECES = 3.0, 25.0, 32  # of the gradients that ranks send together; see `_bucket_mib`
_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """Sums over all ranks' micro-batches of one step, still on the device: `sums` holds Σ w·loss, then Σ w·term for each
    name of `terms`, then Σ w, then how many ranks were asked to stop. `norm` is the gradient's norm before clipping."""

    sums: torch.Tensor
    terms: tuple[str, ...]
    norm: torch.Tensor


def autocast(settings: FitSettings, device: torch.device) -> AbstractContextManager:
    """The precision switch; off keeps whatever the parameters are."""
    if settings.amp == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AMP_TYPES[settings.amp])


class Stepper:
    """Owns the optimiser, the scaler and the DDP wrapper of a task."""

    def __init__(self, task: Task, settings: FitSettings, world: World):
        self.task, self.settings, self.world = task, settings, world
        trained = task.trained()
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        self.optimiser = _optimiser(self.parameters, settings, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=settings.amp == "fp16")
        self.skipped = self.skipped_in_a_row = 0  # steps the fp16 scaler left out because a gradient overflowed
        _check_amp(settings, world.device)
        if settings.activation_checkpointing:
            if not hasattr(trained, "activation_checkpointing"):
                raise InputError(f"activation_checkpointing is on, but {type(trained).__name__} does not support it; switch it off")
            trained.activation_checkpointing = True
        if settings.compile:
            trained.compile()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
        self.model: nn.Module = self._spread(world) if world.size > 1 else task

    def go_on(self, optimiser: dict[str, Any], scaler: dict[str, Any], skipped: int) -> None:
        """Take over the moments and the loss scale of a checkpoint; betas, weight decay and precision are those of the settings now.

        Raises InputError where another optimiser made them, or other layers were frozen.
        """
        saved, own = optimiser["param_groups"], self.optimiser.state_dict()["param_groups"]
        kinds = ["adamw" if "betas" in groups[0] else "sgd" for groups in (saved, own)]
        if kinds[0] != kinds[1]:
            raise InputError(f"the checkpoint's optimiser is {kinds[0]}, this run's {kinds[1]}: go on with the former one, or start anew")
        counts = [len(groups[0]["params"]) for groups in (saved, own)]
        if counts[0] != counts[1]:
            raise InputError(f"the checkpoint trained {counts[0]} tensors, this run {counts[1]}: freeze the same layers, or start anew")
        for group, ours in zip(saved, own, strict=True):
            group.update({name: value for name, value in ours.items() if name not in ("params", "lr")})
        self.optimiser.load_state_dict(optimiser)
        if scaler:  # empty if it was saved without fp16
            self.scaler.load_state_dict(scaler)
        self.skipped = skipped

    def step(self, micros: Sequence[tuple[Micro, dict[str, torch.Tensor]]], step: int, rate: float, stop: bool) -> StepResult:
        """Forward and backward over this rank's micro-batches, then one update at learning rate `rate`.

        Each loss is weighted by its windows over the nominal count, so that a full step needs no correction and powers of
        two cancel exactly: 2 ranks equal 1 rank with accumulation 2 to the bit. What is not full is corrected afterwards.
        """
        s, world = self.settings, self.world
        nominal = s.batch_size * s.accumulation_steps
        sums: dict[str, torch.Tensor] = {}
        weight: Any = 0.0
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for i, (micro, batch) in enumerate(micros):
            reseed(s.seed, step, micro.number)
            with self._no_sync(i + 1 < len(micros)):
                with autocast(s, world.device):
                    outcome: Outcome = self.model(batch)
                w = outcome.weight if micro.real else 0.0
                self.scaler.scale(outcome.loss * (w / nominal)).backward()
            for name, value in {"loss": outcome.loss, **outcome.terms}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * w
            weight = weight + w
        vector = torch.stack(
            [*(v for v in sums.values()), *(torch.as_tensor(v, dtype=torch.float32, device=world.device) for v in (weight, float(stop)))]
        )
        vector = world.all_sum(vector)
        norm = self._update(nominal * world.size / vector[-2])
        return StepResult(vector, tuple(n for n in sums if n != "loss"), norm)

    def _spread(self, world: World) -> DistributedDataParallel:
        """The task over all ranks. Once sent, gradients are views of the buckets, so that no second copy of them is held then.

        With accumulation there is one for a while: micro-batches that send nothing add up in tensors of their own, beside the buckets,
        until the last one's backward pass copies them there.
        """
        return DistributedDataParallel(
            self.task,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            bucket_cap_mb=_bucket_mib(self.parameters),
            gradient_as_bucket_view=True,
            **{_BUFFER_SWITCH: False},
        )

    def _no_sync(self, more_to_come: bool) -> AbstractContextManager:
        return self.model.no_sync() if more_to_come and self.world.size > 1 else nullcontext()

    def _update(self, correction: torch.Tensor) -> torch.Tensor:
        """Unscale, correct for missing windows, clip, step. Returns the gradient norm (of the corrected gradient)."""
        self.scaler.unscale_(self.optimiser)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) * correction
        if self.settings.clip_norm > 0:
            correction = correction * (self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, correction.to(grads[0].dtype))
        scale_before = self.scaler.get_scale() if self.scaler.is_enabled() else 0.0
        self.scaler.step(self.optimiser)
        self.scaler.update()
        overflowed = self.scaler.is_enabled() and self.scaler.get_scale() < scale_before
        self.skipped, self.skipped_in_a_row = self.skipped + overflowed, (self.skipped_in_a_row + 1) * overflowed
        self.optimiser.zero_grad(set_to_none=True)
        return norm


def _optimiser(parameters: list[nn.Parameter], settings: FitSettings, device: torch.device) -> torch.optim.Optimizer:
    same = dict(lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=device.type in ("cpu", "cuda"))
    return (
        torch.optim.SGD(parameters, **same) if settings.optimiser == "sgd" else torch.optim.AdamW(parameters, betas=settings.betas, **same)
    )


def _bucket_mib(parameters: list[nn.Parameter]) -> float:
    """Size of the pieces in which gradients are sent while the backward pass goes on, MiB.

    torch's 25 MiB hold all gradients of a mini model: nothing would be sent before the backward pass has ended. Much smaller pieces cost
    more in latency than they hide (docs/log.md).
    """
    total = sum(p.numel() * p.element_size() for p in parameters) / 2**20
    return min(_MOST_MIB, max(_FEWEST_MIB, total / _PIECES))


def _check_amp(settings: FitSettings, device: torch.device) -> None:
    if settings.amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"training.amp: bf16 is not supported by {torch.cuda.get_device_name(device)}; use fp16 or off")
