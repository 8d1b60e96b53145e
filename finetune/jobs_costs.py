"""What a job will take, reckoned from the configuration and the sizes of files: windows, steps, memory, disk. No model is built.

Windows are exact where the panel is there and not large, for then they are cut as training cuts them; before it is made they follow from
the sizes of the files that it will be made of. Memory is a formula fitted to
measured peaks, right to a fifth or so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.panel import Panel
from finetune.data.panel_store import is_panel_folder
from finetune.data.source_facts import about_bars
from finetune.data.sources import find_sources
from finetune.engine.advice import memory_advice
from finetune.engine.cuts import cut_panel, places, series_counts
from finetune.engine.errors import InputError
from finetune.jobs import Job
from finetune.jobs_table import Work
from finetune.multi_config import ALWAYS_OPEN, ModelConfig

GIB = 2**30
_EXACT_ROWS = 3_000_000  # panels with more rows are not looked at row by row
_PROCESS_GIB = 0.55  # Python, torch and the libraries of a training process, before there is a model
_CUDA_GIB = 0.6  # what a process that uses CUDA holds besides its tensors
_AMP_SHARE = 0.6  # of the activations' float32 size


@dataclass(frozen=True)
class Cost:
    """Of one training job. windows: (training, validation); exact: counted, not reckoned. memory_gib: of one process, on its device."""

    windows: tuple[int, int] | None
    exact: bool
    work: Work
    parameters: int | None
    memory_gib: float | None
    disk_gib: float | None
    note: str = ""


def cost_of(job: Job, config: ModelConfig, ranks: int = 1, on_gpu: bool = False) -> Cost | None:
    """The cost of a training job on this many processes; None for any other job."""
    if job.stage not in ("tokenizer", "predictor"):
        return None
    settings = config.training.fit_settings(job.stage, "cpu")
    count, note, exact = None, "", True
    try:
        count, exact = windows_of(config)
    except InputError as error:
        note = str(error)
    batch = settings.batch_size * settings.accumulation_steps * ranks
    per_epoch = settings.n_train_iter or (count[0] if count else 0)
    work = Work(-(-per_epoch // batch), settings.epochs, batch)
    parameters = config.parameters(job.stage)
    memory = memory_gib(config, job.stage, parameters, on_gpu) if parameters else None
    return Cost(count, exact, work, parameters, memory, _disk_gib(config, job.stage, parameters, count), note)


def windows_of(config: ModelConfig) -> tuple[tuple[int, int] | None, bool]:
    """((training, validation windows), whether counted: a panel that is not made yet is judged by the size of its source's files).

    None where nothing can be told without reading the bars. Raises InputError for too few bars.
    """
    data, paths = config.data, [Path(path) for path in config.data.data_path]
    if len(paths) == 1 and is_panel_folder(paths[0]):
        cut = (data.lookback_window, data.predict_window, data.ratios, data.split, data.window_stride, data.sampling)
        return _counted(str(paths[0]), *cut)
    if data.symbol_column or config.timeframe.calendar not in ("", ALWAYS_OPEN):
        return None, False
    files = config.timeframe.source if config.is_prepared_from_source else data.data_path
    try:
        bars = about_bars(find_sources(files), config.timeframe.seconds)
    except InputError:  # the plan has told
        return None, False
    return (_reckoned(np.array(bars), data.lookback_window, data.predict_window, data.ratios, data.window_stride) if bars else None), False


def _reckoned(rows: np.ndarray, lookback: int, horizon: int, ratios: tuple[float, float, float], stride: int) -> tuple[int, int]:
    """About how many training and validation windows series of so many rows give."""
    train = np.maximum(0, rows * ratios[0] - lookback - horizon).sum() / stride
    return int(train), int(np.maximum(0, rows * ratios[1] - horizon).sum())


@lru_cache(maxsize=256)
def _counted(
    folder: str, lookback: int, horizon: int, ratios: tuple[float, float, float], split: str, stride: int, sampling: Any
) -> tuple[tuple[int, int], bool]:
    panel = Panel.open(folder)
    if panel.n_rows <= _EXACT_ROWS:
        train, val, _ = cut_panel(panel, lookback, horizon, ratios, split=split, stride=stride)
        return (int(places(series_counts(panel.offsets, train), sampling).sum()), int(val.counts.sum())), True
    return _reckoned(np.diff(panel.offsets), lookback, horizon, ratios, stride), False


def memory_gib(config: ModelConfig, stage: str, parameters: int, on_gpu: bool) -> float:
    """Peak memory of one process: weights, gradients and AdamW's two moments, and the activations of a micro-batch."""
    sizes, training = config.model_arguments(stage), config.training
    assert sizes is not None, "the parameters are known, so are the sizes"
    data = config.data
    length = data.lookback_window + data.predict_window + 1
    kept = training.batch_size * length * _floats_per_bar(stage, sizes, length, training.activation_checkpointing) * 4
    states = 16 * parameters + (4 * (config.parameters("tokenizer") or 0) if stage == "predictor" else 0)
    return (states + kept * (_AMP_SHARE if training.amp != "off" else 1)) / GIB + (_CUDA_GIB if on_gpu else _PROCESS_GIB)


def _floats_per_bar(stage: str, sizes: Mapping[str, Any], length: int, checkpointing: bool) -> float:
    """Numbers that the backward pass needs, per bar of a window; the factors are those measured."""
    width, inner = sizes["d_model"], sizes["ff_dim"]
    block = 16 * width + 6 * inner + (4 * sizes["n_heads"] * length if sizes["attn_dropout_p"] > 0 else 0)
    if stage == "tokenizer":
        blocks = (sizes["n_enc_layers"] - 1) + 2 * (sizes["n_dec_layers"] - 1)  # the decoder runs on the coarse and on all bits
        ends = 8 * width
    else:
        blocks, ends = sizes["n_layers"], 16 * width + 6 * (2 ** sizes["s1_bits"] + 2 ** sizes["s2_bits"])
    return (blocks * width + block if checkpointing else blocks * block) + ends


def _disk_gib(config: ModelConfig, stage: str, parameters: int | None, count: tuple[int, int] | None) -> float | None:
    """Best weights, the checkpoint to go on from (two while one is written), and the predictor's token cache."""
    if parameters is None:
        return None
    training = config.training
    weights = 4 * parameters
    total = weights * (1 + (training.top_k if training.top_k > 1 else 0)) + (2 * 3 * weights if training.save_last else 0)
    if training.checkpoint_every_epochs:
        epochs = training.tokenizer_epochs if stage == "tokenizer" else training.basemodel_epochs
        total += weights * (epochs // training.checkpoint_every_epochs)
    if stage == "predictor" and training.cache_tokens != "off" and count:
        cache = sum(count) * (config.data.lookback_window + config.data.predict_window + 1) * 2 * 2
        total += cache if cache <= training.cache_limit_gib * GIB else 0
    return total / GIB


def too_large(config: ModelConfig, cost: Cost, room_gib: float, where: str) -> str:
    """What to change where a job needs more memory than there is, with this configuration's numbers; empty where it fits."""
    if cost.memory_gib is None or cost.memory_gib <= room_gib:
        return ""
    return (
        f"{config.name} needs about {cost.memory_gib:.1f} GiB with batch_size {config.training.batch_size}, but {where} has {room_gib:.1f} "
        f"GiB for it. Try: {memory_advice(config.training)}; or fewer workers at a time (--max-workers)"
    )
