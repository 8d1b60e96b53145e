"""Autoregressive generation of token pairs, and decoding of the sampled paths back to bars.

While a sequence fits into max_context, each step sees all of it, and only the new token is computed. Beyond, there are two ways:

- exact, the published procedure: each step sees the last max_context tokens as if there had never been others, positions restarting at 0.
  Every state changes with every step, so nothing can be kept and each step costs a pass over max_context tokens.
- rolling: the keys and values of the last max_context tokens are kept and the oldest leave attention one by one. Distances between tokens
  are the same (rotary positions know nothing else), but a token's state was computed when tokens that have left since were still seen, so
  a little of them lives on: deeper layers see up to (layers * max_context) tokens back. Forecasts differ from the exact ones.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kronos.cache import CachedBlocks, CachedPredictor, Plan
from kronos.network import Kronos
from kronos.packed import PackedPredictor, PackedTokenizer
from kronos.sampling import Sampling, draw
from kronos.tokenizer import KronosTokenizer

Tokens = tuple[Tensor, Tensor]


class _Paths:
    """The sequences being written: prefixes [B, P] by group, generated [B, S, horizon] per sample."""

    def __init__(
        self, model: PackedPredictor, prefixes: Sequence[Tokens], stamps: Sequence[Tensor], plan: Plan, max_context: int, rolling: bool
    ) -> None:
        self.model, self.prefixes, self.plan, self.max_context, self.rolling = model, prefixes, plan, max_context, rolling
        self.sizes = [prefix[0].shape[1] for prefix in prefixes]
        clocks = [model.clock(part) for part in stamps]  # [B, P + horizon, d]
        self.past = [clock[:, :size] for clock, size in zip(clocks, self.sizes, strict=True)]
        self.future = torch.cat([clock[:, size:] for clock, size in zip(clocks, self.sizes, strict=True)])  # [B, horizon, d]
        series = self.future.shape[0]
        self.made = tuple(prefixes[0][0].new_zeros(series, plan.samples, plan.capacity) for _ in range(2))
        self.cached: CachedPredictor | None = None

    def state_before(self, step: int) -> CachedPredictor:
        """A predictor whose `hidden` is that of the token before `step`."""
        if not self.rolling and max(self.sizes) + step > self.max_context:
            assert len(self.sizes) == 1, "series whose window slides are computed beside others of their length only"
            return self._window(self.sizes[0], step)
        if self.cached is None:
            self.cached = CachedPredictor(self.model, self.plan)
            for prefix, clock in zip(self.prefixes, self.past, strict=True):
                self.cached.prefill(*(part[:, -self.max_context :] for part in (*prefix, clock)))
        else:
            self.cached.extend(*(ids[:, :, step - 1 : step] for ids in self.made), self.future[:, step - 1 : step])
        return self.cached

    def _window(self, size: int, step: int) -> CachedPredictor:
        """Everything anew for a step whose window has slid: the last max_context tokens."""
        start, samples = size + step - self.max_context, self.plan.samples
        after = slice(max(0, start - size), step)
        old = [part[:, start:] for part in (*self.prefixes[0], self.past[0])]
        made, clock = [ids[:, :, after] for ids in self.made], self.future[:, after]
        if start < size and samples > 1:  # the part before the first generated token is the same for all samples
            cached = CachedPredictor(self.model, Plan(samples, step))
            cached.prefill(*old)
            if step:
                cached.extend(*made, clock)
            return cached
        new = [*(ids.flatten(0, 1) for ids in made), clock.repeat_interleave(samples, 0)]
        cached = CachedPredictor(self.model, Plan(1, 0))
        cached.prefill(*(torch.cat((a.repeat_interleave(samples, 0), b), 1) for a, b in zip(old, new, strict=True)))
        return cached


@torch.inference_mode()
def generate(
    model: Kronos | PackedPredictor,
    prefixes: Sequence[Tokens],
    stamps: Sequence[Tensor],
    uniforms: Tensor,
    how: Sampling,
    max_context: int,
    *,
    rolling: bool = False,
    on_step: Callable[[], object] | None = None,
) -> Tokens:
    """Continue each of B series along S sampled paths.

    prefixes: per group of series of one length, coarse and fine tokens, [B_g, P_g] int64 each. stamps: per group, of prefix and future,
    [B_g, P_g + horizon, 5]. uniforms: [B, S, horizon, 2] in [0, 1), series in the order of the groups. rolling: keep the cache beyond
    max_context (see above); otherwise series that outgrow it must come alone or with others of their length.
    Returns the generated coarse and fine tokens, [B, S, horizon] int64 each.
    """
    _, samples, horizon, _ = uniforms.shape
    model = model if isinstance(model, PackedPredictor) else PackedPredictor(model)
    paths = _Paths(model, prefixes, stamps, Plan(samples, horizon, max_context if rolling else None), max_context, rolling)
    numbers = uniforms.movedim(2, 0).flatten(1, 2)  # [horizon, B * S, 2]
    for step in range(horizon):
        state = paths.state_before(step)
        s1 = draw(state.coarse_logits(), numbers[step, :, 0], how)
        s2 = draw(state.fine_logits(s1), numbers[step, :, 1], how)
        for ids, drawn in zip(paths.made, (s1, s2), strict=True):
            ids[:, :, step] = drawn.view(-1, samples)
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
def decode_paths(tokenizer: KronosTokenizer | PackedTokenizer, prefix: Tokens, made: Tokens, max_context: int) -> Tensor:
    """Bars [B, S, horizon, d_in] of the generated tokens [B, S, horizon], decoded after their prefix [B, P] (as much of both as fits)."""
    packed = tokenizer if isinstance(tokenizer, PackedTokenizer) else PackedTokenizer(tokenizer)
    (batch, samples, horizon), size = made[0].shape, prefix[0].shape[1]
    start = max(0, size + horizon - max_context)
    fresh = packed.vectors_of(made)  # [B, S, horizon, d]
    if start >= size:  # nothing of the prefix is left in the window
        assert start == size, "the horizon must fit into max_context"
        rows = CachedBlocks(packed.decoder, Plan(1, 0)).prefill(fresh.flatten(0, 1))
    else:
        blocks = CachedBlocks(packed.decoder, Plan(samples, horizon))
        blocks.prefill(packed.vectors_of(tuple(ids[:, start:] for ids in prefix)), only_remember=True)
        rows = blocks.extend(fresh.flatten(0, 2))
    return packed.head(rows).view(batch, samples, horizon, -1)
