"""What `benchmarks.forecast` says about quality: CRPS on held-out bars, and how far next-token distributions move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from kronos import Kronos, KronosPredictor, KronosTokenizer, Sampling
from kronos.bars import prepare
from kronos.cache import CachedPredictor, Plan
from kronos.errors import InputError
from kronos.generation import Tokens, encode_bars, generate
from kronos.sampling import uniforms

HOW = Sampling(temperature=1.0, top_p=0.9)
_CLOSE = 3


@dataclass(frozen=True)
class Origins:
    """Places to forecast from: bars before each, their times, the times to come, and the closes that came [horizon]."""

    past: list[pd.DataFrame]
    times: list[pd.Series]
    future: list[pd.Series]
    truth: list[np.ndarray]


def origins(bars: pd.DataFrame, lookback: int, horizon: int, count: int) -> Origins:
    """`count` origins spread over the bars. Raises InputError if there are too few bars."""
    last = len(bars) - horizon
    if last < lookback:
        raise InputError(f"there are {len(bars)} bars, {lookback} + {horizon} are needed: give a longer --data")
    places = np.unique(np.linspace(lookback, last, count).astype(int))
    past = [bars.iloc[i - lookback : i].reset_index(drop=True) for i in places]
    coming = [bars.iloc[i : i + horizon] for i in places]
    return Origins(
        [p.drop(columns="timestamps") for p in past],
        [p["timestamps"] for p in past],
        [c["timestamps"] for c in coming],
        [c["close"].to_numpy() for c in coming],
    )


def crps(forecaster: KronosPredictor, given: Origins, horizon: int, paths: int, **options: Any) -> np.ndarray:
    """Fair CRPS of the close per origin, mean over steps, in standard deviations of the lookback's close."""
    found = forecaster.predict_batch(
        given.past, given.times, given.future, horizon, sample_count=paths, verbose=False, seed=0, return_samples=True, **options
    )
    scores = []
    for sampled, truth, past in zip(found, given.truth, given.past, strict=True):
        closes = np.sort(sampled[:, :, _CLOSE], axis=0)  # [paths, horizon]
        error = np.abs(closes - truth).mean(0)
        ranks = 2 * np.arange(1, paths + 1) - paths - 1
        apart = (ranks[:, None] * closes).sum(0) / (paths * (paths - 1))  # half the mean distance of two paths
        scores.append((error - apart).mean() / past["close"].std())
    return np.array(scores)


def change(before: np.ndarray, after: np.ndarray) -> str:
    """Mean score before and after, and their paired difference with its standard error."""
    difference = after - before
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
    return f"{before.mean():.4f} -> {after.mean():.4f}, change {difference.mean():+.4f} ± {error:.4f} over {len(before)} origins"


def _prefixes(
    tokenizer: KronosTokenizer, past: list, times: list, future: list, horizon: int
) -> Iterator[tuple[Tokens, torch.Tensor, int]]:
    """Tokens [1, P], stamps [1, P + horizon, 5] and random key of each series."""
    for df, x, y in zip(past, times, future, strict=True):
        one = prepare(df, x, y, horizon, 5.0)
        yield encode_bars(tokenizer, torch.from_numpy(one.values)[None]), torch.from_numpy(one.stamps)[None], one.key


@torch.inference_mode()
def divergence(exact: KronosPredictor, rough: KronosPredictor, given: Origins, horizon: int) -> str:
    """How the distributions of the next coarse and fine token move, mean Kullback-Leibler divergence over the origins."""
    moved = []
    size = exact.max_context
    for (s1, s2), stamps, _ in _prefixes(exact.tokenizer, given.past, given.times, given.future, horizon):
        logits = []
        for forecaster in (exact, rough):
            model = forecaster.inference.packed()[0]
            state = CachedPredictor(model, Plan(1, 1))
            state.prefill(s1[:, -size:], s2[:, -size:], model.clock(stamps[:, : s1.shape[1]])[:, -size:])
            coarse = state.coarse_logits()
            chosen = coarse.argmax(-1) if not logits else logits[0][0].argmax(-1)
            logits.append((coarse.double().log_softmax(-1), state.fine_logits(chosen).double().log_softmax(-1)))
        moved.append([float((a.exp() * (a - b)).sum()) for a, b in zip(*logits, strict=True)])
    coarse, fine = np.mean(moved, axis=0)
    return f"divergence {coarse:.1e} coarse, {fine:.1e} fine (nats)"


def generated(
    model: Kronos, tokenizer: KronosTokenizer, past: list, times: list, future: list, horizon: int, samples: int, max_context: int
) -> Iterator[tuple[Tokens, torch.Tensor, torch.Tensor, Sampling, int, Tokens]]:
    """Per series, what `kronos.checking.compare` takes after the model: prefix, stamps, random numbers, sampling, context, tokens made."""
    for prefix, stamps, key in _prefixes(tokenizer, past, times, future, horizon):
        numbers = torch.from_numpy(uniforms(0, np.array([key], dtype=np.uint64), np.arange(samples), horizon))
        yield prefix, stamps, numbers, HOW, max_context, generate(model, [prefix], [stamps], numbers, HOW, max_context)
