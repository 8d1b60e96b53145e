"""Key-value caches for generation: a prefix computed once per series and shared by its samples, and a suffix per sample.

Shapes: B series, S samples, P prefix tokens, n new tokens per sample, H heads, D head size. New tokens of all samples lie on one axis
of length S * n, sample by sample, so that one product serves all samples of a series. Activations are rows: [B * S * n, d].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kronos.layers import Rotation
from kronos.packed import PackedBlock, PackedPredictor, rotary_of, turns

@dataclass(frozen=True)
class Plan:
    """What is to be kept. window: how many of the last tokens a query sees (rolling), None: all. lengths [B]: of padded prefixes."""

    samples: int
    capacity: int  # new tokens per sample
    lengths: Tensor | None = None
    window: int | None = None


class Memory:
    """Keys and values of one attention layer where each series has one sample: prefix and new tokens in one tensor."""

    def __init__(self, kv: Tensor, plan: Plan) -> None:
        """kv: keys and values of the prefix, [B, P, 2, H, D]; columns from its length on are padding."""
        batch, self.size, _, heads, width = kv.shape
        self.filled, self.window = 0, plan.window
        self.kept = kv.new_empty(2, batch, heads, self.size + plan.capacity, width)
        self.kept[:, :, :, : self.size] = kv.permute(2, 0, 3, 1, 4)
        self.bias = None
        if plan.lengths is not None:
            self.bias = F.pad(padding_bias(plan.lengths, self.size, kv.dtype), (0, plan.capacity))[:, None]  # [B, 1, 1, P + capacity]

    def append(self, kv: Tensor) -> None:
        """Add the keys and values of n new tokens, [B, n, 2, H, D]."""
        n = kv.shape[1]
        self.kept.narrow(3, self.size + self.filled, n).copy_(kv.permute(2, 0, 3, 1, 4))
        self.filled += n

    def attend(self, q: Tensor) -> Tensor:
        """Scaled queries [B, n, H, D] of the last n tokens over everything up to each of them -> [B * n, H * D]."""
        seen = self.size + self.filled
        first = 0 if self.window is None else max(0, seen - self.window)
        k, v = self.kept.narrow(3, first, seen - first).unbind(0)
        bias = None if self.bias is None else self.bias[..., first:seen]
        if q.shape[1] > 1:
            later = _later(q.shape[1], seen - first, q)
            bias = later if bias is None else bias + later
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, scale=1.0)
        return mixed.transpose(1, 2).reshape(-1, q.shape[2] * q.shape[3])


class SharedMemory:
    """Keys and values of one attention layer: the prefix once per series, new tokens for each of its samples."""

    def __init__(self, kv: Tensor, plan: Plan) -> None:
        """kv: keys and values of the prefix, [B, P, 2, H, D]; columns from its length on are padding."""
        self.batch, self.size, _, self.heads, width = kv.shape
        self.samples, self.window, self.filled = plan.samples, plan.window, 0
        self.kept = kv.permute(2, 0, 3, 1, 4).reshape(2, self.batch * self.heads, self.size, width)
        self.new = kv.new_empty(2, self.batch, self.heads, self.samples, plan.capacity, width)
        self.bias = None
        if plan.lengths is not None:
            self.bias = padding_bias(plan.lengths, self.size, kv.dtype).repeat_interleave(self.heads, 0)  # [B * H, 1, P]

    def append(self, kv: Tensor) -> None:
        """Add the keys and values of n new tokens per sample, [B, S * n, 2, H, D]."""
        n = kv.shape[1] // self.samples
        fresh = kv.unflatten(1, (self.samples, n)).permute(3, 0, 4, 1, 2, 5)  # [B, S, n, 2, H, D] -> [2, B, H, S, n, D]
        self.new.narrow(4, self.filled, n).copy_(fresh)
        self.filled += n

    def attend(self, q: Tensor) -> Tensor:
        """Scaled queries [B, S * n, H, D] of the last n tokens over everything up to each of them -> [B * S * n, H * D]."""
        count, width = q.shape[1], q.shape[3]
        dropped = 0 if self.window is None else max(0, self.size + self.filled - self.window)
        k, v = self.kept[:, :, min(dropped, self.size) :].unbind(0)  # [B * H, P, D]
        q = q.transpose(1, 2).reshape(-1, count, width)  # [B * H, S * n, D]
        shared = q @ k.mT  # [B * H, S * n, P]
        if self.bias is not None:
            shared += self.bias
        if self.filled == 0:
            mixed = shared.softmax(-1) @ v
        else:
            mixed = self._with_new(q, shared, v, max(dropped - self.size, 0))
        return mixed.unflatten(0, (self.batch, self.heads)).transpose(1, 2).reshape(self.batch * count, -1)

    def _with_new(self, q: Tensor, shared: Tensor, v: Tensor, first: int) -> Tensor:
        """Shared prefix and each sample's own tokens from `first` on: two products, one softmax. Returns [B * H, S * n, D]."""
        count, width = q.shape[1:]
        n, seen = count // self.samples, self.filled - first
        new_k, new_v = self.new.narrow(4, first, seen).flatten(1, 3).unbind(0)  # [B * H * S, seen, D]
        own = q.view(-1, n, width) @ new_k.mT  # [B * H * S, n, seen]
        if n > 1:
            own += _later(n, seen, own)
        old, new = torch.cat((shared, own.view(-1, count, seen)), -1).softmax(-1).split((shared.shape[2], seen), -1)
        return (old @ v).add_((new.reshape(-1, n, seen) @ new_v).view(-1, count, width))


def _later(n: int, seen: int, like: Tensor) -> Tensor:
    """[n, seen]: -inf where a key comes after the query, else 0; the queries are the last n of `seen` tokens."""
    return torch.full((n, seen), float("-inf"), dtype=like.dtype, device=like.device).triu_(seen - n + 1)


def remember(kv: Tensor, plan: Plan) -> Memory | SharedMemory:
    """A memory that begins with the keys and values of the prefix, [B, P, 2, H, D]."""
    return Memory(kv, plan) if plan.samples == 1 else SharedMemory(kv, plan)


def padding_bias(lengths: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, size]: 0 where a key is real, -inf where it is padding."""
    padded = torch.arange(size, device=lengths.device) >= lengths[:, None]
    return torch.zeros(padded.shape, dtype=dtype, device=lengths.device).masked_fill_(padded, float("-inf"))[:, None]


class CachedBlocks:
    """A stack of causal blocks that remembers what it has seen."""

    def __init__(self, blocks: list[PackedBlock], plan: Plan) -> None:
        self.blocks, self.plan, self.rotary = blocks, plan, rotary_of(blocks)
        self.memories: list[Memory | SharedMemory] = []

    def prefill(self, x: Tensor) -> Tensor:
        """Read the prefix [B, P, d], padded on the right where the plan has lengths. Returns rows [B * P, d]."""
        batch, self.size, _ = x.shape
        self.filled, x = 0, x.flatten(0, 1)
        if self.rotary is None:
            return x
        self.turns = turns(self.rotary, self.size + self.plan.capacity, x.dtype)
        turn = (self.turns[0][: self.size], self.turns[1][: self.size])
        for block in self.blocks:
            qkv = block.queries_keys_values(x, turn, batch)
            if self.plan.capacity:
                self.memories.append(remember(qkv[:, :, 1:], self.plan))
            x = block.finish(x, _attend_causally(qkv))
        return x

    def extend(self, x: Tensor, batch: int) -> Tensor:
        """Run new tokens of every sample, rows [B * S * n, d]. Returns the same shape."""
        if self.rotary is None:
            return x
        turn = self._turn(x.shape[0] // (batch * self.plan.samples))
        for block, memory in zip(self.blocks, self.memories, strict=True):
            qkv = block.queries_keys_values(x, turn, batch)
            memory.append(qkv[:, :, 1:])
            x = block.finish(x, memory.attend(qkv[:, :, 0]))
        return x

    def _turn(self, n: int) -> Rotation:
        """Rotation of the next n positions of every series, repeated for its samples: [S * n, 3, 1, D] or, padded, [B, S * n, 3, 1, D]."""
        first, (cos, sin), samples = self.filled, self.turns, self.plan.samples
        self.filled += n
        if self.plan.lengths is not None:
            steps = torch.arange(first, first + n, device=cos.device).repeat(samples)
            place = self.plan.lengths[:, None] + steps
            return cos[place], sin[place]
        place = slice(self.size + first, self.size + first + n)
        return (cos[place], sin[place]) if n == 1 else (cos[place].repeat(samples, 1, 1, 1), sin[place].repeat(samples, 1, 1, 1))


def _attend_causally(qkv: Tensor) -> Tensor:
    """Scaled queries, keys, values [B, P, 3, H, D] -> [B * P, H * D]."""
    mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True, scale=1.0)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


class CachedPredictor:
    """The predictor, one step at a time: only new tokens are computed, and logits only where a token is drawn."""

    def __init__(self, model: PackedPredictor, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.blocks = CachedBlocks(model.blocks, plan)

    def prefill(self, s1: Tensor, s2: Tensor, clock: Tensor) -> None:
        """Read the prefix: ids [B, P], embedded stamps [B, P, d]. Sets `hidden` to the last state of each series."""
        batch, size = s1.shape
        x = self.model.norm(self.blocks.prefill(self.model.embed(s1, s2, clock)))  # [B * P, d]
        self.memory = remember(self._keys_values(x, batch), self.plan)
        x, lengths = x.unflatten(0, (batch, size)), self.plan.lengths
        last = x[:, -1] if lengths is None else x[torch.arange(batch, device=x.device), lengths - 1]
        self.hidden = last.repeat_interleave(self.plan.samples, 0)  # [B * S, d]: the last real state, the same for all samples

    def extend(self, s1: Tensor, s2: Tensor, clock: Tensor) -> None:
        """Read n further tokens of every sample: s1, s2 [B, S, n], `clock` [B, n, d] (embedded stamps). Sets `hidden` [B * S, d]."""
        batch, samples, n = s1.shape
        x = self.model.embed(s1, s2, clock[:, None]).view(batch * samples * n, -1)  # [B, S, n, d] -> rows
        x = self.model.norm(self.blocks.extend(x, batch))
        self.memory.append(self._keys_values(x, batch))
        self.hidden = x if n == 1 else x[n - 1 :: n]

    def _keys_values(self, x: Tensor, batch: int) -> Tensor:
        """Rows [B * n, d] -> [B, n, 2, H, D]."""
        return self.model.keys_values(x).view(batch, -1, 2, self.model.heads, x.shape[1] // self.model.heads)

    def coarse_logits(self) -> Tensor:
        """[B * S, V1]."""
        return self.model.coarse_head(self.hidden)

    def fine_logits(self, s1: Tensor) -> Tensor:
        """Coarse ids [B, S] -> [B * S, V2]."""
        queries = self.model.query_table[s1]
        mixed = self.memory.attend(queries.unflatten(2, (self.model.heads, -1)))
        return self.model.fine_head(self.model.fine_norm(self.model.out.onto(mixed, self.hidden)))
