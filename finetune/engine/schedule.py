"""Learning rate as a pure function of the optimiser step. `plateau` alone has a memory, kept in `Plateau` and saved with the checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import FitSettings


def learning_rate(step: int, total_steps: int, settings: FitSettings) -> float:
    """Rate of optimiser step `step` (0-based) out of `total_steps`.

    onecycle is the two-phase cosine of Smith and Topin (2018), without momentum cycling: Adam's betas stay as configured.
    """
    s, peak = settings, settings.learning_rate
    if s.schedule in ("constant", "plateau") or total_steps == 1:  # without a warm-up an only step would be at the floor
        return peak
    warm = max(1, round(s.warmup_ratio * total_steps)) if s.warmup_ratio > 0 else 0
    start = peak / s.div_factor
    if step < warm:
        progress = (step + 1) / warm  # the last warm-up step runs at the peak
        shape = progress if s.schedule != "onecycle" else 0.5 - 0.5 * math.cos(math.pi * progress)
        return start + (peak - start) * shape
    progress = (step + 1 - warm) / max(1, total_steps - warm)
    progress = min(1.0, progress)
    if s.schedule == "linear":
        return peak * (s.min_lr_ratio + (1 - s.min_lr_ratio) * (1 - progress))
    floor = start / s.final_div_factor if s.schedule == "onecycle" else peak * s.min_lr_ratio
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class Plateau:
    """Lowers the rate by `factor` after `patience` validations without improvement."""

    factor: float
    patience: int
    floor: float  # smallest scale
    scale: float = 1.0
    bad_rounds: int = 0

    def update(self, improved: bool) -> None:
        self.bad_rounds = 0 if improved else self.bad_rounds + 1
        if self.bad_rounds > self.patience:
            self.scale = max(self.floor, self.scale * self.factor)
            self.bad_rounds = 0
