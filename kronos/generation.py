"""Autoregressive generation of token pairs, and decoding of the sampled paths back to bars.

The published procedure is reproduced exactly: while a sequence fits into max_context, each step sees all of it; beyond, each step sees the
last max_context tokens with positions restarting at 0, so nothing can be kept from the step before.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kronos.cache import CachedBlocks, CachedPredictor
from kronos.network import Kronos
from kronos.sampling import Sampling, draw
from kronos.tokenizer import KronosTokenizer

Tokens = tuple[Tensor, Tensor]


class _Paths:
    """The sequences being written: prefix [B, P] per series, generated [B, S, horizon] per sample."""

    def __init__(self, model: Kronos, prefix: Tokens, stamps: Tensor, samples: int, max_context: int) -> None:
        self.model, self.prefix, self.stamps, self.samples, self.max_context = model, prefix, stamps, samples, max_context
        b, self.size = prefix[0].shape
        self.horizon = stamps.shape[1] - self.size
        self.made = tuple(prefix[0].new_zeros(b, samples, self.horizon) for _ in range(2))
        self.clock = model.time_emb(stamps[:, self.size :])  # [B, horizon, d]
        self.cached: CachedPredictor | None = None

    def _window(self, step: int) -> CachedPredictor:
        """Everything anew for a step whose window has slid: the last max_context tokens."""
        start = self.size + step - self.max_context
        stamps = self.stamps[:, start : self.size + step]
        made = tuple(ids[:, :, max(0, start - self.size) : step] for ids in self.made)
        if start < self.size and self.samples > 1:  # the part before the first generated token is the same for all samples
            cached = CachedPredictor(self.model, self.samples, step)
            cached.prefill(*(ids[:, start:] for ids in self.prefix), stamps[:, : self.size - start])
            if step:
                cached.extend(*made, self.clock[:, :step])
            return cached
        pairs = zip(self.prefix, made, strict=True)
        rows = [torch.cat((old[:, start:].repeat_interleave(self.samples, 0), new.flatten(0, 1)), 1) for old, new in pairs]
        cached = CachedPredictor(self.model, 1, 0)
        cached.prefill(*rows, stamps.repeat_interleave(self.samples, 0))
        return cached

    def predictor_at(self, step: int, lengths: Tensor | None) -> CachedPredictor:
        """A predictor whose `hidden` is that of the token before `step`."""
        if self.size + step > self.max_context:
            assert lengths is None, "series of different lengths must fit into max_context"
            return self._window(step)
        if step == 0:
            self.cached = CachedPredictor(self.model, self.samples, self.horizon)
            self.cached.prefill(*self.prefix, self.stamps[:, : self.size], lengths)
        else:
            self.cached.extend(*(ids[:, :, step - 1 : step] for ids in self.made), self.clock[:, step - 1 : step])
        return self.cached


@torch.inference_mode()
def generate(
    model: Kronos,
    prefix: Tokens,
    stamps: Tensor,
    uniforms: Tensor,
    how: Sampling,
    max_context: int,
    lengths: Tensor | None = None,
    on_step: Callable[[], object] | None = None,
) -> Tokens:
    """Continue each of B series along S sampled paths.

    prefix: coarse and fine tokens, [B, P] int64 each, padded on the right where `lengths` [B] is given. stamps: [B, P + horizon, 5] of
    prefix and future; with `lengths` the future's stamps start at column P all the same. uniforms: [B, S, horizon, 2] in [0, 1).
    Returns the generated coarse and fine tokens, [B, S, horizon] int64 each. The model must be in evaluation mode.
    """
    _, samples, horizon, _ = uniforms.shape
    paths = _Paths(model, prefix, stamps, samples, max_context)
    for step in range(horizon):
        predictor = paths.predictor_at(step, lengths)
        shape = (-1, samples, model.head.proj_s1.out_features)
        s1 = draw(predictor.coarse_logits().reshape(shape), uniforms[:, :, step, 0], how)
        fine = predictor.fine_logits(s1.reshape(-1, predictor.samples))
        paths.made[0][:, :, step] = s1
        paths.made[1][:, :, step] = draw(fine.reshape(-1, samples, fine.shape[-1]), uniforms[:, :, step, 1], how)
        if on_step is not None:
            on_step()
    return paths.made


@torch.inference_mode()
def decode_paths(tokenizer: KronosTokenizer, prefix: Tokens, made: Tokens, max_context: int, lengths: Tensor | None = None) -> Tensor:
    """Bars [B, S, horizon, d_in] of the generated tokens [B, S, horizon], decoded after their prefix [B, P] (as much of both as fits)."""
    samples, horizon = made[0].shape[1:]
    size = prefix[0].shape[1]
    start = max(0, size + horizon - max_context)
    if start >= size:  # nothing of the prefix is left in the window
        window = tuple(ids[:, :, start - size :].flatten(0, 1) for ids in made)
        assert lengths is None and start == size, "the horizon must fit into max_context"
        return tokenizer.decode(window).unflatten(0, (-1, samples))
    blocks = CachedBlocks(tokenizer.decoder, samples, horizon)
    blocks.prefill(tokenizer.vectors_of(tuple(ids[:, start:] for ids in prefix)), lengths)
    hidden = blocks.extend(tokenizer.vectors_of(made).flatten(1, 2))  # [B, S, horizon, d] -> [B, S * horizon, d]
    return tokenizer.head(hidden).unflatten(1, (samples, horizon))
