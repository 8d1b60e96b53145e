"""The two Kronos tasks: the tokenizer that turns bars into tokens, and the predictor of the next token. Losses as in the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kronos import Kronos, KronosTokenizer, fingerprint, save_module
from kronos.ops import cross_entropy

from .task import Outcome, Task


def encode_windows(tokenizer: KronosTokenizer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of normalised bars, always in the tokenizer's own precision: under bf16 a bit near zero could flip.

    x [B, T, F] → coarse ids [B, T], fine ids [B, T], int64
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return tokenizer.encode(x.to(next(tokenizer.parameters()).dtype), half=True)


class TokenizerTask(Task):
    """Reconstruct the bars through the quantiser: (mse of coarse + mse of full + quantiser loss) / 2.

    In evaluation the loss is mse(full, x) over the lookahead rows, which the best model is chosen by; `window_loss` is
    the same over the whole window.
    """

    def __init__(self, tokenizer: KronosTokenizer, lookback: int):
        super().__init__()
        self.tokenizer, self.lookback = tokenizer, lookback

    def trained(self) -> nn.Module:
        return self.tokenizer

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        x = batch["x"].to(self.tokenizer.embed.weight.dtype)
        out = self.tokenizer(x)
        squared = (out.full - x).square()
        if not self.training:
            return Outcome(squared[:, self.lookback :].mean(), len(x), {"window_loss": squared.mean()})
        full, coarse = squared.mean(), F.mse_loss(out.coarse, x)
        terms = {"recon_full": full, "recon_coarse": coarse, "quantiser": out.quantiser_loss}
        return Outcome((full + coarse + out.quantiser_loss) / 2, len(x), {k: v.detach() for k, v in terms.items()})

    def save(self, folder: Path) -> None:
        save_module(self.tokenizer, folder)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "model": dict(self.tokenizer.config)}


class PredictorTask(Task):
    """Predict the next coarse and fine token: (CE_s1 + CE_s2) / 2, bars tokenised by the frozen tokenizer.

    In training the fine head is fed a coarse token drawn from the model's own distribution (teacher_forcing: the true
    one). Evaluation always feeds the true one, so its loss is the exact negative log-likelihood per pair, halved, and
    does not change from call to call (fault 2); it counts lookahead targets, `window_loss` all of them.
    """

    def __init__(self, predictor: Kronos, tokenizer: KronosTokenizer, lookback: int, teacher_forcing: bool = False):
        super().__init__()
        self.predictor, self.tokenizer = predictor, tokenizer.eval().requires_grad_(False)
        self.lookback, self.teacher_forcing = lookback, teacher_forcing
        self._tokenizer_print = fingerprint(tokenizer)

    def train(self, mode: bool = True) -> PredictorTask:
        super().train(mode)
        self.tokenizer.eval()  # frozen: no dropout in what makes the targets
        return self

    def trained(self) -> nn.Module:
        return self.predictor

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        s1, s2 = (batch["s1"], batch["s2"]) if "s1" in batch else encode_windows(self.tokenizer, batch["x"])
        s1, s2 = s1.long(), s2.long()
        forced = self.teacher_forcing or not self.training
        logits = self.predictor(s1[:, :-1], s2[:, :-1], batch["stamps"][:, :-1], s1_targets=s1[:, 1:], teacher_forcing=forced)
        losses = [
            cross_entropy(part, target[:, 1:]) for part, target in zip(logits, (s1, s2), strict=True)
        ]  # each [B, T-1]; target t is bar t+1
        if "s1" not in batch:  # a bar that is not finite has tokens like any other: without this its loss would look sound
            losses[0] = losses[0] + 0.0 * batch["x"].sum()
        if not self.training:
            first = self.lookback - 1  # the target of input lookback-1 is the first lookahead bar
            both = (losses[0] + losses[1]) / 2
            terms = {"window_loss": both.mean(), "s1": losses[0][:, first:].mean(), "s2": losses[1][:, first:].mean()}
            return Outcome(both[:, first:].mean(), len(s1), terms)
        s1_loss, s2_loss = losses[0].mean(), losses[1].mean()
        return Outcome((s1_loss + s2_loss) / 2, len(s1), {"s1": s1_loss.detach(), "s2": s2_loss.detach()})

    def save(self, folder: Path) -> None:
        save_module(self.predictor, folder)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "model": dict(self.predictor.config), "tokenizer": self._tokenizer_print}
