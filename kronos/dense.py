"""Matrix products of a fixed weight, in the form that is fastest where it runs: what generation uses in place of nn.Linear.

- oneDNN with the weight reordered once (CPU). On one Zen 5 core and against F.linear (MKL), float32, 512 -> 1536: a row 50 µs either way,
  4 rows 45 against 250 µs, 20 rows 140 against 750 µs, 400 rows 2.6 against 6 ms. And a row gives the same bits whatever other rows are
  beside it (MKL below 4 rows does not), so that a series gets the same forecast alone and in a batch.
- the same with a bfloat16 weight, half the memory to read: a row 30 µs, 400 rows 1.3 ms.
- int8 (`kronos.int8`, CPU): a row 9 µs and as much again for rounding the activations, 400 rows 0.7 ms.
- F.linear everywhere else.

All take rows [N, K] and give [N, O], in float32 unless activations themselves are of another type.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos.int8 import Int8Linear, exact_product, round_rows

_ROWS_HINT = 32  # rows that oneDNN shall choose a layout for; on the machines tried every value gave the same


class Numbers(NamedTuple):
    """The types of activations, and of the weights that products read: None (the same), "bfloat16" or "int8".

    plain: products by F.linear everywhere; torch.compile cannot read reordered weights.
    """

    activations: torch.dtype
    products: str | None = None
    plain: bool = False


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


class _Int8Dense(Dense):
    """The numbers of `Int8Linear`, in fewer operations: at one row the call of an operation costs more than its work."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.scale = weights.scale
        self.smallest = torch.tensor(torch.finfo(torch.float32).tiny, device=weights.weight.device)  # a row of zeros: 0 / 0 is no number

    def __call__(self, x: Tensor) -> Tensor:
        scale = torch.add(self.smallest, x.abs().amax(1, keepdim=True), alpha=1 / 127)
        y = exact_product((x / scale).round_().to(torch.int8), self.weight).mul_(scale).mul_(self.scale)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)


class _ReorderedDense(Dense):
    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weights.weight.contiguous(), _ROWS_HINT)
        self._linear = torch.ops.mkldnn._linear_pointwise.default  # looking up an overload costs as much as a small operation
        self._linear_with = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x, self.weight, self.bias, "none", [], "")

    def onto(self, x: Tensor, base: Tensor) -> Tensor:
        return self._linear_with(x, base, self.weight, self.bias, "add")


class _BfloatDense(_ReorderedDense):
    """A bfloat16 weight; what goes in and out is float32."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.bfloat16()).float()

    def onto(self, x: Tensor, base: Tensor) -> Tensor:
        return base + super().__call__(x.bfloat16())


def reorders(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN takes weights of this kind (the operators are those that torch.compile freezes linears into)."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _rounded(weights: Weights, numbers: Numbers) -> Weights:
    """The weights as `numbers` wants them; int8 ones stay int8."""
    if weights.scale is not None:
        return weights
    if numbers.products == "int8":
        weight, scale = round_rows(weights.weight.float())
        return Weights(weight, scale.squeeze(1), weights.bias)
    wanted = torch.bfloat16 if numbers.products == "bfloat16" else numbers.activations
    return Weights(weights.weight.to(wanted), None, None if weights.bias is None else weights.bias.to(wanted))


def dense(weights: Weights, numbers: Numbers) -> Dense:
    """The product with these weights, in its fastest form."""
    weights = _rounded(weights, numbers)
    if weights.scale is not None:
        return _Int8Dense(weights)
    if numbers.plain or not reorders(weights.weight.device, weights.weight.dtype):
        return Dense(weights)
    return (_BfloatDense if numbers.products == "bfloat16" else _ReorderedDense)(weights)
