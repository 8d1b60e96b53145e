"""Where a run stands: all that `last` must hold besides weights and optimiser for training to go on as if nothing had happened."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .schedule import Plateau
from .settings import FitSettings


@dataclass
class State:
    """Counters of a run. Positions are counted in windows, so that a run may continue on another number of ranks."""

    epoch: int = 0
    window: int = 0  # windows of this epoch already trained on
    step: int = 0  # optimiser steps since the beginning
    best: float | None = None
    best_epoch: int = -1
    bad_epochs: int = 0  # validations since the best one
    stopped_early: bool = False
    skipped: int = 0
    loss_sum: float = 0.0  # Σ weight·loss of this epoch
    weight_sum: float = 0.0
    plateau_scale: float = 1.0
    plateau_bad: int = 0
    top: list[list[Any]] = field(default_factory=list)  # [score, folder name], best first
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per epoch

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def judge(self, score: float, settings: FitSettings) -> bool:
        """Take a validation score into account; says whether it is the best so far. NaN never is."""
        sign = 1.0 if settings.mode == "min" else -1.0
        improved = math.isfinite(score) and (self.best is None or sign * score < sign * self.best - settings.min_delta)
        if improved:
            self.best, self.best_epoch, self.bad_epochs = score, self.epoch, 0
        else:
            self.bad_epochs += 1
        if settings.schedule == "plateau":
            plateau = Plateau(
                settings.plateau_factor, settings.plateau_patience, settings.min_lr_ratio, self.plateau_scale, self.plateau_bad
            )
            plateau.update(improved)
            self.plateau_scale, self.plateau_bad = plateau.scale, plateau.bad_rounds
        return improved

    def enter_top(self, score: float, name: str, settings: FitSettings) -> bool:
        """Keep a list of the `top_k` best epochs; says whether this one is among them."""
        if settings.top_k <= 1 or not math.isfinite(score):
            return False
        ranked = sorted([*self.top, [score, name]], key=lambda entry: entry[0], reverse=settings.mode == "max")
        self.top = ranked[: settings.top_k]
        return any(entry[1] == name for entry in self.top)
