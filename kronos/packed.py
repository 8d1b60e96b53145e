"""Tokenizer and predictor with their weights laid out for inference: what generation computes with.

Projections that read the same input are one product, the embeddings of a token pair are summed from two tables that the fusion layer has
already passed through, and the coarse token's query comes straight from a table. The numbers are the modules' own up to rounding. Nothing
here trains, drops out or notices later changes of the modules: pack again after a change (`KronosPredictor` does so by itself).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kronos.dense import Numbers, Weights, dense, stacked, weights_of
from kronos.layers import Attention, Block, RMSNorm, Rotary, Rotation
from kronos.network import STAMP_SIZES, Kronos
from kronos.tokenizer import KronosTokenizer


class Norm:
    """RMS norm of rows. With `folded` it leaves out the norm's weight: the layers that read it carry it (`_reading`)."""

    def __init__(self, norm: RMSNorm, dtype: torch.dtype, *, folded: bool) -> None:
        width = norm.weight.numel()
        self.wide = torch.promote_types(dtype, torch.float32)
        self.gain = None if folded else (norm.weight.detach() * width**0.5).to(dtype)
        self.floor = torch.tensor(norm.eps * width, dtype=self.wide, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """x / sqrt(|x|² + width * eps), and unless folded times sqrt(width) * weight. Half the operations of torch.rms_norm on a CPU."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.wide)
        y = (x * torch.addcmul(self.floor, size, size).rsqrt_()).to(x.dtype)
        return y if self.gain is None else y * self.gain


def _reading(weights: Weights, norm: RMSNorm) -> Weights:
    """A layer that takes what a folded norm gives. int8 weights are rounded already and stay as they are: their norm is not folded."""
    if weights.scale is not None:
        return weights
    return weights._replace(weight=weights.weight * (norm.weight.detach() * norm.weight.numel() ** 0.5))


def _queries(attention: Attention) -> Weights:
    """The query projection with the softmax scale in it."""
    return weights_of(attention.q_proj).times((attention.q_proj.in_features // attention.n_heads) ** -0.5)


class PackedBlock:
    """One transformer block."""

    def __init__(self, block: Block, numbers: Numbers) -> None:
        attention, ffn = block.self_attn, block.ffn
        self.heads, self.rotary = attention.n_heads, attention.rotary
        projections = stacked(_queries(attention), weights_of(attention.k_proj), weights_of(attention.v_proj))
        self.norm1 = Norm(block.norm1, numbers.activations, folded=projections.scale is None)
        self.projections = dense(_reading(projections, block.norm1), numbers)
        self.out, self.w2 = dense(weights_of(attention.out_proj), numbers), dense(weights_of(ffn.w2), numbers)
        gates = stacked(weights_of(ffn.w1), weights_of(ffn.w3))
        self.norm2 = Norm(block.norm2, numbers.activations, folded=gates.scale is None)
        self.gates = dense(_reading(gates, block.norm2), numbers)

    def queries_keys_values(self, x: Tensor, turn: Rotation) -> Tensor:
        """Rows [N, d] -> scaled and turned queries, turned keys, values, [N, 3, H, D]. turn: `turns` of the first rows' places; repeats."""
        parts = self.projections(self.norm1(x)).view(-1, turn[0].shape[0], 3, self.heads, x.shape[1] // self.heads)
        both = parts[:, :, :2]
        swapped = both.roll(both.shape[-1] // 2, -1)
        both.mul_(turn[0]).addcmul_(swapped, turn[1])  # as `rotation.rotate`, in place
        return parts.flatten(0, 1)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Rows [N, d] before the block and what attention made of the values [N, d] -> rows after the block."""
        x = self.out.onto(mixed, x)
        opened, passed = self.gates(self.norm2(x)).chunk(2, -1)
        return self.w2.onto(F.silu(opened).mul_(passed), x)


def turns(rotary: Rotary, length: int, dtype: torch.dtype) -> Rotation:
    """Turns of queries and keys for places 0 .. length - 1, [length, 1, 1, D] each."""
    return tuple(part[:, None, None] for part in rotary.table(length, dtype))


class PackedPredictor:
    """The predictor. numbers: types of activations and weights (default: the model's own)."""

    def __init__(self, model: Kronos, numbers: Numbers | None = None) -> None:
        numbers = numbers or Numbers(model.norm.weight.dtype)
        self.dtype = numbers.activations
        self.blocks = [PackedBlock(block, numbers) for block in model.transformer]
        cross, fine = model.dep_layer.cross_attn, weights_of(model.head.proj_s2)
        self.norm = Norm(model.norm, self.dtype, folded=False)
        self.fine_norm = Norm(model.dep_layer.norm, self.dtype, folded=fine.scale is None)
        self.heads, self.keys_values = cross.n_heads, dense(stacked(weights_of(cross.k_proj), weights_of(cross.v_proj)), numbers)
        self.out, self.coarse_head = dense(weights_of(cross.out_proj), numbers), dense(weights_of(model.head.proj_s1), numbers)
        self.fine_head = dense(_reading(fine, model.dep_layer.norm), numbers)
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
        self.query_table = dense(_queries(model.dep_layer.cross_attn), Numbers(s1.dtype))(s1).to(self.dtype)

    def compile(self, backend: str) -> None:
        """Hand what surrounds attention in the blocks to torch.compile; attention itself grows with every step and stays outside."""
        for block in self.blocks:
            block.finish = torch.compile(block.finish, dynamic=True, backend=backend)
            block.queries_keys_values = torch.compile(block.queries_keys_values, dynamic=True, backend=backend)

    def clock(self, stamps: Tensor) -> Tensor:
        """Stamps [..., 5] int64 -> their embedding [..., d]."""
        parts = [table[column] for table, column in zip(self.clock_tables, stamps.unbind(-1), strict=True)]
        return sum(parts[1:], parts[0]).to(self.dtype)

    def embed(self, s1: Tensor, s2: Tensor, clock: Tensor) -> Tensor:
        """Ids [...] int64 each and embedded stamps, [..., d] when broadcast -> [..., d]."""
        return F.embedding(s1, self.s1_table).add_(F.embedding(s2, self.s2_table)).add_(clock)


class PackedTokenizer:
    """The tokenizer: bars to ids, and ids to what the decoder reads; the decoder's blocks and head for `generation.decode_paths`."""

    def __init__(self, tokenizer: KronosTokenizer, numbers: Numbers | None = None) -> None:
        """numbers: of the decoder's blocks. The rest keeps its own: the encoder's outputs are cut at 0, where rounding flips ids."""
        self.dtype = tokenizer.head.weight.dtype
        own = Numbers(self.dtype)
        self.quantizer = tokenizer.tokenizer
        self.encoder = [PackedBlock(block, own) for block in tokenizer.encoder]
        self.decoder = [PackedBlock(block, numbers or own) for block in tokenizer.decoder]
        layers = (tokenizer.embed, tokenizer.quant_embed, tokenizer.post_quant_embed, tokenizer.head)
        self.embed, self.quantised, self.read, self.head = (dense(weights_of(layer), own) for layer in layers)

    def vectors_of(self, ids: tuple[Tensor, Tensor]) -> Tensor:
        """Coarse and fine ids [...] -> what the decoder reads, [..., d]."""
        codes = self.quantizer.codes(ids, True, self.dtype)
        return self.read(codes.flatten(0, -2)).unflatten(0, codes.shape[:-1])


def rotary_of(blocks: list[PackedBlock]) -> Rotary | None:
    """The rotary positions that all of them share; None without blocks."""
    return blocks[0].rotary if blocks else None
