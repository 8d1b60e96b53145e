"""Key-value caches for generation: a prefix computed once per series and shared by its samples, and a suffix per sample.

Shapes: B series, S samples, P prefix tokens, n new tokens per sample, H heads, D head size. New tokens of all samples lie on one axis
of length S * n, sample by sample, so that one product serves all samples of a series.
A step computes little, so half its time would go into calling: modules are called by their `forward`, bound once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos import ops
from kronos.layers import Attention, Block, Rotation
from kronos.network import Kronos


class Memory:
    """Keys and values of one attention layer. A single sample keeps its new tokens behind the prefix in one tensor."""

    def __init__(self, k: Tensor, v: Tensor, bias: Tensor | None, samples: int, capacity: int) -> None:
        """Prefix keys and values [B, H, P, D]; `bias` [B, 1, 1, P] hides padding; room for `capacity` new tokens per sample."""
        self.k, self.v, self.bias, self.samples, self.size, self.filled = k, v, bias, samples, k.shape[2], 0
        if samples == 1:
            self.k, self.v = (F.pad(old, (0, 0, 0, capacity)) for old in (k, v))  # [B, H, P + capacity, D]
            self.bias = None if bias is None else F.pad(bias, (0, capacity))
        else:
            self.k, self.v = k.contiguous(), v.contiguous()  # else every later product would copy them
            self.new_k, self.new_v = (old.new_empty(*old.shape[:2], samples, capacity, old.shape[3]) for old in (k, v))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add the keys and values of new tokens, [B, H, S * n, D]."""
        n = k.shape[2] // self.samples
        if self.samples == 1:
            place = self.size + self.filled
            self.k[:, :, place : place + n] = k
            self.v[:, :, place : place + n] = v
        else:
            self.new_k[:, :, :, self.filled : self.filled + n] = k.unflatten(2, (self.samples, n))
            self.new_v[:, :, :, self.filled : self.filled + n] = v.unflatten(2, (self.samples, n))
        self.filled += n

    def attend(self, q: Tensor) -> Tensor:
        """Queries [B, H, S * n, D] of the last n tokens over everything up to each of them -> [B, H, S * n, D]."""
        q = q * q.shape[-1] ** -0.5
        if self.samples > 1 and self.filled > 0:
            return self._attend_apart(q)
        seen = self.size + self.filled if self.samples == 1 else self.size
        scores = q @ self.k[:, :, :seen].transpose(-1, -2)  # [B, H, n, seen]
        if self.bias is not None:
            scores += self.bias[..., :seen]
        if self.samples == 1 and q.shape[2] > 1:
            scores += _hide_later(scores, seen)
        return scores.softmax(-1) @ self.v[:, :, :seen]

    def _attend_apart(self, q: Tensor) -> Tensor:
        """Shared prefix and each sample's own tokens: two products, one softmax."""
        n = q.shape[2] // self.samples
        shared = q @ self.k.transpose(-1, -2)  # [B, H, S * n, P]
        if self.bias is not None:
            shared += self.bias
        new_k, new_v = self.new_k[:, :, :, : self.filled], self.new_v[:, :, :, : self.filled]
        own = q.unflatten(2, (self.samples, n)) @ new_k.transpose(-1, -2)  # [B, H, S, n, filled]
        if n > 1:
            own += _hide_later(own, self.filled)
        old, new = torch.cat((shared, own.flatten(2, 3)), -1).softmax(-1).split((self.size, self.filled), -1)
        return old @ self.v + (new.unflatten(2, (self.samples, n)) @ new_v).flatten(2, 3)


def _hide_later(scores: Tensor, seen: int) -> Tensor:
    """[n, seen]: -inf where a key comes after the query; the queries are the last n of `seen` tokens."""
    n = scores.shape[-2]
    return torch.full((n, seen), float("-inf"), dtype=scores.dtype, device=scores.device).triu_(seen - n + 1)


class _CachedAttention:
    """Attention with a memory."""

    def __init__(self, attention: Attention) -> None:
        self.heads = attention.n_heads
        self.q, self.k, self.v = attention.q_proj.forward, attention.k_proj.forward, attention.v_proj.forward
        self.out = attention.out_proj.forward

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)  # [B, T, d] -> [B, H, T, D]

    def queries(self, x: Tensor, turn: Rotation | None) -> Tensor:
        q = self.split(self.q(x))
        return q if turn is None else ops.rotate(q, *turn)

    def keys_values(self, x: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor]:
        k = self.split(self.k(x))
        return k if turn is None else ops.rotate(k, *turn), self.split(self.v(x))

    def project(self, mixed: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))  # [B, H, T, D] -> [B, T, d]


class _CachedBlock(_CachedAttention):
    """One transformer block with a memory."""

    def __init__(self, block: Block) -> None:
        super().__init__(block.self_attn)
        self.norm1, self.norm2 = block.norm1.forward, block.norm2.forward
        self.w1, self.w2, self.w3 = block.ffn.w1.forward, block.ffn.w2.forward, block.ffn.w3.forward

    def prefill(self, x: Tensor, turn: Rotation, bias: Tensor | None, samples: int, capacity: int) -> Tensor:
        seen = self.norm1(x)
        k, v = self.keys_values(seen, turn)
        self.memory = Memory(k, v, bias, samples, capacity)
        return self._finish(x, ops.attention(self.queries(seen, turn), k, v, causal=True))

    def extend(self, x: Tensor, turn: Rotation) -> Tensor:
        seen = self.norm1(x)
        self.memory.append(*self.keys_values(seen, turn))
        return self._finish(x, self.memory.attend(self.queries(seen, turn)))

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.project(mixed)
        seen = self.norm2(x)
        return x + self.w2(F.silu(self.w1(seen)).mul_(self.w3(seen)))


class CachedBlocks:
    """A stack of causal blocks that remembers what it has seen."""

    def __init__(self, blocks: nn.ModuleList, samples: int, capacity: int) -> None:
        self.blocks = [_CachedBlock(block) for block in blocks]
        self.rotary = blocks[0].self_attn.rotary if len(blocks) else None
        self.samples, self.capacity = samples, capacity

    def prefill(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Read the prefix [B, P, d]; `lengths` [B] where series are padded on the right. Returns [B, P, d]."""
        self.starts, self.size, self.filled = lengths, x.shape[1], 0
        if self.rotary is None:
            return x
        self.turns = self.rotary.table(self.size + self.capacity, x.dtype)
        first, bias = (self.turns[0][: self.size], self.turns[1][: self.size]), padding_bias(lengths, self.size, x.dtype)
        for block in self.blocks:
            x = block.prefill(x, first, bias, self.samples, self.capacity)
        return x

    def extend(self, x: Tensor) -> Tensor:
        """Run new tokens [B, S * n, d] of every sample. Returns [B, S * n, d]."""
        if self.rotary is not None:
            turn = self._turn(x.shape[1] // self.samples)
            for block in self.blocks:
                x = block.extend(x, turn)
        return x

    def _turn(self, n: int) -> Rotation:
        """Rotation of the next n positions of every series, repeated for its samples: [S * n, D] or, padded, [B, 1, S * n, D]."""
        first, (cos, sin) = self.filled, self.turns
        self.filled += n
        if self.starts is not None:
            steps = torch.arange(first, first + n, device=self.starts.device).repeat(self.samples)
            place = (self.starts[:, None] + steps).unsqueeze(1)
            return cos[place], sin[place]
        place = slice(self.size + first, self.size + first + n)
        return (cos[place], sin[place]) if n == 1 else (cos[place].repeat(self.samples, 1), sin[place].repeat(self.samples, 1))


def padding_bias(lengths: Tensor | None, size: int, dtype: torch.dtype) -> Tensor | None:
    """[B, 1, 1, size]: 0 where a key is real, -inf where it is padding; None without padding."""
    if lengths is None:
        return None
    padded = torch.arange(size, device=lengths.device) >= lengths[:, None]
    return torch.zeros(padded.shape, dtype=dtype, device=lengths.device).masked_fill_(padded, float("-inf"))[:, None, None]


class CachedPredictor:
    """The predictor, one step at a time: only new tokens are computed, and logits only where a token is drawn."""

    def __init__(self, model: Kronos, samples: int, capacity: int) -> None:
        self.model, self.samples, self.capacity = model, samples, capacity
        self.blocks = CachedBlocks(model.transformer, samples, capacity)
        self.cross = _CachedAttention(model.dep_layer.cross_attn)

    def prefill(self, s1: Tensor, s2: Tensor, stamps: Tensor, lengths: Tensor | None = None) -> None:
        """Read the prefix: tokens [B, P], stamps [B, P, 5]; `lengths` [B] where padded. Sets `hidden` to the last state of each series."""
        model = self.model
        x = model.norm(self.blocks.prefill(model.embedding(s1, s2) + model.time_emb(stamps), lengths))
        bias = padding_bias(lengths, x.shape[1], x.dtype)
        self.memory = Memory(*self.cross.keys_values(x, None), bias, self.samples, self.capacity)
        # [B, 1, d]: the last real state, the same for all samples
        self.hidden = x[:, -1:] if lengths is None else x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2]))

    def extend(self, s1: Tensor, s2: Tensor, clock: Tensor) -> None:
        """Read n further tokens of every sample: s1, s2 [B, S, n], `clock` [B, n, d] (embedded stamps). Sets `hidden` [B, S, d]."""
        model, n = self.model, s1.shape[2]
        x = (model.embedding(s1, s2) + clock.unsqueeze(1)).flatten(1, 2)  # [B, S, n, d] -> [B, S * n, d]
        x = model.norm(self.blocks.extend(x))
        self.memory.append(*self.cross.keys_values(x, None))
        self.hidden = x[:, n - 1 :: n]

    def coarse_logits(self) -> Tensor:
        """[B, S, V1]."""
        return self.model.head.proj_s1(self.hidden).expand(-1, self.samples, -1)

    def fine_logits(self, s1: Tensor) -> Tensor:
        """Coarse tokens [B, S] -> [B, S, V2]."""
        mixed = self.memory.attend(self.cross.queries(self.model.embedding.emb_s1(s1), None))
        return self.model.head.proj_s2(self.model.dep_layer.norm(self.hidden + self.cross.project(mixed)))
