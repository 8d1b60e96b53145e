"""Dynamic int8 for linear layers: int8 weights with one scale per output, activations rounded to int8 per row while they pass through.

    y[r, o] = scale[o] * s[r] * sum_i weight[o, i] * round(x[r, i] / s[r]) + bias[o],   s[r] = max_i |x[r, i]| / 127

The sum is exact (int32 on a CPU), so a row gives the same result alone and in a batch. torch.ao.quantization does the same for nn.Linear
but is deprecated in torch 2.13, and its successor torchao is a package of its own; this needs neither.

What is quantised: every linear of the predictor, and the blocks of the tokenizer's decoder. What is not: embeddings and norms, and the
tokenizer's encoder and head: the encoder's outputs are thresholded at 0, and int8 there turned 1 % of the ids of the demo's bars over,
while int8 in the decoder moved its forecast by at most 0.006 standard deviations.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kronos.network import Kronos
from kronos.tokenizer import KronosTokenizer

_LEVELS = 127  # symmetric: -127 .. 127, zero stays zero
_SMALLEST = torch.finfo(torch.float32).tiny  # a row of zeros has scale 0, and 0 / 0 is no number


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of [N, K] to int8 and their scales [N, 1] float32: x ≈ int8 * scale, off by at most half a scale."""
    scale = (x.abs().amax(1, keepdim=True) / _LEVELS).clamp_min(_SMALLEST)
    return (x / scale).round().to(torch.int8), scale


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """int8 [N, K] times the transpose of int8 [O, K] -> float32 [N, O].

    On a CPU through int32, which loses nothing. Elsewhere in float32, whose sums are exact up to 2^24: torch's int8 kernels for GPUs refuse
    fewer than 17 rows, and generation has that few.
    """
    if a.device.type == "cpu":
        return torch._int_mm(a, b.t()).float()
    return a.float() @ b.float().t()


class Int8Linear(nn.Module):
    """What nn.Linear becomes. Buffers `weight` [O, K] int8 and `weight_scale` [O] float32, parameter `bias` [O] or None; inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if linear.weight.is_meta:  # shapes alone: torch would import its compiler (seconds, and a folder in /tmp) to work them out
            weight, scale = torch.empty_like(linear.weight, dtype=torch.int8), linear.weight.new_empty(self.out_features, 1)
        else:
            weight, scale = round_rows(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale.squeeze(1))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., O], in x's own type; sums and scales in float32."""
        rows, scale = round_rows(x.reshape(-1, x.shape[-1]).float())
        y = exact_product(rows, self.weight) * scale * self.weight_scale  # [N, O]
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def _replace(module: nn.Module, wanted: Callable[[str], bool], prefix: str = "") -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) is nn.Linear and wanted(path):
            setattr(module, name, Int8Linear(child))
        else:
            _replace(child, wanted, f"{path}.")


def quantized_predictor(model: Kronos) -> Kronos:
    """A copy in evaluation mode with every linear in int8; the original is left alone. Works on the meta device too (shapes only)."""
    model = copy.deepcopy(model).eval()
    _replace(model, lambda path: True)
    return model


def quantized_tokenizer(tokenizer: KronosTokenizer) -> KronosTokenizer:
    """A copy in evaluation mode with the linears of the decoder's blocks in int8; the original is left alone."""
    tokenizer = copy.deepcopy(tokenizer).eval()
    _replace(tokenizer, lambda path: path.startswith("decoder."))
    return tokenizer
