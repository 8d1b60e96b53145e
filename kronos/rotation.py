"""The turns of rotary positions (`kronos.layers.Rotary` makes their tables), by fewer operations than their definition has."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each [T, head size], as `rotate` takes them


def turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """`rotate` without gradient; back again with sign -1."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin, value=sign)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return turned(grad, *ctx.saved_tensors, -1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of [B, H, T, D]; cos [T, D] holds the cosines twice, sin [T, D] minus the sines, then the sines."""
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else turned(x, cos, sin, 1)
