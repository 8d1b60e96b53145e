"""The one hot place of the Temporal Fusion Transformer: a gated residual network for each scalar variable, and the weighted sum of them.

Over nine tenths of a plain implementation's time is here: one small network per variable at every row of every window. Three things
make it cheap on a CPU, all exact. The map of a scalar to a vector is folded into the first layer (u·x + v). A few hundred rows are
taken at a time, so that everything between reading x and adding to the result stays in the cache. Nothing of it is kept for the
backward pass, which computes it again: that is less work than writing it to memory and reading it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-5  # of layer norm
_LOG2E = 1.4426950408889634
_CHUNK_VALUES = 1 << 18  # of one intermediate [F, C, d]: 1 MiB of float32


class BankWeights(NamedTuple):
    """A network per variable j, of a scalar x: LN_j(p_j x + q_j + GLU_j(dropout(W1_j ELU(u_j x + v_j) + b1_j))).

    `w1`, `b1` are None where no dropout stands between the two linear layers and they were multiplied into one.
    """

    u: Tensor  # [F, i]
    v: Tensor
    p: Tensor  # [F, d]; q gamma beta alike
    q: Tensor
    w1: Tensor | None  # [F, i, i], input by output
    b1: Tensor | None  # [F, i]
    value: Tensor  # [F, i, d]
    value_bias: Tensor  # [F, d]
    gate: Tensor
    gate_bias: Tensor
    gamma: Tensor
    beta: Tensor


def bank_sum(x: Tensor, weights: Tensor, bank: BankWeights, dropout: float = 0.0) -> Tensor:
    """Σ_j weights_j · network_j(x_j). x, weights [R, F]; returns [R, d]. dropout: probability, 0 outside training."""
    assert dropout == 0 or bank.w1 is not None
    if x.device.type != "cpu":
        return _plain(x, weights, bank, dropout)
    with torch.autocast("cpu", enabled=False):
        kind = bank.value.dtype
        return _BankSum.apply(x.to(kind), weights.to(kind), dropout, *bank)


def _plain(x: Tensor, weights: Tensor, bank: BankWeights, dropout: float) -> Tensor:
    """The same in PyTorch's own operations: for accelerators, and what the tests hold the other against."""
    a = F.elu(torch.addcmul(bank.v, x.unsqueeze(-1), bank.u)).transpose(0, 1)  # [F, R, d]
    if bank.w1 is not None:
        a = F.dropout(torch.baddbmm(bank.b1.unsqueeze(1), a, bank.w1), dropout, dropout > 0)
    value = torch.baddbmm(bank.value_bias.unsqueeze(1), a, bank.value)
    gated = value * torch.sigmoid(torch.baddbmm(bank.gate_bias.unsqueeze(1), a, bank.gate))
    z = gated.transpose(0, 1) + torch.addcmul(bank.q, x.unsqueeze(-1), bank.p)  # [R, F, d]
    normed = F.layer_norm(z, z.shape[-1:], eps=EPS)
    return (normed * bank.gamma + bank.beta).mul(weights.unsqueeze(-1)).sum(1)


class _Inner(NamedTuple):
    """What a chunk's forward pass leaves for its backward pass, [F, C, i] or [F, C, d] but for the last."""

    a: Tensor  # ELU + 1
    hidden: Tensor  # what the gated linear unit takes
    value: Tensor
    sigmoid: Tensor
    centred: Tensor  # gated value plus skip, less its mean
    scale: Tensor  # [F, C, 1]: one over its standard deviation


class _BankSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, dropout: float, *tensors: Tensor | None) -> Tensor:
        bank = BankWeights(*tensors)
        kept = torch.empty(x.numel() * bank.u.shape[1] if dropout else 0, dtype=torch.int8)
        out = x.new_empty(len(x), bank.p.shape[1])
        for part, place in _chunks(len(x), bank):
            if dropout:
                _draw(kept[place], dropout)
            inner = _forward(x[part].t().contiguous(), bank, kept[place], dropout)
            c = weights[part].t().contiguous()  # [F, C]
            out[part] = (inner.centred * (inner.scale * c.unsqueeze(-1))).mul_(bank.gamma.unsqueeze(1)).sum(0).addmm_(c.t(), bank.beta)
        ctx.save_for_backward(x, weights, kept, *tensors)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, kept, *tensors = ctx.saved_tensors
        bank = BankWeights(*tensors)
        sums = BankWeights(*[None if t is None else torch.zeros_like(t) for t in bank])
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.empty_like(weights)
        for part, place in _chunks(len(x), bank):
            columns, c = x[part].t().contiguous(), weights[part].t().contiguous()
            inner = _forward(columns, bank, kept[place], ctx.dropout)
            grad_z, grad_weights[part] = _from_sum(grad[part], c, inner, bank, sums)
            grad_pre = _through_network(grad_z, inner, bank, sums, kept[place], ctx.dropout)
            both = torch.stack((columns, torch.ones_like(columns)), 1)  # [F, 2, C]
            for of_slope, of_shift, g in ((sums.p, sums.q, grad_z), (sums.u, sums.v, grad_pre)):
                summed = torch.bmm(both, g)  # [F, 2, d]
                of_slope += summed[:, 0]
                of_shift += summed[:, 1]
            if grad_x is not None:
                slope = torch.bmm(grad_z, bank.p.unsqueeze(-1)) + torch.bmm(grad_pre, bank.u.unsqueeze(-1))
                grad_x[part] = slope.squeeze(-1).t()
        return (grad_x, grad_weights, None, *sums)


def _chunks(rows: int, bank: BankWeights) -> Iterator[tuple[slice, slice]]:
    """Rows taken together, and where their values lie in a flat array of all of them."""
    width = bank.u.numel()  # F · i
    size = min(1024, max(64, _CHUNK_VALUES // bank.p.numel()))
    for first in range(0, rows, size):
        last = min(first + size, rows)
        yield slice(first, last), slice(first * width, last * width)


def _draw(kept: Tensor, dropout: float) -> None:
    """Fill a mask with 0 and 1, 16 random bits for each. Whole numbers throughout: bool takes six times as long to write or read."""
    draws = torch.empty((kept.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept.copy_(draws.view(torch.int16)[: kept.numel()].ge_(round(dropout * 65536) - 32768))


def _masked(values: Tensor, kept: Tensor, dropout: float) -> Tensor:
    """Drop in place, and scale the rest to keep the mean."""
    return values.mul_(kept.view(values.shape).to(values.dtype).mul_(65536 / (65536 - round(dropout * 65536))))


def _forward(x: Tensor, bank: BankWeights, kept: Tensor, dropout: float) -> _Inner:
    """A chunk x [F, C] up to the layer norm."""
    pre = torch.addcmul(bank.v.unsqueeze(1), x.unsqueeze(-1), bank.u.unsqueeze(1))
    a = pre.clamp(max=0).mul_(_LOG2E).exp2_().add_(pre.clamp_(min=0))  # ELU + 1: exp2 takes a fifth of exp's time, and of expm1's
    hidden = a
    if bank.w1 is not None:
        hidden = torch.baddbmm((bank.b1 - bank.w1.sum(1)).unsqueeze(1), a, bank.w1)
        if dropout:
            _masked(hidden, kept, dropout)
    value_bias, gate_bias = bank.value_bias, bank.gate_bias
    if bank.w1 is None:
        value_bias, gate_bias = value_bias - bank.value.sum(1), gate_bias - bank.gate.sum(1)
    value = torch.baddbmm(value_bias.unsqueeze(1), hidden, bank.value)
    sigmoid = torch.baddbmm(gate_bias.unsqueeze(1), hidden, bank.gate).sigmoid_()
    z = torch.addcmul(bank.q.unsqueeze(1), x.unsqueeze(-1), bank.p.unsqueeze(1)).addcmul_(value, sigmoid)
    mean = z.new_full((z.shape[-1],), 1 / z.shape[-1])
    z.sub_((z @ mean).unsqueeze(-1))
    scale = ((z * z) @ mean).add_(EPS).rsqrt_().unsqueeze(-1)
    return _Inner(a, hidden, value, sigmoid, z, scale)


def _from_sum(grad: Tensor, c: Tensor, inner: _Inner, bank: BankWeights, sums: BankWeights) -> tuple[Tensor, Tensor]:
    """Back through the weighted sum and the layer norm. grad [C, d], c [F, C]; gradients of z [F, C, d] and of the weights [C, F]."""
    product = inner.centred * grad  # [F, C, d]
    grad_c = torch.bmm(product, bank.gamma.unsqueeze(-1)).mul_(inner.scale).squeeze(-1).t() + grad @ bank.beta.t()
    sums.gamma.add_(torch.bmm((c * inner.scale.squeeze(-1)).unsqueeze(1), product).squeeze(1))
    sums.beta.addmm_(c, grad)
    of_normed = torch.mul(grad, bank.gamma.unsqueeze(1), out=product)
    zero = torch.zeros_like(inner.scale)
    shape = [grad.shape[-1]]
    back = torch.ops.aten.native_layer_norm_backward(of_normed, inner.centred, shape, zero, inner.scale, None, None, [True, False, False])
    return back[0].mul_(c.unsqueeze(-1)), grad_c


def _through_network(grad: Tensor, inner: _Inner, bank: BankWeights, sums: BankWeights, kept: Tensor, dropout: float) -> Tensor:
    """Back from z [F, C, d] to the first layer's sum u·x + v [F, C, i]. Adds to `sums` what belongs to the weights between."""
    of_value = grad * inner.sigmoid
    of_gate = of_value * inner.value
    of_gate.addcmul_(of_gate, inner.sigmoid, value=-1)
    shifted = bank.w1 is None
    _add_linear(sums.value, sums.value_bias, inner.hidden, of_value, shifted)
    _add_linear(sums.gate, sums.gate_bias, inner.hidden, of_gate, shifted)
    of_hidden = torch.bmm(of_value, bank.value.mT).baddbmm_(of_gate, bank.gate.mT)
    if bank.w1 is not None:
        if dropout:
            _masked(of_hidden, kept, dropout)
        _add_linear(sums.w1, sums.b1, inner.a, of_hidden, True)
        of_hidden = torch.bmm(of_hidden, bank.w1.mT)
    return of_hidden.mul_(inner.a.clamp(max=1))  # ELU's slope


def _add_linear(weight: Tensor, bias: Tensor, taken: Tensor, grad: Tensor, shifted: bool) -> None:
    """Add a linear layer's gradients; shifted: `taken` is what the layer takes plus 1, as ELU is kept."""
    of_bias = grad.sum(1)
    weight.baddbmm_(taken.mT, grad)
    if shifted:
        weight.sub_(of_bias.unsqueeze(1))
    bias += of_bias
