"""Attention with its score matrix written out, for training on a CPU: up to 512 keys that beats PyTorch's flash kernel there.

One operation for queries, keys, values, their turns and dropout, with a backward pass of its own: a tensor per head is made once and kept,
where autograd copies it before each product; and torch.compile takes it as it is, whose own kernels for it are slower.
"""

import torch
from torch import Tensor

from kronos.dropping import keep_mask, kept_scale, masked
from kronos.rotation import Rotation, turned


def attend(q: Tensor, k: Tensor, v: Tensor, rotation: Rotation | None, heads: int, causal: bool, dropout_p: float) -> Tensor:
    """Softmax attention of [B, Tq, H * D] over [B, Tk, H * D]; returns [B, Tq, H * D]. rotation: as `kronos.rotation.rotate` takes it."""
    cos, sin = rotation or (None, None)
    return _attend(q, k, v, cos, sin, heads, causal, dropout_p)[0]


@torch.library.custom_op("kronos::attend", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _attend(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, causal: bool, p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward pass needs: turned and scaled queries, turned keys, values [B * H, T, D], shares, mask."""
    batch = len(q)
    q, k, v = (_by_head(x, heads) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    if cos is None:
        q *= scale
    else:
        q, k = turned(q, cos * scale, sin * scale, 1), turned(k, cos, sin, 1)
    scores = torch.bmm(q, k.mT)
    if causal:
        scores += torch.full(scores.shape[1:], float("-inf"), dtype=scores.dtype).triu_(1)
    shares = scores.softmax(-1)
    mask = keep_mask(shares, p) if p else torch.empty(0, dtype=torch.int16)
    mixed = torch.bmm(masked(shares, mask), v).mul_(kept_scale(p)) if p else torch.bmm(shares, v)
    return _together(mixed, batch), q, k, v, shares, mask


@torch.library.custom_op("kronos::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shares: Tensor,
    mask: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, [B, T, H * D]."""
    batch, scale = len(grad), q.shape[-1] ** -0.5
    own = _by_head(grad, len(q) // batch)
    if p:
        own *= kept_scale(p)
        of_v = torch.bmm(masked(shares, mask).mT, own)
        of_shares = masked(torch.bmm(own, v.mT), mask)
    else:
        of_v, of_shares = torch.bmm(shares.mT, own), torch.bmm(own, v.mT)
    of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
    of_q, of_k = torch.bmm(of_scores, k), torch.bmm(of_scores.mT, q)
    if cos is None:
        of_q *= scale
    else:
        of_q, of_k = turned(of_q, cos * scale, sin * scale, -1), turned(of_k, cos, sin, -1)
    return _together(of_q, batch), _together(of_k, batch), _together(of_v, batch)


@_attend.register_fake
def _(q, k, v, cos, sin, heads, causal, p):
    batch, queries, width = q.shape
    own = [x.new_empty(batch * heads, x.shape[1], width // heads) for x in (q, k, v)]
    shares = (batch * heads, queries, k.shape[1])
    return q.new_empty(q.shape), *own, q.new_empty(shares), q.new_empty(shares if p else (0,), dtype=torch.int16)


@_attend_backward.register_fake
def _(grad, q, k, v, shares, mask, cos, sin, p):
    return tuple(x.new_empty(len(grad), x.shape[1], grad.shape[-1]) for x in (q, k, v))


def _keep(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *inputs[3:5])
    ctx.p = inputs[-1]


def _backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    found = (None,) * 3 if grad is None else _attend_backward(grad, *ctx.saved_tensors, ctx.p)
    return *found, None, None, None, None, None


_attend.register_autograd(_backward, setup_context=_keep)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, T, H * D] -> a new [B * H, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(0, 1)


def _together(x: Tensor, batch: int) -> Tensor:
    """[B * H, T, D] -> [B, T, H * D]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
