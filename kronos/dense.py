"""Matrix products of a fixed weight, in the form that is fastest where it runs: what generation uses in place of nn.Linear.

- oneDNN with the weight reordered once (CPU, float32 and bfloat16). On one Zen 5 core and against F.linear (MKL), 512 -> 1536: a row 50 µs
  either way, 4 rows 45 against 250 µs, 20 rows 140 against 750 µs, 400 rows 2.6 against 6 ms. And a row gives the same bits whatever
  other rows are beside it (MKL below 4 rows does not), so that a series gets the same forecast alone and in a batch.
- int8 (`kronos.int8`, CPU): a row 20 µs, of which 8 are the rounding of the activations.
- F.linear everywhere else.

All take rows [N, K] and give [N, O].
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos.int8 import Int8Linear, exact_product, round_rows

_ROWS_HINT = 32  # rows that oneDNN shall choose a layout for; on the machines tried every value gave the same


class Weights(NamedTuple):
    """The weight of one linear layer, or of several that read the same input, one below the other."""

    weight: Tensor  # [O, K], floating, or int8 with `scale`
    scale: Tensor | None  # [O]
    bias: Tensor | None  # [O]

    def times(self, factor: float) -> "Weights":
        """The same layer with outputs `factor` times as large."""
        bias = None if self.bias is None else self.bias * factor
        return Weights(self.weight, self.scale * factor, bias) if self.scale is not None else Weights(self.weight * factor, None, bias)

    def floating(self) -> Tensor:
        """The weight as floating numbers, [O, K]."""
        return self.weight if self.scale is None else self.weight * self.scale[:, None]


def weights_of(linear: nn.Module) -> Weights:
    """Of an nn.Linear or an Int8Linear; detached."""
    scale = linear.weight_scale if isinstance(linear, Int8Linear) else None
    return Weights(linear.weight.detach(), scale, None if linear.bias is None else linear.bias.detach())


def stacked(*parts: Weights) -> Weights:
    """Several layers as one whose outputs lie side by side. They are of one kind: all int8 or none, all with a bias or none."""
    columns = zip(*parts, strict=True)
    return Weights(*(None if column[0] is None else torch.cat(column) for column in columns))


class Dense:
    """y = x W^T + b."""

    def __init__(self, weights: Weights) -> None:
        self.weight, self.bias = weights.weight, weights.bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def onto(self, x: Tensor, base: Tensor) -> Tensor:
        """base + x W^T + b; `base` [N, O] stays as it is."""
        return base + self(x)


class Gate:
    """silu(x W1^T) * (x W3^T)."""

    def __init__(self, w1: Weights, w3: Weights) -> None:
        self.both = dense(stacked(w1, w3))

    def __call__(self, x: Tensor) -> Tensor:
        opened, passed = self.both(x).chunk(2, -1)
        return F.silu(opened).mul_(passed)


class _Int8Dense(Dense):
    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.scale = weights.scale

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = round_rows(x.float())
        y = exact_product(rows, self.weight).mul_(scale).mul_(self.scale)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)


class _ReorderedDense(Dense):
    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weights.weight.contiguous(), _ROWS_HINT)
        self._linear = torch.ops.mkldnn._linear_pointwise.default  # looking up an overload costs as much as a small operation
        self._linear_with = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x, self.weight, self.bias, "none", [], "")

    def opened(self, x: Tensor) -> Tensor:
        """silu(x W^T + b)."""
        return self._linear(x, self.weight, self.bias, "swish", [], "")

    def onto(self, x: Tensor, base: Tensor) -> Tensor:
        return self._linear_with(x, base, self.weight, self.bias, "add")

    def gating(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other."""
        return self._linear_with(x, other, self.weight, self.bias, "mul")


class _ReorderedGate(Gate):
    def __init__(self, w1: Weights, w3: Weights) -> None:
        self.first, self.second = _ReorderedDense(w1), _ReorderedDense(w3)

    def __call__(self, x: Tensor) -> Tensor:
        return self.second.gating(x, self.first.opened(x))


def _reorders(weight: Tensor) -> bool:
    """Whether oneDNN takes this weight (the operators are those that torch.compile freezes linears into)."""
    known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
    if not known or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def dense(weights: Weights) -> Dense:
    """The product with these weights, fastest form."""
    if weights.scale is not None:
        return _Int8Dense(weights)
    return _ReorderedDense(weights) if _reorders(weights.weight) else Dense(weights)


def gate(w1: Weights, w3: Weights) -> Gate:
    """The gate of two layers without biases, fastest form."""
    return _ReorderedGate(w1, w3) if w1.scale is None and _reorders(w1.weight) else Gate(w1, w3)
