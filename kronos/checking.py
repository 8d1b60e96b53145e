"""Whether cached generation drew the tokens that full recomputation would have drawn, and if not, whether rounding excuses it."""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from kronos.generation import Tokens
from kronos.network import Kronos
from kronos.sampling import Sampling, draw

TIE = 1e-5  # in probability


class Agreement(NamedTuple):
    """Tokens compared, coarse and fine; how many were ties, and how many are different for no such reason."""

    tokens: int
    ties: int
    different: int

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.ties} ties within {TIE:g}, {self.different} different"


@torch.no_grad()
def compare(
    model: Kronos,
    prefix: Tokens,
    stamps: Tensor,
    uniforms: Tensor,
    how: Sampling,
    max_context: int,
    made: Tokens,
    steps: range | None = None,
) -> Agreement:
    """Recompute every step (or those of `steps`) from its whole window with the model's plain forward pass, as the public code does it.

    Each step starts from the tokens that were `made` before it, so one tie does not make all later tokens differ. Arguments as in
    `kronos.generation.generate`, for one group. A tie is a token that another draw would have chosen whose random number, or whose top_p,
    differs by at most 1e-5. The model must be in evaluation mode.
    """
    samples = made[0].shape[1]
    s1, s2 = (torch.cat((old.repeat_interleave(samples, 0), new.flatten(0, 1)), 1) for old, new in zip(prefix, made, strict=True))
    clock, numbers, size = stamps.repeat_interleave(samples, 0), uniforms.flatten(0, 1), prefix[0].shape[1]
    total = Agreement(0, 0, 0)
    for step in steps or range(made[0].shape[2]):
        end = size + step
        window = slice(max(0, end - max_context), end)
        logits, hidden = model.decode_s1(s1[:, window], s2[:, window], clock[:, window])
        fine = model.decode_s2(hidden, s1[:, end : end + 1])[:, -1]
        for found, ids, number in ((logits[:, -1], s1, numbers[:, step, 0]), (fine, s2, numbers[:, step, 1])):
            total = Agreement(*map(sum, zip(total, _judge(found, number, how, ids[:, end]), strict=True)))
    return total


def _judge(logits: Tensor, numbers: Tensor, how: Sampling, ids: Tensor) -> Agreement:
    """Logits [N, V], random numbers [N] and the tokens drawn [N]."""
    missed = draw(logits, numbers, how) != ids
    excused = torch.zeros_like(missed)
    if missed.any():
        for shift, edge in product((-TIE, 0.0, TIE), repeat=2):
            moved = Sampling(how.temperature, how.top_k, min(1.0, max(how.top_p + edge, TIE)) if how.top_p < 1 else 1.0)
            excused |= draw(logits, (numbers + shift).clamp(0, 1), moved) == ids
    return Agreement(len(ids), int((missed & excused).sum()), int((missed & ~excused).sum()))
