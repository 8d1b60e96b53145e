"""Arithmetic that PyTorch has, written so that training on a CPU is fast. Every function equals its plain counterpart (tests compare them).

One exception: on a CPU, dropout makes what it drops 0 even where that is NaN or infinite, forward and backward, since it masks bits;
PyTorch's multiplies by 0, which gives NaN. So a value that is not finite shows in the loss and the weights unless it is dropped.

Measured on one Zen 5 core, mini size, 32 x 100 tokens, forward + backward: RMS norm 4.9 -> 0.9 ms, dropout 4.7 -> 1.4 ms,
bf16 attention 35 -> 8 ms, drawing coarse tokens 49 -> 2.6 ms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_QUERIES = 64  # taken together by `causal_attention`
_PLAIN_ATTENTION_KEYS = 512  # up to here bf16 attention with its score matrix written out beats the CPU's flash kernel


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products will take `x` in: autocast's if it is on for x's device, otherwise x's own."""
    return torch.get_autocast_dtype(x.device.type) if _autocasting(x) and x.dtype != torch.float64 else x.dtype


def _autocasting(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = wide * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        product = grad * normed
        along = (product @ weight.to(product.dtype).unsqueeze(-1)).div_(-normed.shape[-1])  # [..., 1]
        grad_x = torch.addcmul(grad * weight, normed, along).mul_(scale)
        return grad_x, product.flatten(0, -2).sum(0), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension; statistics in at least float32, result in x's own type."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps).to(x.dtype)
    return torch.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _mask(x: Tensor, p: float) -> Tensor:
    """All bits set where an element of `x` is kept, none where it is dropped, int16. Made without booleans: those cost six times int16."""
    kept = 32768 - round(p * 65536)  # below it are so many of 65,536 values of 16 random bits; four decisions per 64-bit draw
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return bits.clamp_(kept - 1, kept) - kept  # a new tensor: what is saved for backward may not be a view of another type in torch.compile


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    integers = _AS_INTEGERS[x.element_size()]
    return (x.view(integers) & mask.to(integers)).view(x.dtype)


def _scale(p: float) -> float:
    return 65536 / (65536 - round(p * 65536))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        mask = _mask(x, p)
        ctx.save_for_backward(mask)
        ctx.scale = _scale(p)
        return _masked(x, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _masked(grad, ctx.saved_tensors[0]).mul_(ctx.scale), None


class _DroppedSum(torch.autograd.Function):
    """x + dropout(y), y in a type of its own."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, p: float) -> Tensor:
        mask = _mask(y, p)
        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtype = _scale(p), y.dtype
        return torch.add(x, _masked(y, mask).to(x.dtype), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, _masked((grad * ctx.scale).to(ctx.dtype), ctx.saved_tensors[0]), None


def _drops_here(x: Tensor, p: float) -> bool:
    return x.device.type == "cpu" and p < 0.99


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability p (on a CPU rounded to 1/65,536) and scale the rest to keep the mean.

    On a CPU a dropped NaN or infinity becomes 0, too, and so does its gradient; `F.dropout` makes NaN of it.
    """
    if not training or round(p * 65536) == 0:
        return x
    return _Dropout.apply(x, p) if _drops_here(x, p) else F.dropout(x, p)


def add_dropped(x: Tensor, y: Tensor, p: float, training: bool) -> Tensor:
    """x + dropout(y), in x's type, which holds y's. A dropped NaN or infinity of y is 0 on a CPU, as in `dropout`."""
    if not training or round(p * 65536) == 0:
        return x + y
    return _DroppedSum.apply(x, y, p) if _drops_here(y, p) and x.dtype.itemsize >= y.dtype.itemsize else x + F.dropout(y, p)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin, value=sign)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _turned(grad, *ctx.saved_tensors, -1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of [B, H, T, D]; cos [T, D] holds the cosines twice, sin [T, D] minus the sines, then the sines."""
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turned(x, cos, sin, 1)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, dropout_p: float = 0.0) -> Tensor:
    """Softmax attention of [B, H, Tq, D] over [B, H, Tk, D]; returns [B, H, Tq, D]."""
    reduced = q.dtype in (torch.bfloat16, torch.float16) or _autocasting(q)
    plain = q.device.type == "cpu" and torch.is_grad_enabled() and (reduced or dropout_p > 0) and k.shape[2] <= _PLAIN_ATTENTION_KEYS
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, Tq, Tk]
    if causal:
        scores += torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu_(1)
    return dropout(scores.softmax(-1), dropout_p, True) @ v


@torch.no_grad()
def causal_attention(qkv: Tensor) -> Tensor:
    """Causal attention of scaled queries over keys and values of the same places, [B, T, 3, H, D]; returns [B, T, H, D]. Without gradient.

    On a CPU 64 queries at a time over the keys up to them, scores written out: 400 places, 8 heads of 64 take 2.5 ms, torch's flash kernel
    3.8 ms on the same core.
    """
    parts = qkv.permute(2, 0, 3, 1, 4)  # [3, B, H, T, D]
    if qkv.device.type != "cpu" or qkv.dtype not in (torch.float32, torch.float64):
        return F.scaled_dot_product_attention(*parts, is_causal=True, scale=1.0).transpose(1, 2).contiguous()
    batch, length, _, heads, width = qkv.shape
    q, k, v = parts.reshape(3, batch * heads, length, width)
    mixed = qkv.new_empty(batch, length, heads, width)
    hidden = torch.full((_QUERIES, _QUERIES), float("-inf"), dtype=qkv.dtype).triu_(1)
    for first in range(0, length, _QUERIES):
        last = min(first + _QUERIES, length)
        scores = torch.bmm(q[:, first:last], k[:, :last].mT)
        scores[:, :, first:] += hidden[: last - first, : last - first]
        part = torch.bmm(scores.softmax(-1), v[:, :last])  # [B * H, 64, D]
        mixed[:, first:last] = part.unflatten(0, (batch, heads)).transpose(1, 2)
    return mixed
