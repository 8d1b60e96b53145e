"""Key-value caches for generation: a prefix computed once per series and shared by its samples, and a suffix per sample.

Shapes: B series, S samples, P prefix tokens, n new tokens per sample, H heads, D head size. New tokens of all samples lie on one axis
of length S * n, sample by sample, so that one product serves all samples of a series.
"""

import torch
from torch import Tensor, nn

from kronos.layers import Attention, Block, Rotation
from kronos.network import Kronos


class Memory:
    """Keys and values of one attention layer."""

    def __init__(self, k: Tensor, v: Tensor, bias: Tensor | None, samples: int, capacity: int) -> None:
        """Prefix keys and values [B, H, P, D]; `bias` [B, 1, 1, P] hides padding; room for `capacity` new tokens per sample."""
        self.k, self.v, self.bias, self.filled = k, v, bias, 0
        b, h, _, d = k.shape
        self.new_k = k.new_empty(b, h, samples, capacity, d)
        self.new_v = k.new_empty(b, h, samples, capacity, d)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add the keys and values of new tokens, [B, H, S * n, D]."""
        samples = self.new_k.shape[2]
        n = k.shape[2] // samples
        place = slice(self.filled, self.filled + n)
        self.new_k[:, :, :, place] = k.unflatten(2, (samples, n))
        self.new_v[:, :, :, place] = v.unflatten(2, (samples, n))
        self.filled += n

    def attend(self, q: Tensor) -> Tensor:
        """Queries [B, H, S * n, D] of the last n tokens over everything up to each of them -> [B, H, S * n, D]."""
        samples = self.new_k.shape[2]
        n, size = q.shape[2] // samples, self.k.shape[2]
        q = q * q.shape[-1] ** -0.5
        scores = q @ self.k.transpose(-1, -2)  # [B, H, S * n, P]
        if self.bias is not None:
            scores = scores + self.bias
        if self.filled == 0:
            return scores.softmax(-1) @ self.v
        new_k, new_v = self.new_k[:, :, :, : self.filled], self.new_v[:, :, :, : self.filled]
        recent = q.unflatten(2, (samples, n)) @ new_k.transpose(-1, -2)  # [B, H, S, n, filled]
        if n > 1:
            recent = recent + torch.full_like(recent[0, 0, 0], float("-inf")).triu_(self.filled - n + 1)
        weights = torch.cat((scores, recent.flatten(2, 3)), -1).softmax(-1)
        old, new = weights.split((size, self.filled), -1)
        return old @ self.v + (new.unflatten(2, (samples, n)) @ new_v).flatten(2, 3)


class CachedBlocks:
    """A stack of causal blocks that remembers what it has seen."""

    def __init__(self, blocks: nn.ModuleList, samples: int, capacity: int) -> None:
        self.blocks, self.samples, self.capacity = blocks, samples, capacity
        self.memories: list[Memory] = []

    def prefill(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Run the prefix [B, P, d]; `lengths` [B] where series are padded on the right. Returns [B, P, d]."""
        self.starts, self.size = lengths, x.shape[1]
        size = self.size
        if len(self.blocks) == 0:
            return x
        self.rotation = self.blocks[0].self_attn.rotary.table(size + self.capacity, x.dtype)
        head = (self.rotation[0][:size], self.rotation[1][:size])
        bias = padding_bias(lengths, size, x.dtype)
        for block in self.blocks:
            seen = block.norm1(x)
            k, v = block.self_attn.keys_values(seen, head)
            self.memories.append(Memory(k, v, bias, self.samples, self.capacity))
            x = _finish(block, x, block.self_attn.attend(block.self_attn.queries(seen, head), k, v, causal=True))
        return x

    def extend(self, x: Tensor) -> Tensor:
        """Run new tokens [B, S * n, d] of every sample. Returns [B, S * n, d]."""
        if len(self.blocks) == 0:
            return x
        turn = self._turn(x.shape[1] // self.samples)
        for block, memory in zip(self.blocks, self.memories, strict=True):
            attention, seen = block.self_attn, block.norm1(x)
            memory.append(*attention.keys_values(seen, turn))
            x = _finish(block, x, project(attention, memory.attend(attention.queries(seen, turn))))
        return x

    def _turn(self, n: int) -> Rotation:
        """Rotation of the next n positions of every series, repeated for its samples: [S * n, D] or, padded, [B, 1, S * n, D]."""
        first = self.memories[0].filled
        if self.starts is None:
            place = torch.arange(self.size + first, self.size + first + n, device=self.rotation[0].device).repeat(self.samples)
        else:
            steps = torch.arange(first, first + n, device=self.starts.device).repeat(self.samples)
            place = (self.starts[:, None] + steps).unsqueeze(1)
        return self.rotation[0][place], self.rotation[1][place]


def _finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    x = x + attended
    return x + block.ffn(block.norm2(x))


def project(attention: Attention, mixed: Tensor) -> Tensor:
    """Heads [B, H, T, D] -> [B, T, d] through the output projection."""
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


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

    def prefill(self, s1: Tensor, s2: Tensor, stamps: Tensor, lengths: Tensor | None = None) -> None:
        """Read the prefix: tokens [B, P], stamps [B, P, 5]; `lengths` [B] where padded. Sets `hidden` to the last state of each series."""
        model, attention = self.model, self.model.dep_layer.cross_attn
        x = model.norm(self.blocks.prefill(model.embedding(s1, s2) + model.time_emb(stamps), lengths))
        self.cross = Memory(*attention.keys_values(x, None), padding_bias(lengths, x.shape[1], x.dtype), self.samples, self.capacity)
        last = x[:, -1:] if lengths is None else x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2]))
        self.hidden = last  # [B, 1, d], the same for all samples

    def extend(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> None:
        """Read n further tokens of every sample: s1, s2 [B, S, n], stamps [B, n, 5]. Sets `hidden` to the last state of each sample."""
        model, n = self.model, s1.shape[2]
        clock = model.time_emb(stamps).unsqueeze(1)  # [B, 1, n, d]
        x = (model.embedding(s1, s2) + clock).flatten(1, 2)  # [B, S * n, d]
        x = model.norm(self.blocks.extend(x))
        self.cross.append(*model.dep_layer.cross_attn.keys_values(x, None))
        self.hidden = x[:, n - 1 :: n]  # [B, S, d]

    def coarse_logits(self) -> Tensor:
        """[B, S, V1]."""
        return self.model.head.proj_s1(self.hidden).expand(-1, self.samples, -1)

    def fine_logits(self, s1: Tensor) -> Tensor:
        """Coarse tokens [B, S] -> [B, S, V2]."""
        layer = self.model.dep_layer
        query = layer.cross_attn.queries(self.model.embedding.emb_s1(s1), None)
        mixed = project(layer.cross_attn, self.cross.attend(query))
        return self.model.head.proj_s2(layer.norm(self.hidden + mixed))
