"""What configs/tft/model_config.yaml may hold. The keys that users of the known project have stand flat at the top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import field_validator

from finetune.engine.config import Section, key, switch_or
from finetune.engine.sections import DeviceSection, DistributedSection
from finetune.engine.settings import Amp, FitSettings
from finetune.engine.yaml_text import read_yaml
from tft.vocabulary import STATICS

_AMP: dict[str, Amp] = {"32": "off", "16-mixed": "fp16", "bf16-mixed": "bf16"}


class OneCycleSection(Section):
    """Course of the learning rate under onecycle: up to `lr`, then down to almost nothing."""

    pct_start: float = key(0.1, "share of all steps that the learning rate rises over", ge=0, lt=1)
    div_factor: float = key(10.0, "it starts at lr divided by this", ge=1)
    final_div_factor: float = key(1e3, "it ends at that divided by this", ge=1)


class TftConfig(Section):
    """A whole model_config.yaml."""

    flat: ClassVar = True
    aliases: ClassVar = {
        "learning_rate": ("lr",),
        "epochs": ("max_epochs",),
        "accumulate_grad_batches": ("accumulation_steps",),
        "hidden_continuous": ("hidden_continuous_size",),
    }

    data_path: str = key("outputs/tft/fused", "what data_fusion.py left: a panel folder, .parquet, or .pkl", env="TFM_DATA_PATH", path="in")
    targets: dict[str, Any] | list[str] = key(
        ["all"],
        "target → loss: WeightedBCE, focal, SmoothL1, MSE, quantile, or {name: focal, gamma: 2, weight: 1}; a list takes WeightedBCE for "
        "classes and SmoothL1 for values; all: every target there is",
    )
    categoricals: list[str] = key(["all"], "categorical columns that are used; all: every one; []: none")
    reals: list[str] = key(["all"], "past and known columns of numbers that are used; all: every one")
    lagged_targets: list[str] = key([], "targets that are inputs too, each only as late as its own horizon has passed")
    group_ids: list[Literal["symbol", "period"]] = key(["symbol", "period"], "what tells one series from another; static inputs")
    time_idx: Literal["time_idx", "time"] = key("time_idx", "order of rows in a series; a panel has it built in, from its times")
    horizon: int | dict[str, int] = key(0, "bars that targets look ahead, or one number per period; 0: as the panel of data_fusion.py says")
    standardise: bool = key(True, "bring every number to mean 0, deviation 1 of the training rows of its symbol and period")
    max_encoder_length: int = key(96, "rows that the model sees, the present one the last", ge=2, le=100_000)
    max_prediction_length: int = key(1, "rows after it of which only what is known ahead is seen", ge=1, le=1000)

    hidden_size: int = key(16, "width of the network; a multiple of attention_head_size", ge=1, le=4096)
    hidden_continuous_size: int = key(0, "width that a number is brought to before selection; 0: hidden_size", ge=0, le=4096)
    lstm_layers: int = key(1, "layers of the LSTM", ge=1, le=16)
    attention_head_size: int = key(4, "attention heads", ge=1, le=64)
    dropout: float = key(0.1, "dropout in every block", ge=0, lt=1)
    uncertainty_weights: bool = key(False, "learn how the targets' losses are balanced: Σ w (L / σ² + log σ²)")
    weights_config: str = key("", "weights of the losses by stage, weights_config.yaml; empty: none", path="in")
    composite_score: str = key("", "what val_composite_score is made of, composite_score.yaml; empty: there is none", path="in")

    val_mode: Literal["ratio", "days"] = key(
        "ratio",
        "how validation and test are cut off the end of the data; labels of each part end before the next one (purge), which begins the "
        "largest target horizon later (embargo); with the rule of data.yaml training ends where thresholds of targets do",
    )
    val_ratio: float = key(0.2, "ratio: share of all rows, the latest before the test's, for validation", ge=0, lt=1)
    test_ratio: float = key(0.0, "ratio: share of all rows, the latest, for a test", ge=0, lt=1)
    val_days: float = key(30.0, "days: length of the validation period, the latest before the test's", ge=0)
    test_days: float = key(0.0, "days: length of the test period, the latest", ge=0)
    train_until: str = key("", "a date such as 2023-01-01 (UTC) that ends the training data; wins over val_mode")
    focus_period: list[str] = key([], "train and judge on rows of this period only, such as 1h, or of several; empty: of all")

    batch_size: int = key(128, "windows per micro-batch and process", ge=1, le=1_000_000)
    val_batch_size: int = key(0, "windows per validation batch and process; 0: batch_size", ge=0, le=1_000_000)
    accumulation_steps: int = key(1, "micro-batches per optimiser step (accumulate_grad_batches is the same key)", ge=1, le=100_000)
    shared_rows: bool = key(
        False, "batches of blocks of consecutive windows, whose common rows are computed once: several times faster, but alike batches"
    )
    block_length: int = key(16, "shared_rows: consecutive windows in a block", ge=2, le=10_000)
    max_epochs: int = key(20, "epochs", ge=1, le=1_000_000)
    n_train_iter: int = key(0, "training windows drawn per epoch; 0: all", ge=0)
    n_val_iter: int = key(0, "validation windows, the same every epoch; 0: all", ge=0)
    optimizer: Literal["adamw", "adam"] = key("adamw", "adam is adamw without weight_decay")
    lr: float = key(1e-3, "peak learning rate", gt=0, le=1)
    weight_decay: float = key(0.01, "adamw's weight decay", ge=0, le=10)
    adam_beta1: float = key(0.9, "the optimiser's first decay", ge=0, lt=1)
    adam_beta2: float = key(0.99, "the optimiser's second decay", ge=0, lt=1)
    gradient_clip_val: float = key(1.0, "gradients are scaled down to this norm; 0: never", ge=0)
    precision: Literal["32", "16-mixed", "bf16-mixed"] = key("32", "precision of the arithmetic")
    schedule: Literal["auto", "onecycle", "cosine", "linear", "plateau", "constant"] = key(
        "auto", "course of the learning rate; auto: onecycle, or constant where onecycle is false"
    )
    onecycle: switch_or(OneCycleSection) = key(True, "true, false, or a mapping with pct_start, div_factor, final_div_factor")
    warmup_ratio: float = key(0.0, "cosine and linear: share of all steps that the learning rate rises over", ge=0, lt=1)
    min_lr_ratio: float = key(0.0, "cosine, linear and plateau go no lower than this share of lr", ge=0, le=1)
    seed: int = key(42, "seed of everything random; the same seed gives the same run", ge=0, le=2**63 - 1)
    num_workers: int = key(1, "threads that prepare the next batches; 0: prepared in the loop", ge=0, le=256)
    log_interval: int = key(50, "optimiser steps between two logged lines", ge=1)

    monitor: str = key("val_loss_for_ckpt", "metric that chooses the best weights, such as val_target_binarytrend_f1@1h")
    monitor_mode: Literal["auto", "min", "max"] = key("auto", "whether less or more of it is better; auto: as the metric is")
    top_k: int = key(3, "how many of the best weights are kept as checkpoints/best-epoch=NN; 1: checkpoints/best only", ge=1, le=1000)
    save_last: bool = key(True, "keep checkpoints/last-..., which train_resume.py goes on from")
    checkpoint_every_steps: int = key(0, "also save `last` every n optimiser steps; 0: at the end of each epoch only", ge=0)
    early_stop_patience: int = key(5, "stop after this many epochs without improvement; 0: never", ge=0)
    early_stop_min_delta: float = key(0.0, "smallest gain that counts as improvement", ge=0)
    resume_ckpt: str = key("", "go on from this checkpoint: last, or a path; empty: start anew")
    warm_start_ckpt: str = key("", "take the weights of this checkpoint, by name and shape; heads may differ; empty: random weights")
    output_dir: str = key("runs", "folder below which each run gets a folder <script>-YYYYMMDD_HHMM", path="out")

    device: DeviceSection = DeviceSection()
    distributed: DistributedSection = DistributedSection()

    @field_validator("group_ids")
    @classmethod
    def _both(cls, value: list[str]) -> list[str]:
        if sorted(value) != ["period", "symbol"]:
            raise ValueError("must name symbol and period, which a panel tells its series apart by")
        return value

    @field_validator("categoricals")
    @classmethod
    def _without_statics(cls, value: list[str]) -> list[str]:
        return [name for name in value if name not in STATICS]  # files of the known project name them; they are inputs in any case

    @field_validator("train_until")
    @classmethod
    def _date(cls, value: str) -> str:
        if value and pd.isna(pd.to_datetime(value, errors="coerce", utc=True)):
            raise ValueError("is not a date; write it as 2023-01-01")
        return value

    @field_validator("precision", mode="before")
    @classmethod
    def _number_or_name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def _complete(self) -> None:
        """`schedule` and `onecycle` agree after loading, so that a run's own copy of its configuration loads again."""
        if self.schedule == "auto":
            self._fill(schedule="constant" if self.onecycle is False else "onecycle")
        elif self.schedule != "onecycle" and "onecycle" not in self.model_fields_set:
            self._fill(onecycle=False)

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.schedule == "onecycle") != (self.onecycle is not False):
            yield "schedule", f"is {self.schedule}, but onecycle is {'on' if self.onecycle else 'false'}; keep one of the two"
        if self.val_ratio + self.test_ratio >= 1:
            yield "val_ratio", f"and test_ratio add up to {self.val_ratio + self.test_ratio:g}; lower one so that training data is left"
        share = self.val_ratio if self.val_mode == "ratio" else self.val_days
        if share == 0:
            name = f"val_{self.val_mode}"
            yield name, "is 0: the validation period is empty, and nothing could choose the best model; give it a part of the data"
        if self.hidden_size % self.attention_head_size:
            yield "hidden_size", f"is {self.hidden_size}, which {self.attention_head_size} heads cannot share; choose a multiple of it"
        if self.resume_ckpt and self.warm_start_ckpt:
            yield (
                "resume_ckpt",
                "is given, and so is warm_start_ckpt; a run goes on or begins with other weights: keep one of the two",
            )
        if not self.targets:
            yield "targets", "is empty; name at least one target, or all"
        if self.shared_rows and self.block_length > self.batch_size:
            yield "block_length", f"is {self.block_length}, more than batch_size {self.batch_size}; lower it, or set shared_rows: false"

    def fit_settings(self, device: str, mode: Literal["min", "max"]) -> FitSettings:
        """For `fit`. With shared rows it trains on blocks, so the sizes of its batches and epochs are divided by their length."""
        per_item = self.block_length if self.shared_rows else 1
        cycle = self.onecycle if isinstance(self.onecycle, OneCycleSection) else OneCycleSection()
        return FitSettings(
            epochs=self.max_epochs,
            batch_size=max(1, self.batch_size // per_item),
            val_batch_size=self.val_batch_size or self.batch_size,
            accumulation_steps=self.accumulation_steps,
            learning_rate=self.lr,
            betas=(self.adam_beta1, self.adam_beta2),
            weight_decay=self.weight_decay if self.optimizer == "adamw" else 0.0,
            clip_norm=self.gradient_clip_val,
            seed=self.seed,
            schedule=self.schedule,
            warmup_ratio=cycle.pct_start if self.schedule == "onecycle" else self.warmup_ratio,
            div_factor=cycle.div_factor,
            final_div_factor=cycle.final_div_factor,
            min_lr_ratio=self.min_lr_ratio,
            amp=_AMP[self.precision],
            device=device,
            panel_on_device=self.device.panel_on_device,
            monitor=self.monitor,
            mode=mode,
            early_stop_patience=self.early_stop_patience,
            min_delta=self.early_stop_min_delta,
            save_last=self.save_last,
            checkpoint_every_steps=self.checkpoint_every_steps,
            top_k=self.top_k,
            n_train_iter=-(-self.n_train_iter // per_item),
            n_val_iter=self.n_val_iter,
            log_interval=self.log_interval,
            num_workers=self.num_workers,
        )


def extra_file(path: str) -> dict[str, Any]:
    """The mapping in weights_config.yaml or composite_score.yaml; {} where none is named. Raises InputError or MissingFileError."""
    return read_yaml(path).tree if path else {}
