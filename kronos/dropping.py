"""Dropout for training on a CPU: bits of what is dropped are masked.

What is dropped becomes 0 even where it is NaN or infinite, forward and backward; PyTorch's dropout multiplies by 0, which gives NaN.
So a value that is not finite shows in the loss and the weights unless it is dropped. Elsewhere this is PyTorch's.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _random_words(like: Tensor) -> Tensor:
    """Random int64, 16 bits for each element of `like`, by numpy's SFC64: twice as fast as torch's own generator, which seeds it."""
    seed = torch.empty((), dtype=torch.int64).random_().item()
    return torch.from_numpy(np.random.SFC64(seed).random_raw((like.numel() + 3) // 4).view(np.int64))


# One operation of its own, so that torch.compile neither stops at it nor draws with another generator. It takes the tensor, not its size:
# two calls with equal arguments would be made one, and two layers drop the same places.
_compiled_words = torch.library.custom_op("kronos::random_words", _random_words, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))


@_compiled_words.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty((like.numel() + 3) // 4, dtype=torch.int64)


def keep_mask(x: Tensor, p: float) -> Tensor:
    """All bits set where an element of `x` is kept, none where it is dropped, int16. Made without booleans: those cost six times int16."""
    kept = 32768 - round(p * 65536)  # below it are so many of 65,536 values of 16 random bits
    words = (_compiled_words if torch.compiler.is_compiling() else _random_words)(x.detach())
    # a new tensor: what is saved for backward may not be a view of another type in torch.compile
    return words.view(torch.int16)[: x.numel()].view(x.shape).clamp_(kept - 1, kept) - kept


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where a mask of `keep_mask` keeps it, 0 elsewhere; not scaled."""
    integers = _AS_INTEGERS[x.element_size()]
    return (x.view(integers) & mask.to(integers)).view(x.dtype)


def kept_scale(p: float) -> float:
    """What is kept is multiplied by this, to keep the mean."""
    return 65536 / (65536 - round(p * 65536))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        mask = keep_mask(x, p)
        ctx.save_for_backward(mask)
        ctx.scale = kept_scale(p)
        return masked(x, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.saved_tensors[0]).mul_(ctx.scale), None


class _DroppedSum(torch.autograd.Function):
    """x + dropout(y), y in a type of its own."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, p: float) -> Tensor:
        mask = keep_mask(y, p)
        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtype = kept_scale(p), y.dtype
        return torch.add(x, masked(y, mask).to(x.dtype), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, masked((grad * ctx.scale).to(ctx.dtype), ctx.saved_tensors[0]), None


def drops_any(p: float) -> bool:
    """Whether a probability is more than 0 once rounded to 1/65,536."""
    return round(p * 65536) > 0


def drops_here(x: Tensor, p: float) -> bool:
    """Whether what is dropped of `x` is dropped by these masks: on a CPU, unless nearly everything is."""
    return x.device.type == "cpu" and p < 0.99


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability p (on a CPU rounded to 1/65,536) and scale the rest to keep the mean.

    On a CPU a dropped NaN or infinity becomes 0, too, and so does its gradient; `F.dropout` makes NaN of it.
    """
    if not training or not drops_any(p):
        return x
    return _Dropout.apply(x, p) if drops_here(x, p) else F.dropout(x, p)


def add_dropped(x: Tensor, y: Tensor, p: float, training: bool) -> Tensor:
    """x + dropout(y), in x's type, which holds y's. A dropped NaN or infinity of y is 0 on a CPU, as in `dropout`."""
    if not training or not drops_any(p):
        return x + y
    return _DroppedSum.apply(x, y, p) if drops_here(y, p) and x.dtype.itemsize >= y.dtype.itemsize else x + F.dropout(y, p)
