"""Key-value caches for generation: a prefix computed once per series and shared by its samples, and a suffix per sample.

Shapes: B series, S samples, P prefix tokens, n new tokens per sample, H heads, D head size. Activations are rows, series by series, of each
sample by sample, of each token by token: [B * S * n, d]. Series of one length form a group. A step's products take the rows of all groups
together, attention goes group by group: nothing is padded or masked, so a series comes out the same to the bit alone and in any batch
(where products do not depend on the number of rows, see `kronos.dense`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kronos import ops
from kronos.layers import Rotation
from kronos.packed import PackedBlock, PackedPredictor, rotary_of, turns


@dataclass(frozen=True)
class Plan:
    """What is to be kept: new tokens for so many samples of each series, and of all tokens a query sees the last `window` (None: all)."""

    samples: int
    capacity: int  # new tokens per sample
    window: int | None = None


class Memory:
    """Keys and values of one attention layer for a group whose series have one sample each: prefix and new tokens in one tensor."""

    def __init__(self, kv: Tensor, plan: Plan) -> None:
        """kv: keys and values of the prefix, [B, P, 2, H, D]."""
        batch, size, _, heads, width = kv.shape
        self.filled, self.window = size, plan.window
        self.kept = kv.new_empty(2, batch, heads, size + plan.capacity, width)
        self.kept[:, :, :, :size] = kv.permute(2, 0, 3, 1, 4)

    def append(self, kv: Tensor) -> None:
        """Add the keys and values of n new tokens, [B, n, 2, H, D]."""
        n = kv.shape[1]
        self.kept.narrow(3, self.filled, n).copy_(kv.permute(2, 0, 3, 1, 4))
        self.filled += n

    def attend(self, q: Tensor) -> Tensor:
        """Scaled queries [B, n, H, D] of the last n tokens over everything up to each of them -> [B * n, H * D]."""
        first = 0 if self.window is None else max(0, self.filled - self.window)
        k, v = self.kept.narrow(3, first, self.filled - first).unbind(0)
        bias = _later(q.shape[1], self.filled - first, q) if q.shape[1] > 1 else None
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, scale=1.0)
        return mixed.transpose(1, 2).reshape(-1, q.shape[2] * q.shape[3])


class SharedMemory:
    """Keys and values of one attention layer for a group: the prefix once per series, new tokens for each of its samples."""

    def __init__(self, kv: Tensor, plan: Plan) -> None:
        """kv: keys and values of the prefix, [B, P, 2, H, D]."""
        self.batch, self.size, _, self.heads, width = kv.shape
        self.samples, self.window, self.filled = plan.samples, plan.window, 0
        self.kept = kv.permute(2, 0, 3, 1, 4).reshape(2, self.batch * self.heads, self.size, width)
        self.new = kv.new_empty(2, self.batch, self.heads, self.samples, plan.capacity, width)

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
        mixed = shared.softmax(-1) @ v if self.filled == 0 else self._with_new(q, shared, v, max(dropped - self.size, 0))
        return mixed.unflatten(0, (self.batch, self.heads)).transpose(1, 2).reshape(self.batch * count, -1)

    def _with_new(self, q: Tensor, shared: Tensor, v: Tensor, first: int) -> Tensor:
        """Shared prefix and each sample's own tokens from `first` on: two products, one softmax. Returns [B * H, S * n, D]."""
        count, width = q.shape[1:]
        n, seen = count // self.samples, self.filled - first
        new_k, new_v = self.new.narrow(4, first, seen).flatten(1, 3).unbind(0)  # [B * H * S, seen, D]
        own = q.reshape(-1, n, width) @ new_k.mT  # [B * H * S, n, seen]
        if n > 1:
            own += _later(n, seen, own)
        old, new = torch.cat((shared, own.view(-1, count, seen)), -1).softmax(-1).split((shared.shape[2], seen), -1)
        return (old @ v).add_((new.reshape(-1, n, seen) @ new_v).view(-1, count, width))


def _later(n: int, seen: int, like: Tensor) -> Tensor:
    """[n, seen]: -inf where a key comes after the query, else 0; the queries are the last n of `seen` tokens."""
    return torch.full((n, seen), float("-inf"), dtype=like.dtype, device=like.device).triu_(seen - n + 1)


class Memories:
    """The memories of one attention layer, one per group."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.groups, self.sizes, self.series = plan, [], [], 0

    def add(self, kv: Tensor) -> None:
        """A group's prefix, [B, P, 2, H, D]."""
        self.groups.append(Memory(kv, self.plan) if self.plan.samples == 1 else SharedMemory(kv, self.plan))
        self.sizes.append(kv.shape[0])
        self.series += kv.shape[0]

    def each(self, rows: Tensor, what: Callable[[Memory | SharedMemory, Tensor], Tensor | None]) -> Tensor | None:
        """what(memory, its part of the rows as [B, S * n, ...]) for each group; the results one below the other."""
        parts = rows.view(self.series, -1, *rows.shape[1:])
        if len(self.groups) == 1:
            return what(self.groups[0], parts)
        found = [what(memory, part) for memory, part in zip(self.groups, parts.split(self.sizes), strict=True)]
        return None if found[0] is None else torch.cat(found)

    def append(self, kv: Tensor) -> None:
        """New tokens of all groups, rows [N, 2, H, D]."""
        self.each(kv, lambda memory, part: memory.append(part))

    def attend(self, q: Tensor) -> Tensor:
        """Scaled queries of the last tokens, rows [N, H, D] -> rows [N, H * D]."""
        return self.each(q, lambda memory, part: memory.attend(part))

    def append_and_attend(self, qkv: Tensor) -> Tensor:
        """Both for self-attention: queries, keys and values of the new tokens, rows [N, 3, H, D] -> rows [N, H * D]."""
        return self.each(qkv, _append_and_attend)


def _append_and_attend(memory: Memory | SharedMemory, qkv: Tensor) -> Tensor:
    memory.append(qkv[:, :, 1:])
    return memory.attend(qkv[:, :, 0])


class CachedBlocks:
    """A stack of causal blocks that remembers what it has seen."""

    def __init__(self, blocks: list[PackedBlock], plan: Plan) -> None:
        self.blocks, self.plan, self.rotary = blocks, plan, rotary_of(blocks)
        self.memories = [Memories(plan) for _ in blocks]
        self.filled = 0
        self.groups: list[tuple[int, int]] = []  # series and prefix tokens of each

    def prefill(self, x: Tensor, *, only_remember: bool = False) -> Tensor:
        """Read the prefix of a group, [B, P, d]. Returns rows [B * P, d]. Groups are read one after another, before any `extend`.

        only_remember: what is returned will not be used, so the last block need not compute it.
        """
        batch, size, _ = x.shape
        x = x.flatten(0, 1)
        if self.rotary is None:
            return x
        self.groups.append((batch, size))
        turn = turns(self.rotary, size, x.dtype)
        for block, memories in zip(self.blocks, self.memories, strict=True):
            qkv = block.queries_keys_values(x, turn).unflatten(0, (batch, size))  # [B, P, 3, H, D]
            if self.plan.capacity:
                memories.add(qkv[:, :, 1:])
            if only_remember and block is self.blocks[-1]:
                break
            x = block.finish(x, ops.causal_attention(qkv).view(batch * size, -1))
        return x

    def extend(self, x: Tensor) -> Tensor:
        """Run new tokens of every sample of every group, rows [B * S * n, d]. Returns the same shape."""
        if self.rotary is None:
            return x
        turn = self._turn(x.shape[0] // (self.plan.samples * sum(batch for batch, _ in self.groups)), x.dtype)
        for block, memories in zip(self.blocks, self.memories, strict=True):
            x = block.finish(x, memories.append_and_attend(block.queries_keys_values(x, turn)))
        return x

    def _turn(self, n: int, dtype: torch.dtype) -> Rotation:
        """Rotation of the next n places of every sample, [n, 1, 1, D] where all are at the same place, else [N, 1, 1, D]."""
        if self.filled == 0:
            self.table = turns(self.rotary, max(size for _, size in self.groups) + self.plan.capacity, dtype)
        first = self.filled
        self.filled += n
        if len(self.groups) == 1:
            place = slice(self.groups[0][1] + first, self.groups[0][1] + first + n)
        else:
            device = self.table[0].device
            starts = [torch.full((batch * self.plan.samples,), size + first, device=device) for batch, size in self.groups]
            place = (torch.cat(starts)[:, None] + torch.arange(n, device=device)).flatten()
        return self.table[0][place], self.table[1][place]


class CachedPredictor:
    """The predictor, one step at a time: only new tokens are computed, and logits only where a token is drawn."""

    def __init__(self, model: PackedPredictor, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.blocks, self.memories = CachedBlocks(model.blocks, plan), Memories(plan)
        self.hidden: Tensor = model.s1_table[:0]  # [B * S, d]: the state of each sample's last token

    def prefill(self, s1: Tensor, s2: Tensor, clock: Tensor) -> None:
        """Read the prefix of a group: ids [B, P], embedded stamps [B, P, d]. Groups are read one after another, before any `extend`."""
        batch, size = s1.shape
        x = self.model.norm(self.blocks.prefill(self.model.embed(s1, s2, clock)))  # [B * P, d]
        self.memories.add(self._keys_values(x).unflatten(0, (batch, size)))
        last = x[size - 1 :: size].repeat_interleave(self.plan.samples, 0)  # the same for all samples
        self.hidden = torch.cat((self.hidden, last))

    def extend(self, s1: Tensor, s2: Tensor, clock: Tensor) -> None:
        """Read n further tokens of every sample: s1, s2 [B, S, n], `clock` [B, n, d] (embedded stamps)."""
        n = s1.shape[2]
        x = self.model.embed(s1, s2, clock[:, None]).flatten(0, 2)  # [B, S, n, d] -> rows
        x = self.model.norm(self.blocks.extend(x))
        self.memories.append(self._keys_values(x))
        self.hidden = x if n == 1 else x[n - 1 :: n]

    def _keys_values(self, x: Tensor) -> Tensor:
        """Rows [N, d] -> [N, 2, H, D]."""
        return self.model.keys_values(x).view(-1, 2, self.model.heads, x.shape[1] // self.model.heads)

    def coarse_logits(self) -> Tensor:
        """[B * S, V1]."""
        return self.model.coarse_head(self.hidden)

    def fine_logits(self, s1: Tensor) -> Tensor:
        """Coarse ids [B * S] -> [B * S, V2]."""
        mixed = self.memories.attend(F.embedding(s1, self.model.query_table).unflatten(1, (self.model.heads, -1)))
        return self.model.fine_head(self.model.fine_norm(self.model.out.onto(mixed, self.hidden)))
