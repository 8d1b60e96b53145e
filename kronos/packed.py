"""Tokenizer and predictor with their weights laid out for inference: what generation computes with.

Projections that read the same input are one product, the embeddings of a token pair are summed from two tables that the fusion layer has
already passed through, and the coarse token's query comes straight from a table. The numbers are the modules' own up to rounding. Nothing
here trains, drops out or notices later changes of the modules: pack again after a change (`KronosPredictor` does so by itself).
"""

import math

import torch
from torch import Tensor, nn

from kronos.dense import Dense, Weights, dense, gate, stacked, weights_of
from kronos.layers import Attention, Block, RMSNorm, Rotary, Rotation
from kronos.network import STAMP_SIZES, Kronos
from kronos.tokenizer import KronosTokenizer


class Norm:
    """RMS norm of rows without its weight and without the root of their width: both go into the layer that reads it (`folded`)."""

    def __init__(self, norm: RMSNorm, dtype: torch.dtype) -> None:
        width = norm.weight.numel()
        self.gain = norm.weight.detach() * width**0.5
        self.wide = torch.promote_types(dtype, torch.float32)
        self.floor = torch.tensor((norm.eps * width) ** 0.5, dtype=self.wide, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """x / sqrt(|x|² + width * eps): three operations, where torch.rms_norm takes six on a CPU."""
        return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.wide).hypot_(self.floor)).to(x.dtype)


def _dense(*linears: nn.Module, dtype: torch.dtype) -> Dense:
    return dense(_typed(stacked(*map(weights_of, linears)), dtype))


def _typed(weights: Weights, dtype: torch.dtype) -> Weights:
    """In the type that activations have; int8 weights and what belongs to them stay."""
    return weights if weights.scale is not None else Weights(*(None if part is None else part.to(dtype) for part in weights))


def _queries(attention: Attention) -> Weights:
    """The query projection with the softmax scale in it."""
    return weights_of(attention.q_proj).times((attention.q_proj.in_features // attention.n_heads) ** -0.5)


class PackedBlock:
    """One transformer block."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention = block.self_attn
        self.heads, self.rotary = attention.n_heads, attention.rotary
        self.norm1, self.norm2 = Norm(block.norm1, dtype), Norm(block.norm2, dtype)
        projections = stacked(_queries(attention), weights_of(attention.k_proj), weights_of(attention.v_proj))
        self.projections = dense(_typed(projections, dtype))
        self.out = _dense(attention.out_proj, dtype=dtype)
        self.gate = gate(*(_typed(weights_of(w), dtype) for w in (block.ffn.w1, block.ffn.w3)))
        self.w2 = _dense(block.ffn.w2, dtype=dtype)

    def queries_keys_values(self, x: Tensor, turn: Rotation, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [B * T, d] -> scaled and turned queries, turned keys, values, each [B, T, H, D]. turn: [T, 1, 1, D] or [B, T, 1, 1, D]."""
        parts = self.projections(self.norm1(x)).view(batch, -1, 3, self.heads, x.shape[1] // self.heads)
        both, (cos, sin) = parts[:, :, :2], turn
        turned = (both * cos).addcmul_(both.roll(both.shape[-1] // 2, -1), sin)  # as `ops.rotate`
        return turned[:, :, 0], turned[:, :, 1], parts[:, :, 2]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Rows [N, d] before the block and what attention made of the values [N, d] -> rows after the block."""
        x = self.out.onto(mixed, x)
        return self.w2.onto(self.gate(self.norm2(x)), x)


class PackedPredictor:
    """The predictor. dtype: of weights and activations (default: the model's own)."""

    def __init__(self, model: Kronos, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype = dtype or model.norm.weight.dtype
        self.blocks = [PackedBlock(block, dtype) for block in model.transformer]
        self.norm, self.fine_norm = Norm(model.norm, dtype), Norm(model.dep_layer.norm, dtype)
        cross = model.dep_layer.cross_attn
        self.heads, self.keys_values = cross.n_heads, _dense(cross.k_proj, cross.v_proj, dtype=dtype)
        self.out = _dense(cross.out_proj, dtype=dtype)
        self.coarse_head, self.fine_head = (_dense(head, dtype=dtype) for head in (model.head.proj_s1, model.head.proj_s2))
        self.clock_tables = [getattr(model.time_emb, f"{name}_embed").weight.detach() for name in STAMP_SIZES]
        with torch.no_grad():
            self._make_tables(model)

    def _make_tables(self, model: Kronos) -> None:
        """What a coarse and a fine id add to the input, [V1, d] and [V2, d], and the query of a coarse id, [V1, d]."""
        embedding, fusion = model.embedding, weights_of(model.embedding.fusion_proj)
        s1, s2 = (table.weight.detach() for table in (embedding.emb_s1, embedding.emb_s2))
        for_s1, for_s2 = (fusion.floating() * math.sqrt(s1.shape[1])).to(s1.dtype).chunk(2, 1)
        self.s1_table = (s1 @ for_s1.t() + fusion.bias).to(self.dtype)
        self.s2_table = (s2 @ for_s2.t()).to(self.dtype)
        self.query_table = dense(_queries(model.dep_layer.cross_attn))(s1).to(self.dtype)

    def clock(self, stamps: Tensor) -> Tensor:
        """Stamps [..., 5] int64 -> their embedding [..., d]."""
        parts = [table[column] for table, column in zip(self.clock_tables, stamps.unbind(-1), strict=True)]
        return sum(parts[1:], parts[0]).to(self.dtype)

    def embed(self, s1: Tensor, s2: Tensor, clock: Tensor) -> Tensor:
        """Ids [...] int64 each and embedded stamps, [..., d] when broadcast -> [..., d]."""
        return (self.s1_table[s1] + self.s2_table[s2]).add_(clock)


class PackedTokenizer:
    """The tokenizer: bars to ids, and ids to what the decoder reads; the decoder's blocks and head for `generation.decode_paths`."""

    def __init__(self, tokenizer: KronosTokenizer) -> None:
        dtype = tokenizer.head.weight.dtype
        self.quantizer = tokenizer.tokenizer
        self.encoder, self.decoder = ([PackedBlock(block, dtype) for block in blocks] for blocks in (tokenizer.encoder, tokenizer.decoder))
        self.embed, self.quantised = _dense(tokenizer.embed, dtype=dtype), _dense(tokenizer.quant_embed, dtype=dtype)
        self.read, self.head = _dense(tokenizer.post_quant_embed, dtype=dtype), _dense(tokenizer.head, dtype=dtype)
        self.dtype = dtype

    def vectors_of(self, ids: tuple[Tensor, Tensor]) -> Tensor:
        """Coarse and fine ids [...] -> what the decoder reads, [..., d]."""
        codes = self.quantizer.codes(ids, True, self.dtype)
        return self.read(codes.flatten(0, -2)).unflatten(0, codes.shape[:-1])


def rotary_of(blocks: list[PackedBlock]) -> Rotary | None:
    """The rotary positions that all of them share; None without blocks."""
    return blocks[0].rotary if blocks else None
