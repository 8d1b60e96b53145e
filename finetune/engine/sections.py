"""Sections that several commands share: windows, training, models, devices, forecasts. Known keys have upstream's documented defaults."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import ValidationInfo, field_validator

from finetune.engine.config import Section, key, number_or, text_or
from finetune.engine.devices import pick_device
from finetune.engine.places import Stage
from finetune.engine.settings import Amp, Augmentation, FitSettings, Sampling, Schedule
from kronos import presets
from kronos.arguments import check_arguments
from kronos.errors import InputError


class WindowSection(Section):
    """How a panel is cut into windows and split in time."""

    lookback_window: int = key(512, "bars before the forecast; their mean and deviation normalise the whole window", ge=2, le=100_000)
    predict_window: int = key(48, "bars to forecast", ge=1, le=100_000)
    max_context: int = key(512, "bars that the predictor looks back at most while forecasting (mini: 2048, others: 512)", ge=2, le=100_000)
    clip: float = key(5.0, "normalised values are cut off at plus and minus this", gt=0, le=1000)
    train_ratio: float = key(0.9, "share of all bars, the earliest, to train on", gt=0, le=1)
    val_ratio: float = key(0.1, "share of the bars after those, to choose the best model on", gt=0, le=1)
    test_ratio: float = key(0.0, "share of the bars after those, left for a test", ge=0, le=1)
    split: Literal["date", "per_symbol"] = key(
        "date", "date: one cut for all series, so that nothing in training is later than anything in validation; per_symbol: each its own"
    )
    window_stride: int = key(
        1, "bars between the starts of two training windows; 1 uses every window (validation and test always do)", ge=1
    )

    sampling: Sampling = key(
        "rows", "how training windows are drawn: rows, each equally; symbols, each series equally; sqrt, by the root of a series' length"
    )

    @property
    def ratios(self) -> tuple[float, float, float]:
        return self.train_ratio, self.val_ratio, self.test_ratio

    def problems(self) -> Iterator[tuple[str, str]]:
        total = sum(self.ratios)
        if total > 1 + 1e-9:
            names = "train_ratio + val_ratio + test_ratio"
            yield "", f"{names} = {' + '.join(f'{share:g}' for share in self.ratios)} = {total:g}; lower one so that the sum is at most 1"


class AugmentSection(Section):
    """Augmentation of training windows only; each 0 switches it off."""

    noise: float = key(0.0, "standard deviation of added noise, in standard deviations of the lookback", ge=0, le=1)
    scale: float = key(0.0, "log-amplitude: moves around the lookback's mean are multiplied by exp(N(0, scale²))", ge=0, le=1)
    time_warp: float = key(0.0, "largest local change of speed, as a fraction (0.2: up to 20 % faster or slower)", ge=0, le=0.9)
    slice: float = key(0.0, "largest share of a window cut away at random, the rest stretched to full length", ge=0, le=0.9)


class TrainingSection(Section):
    """The training loop, for tokenizer and predictor."""

    aliases: ClassVar = {"epochs": ("tokenizer_epochs", "basemodel_epochs"), "pct_start": ("warmup_ratio",)}

    tokenizer_epochs: int = key(30, "epochs of the tokenizer (`epochs` sets this and the next)", ge=1, le=1_000_000)
    basemodel_epochs: int = key(30, "epochs of the predictor", ge=1, le=1_000_000)
    batch_size: int = key(160, "windows per micro-batch and process", ge=1, le=1_000_000)
    val_batch_size: int = key(0, "windows per validation batch and process; 0: batch_size", ge=0, le=1_000_000)
    accumulation_steps: int = key(1, "micro-batches per optimiser step; effective batch = batch_size × this × processes", ge=1, le=100_000)
    log_interval: int = key(50, "optimiser steps between two logged lines", ge=1)
    num_workers: int = key(6, "threads that prepare the next batches; 0: prepared in the loop", ge=0, le=256)
    seed: int = key(100, "seed of everything random; the same seed gives the same run", ge=0, le=2**63 - 1)
    tokenizer_learning_rate: float = key(2e-4, "peak learning rate of the tokenizer", gt=0, le=1)
    predictor_learning_rate: float = key(4e-5, "the predictor's; lower it (1e-6) if validation rises at once", gt=0, le=1)
    adam_beta1: float = key(0.9, "AdamW's first decay", ge=0, lt=1)
    adam_beta2: float = key(0.95, "AdamW's second decay", ge=0, lt=1)
    adam_weight_decay: float = key(0.1, "AdamW's weight decay", ge=0, le=10)
    clip_norm_tokenizer: float = key(2.0, "gradients of the tokenizer are scaled down to this norm; 0: never", ge=0)
    clip_norm_predictor: float = key(3.0, "gradients of the predictor are scaled down to this norm; 0: never", ge=0)

    schedule: Schedule = key("onecycle", "course of the learning rate")
    warmup_ratio: float = key(0.03, "share of all steps that the learning rate rises over (`pct_start` is the same key)", ge=0, lt=1)
    div_factor: float = key(10.0, "onecycle, cosine and linear start at the peak divided by this", ge=1)
    final_div_factor: float = key(1e4, "onecycle ends at the first learning rate divided by this", ge=1)
    min_lr_ratio: float = key(0.0, "cosine, linear and plateau go no lower than this share of the peak", ge=0, le=1)
    plateau_factor: float = key(0.5, "plateau multiplies the learning rate by this", gt=0, lt=1)
    plateau_patience: int = key(2, "epochs without improvement before plateau does so", ge=0)
    monitor_tokenizer: Literal["val_loss", "val_window_loss"] = key(
        "val_loss", "the tokenizer's best weights are chosen by this: val_loss looks at the bars to forecast, val_window_loss at all"
    )
    monitor_predictor: Literal["val_loss", "val_window_loss", "val_s1", "val_s2"] = key(
        "val_loss", "the same for the predictor; val_s1 and val_s2 are the coarse and the fine token's share of val_loss"
    )
    score_start: bool = key(True, "validate pretrained weights before training; best_model stays these until an epoch beats them")
    early_stop_patience: int = key(0, "stop after this many epochs without improvement; 0: never", ge=0)
    early_stop_min_delta: float = key(0.0, "smallest gain in validation loss that counts as improvement", ge=0)

    amp: Amp = key("off", "mixed precision: bf16 (Ampere and later, recent CPUs), fp16 (older GPUs), off")
    tf32: bool = key(True, "let NVIDIA GPUs multiply float32 matrices in TF32")
    compile: bool = key(False, "compile the model with torch.compile: slower start, faster steps; on a CPU it needs a C++ compiler")
    activation_checkpointing: bool = key(False, "recompute activations in the backward pass: less memory, about a third slower")

    save_last: bool = key(True, "keep `last`, the checkpoint that --resume goes on from")
    top_k: int = key(1, "how many of the best weights are kept; 1: best_model only", ge=1, le=1000)
    checkpoint_every_epochs: int = key(0, "also keep the weights of every n-th epoch; 0: none", ge=0)
    checkpoint_every_steps: int = key(0, "also save `last` every n optimiser steps; 0: at the end of each epoch only", ge=0)
    n_train_iter: int = key(0, "training windows drawn per epoch; 0: all", ge=0)
    n_val_iter: int = key(0, "validation windows, the same ones every epoch; 0: all", ge=0)
    cache_tokens: Literal["auto", "on", "off"] = key(
        "auto", "encode each window once for all epochs of the predictor; auto: where windows repeat, no augmentation is on, and it fits"
    )
    cache_limit_gib: float = key(4.0, "largest token cache on disk, in GiB", gt=0)
    teacher_forcing: bool = key(False, "train the fine token on the true coarse token instead of one drawn from the model")
    augment: AugmentSection = AugmentSection()

    def fit_settings(self, stage: Stage, device: str, panel_on_device: bool = True) -> FitSettings:
        """The loop's settings for one stage."""
        tokenizer = stage == "tokenizer"
        same = {name: getattr(self, name) for name in FitSettings.__dataclass_fields__ if name in TrainingSection.model_fields}
        return FitSettings(
            **same,
            epochs=self.tokenizer_epochs if tokenizer else self.basemodel_epochs,
            learning_rate=self.tokenizer_learning_rate if tokenizer else self.predictor_learning_rate,
            clip_norm=self.clip_norm_tokenizer if tokenizer else self.clip_norm_predictor,
            betas=(self.adam_beta1, self.adam_beta2),
            weight_decay=self.adam_weight_decay,
            monitor=self.monitor_tokenizer if tokenizer else self.monitor_predictor,
            min_delta=self.early_stop_min_delta,
            augmentation=Augmentation(**self.augment.model_dump()),
            device=device,
            panel_on_device=panel_on_device,
        )


class SizesSection(Section):
    """Constructor arguments of a model: a preset's, with those changed that are given."""

    preset: str = key("", "the sizes to start from")

    presets: ClassVar[Mapping[str, dict[str, Any]]] = {}  # all constructor arguments by name

    def arguments(self) -> dict[str, Any]:
        """All constructor arguments."""
        given = {name: value for name, value in self if name != "preset" and value is not None}
        return {**self.presets[self.preset], **given}

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.preset not in self.presets:
            yield "preset", f"there is no preset {self.preset!r}; choose one of {', '.join(self.presets)}"
            return
        try:
            check_arguments(self.presets[self.preset], self.arguments())  # the model's own checks; it need not be built for them
        except InputError as error:
            yield "", str(error)


class TokenizerSizes(SizesSection):
    """Sizes of a tokenizer trained from random weights."""

    presets: ClassVar = presets.TOKENIZERS

    preset: str = key("base", "base or 2k: the sizes to start from")
    d_in: int | None = key(None, "features of a bar", ge=6, le=6)
    d_model: int | None = key(None, "width", ge=8, le=8192)
    n_heads: int | None = key(None, "attention heads", ge=1, le=256)
    ff_dim: int | None = key(None, "width of the feed-forward layers", ge=1, le=65536)
    n_enc_layers: int | None = key(None, "encoder layers (one block fewer is built)", ge=1, le=64)
    n_dec_layers: int | None = key(None, "decoder layers (one block fewer is built)", ge=1, le=64)
    ffn_dropout_p: float | None = key(None, "dropout in the feed-forward layers", ge=0, lt=1)
    attn_dropout_p: float | None = key(None, "dropout on attention weights", ge=0, lt=1)
    resid_dropout_p: float | None = key(None, "dropout on attention's output", ge=0, lt=1)
    s1_bits: int | None = key(None, "bits of the coarse token", ge=1, le=20)
    s2_bits: int | None = key(None, "bits of the fine token", ge=1, le=20)
    beta: float | None = key(None, "weight of the commitment loss")
    gamma0: float | None = key(None, "weight of the per-sample entropy")
    gamma: float | None = key(None, "weight of the codebook entropy")
    zeta: float | None = key(None, "weight of both entropies")
    group_size: int | None = key(None, "bits per group; a divisor of s1_bits + s2_bits", ge=1, le=40)


class PredictorSizes(SizesSection):
    """Sizes of a predictor trained from random weights."""

    presets: ClassVar = presets.PREDICTORS

    preset: str = key("mini", "mini, small, base or large: the sizes to start from")
    n_layers: int | None = key(None, "transformer layers", ge=1, le=128)
    d_model: int | None = key(None, "width", ge=8, le=16384)
    n_heads: int | None = key(None, "attention heads", ge=1, le=256)
    ff_dim: int | None = key(None, "width of the feed-forward layers", ge=1, le=65536)
    s1_bits: int | None = key(None, "bits of the coarse token, as the tokenizer's", ge=1, le=20)
    s2_bits: int | None = key(None, "bits of the fine token, as the tokenizer's", ge=1, le=20)
    ffn_dropout_p: float | None = key(None, "dropout in the feed-forward layers", ge=0, lt=1)
    attn_dropout_p: float | None = key(None, "dropout on attention weights", ge=0, lt=1)
    resid_dropout_p: float | None = key(None, "dropout on attention's output", ge=0, lt=1)
    token_dropout_p: float | None = key(None, "dropout on embedded tokens", ge=0, lt=1)
    learn_te: bool | None = key(None, "learn the time embeddings; false: fixed sines")


class DropoutSection(Section):
    """Dropout by place; what is not given stays as loaded."""

    ffn: float | None = key(None, "in the feed-forward layers", ge=0, lt=1)
    resid: float | None = key(None, "on attention's output", ge=0, lt=1)
    attn: float | None = key(None, "on attention weights", ge=0, lt=1)
    token: float | None = key(None, "on embedded tokens (predictor only)", ge=0, lt=1)


class ModelSection(Section):
    """What is built where training starts from random weights, and dropout."""

    tokenizer: text_or(TokenizerSizes) = key(
        "",
        "sizes where pre_trained_tokenizer is false: base, 2k, a config.json or a mapping; empty: as pretrained_tokenizer's config.json",
        path="in",
        words=presets.TOKENIZERS,
    )
    predictor: text_or(PredictorSizes) = key(
        "",
        "the same for the predictor: mini, small, base, large, a config.json or a mapping; empty: as pretrained_predictor's config.json",
        path="in",
        words=presets.PREDICTORS,
    )
    dropout: number_or(DropoutSection) = key(
        None, "dropout of the predictor in place of the loaded one: a number for feed-forward and attention output, or a mapping by place"
    )
    tokenizer_dropout: number_or(DropoutSection) = key(None, "the same for the tokenizer")

    def arguments(self, stage: Stage) -> dict[str, Any] | None:
        """Constructor arguments by preset or mapping; None if they stand in a config.json (see `config_file`)."""
        chosen = getattr(self, stage)
        if isinstance(chosen, SizesSection):
            return chosen.arguments()
        table = _PRESETS[stage]
        return dict(table[chosen]) if chosen in table else None

    def config_file(self, stage: Stage, weights: str) -> str:
        """Path of the config.json, or of its folder, or the hub id, that holds the sizes if `arguments` is None."""
        return getattr(self, stage) or weights

    def dropouts(self, stage: Stage) -> dict[str, float]:
        """Constructor arguments to put in place of the loaded or preset ones, e.g. {"ffn_dropout_p": 0.1}."""
        chosen = self.dropout if stage == "predictor" else self.tokenizer_dropout
        if chosen is None:
            return {}
        if isinstance(chosen, DropoutSection):
            return {f"{name}_dropout_p": value for name, value in chosen if value is not None}
        return {"ffn_dropout_p": chosen, "resid_dropout_p": chosen}

    def problems(self) -> Iterator[tuple[str, str]]:
        for stage, table in _PRESETS.items():
            chosen = getattr(self, stage)
            if isinstance(chosen, str) and chosen and chosen not in table and not _looks_like_path(chosen):
                near = difflib.get_close_matches(chosen.lower(), table, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                yield stage, f"there is no preset {chosen!r}; choose {', '.join(table)}, or name a config.json by its path{hint}"
        for name in ("dropout", "tokenizer_dropout"):
            chosen = getattr(self, name)
            if isinstance(chosen, float) and not 0 <= chosen < 1:
                yield name, f"{chosen:g} is not a probability; expected: number ≥ 0 and < 1"
        if isinstance(self.tokenizer_dropout, DropoutSection) and self.tokenizer_dropout.token is not None:
            yield "tokenizer_dropout.token", "a tokenizer has no tokens to drop; remove the key"
        tokenizer, predictor = self.arguments("tokenizer"), self.arguments("predictor")
        if tokenizer and predictor and any(tokenizer[bits] != predictor[bits] for bits in ("s1_bits", "s2_bits")):
            theirs = [f"{sizes['s1_bits']} + {sizes['s2_bits']}" for sizes in (tokenizer, predictor)]
            yield "predictor", f"s1_bits + s2_bits are {theirs[1]}, but the tokenizer's are {theirs[0]}; make them equal"


_PRESETS: dict[Stage, dict[str, dict[str, Any]]] = {"tokenizer": presets.TOKENIZERS, "predictor": presets.PREDICTORS}


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith(".json") or text.startswith(".")


class DeviceSection(Section):
    """Where the models live."""

    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto", "auto: CUDA, else MPS, else CPU; a named one must be there")
    use_cuda: bool = key(True, "false: auto chooses the CPU even where there is a GPU")
    device_id: int = key(0, "which GPU, counted from 0; under torchrun each process takes its own", ge=0, le=1023)
    cpu_threads: int = key(
        0, "threads for computing on the CPU, per process; 0: torch's choice; fewer is faster on a busy machine", ge=0, le=1024
    )
    panel_on_device: bool = key(True, "keep the bars in GPU memory if they take no more than a quarter of it")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.device in ("cuda", "mps") and not self.use_cuda:
            yield "device", f"is {self.device}, but device.use_cuda is false; keep one of the two"

    def pick(self) -> str:
        """The device's name, such as "cuda:0". Raises InputError if it is not there."""
        return pick_device(self.use_cuda, self.device_id, self.device)


class DistributedSection(Section):
    """Ranks. torchrun decides how many there are."""

    use_ddp: bool = key(False, "accepted for old files; torchrun alone decides whether there are several processes")
    backend: Literal["auto", "nccl", "gloo"] = key(
        "auto", "how processes talk to each other; auto: nccl on CUDA, gloo elsewhere", env="DIST_BACKEND"
    )

    timeout_s: float = key(
        1800, "a process that waits longer than this for another one ends; longer than rank 0 needs to read the bars", ge=1, le=1e6
    )

    @field_validator("backend", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @property
    def world_backend(self) -> str | None:
        """For `distributed.world`: None lets the device decide."""
        return None if self.backend == "auto" else self.backend


class ForecastSection(Section):
    """The forecast drawn after training."""

    aliases: ClassVar = {"sample_count": ("samples",), "temperature": ("T",)}

    enabled: bool = key(True, "draw lookback, truth and forecast when training is done")
    samples: int = key(10, "sample paths", ge=1, le=10_000)
    T: float = key(0.6, "temperature of the sampling", gt=0, le=100)
    top_p: float = key(0.9, "sample from the likeliest tokens that together have this probability", gt=0, le=1)
    top_k: int = key(0, "sample from this many likeliest tokens; 0: all", ge=0)
    symbol: str = key("", "which series to draw; empty: the first two that have held-out windows", max_length=200)


Baseline = Literal["persistence", "drift", "seasonal_naive", "volatility_20", "volatility_60", "ar"]


class EvaluationSection(Section):
    """How good the forecasts are: rolling origins over a held-out split, beside baselines (`python -m finetune.evaluation`)."""

    enabled: bool = key(False, "evaluate when training is done")
    split: Literal["auto", "test", "val"] = key(
        "auto", "bars to score: test, or the later half of val, on which the model was chosen too; auto: test where there is one"
    )
    stride: int = key(1, "bars between two forecast origins", ge=1, le=1_000_000)
    max_origins: int = key(100, "origins at most, spread evenly over the split; each is a moment at which all series are forecast", ge=10)
    max_series: int = key(0, "series at most, drawn by the seed; 0: all", ge=0)
    samples: int = key(
        100, "sample paths of each forecast, the model's and the baselines'; fewer than 100 make bands too narrow", ge=2, le=10_000
    )
    T: float = key(1.0, "temperature of the sampling", gt=0, le=100)
    top_p: float = key(0.9, "sample from the likeliest tokens that together have this probability; 1: the whole distribution", gt=0, le=1)
    seed: int = key(0, "seed of paths, of the series drawn, and of the intervals", ge=0, le=2**63 - 1)
    baselines: list[Baseline] = key(
        list(get_args(Baseline)), "what the model is compared with; the best on the bars before decides", min_length=1
    )
    calibrate: bool = key(True, "also score the bands after adaptive conformal calibration")


def safe_name(value: str) -> str:
    """Check a text that becomes the name of a folder. Raises ValueError with the fix."""
    if not value.strip():
        raise ValueError("must not be empty; it names a folder")
    if value != value.strip() or value in (".", "..") or re.search(r"[/\\{}]", value) or not value.isprintable():
        raise ValueError("names a folder: use letters, digits, - and _, without / \\ { }, spaces around it, or control characters")
    if len(value.encode("utf-8", "replace")) > 120:
        raise ValueError("is longer than 120 bytes; shorten it")
    return value


def known_timezone(value: str, info: ValidationInfo) -> str:
    """Validator of a key that holds an IANA time zone or nothing."""
    if not value:
        return value
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(value, zoneinfo.available_timezones(), 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "e.g. Asia/Shanghai, Asia/Hong_Kong, America/New_York, UTC"
        raise ValueError(f"is not a time zone; {hint}") from None
    return value
