"""Layers shared by the tokenizer and the predictor: RMS norm, rotary positions, attention, gated feed-forward, pre-norm block.

Parameter and buffer names are those of the published checkpoints. The published numbers are reproduced to 1e-5 in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kronos import ops
from kronos.dropping import add_dropped, dropout
from kronos.rotation import Rotation


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (arXiv 1910.07467); statistics in at least float32, float64 stays float64."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim], in the type the following matrix product takes (one cast instead of one per projection)."""
        return ops.rms_norm(x, self.weight, self.eps, ops.autocast_dtype(x))


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864), base 10000, half-split pairs. Holds the frequencies only: tables are made per forward,
    because a table kept from an earlier call breaks as soon as the module moves to another device."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # on the CPU wherever the module is made: on "meta", where sizes are checked, torch would import its compiler for a division
        self.register_buffer("inv_freq", self._frequencies(torch.device("cpu")).to(torch.get_default_device()))

    def _frequencies(self, device: torch.device) -> Tensor:
        return 1.0 / (10000 ** (torch.arange(0, self.dim, 2, device=device).float() / self.dim))

    def table(self, length: int, dtype: torch.dtype) -> Rotation:
        """Turns for positions 0 .. length - 1, in the type that queries and keys will have."""
        frequencies = self.inv_freq
        if (
            torch.finfo(frequencies.dtype).bits < 32
        ):  # a module turned to half precision: rounded, they would be a radian off at position 500
            frequencies = self._frequencies(frequencies.device)
        angles = torch.outer(torch.arange(length, device=frequencies.device, dtype=frequencies.dtype), frequencies)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


class Dropout(nn.Dropout):
    """nn.Dropout, faster on a CPU; with `onto`, a tensor of x's shape, their sum."""

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        return dropout(x, self.p, self.training) if onto is None else add_dropped(onto, x, self.p, self.training)


class Attention(nn.Module):
    """Multi-head attention. Self- and cross-attention are the same thing here: `forward(x, x, ...)` or `forward(query, source, ...)`."""

    def __init__(self, d_model: int, n_heads: int, attn_dropout_p: float, resid_dropout_p: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.rotary = Rotary(d_model // n_heads)
        self.attn_dropout_p = attn_dropout_p
        self.resid_dropout = Dropout(resid_dropout_p)

    def forward(self, x: Tensor, source: Tensor, rotation: Rotation | None, causal: bool, onto: Tensor | None = None) -> Tensor:
        """Let `x` [B, Tq, d] look at `source` [B, Tk, d], queries and keys turned by `rotation` if given; returns [B, Tq, d].

        onto: what the result is added to, of its shape.
        """
        return self.look(self.q_proj(x), source, rotation, causal, onto)

    def look(self, queries: Tensor, source: Tensor, rotation: Rotation | None, causal: bool, onto: Tensor | None = None) -> Tensor:
        """`forward` from what `q_proj` makes of x."""
        dropout_p = self.attn_dropout_p if self.training else 0.0
        k, v = self.k_proj(source), self.v_proj(source)
        mixed = ops.attention(queries, k, v, rotation, heads=self.n_heads, causal=causal, dropout_p=dropout_p)
        return self.resid_dropout(self.out_proj(mixed), onto)


class FeedForward(nn.Module):
    """SwiGLU feed-forward (arXiv 2002.05202): w2(silu(w1 x) * w3 x), no biases."""

    def __init__(self, d_model: int, ff_dim: int, ffn_dropout_p: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, ff_dim, bias=False)
        self.w3 = nn.Linear(d_model, ff_dim, bias=False)
        self.w2 = nn.Linear(ff_dim, d_model, bias=False)
        self.ffn_dropout = Dropout(ffn_dropout_p)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """[..., d] -> [..., d], added to `onto` if given."""
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)), onto)


class Block(nn.Module):
    """Pre-norm transformer block, causal."""

    def __init__(
        self, d_model: int, n_heads: int, ff_dim: int, ffn_dropout_p: float, attn_dropout_p: float, resid_dropout_p: float
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(d_model)
        self.self_attn = Attention(d_model, n_heads, attn_dropout_p, resid_dropout_p)
        self.norm2 = RMSNorm(d_model)
        self.ffn = FeedForward(d_model, ff_dim, ffn_dropout_p)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        seen = self.norm1(x)
        x = self.self_attn(seen, seen, rotation, causal=True, onto=x)
        return self.ffn(self.norm2(x), onto=x)


def run_blocks(blocks: nn.ModuleList, x: Tensor, *, recompute: bool) -> Tensor:
    """Run blocks over [B, T, d], with one rotary table for all.

    `recompute` keeps only the input of each block and computes the rest again in the backward pass.
    """
    if len(blocks) == 0:
        return x
    x = x.to(blocks[0].norm1.weight.dtype)  # under autocast the residual sum stays in float32
    rotation = blocks[0].self_attn.rotary.table(x.shape[1], ops.autocast_dtype(x))
    for block in blocks:
        x = checkpoint(block, x, rotation, use_reentrant=False) if recompute else block(x, rotation)
    return x
