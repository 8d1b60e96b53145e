"""Autoregressive generation of token pairs, and decoding of the sampled paths back to bars.

While a sequence fits into max_context, each step sees all of it, and only the new token is computed. Beyond, there are two ways:

- exact, the published procedure: each step sees the last max_context tokens as if there had never been others, positions restarting at 0.
  Every state changes with every step, so nothing can be kept and each step costs a pass over max_context tokens.
- rolling: the keys and values of the last max_context tokens are kept and the oldest leave attention one by one. Distances between tokens
  are the same (rotary positions know nothing else), but a token's state was computed when tokens that have left since were still seen, so
  a little of them lives on: deeper layers see up to (layers * max_context) tokens back. Forecasts differ from the exact ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kronos.cache import CachedBlocks, CachedPredictor, Plan
from kronos.network import Kronos
from kronos.packed import PackedPredictor, PackedTokenizer
from kronos.sampling import Sampling, draw
from kronos.tokenizer import KronosTokenizer

Tokens = tuple[Tensor, Tensor]


class _Paths:
    """The sequences being written: prefix [B, P] per series, generated [B, S, horizon] per sample."""

    def __init__(
        self, model: PackedPredictor, prefix: Tokens, stamps: Tensor, samples: int, max_context: int, lengths: Tensor | None, rolling: bool
    ) -> None:
        self.model, self.prefix, self.samples, self.max_context = model, prefix, samples, max_context
        self.lengths, self.rolling = lengths, rolling
        b, self.size = prefix[0].shape
        self.horizon = stamps.shape[1] - self.size
        self.made = tuple(prefix[0].new_zeros(b, samples, self.horizon) for _ in range(2))
        self.clock = model.clock(stamps)  # [B, P + horizon, d]
        self.cached: CachedPredictor | None = None

    def state_before(self, step: int) -> CachedPredictor:
        """A predictor whose `hidden` is that of the token before `step`."""
        if self.size + step > self.max_context and not self.rolling:
            assert self.lengths is None, "series of different lengths must fit into max_context"
            return self._window(step)
        if self.cached is None:
            window = self.max_context if self.rolling else None
            self.cached = CachedPredictor(self.model, Plan(self.samples, self.horizon, self.lengths, window))
            start = max(0, self.size - self.max_context)
            self.cached.prefill(*(ids[:, start:] for ids in self.prefix), self.clock[:, start : self.size])
        else:
            place = self.size + step
            self.cached.extend(*(ids[:, :, step - 1 : step] for ids in self.made), self.clock[:, place - 1 : place])
        return self.cached

    def _window(self, step: int) -> CachedPredictor:
        """Everything anew for a step whose window has slid: the last max_context tokens."""
        start = self.size + step - self.max_context
        made = tuple(ids[:, :, max(0, start - self.size) : step] for ids in self.made)
        if start < self.size and self.samples > 1:  # the part before the first generated token is the same for all samples
            cached = CachedPredictor(self.model, Plan(self.samples, step))
            cached.prefill(*(ids[:, start:] for ids in self.prefix), self.clock[:, start : self.size])
            if step:
                cached.extend(*made, self.clock[:, self.size : self.size + step])
            return cached
        pairs = zip(self.prefix, made, strict=True)
        rows = [torch.cat((old[:, start:].repeat_interleave(self.samples, 0), new.flatten(0, 1)), 1) for old, new in pairs]
        cached = CachedPredictor(self.model, Plan(1, 0))
        cached.prefill(*rows, self.clock[:, start : self.size + step].repeat_interleave(self.samples, 0))
        return cached


@torch.inference_mode()
def generate(
    model: Kronos | PackedPredictor,
    prefix: Tokens,
    stamps: Tensor,
    uniforms: Tensor,
    how: Sampling,
    max_context: int,
    lengths: Tensor | None = None,
    on_step: Callable[[], object] | None = None,
    rolling: bool = False,
) -> Tokens:
    """Continue each of B series along S sampled paths. Draws nothing but `uniforms`, drops nothing out.

    prefix: coarse and fine tokens, [B, P] int64 each, padded on the right where `lengths` [B] is given. stamps: [B, P + horizon, 5] of
    prefix and future; with `lengths` the future's stamps start at column P all the same. uniforms: [B, S, horizon, 2] in [0, 1).
    rolling: keep the cache beyond max_context (see above). Returns the generated coarse and fine tokens, [B, S, horizon] int64 each.
    """
    _, samples, horizon, _ = uniforms.shape
    model = model if isinstance(model, PackedPredictor) else PackedPredictor(model)
    paths = _Paths(model, prefix, stamps, samples, max_context, lengths, rolling)
    numbers = uniforms.movedim(2, 0).flatten(1, 2)  # [horizon, B * S, 2]
    for step in range(horizon):
        state = paths.state_before(step)
        s1 = draw(state.coarse_logits(), numbers[step, :, 0], how).view(-1, samples)
        s2 = draw(state.fine_logits(s1.view(-1, state.plan.samples)), numbers[step, :, 1], how)
        paths.made[0][:, :, step], paths.made[1][:, :, step] = s1, s2.view(-1, samples)
        if on_step is not None:
            on_step()
    return paths.made


@torch.inference_mode()
def encode_bars(tokenizer: KronosTokenizer | PackedTokenizer, bars: Tensor) -> Tokens:
    """Normalised bars [B, P, d_in] -> coarse and fine ids [B, P]."""
    packed = tokenizer if isinstance(tokenizer, PackedTokenizer) else PackedTokenizer(tokenizer)
    x = packed.embed(bars.to(packed.dtype).flatten(0, 1)).unflatten(0, bars.shape[:2])
    rows = CachedBlocks(packed.encoder, Plan(1, 0)).prefill(x)
    return packed.quantizer.ids(packed.quantised(rows).unflatten(0, bars.shape[:2]), True)


@torch.inference_mode()
def decode_paths(
    tokenizer: KronosTokenizer | PackedTokenizer, prefix: Tokens, made: Tokens, max_context: int, lengths: Tensor | None = None
) -> Tensor:
    """Bars [B, S, horizon, d_in] of the generated tokens [B, S, horizon], decoded after their prefix [B, P] (as much of both as fits)."""
    packed = tokenizer if isinstance(tokenizer, PackedTokenizer) else PackedTokenizer(tokenizer)
    (batch, samples, horizon), size = made[0].shape, prefix[0].shape[1]
    start = max(0, size + horizon - max_context)
    fresh = packed.vectors_of(made)  # [B, S, horizon, d]
    if start >= size:  # nothing of the prefix is left in the window
        assert lengths is None and start == size, "the horizon must fit into max_context"
        rows = CachedBlocks(packed.decoder, Plan(1, 0)).prefill(fresh.flatten(0, 1))
    else:
        blocks = CachedBlocks(packed.decoder, Plan(samples, horizon, lengths))
        blocks.prefill(packed.vectors_of(tuple(ids[:, start:] for ids in prefix)))
        rows = blocks.extend(fresh.flatten(0, 2))
    return packed.head(rows).view(batch, samples, horizon, -1)
