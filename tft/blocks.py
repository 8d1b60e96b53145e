"""Building blocks of the Temporal Fusion Transformer (Lim et al. 2019, arXiv 1912.09363); numbers in brackets are its equations.

Dropout stands where the paper has it: before every gate, nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos.layers import Dropout

from .ops import BankWeights, bank_sum


class GatedLinear(nn.Module):
    """GLU (5): σ(W4 γ + b4) ⊙ (W5 γ + b5), dropout on γ first. [..., width_in] -> [..., width_out]."""

    def __init__(self, width_in: int, width_out: int, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.both = nn.Linear(width_in, 2 * width_out)  # value, then gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        (value, gate), (value_bias, gate_bias) = self.both.weight.chunk(2), self.both.bias.chunk(2)
        return F.linear(x, value, value_bias) * torch.sigmoid(F.linear(x, gate, gate_bias))  # F.glu is slow on narrow halves


class GatedSkip(nn.Module):
    """LayerNorm(skip + GLU(x)), as around the LSTM (17), the attention (20) and the feed-forward layer (22). [..., width] both."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.gate, self.norm = GatedLinear(width, width, dropout), nn.LayerNorm(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(skip + self.gate(x))


class GatedResidual(nn.Module):
    """GRN (2)-(4): LayerNorm(a + GLU(W1 ELU(W2 a + W3 c + b2) + b1)); `a` goes through a linear layer where widths differ.

    The context c enters without a bias. forward: a [..., width_in], context [..., width_context] (broadcast over a) -> [..., width_out].
    """

    def __init__(self, width_in: int, hidden: int, width_out: int, dropout: float, width_context: int = 0):
        super().__init__()
        self.first, self.second = nn.Linear(width_in, hidden), nn.Linear(hidden, hidden)
        self.context = nn.Linear(width_context, hidden, bias=False) if width_context else None
        self.skip = nn.Linear(width_in, width_out) if width_in != width_out else nn.Identity()
        self.gate, self.norm = GatedLinear(hidden, width_out, dropout), nn.LayerNorm(width_out)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        first = self.first(a)
        if self.context is not None and context is not None:
            first = first + self.context(context)
        return self.finish(first, self.skip(a))

    def finish(self, first: Tensor, skip: Tensor) -> Tensor:
        """From the first layer's sum [..., hidden] and the skip [..., width_out] on."""
        return self.norm(skip + self.gate(self.second(F.elu(first))))


class Embeddings(nn.Module):
    """What turns a variable into a vector: a real one by a linear map of its own (x·scale + shift), a categorical one by a table.

    Past and known selection share those of the known variables. Code 0 of a table means "unknown" and is an ordinary entry.
    """

    def __init__(self, reals: int, width_real: int, categories: Sequence[int], width: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.empty(reals, width_real)), nn.Parameter(torch.empty(reals, width_real))
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in categories)
        for parameter in (self.scale, self.shift):
            nn.init.uniform_(parameter, -1, 1)  # nn.Linear's own bounds for a single input


class RealBank(nn.Module):
    """A GRN without context for each real variable (7), weights stacked; the scalar's map is folded into its first layer.

    Inside it is no wider than its input: in the paper both are `hidden`, a smaller width of real variables makes it cheaper throughout.
    """

    def __init__(self, count: int, width_in: int, hidden: int, dropout: float):
        super().__init__()
        self.width_in, self.hidden, self.dropout = width_in, hidden, dropout
        inner = min(width_in, hidden)
        self.first, self.first_bias = _stacked(count, width_in, inner)
        self.second, self.second_bias = _stacked(count, inner, inner)
        self.value, self.value_bias = _stacked(count, inner, hidden)
        self.gate, self.gate_bias = _stacked(count, inner, hidden)
        if width_in != hidden:
            self.skip, self.skip_bias = _stacked(count, width_in, hidden)
        self.gamma, self.beta = nn.Parameter(torch.ones(count, hidden)), nn.Parameter(torch.zeros(count, hidden))

    def forward(self, x: Tensor, weights: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Σ_j weights_j GRN_j(x_j scale_j + shift_j) (8). x, weights [R, F], scale, shift [F, width_in] -> [R, hidden]."""
        dropout = self.dropout if self.training else 0.0
        with torch.autocast(x.device.type, enabled=False):  # small products of parameters: no place to lose digits
            p, q = scale, shift
            if self.width_in != self.hidden:
                p, q = _each(scale, self.skip), _each(shift, self.skip) + self.skip_bias
            second, second_bias = (self.second, self.second_bias) if dropout else (None, None)
            linear = [self.value, self.value_bias, self.gate, self.gate_bias]
            if not dropout:  # nothing stands between the two linear layers: one
                linear = [
                    part
                    for weight, bias in ((self.value, self.value_bias), (self.gate, self.gate_bias))
                    for part in (torch.bmm(self.second, weight), _each(self.second_bias, weight) + bias)
                ]
            u, v = _each(scale, self.first), _each(shift, self.first) + self.first_bias
            bank = BankWeights(u, v, p, q, second, second_bias, *linear, self.gamma, self.beta)
        return bank_sum(x, weights, bank, dropout)


def _stacked(count: int, width_in: int, width_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [count, width_in, width_out] and biases [count, width_out], drawn as nn.Linear draws its own."""
    bound = width_in**-0.5
    return tuple(nn.Parameter(torch.empty(count, *shape).uniform_(-bound, bound)) for shape in ((width_in, width_out), (width_out,)))


def _each(x: Tensor, weight: Tensor) -> Tensor:
    """x_j W_j for every j: [F, i], [F, i, o] -> [F, o]."""
    return torch.bmm(x.unsqueeze(1), weight).squeeze(1)


class VariableSelection(nn.Module):
    """Weights over variables by a GRN of all of them and the static context (6), and the weighted sum of a GRN of each (7), (8).

    It sees a single row at a time, so overlapping windows may share its result. The skip of the weighting GRN is always linear.
    """

    def __init__(self, reals: int, width_real: int, categories: int, hidden: int, dropout: float, context: bool):
        super().__init__()
        self.reals, self.hidden = reals, hidden
        self.count = reals + categories
        width_all = reals * width_real + categories * hidden
        self.weigh = GatedResidual(width_all, hidden, self.count, dropout, hidden if context else 0)
        if isinstance(self.weigh.skip, nn.Identity):
            self.weigh.skip = nn.Linear(width_all, self.count)
        self.bank = RealBank(reals, width_real, hidden, dropout) if reals else None
        self.each = nn.ModuleList(GatedResidual(hidden, hidden, hidden, dropout) for _ in range(categories))

    def forward(
        self, x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor, tables: Sequence[nn.Embedding], context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [R, reals], codes int64 [R, categories], context [R, hidden] -> selected [R, hidden], weights [R, reals + categories]."""
        weights = self._weights(x, codes, scale, shift, tables, context).softmax(-1)
        parts = [self.bank(x, weights[:, : self.reals], scale, shift)] if self.bank is not None else []
        for j, (network, table) in enumerate(zip(self.each, tables, strict=True)):
            code = codes[:, j]
            if (self.training and network.gate.dropout.p > 0) or len(code) < table.num_embeddings:
                transformed = network(table(code))
            else:
                transformed = F.embedding(code, network(table.weight))  # a variable's result depends on its code alone
            parts.append(transformed * weights[:, self.reals + j, None])
        return sum(parts[1:], parts[0]), weights

    def _weights(self, x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor, tables: Sequence[nn.Embedding], c: Tensor | None) -> Tensor:
        """The weighting GRN up to its softmax, every variable's map folded into first layer and skip."""
        first = self._linear(self.weigh.first, x, codes, scale, shift, tables)
        if c is not None:
            first = first + self.weigh.context(c)
        return self.weigh.finish(first, self._linear(self.weigh.skip, x, codes, scale, shift, tables))

    def _linear(self, layer: nn.Linear, x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor, tables: Sequence[nn.Embedding]) -> Tensor:
        """`layer` of all variables' vectors laid side by side, without making them: [R, out]."""
        wide = self.reals * scale.shape[1]
        real = layer.weight[:, :wide].unflatten(1, scale.shape)  # [out, F, width_real]
        out = F.linear(x, (real * scale).sum(-1), layer.bias + (real * shift).sum((-1, -2)))
        for j, table in enumerate(tables):
            weight = layer.weight[:, wide + j * self.hidden : wide + (j + 1) * self.hidden]
            out = out + F.embedding(codes[:, j], F.linear(table.weight, weight))
        return out


class InterpretableAttention(nn.Module):
    """Multi-head attention whose heads share their values (13)-(16): the mean of the heads' weights is what was looked at.

    Queries and keys have a head of their own each, of width hidden / heads. With few queries the keys are never made: (q W_K^T) meets the
    source itself, and the values' matrix comes after the weighted mean. Both are the same sums in another order.
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads, self.width = heads, hidden // heads
        self.query, self.key = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.value, self.out = nn.Linear(hidden, self.width, bias=False), nn.Linear(self.width, hidden, bias=False)

    def forward(self, source: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """The last `queries` rows of source [B, N, hidden] look at it, none at a row later than itself.

        Returns [B, P, hidden] and the weights [B, P, N].
        """
        n = source.shape[1]
        asked = self.query(source[:, n - queries :]).unflatten(-1, (self.heads, self.width))  # [B, P, H, D]
        by_head = self.key.weight.unflatten(0, (self.heads, self.width)).to(asked.dtype)  # [H, D, hidden]
        turned = torch.einsum("bphd,hdi->bphi", asked * self.width**-0.5, by_head)  # [B, P, H, hidden]
        scores = (turned.flatten(1, 2) @ source.mT).unflatten(1, (queries, self.heads))  # [B, P, H, N]
        if queries > 1:
            later = torch.ones(queries, n, dtype=torch.bool, device=source.device).triu_(n - queries + 1)
            scores = scores.masked_fill(later.unsqueeze(1), float("-inf"))
        weights = scores.softmax(-1).mean(2)  # [B, P, N]
        return self.out(self.value(weights @ source)), weights
