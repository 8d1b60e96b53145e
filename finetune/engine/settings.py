"""Everything the training loop can be told, in one frozen record. Commands build it from YAML, federated clients from a run-config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Sampling = Literal["rows", "symbols", "sqrt"]  # see `balance`
Amp = Literal["off", "bf16", "fp16"]
Optimiser = Literal["adamw", "sgd"]
Schedule = Literal["onecycle", "cosine", "constant", "plateau", "linear"]


@dataclass(frozen=True)
class Augmentation:
    """Strength of each augmentation of training windows; 0 switches it off. See `augment.py` for what each does."""

    noise: float = 0.0  # standard deviation of additive Gaussian noise, in units of the lookback's standard deviation
    scale: float = 0.0  # log-amplitude: a window is multiplied by exp(N(0, scale²)) around its lookback mean
    time_warp: float = 0.0  # largest local change of speed, as a fraction (0.2 = up to 20 % faster or slower)
    slice: float = 0.0  # largest share of the window cut away at random and stretched back to full length

    @property
    def active(self) -> bool:
        return any((self.noise, self.scale, self.time_warp, self.slice))


@dataclass(frozen=True)
class FitSettings:
    """Settings of `trainer.fit`.

    The effective batch of an optimiser step is `batch_size × accumulation_steps × world size` windows.
    """

    epochs: int = 1
    batch_size: int = 32  # windows per micro-batch and rank
    accumulation_steps: int = 1
    learning_rate: float = 1e-4
    optimiser: Optimiser = "adamw"  # sgd: without momentum, a step is the gradient's, so that steps of several clients add up
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 3.0  # 0 = no clipping
    seed: int = 42

    schedule: Schedule = "onecycle"
    warmup_ratio: float = 0.03  # share of all steps spent rising to the peak rate (onecycle's pct_start)
    div_factor: float = 10.0  # the first rate is learning_rate / div_factor (warm-up of every schedule but constant and plateau)
    final_div_factor: float = 1e4  # onecycle ends at learning_rate / div_factor / final_div_factor
    min_lr_ratio: float = 0.0  # floor of cosine, linear and plateau, as a share of learning_rate
    plateau_factor: float = 0.5
    plateau_patience: int = 2  # epochs without improvement before plateau lowers the rate

    amp: Amp = "off"
    tf32: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    device: str = "cpu"
    panel_on_device: bool = True  # a panel that fits on the accelerator is gathered there

    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    score_start: bool = False  # validate the starting weights first; they stay the best until an epoch beats them
    early_stop_patience: int = 0  # epochs without improvement before stopping; 0 = never
    min_delta: float = 0.0

    save_last: bool = True
    checkpoint_every_steps: int = 0  # besides the one at every epoch's end; 0 = none
    checkpoint_every_epochs: int = 0  # keep the weights of every n-th epoch; 0 = none
    top_k: int = 1  # how many of the best weights are kept (1 = best_model only)

    n_train_iter: int = 0  # windows per epoch; 0 = all of them
    n_val_iter: int = 0  # validation windows; 0 = all of them
    val_batch_size: int = 0  # 0 = batch_size
    log_interval: int = 50  # optimiser steps between two logged lines
    num_workers: int = 1  # threads that prepare the next batches; 0 = prepared in the loop
    augmentation: Augmentation = field(default_factory=Augmentation)
