"""Forecasts for DataFrames of bars: the call signature of the public `KronosPredictor`, cached generation underneath.

Lookback and horizon together may exceed max_context. `context` says what then happens:
- "exact": as published. Each step sees the last max_context tokens anew; nothing can be cached, so such a step costs a full pass.
- "fit": only the newest max_context - horizon bars are used, as if no others had been given (what the public README recommends). Nothing
  slides, everything is cached. The forecast is that of the shorter lookback: its z-score and its tokens are its own.
- "rolling": everything given is used, the cache is kept, and the oldest tokens leave attention one by one. Differs from "exact" in that a
  token's state still holds what it saw before its predecessors left (see `kronos.generation`).
Where everything fits, all three are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from kronos.bars import COLUMNS, Lookback, normalise, prepare, usable
from kronos.calendar import future_times
from kronos.distribution import Forecast, checked_levels, make_consistent
from kronos.errors import InputError
from kronos.generation import decode_paths, encode_bars, generate
from kronos.inference import Inference
from kronos.network import STAMP_SIZES, Kronos
from kronos.portions import Portion, portions
from kronos.sampling import Sampling, is_whole, uniforms
from kronos.tokenizer import KronosTokenizer

_BATCH_TOKENS = 16384
CONTEXTS = ("exact", "fit", "rolling")


def default_device() -> torch.device:
    """CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True)
class _Request:
    """What one call wants of every series. Raises InputError naming what is wrong."""

    horizon: int
    samples: int
    how: Sampling
    context: str
    consistent: bool
    seed: int | None
    verbose: bool

    def __post_init__(self) -> None:
        for name, value in (("pred_len", self.horizon), ("sample_count", self.samples)):
            if not is_whole(value) or value < 1:
                raise InputError(f"{name} is {value!r}: it must be a whole number, 1 or more")
        if self.seed is not None and not is_whole(self.seed):
            raise InputError(f"seed is {self.seed!r}: it must be a whole number, or None for another one in each call")
        if self.context not in CONTEXTS:
            raise InputError(f"context is {self.context!r}: it must be one of {', '.join(CONTEXTS)}")


class KronosPredictor:
    """Forecasts bars with a predictor and its tokenizer. Both are moved to `device` (default: CUDA, else MPS, else CPU).

    max_context: tokens the model sees at once (512 for small and base, 2048 for mini). clip: bound on z-scores. batch_tokens: tokens
    computed together (prefixes and samples), which bounds memory: small keeps 36 KB per token in float32, base 86 KB.
    precision: None (as the weights are), "bfloat16", or "int8" (linear layers, see `kronos.int8`); the tokenizer's encoder stays as it is.
    compile: torch.compile, True or a backend; half a minute at the first call, for GPUs (on a CPU it gains nothing, see docs/log.md).
    Weights that change later (a training step, load_state_dict) are noticed at the next call.
    """

    def __init__(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        device: torch.device | str | None = None,
        max_context: int = 512,
        clip: float = 5,
        batch_tokens: int = _BATCH_TOKENS,
        precision: str | None = None,
        compile: bool | str = False,
    ) -> None:
        bits, wanted = [(m.config["s1_bits"], m.config["s2_bits"]) for m in (tokenizer, model)]
        if bits != wanted:
            raise InputError(
                f"the tokenizer makes {bits} bits (s1_bits, s2_bits), the model reads {wanted}: use the tokenizer it was trained with"
            )
        if tokenizer.config["d_in"] != len(COLUMNS):
            raise InputError(f"the tokenizer reads {tokenizer.config['d_in']} columns, a forecast of bars needs {len(COLUMNS)}")
        if max_context < 1:
            raise InputError(f"max_context is {max_context}: it must be at least 1 (512 for small and base, 2048 for mini)")
        self.device = torch.device(device) if device is not None else default_device()
        self.model, self.tokenizer = model.to(self.device), tokenizer.to(self.device)
        self.max_context, self.clip, self.batch_tokens = max_context, clip, batch_tokens
        self.inference = Inference(self.model, self.tokenizer, precision, compile)

    def predict(
        self,
        df: pd.DataFrame,
        x_timestamp: Sequence,
        y_timestamp: Sequence | None,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        *,
        seed: int | None = None,
        return_samples: bool = False,
        quantiles: Sequence[float] = (),
        prob_up: bool = False,
        consistent: bool = True,
        context: str = "exact",
        calendar: str | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Forecast `pred_len` bars after `df` (columns open, high, low, close and, if known, volume, amount; oldest first).

        y_timestamp: times of the bars to come, or None: those that follow x_timestamp on the exchange `calendar` ("XSHG", "XNYS", ...), or
        without one at the bars' own rhythm, for markets that never close. T, top_k, top_p: sampling (see `Sampling`; both limits apply).
        sample_count: paths. verbose: progress bar. seed: the same seed gives the same paths for the same bars, alone or in a batch; without
        it torch's generator is asked for one. consistent: see `kronos.distribution.make_consistent`; how often it acted is in
        `attrs["repairs"]` of the frame. context: what to do where lookback and horizon exceed max_context (see `kronos.forecaster`).
        Returns the mean over paths, a DataFrame indexed by time, followed by columns close_q5, ... for `quantiles` and by prob_up if asked
        for; or with return_samples the paths [samples, pred_len, 6]. Raises InputError naming what is wrong.
        """
        request = _Request(pred_len, sample_count, Sampling(T, top_k, top_p), context, consistent, seed, verbose)
        finish = _Finish(request, return_samples, quantiles, prob_up)
        return next(self._forecasts([df], [x_timestamp], [y_timestamp], calendar, request, finish))[1]

    def predict_batch(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Sequence],
        y_timestamp_list: Sequence[Sequence | None] | None,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        *,
        seed: int | None = None,
        return_samples: bool = False,
        quantiles: Sequence[float] = (),
        prob_up: bool = False,
        consistent: bool = True,
        context: str = "exact",
        calendar: str | None = None,
    ) -> list[pd.DataFrame] | list[np.ndarray]:
        """`predict` for many series at once, of any lengths; results in the order given. Raises InputError naming the series.

        y_timestamp_list may be None as a whole or in places, as in `predict`.
        """
        request = _Request(pred_len, sample_count, Sampling(T, top_k, top_p), context, consistent, seed, verbose)
        finish = _Finish(request, return_samples, quantiles, prob_up)
        found = self._forecasts(df_list, x_timestamp_list, y_timestamp_list, calendar, request, finish)
        return [result for _, result in sorted(found, key=lambda pair: pair[0])]

    def forecast(
        self,
        df: pd.DataFrame,
        x_timestamp: Sequence,
        y_timestamp: Sequence | None,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 100,
        verbose: bool = False,
        *,
        seed: int | None = None,
        consistent: bool = True,
        context: str = "exact",
        calendar: str | None = None,
    ) -> Forecast:
        """`predict`, returning the whole distribution: paths, and mean, quantiles and probabilities read off them (see `Forecast`)."""
        request = _Request(pred_len, sample_count, Sampling(T, top_k, top_p), context, consistent, seed, verbose)
        return next(self._forecasts([df], [x_timestamp], [y_timestamp], calendar, request, lambda found: found))[1]

    def forecast_batch(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Sequence],
        y_timestamp_list: Sequence[Sequence | None] | None,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 100,
        verbose: bool = False,
        *,
        seed: int | None = None,
        consistent: bool = True,
        context: str = "exact",
        calendar: str | None = None,
    ) -> list[Forecast]:
        """`forecast` for many series at once, of any lengths; results in the order given. Raises InputError naming the series."""
        request = _Request(pred_len, sample_count, Sampling(T, top_k, top_p), context, consistent, seed, verbose)
        found = self._forecasts(df_list, x_timestamp_list, y_timestamp_list, calendar, request, lambda forecast: forecast)
        return [result for _, result in sorted(found, key=lambda pair: pair[0])]

    def predict_arrays(
        self,
        values: np.ndarray,
        stamps: np.ndarray,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        *,
        seed: int | None = None,
        consistent: bool = True,
        context: str = "exact",
    ) -> np.ndarray:
        """The paths of `predict_batch(..., return_samples=True)` for bars that are arrays already, of one length: no DataFrame is made.

        values [B, P, 6]: finite bars, columns as in `kronos.bars.COLUMNS`. stamps [B, P + pred_len, 5]: minute, hour, weekday (Monday 0),
        day, month of those bars and of the bars to come. Returns [B, sample_count, pred_len, 6] float64, the same numbers as from frames.
        Raises InputError for wrong settings, a wrong shape or a bar that is not finite.
        """
        request = _Request(pred_len, sample_count, Sampling(T, top_k, top_p), context, consistent, seed, verbose=False)
        values, stamps = np.ascontiguousarray(values, dtype=np.float64), np.asarray(stamps, dtype=np.int64)  # sums depend on the order
        batch, size = values.shape[:2] if values.ndim == 3 else (0, 0)
        if size == 0 or values.shape[2] != len(COLUMNS) or stamps.shape != (batch, size + pred_len, 5):
            raise InputError(
                f"values {values.shape} and stamps {stamps.shape} do not fit: give [B, P, {len(COLUMNS)}] and [B, P + {pred_len}, 5]"
            )
        if bad := int((~usable(values)).any((1, 2)).sum()):
            raise InputError(f"{bad} of {batch} series hold bars that are not finite: fill or drop them first")
        if ((stamps < 0) | (stamps >= list(STAMP_SIZES.values()))).any():
            raise InputError(f"stamps are from {stamps.min()} to {stamps.max()}: give {', '.join(STAMP_SIZES)} (Monday 0) in this order")
        newest = self._newest(request)
        series = [normalise(*one, self.clip, newest) for one in zip(values, stamps, strict=True)]
        paths = np.empty((batch, sample_count, pred_len, len(COLUMNS)))
        for i, found in self._paths(series, request):
            paths[i] = make_consistent(found)[0] if consistent else found
        return paths

    def _forecasts(
        self,
        frames: Sequence[pd.DataFrame],
        pasts: Sequence[Sequence],
        futures: Sequence[Sequence | None] | None,
        calendar: str | None,
        request: _Request,
        finish: Callable[[Forecast], Any],
    ) -> Iterator[tuple[int, Any]]:
        """(number of the series, finish(its forecast)), as portions are done: only what `finish` keeps stays in memory."""
        futures = [None] * len(frames) if futures is None else futures
        if len({len(frames), len(pasts), len(futures)}) != 1:
            raise InputError(
                f"df_list, x_timestamp_list and y_timestamp_list have {len(frames)}, {len(pasts)} and {len(futures)} "
                "entries: give one of each per series"
            )
        newest = self._newest(request)
        series, times = [], []
        for i, (df, past, future) in enumerate(zip(frames, pasts, futures, strict=True)):
            where = f"series {i}: " if len(frames) > 1 else ""
            if future is not None and calendar is not None:
                raise InputError(f"{where}y_timestamp and calendar are both given: give one of them")
            times.append(future_times(past, request.horizon, calendar, where) if future is None else future)
            series.append(prepare(df, past, times[-1], request.horizon, self.clip, where, newest))
        for i, paths in self._paths(series, request):
            repairs = None
            if request.consistent:
                paths, repairs = make_consistent(paths)
            yield i, finish(Forecast(paths, pd.Index(times[i]), series[i].last, repairs))

    def _newest(self, request: _Request) -> int | None:
        """How many bars are used at most; None: all. Raises InputError where the horizon leaves no room."""
        room = self.max_context - request.horizon
        if room < 0 or (request.context == "fit" and room == 0):
            raise InputError(f"pred_len {request.horizon} exceeds max_context {self.max_context}: forecast fewer bars at once")
        return room if request.context == "fit" else None

    def _paths(self, series: Sequence[Lookback], request: _Request) -> Iterator[tuple[int, np.ndarray]]:
        """Sampled paths of each series, [samples, horizon, 6] float64 in the bars' own units, as they are done."""
        seed = int(torch.randint(2**62, ()).item()) if request.seed is None else request.seed
        lengths = [len(one.values) for one in series]
        slides_at = self.max_context if request.context == "exact" else None
        if request.context == "rolling":
            lengths = [min(length, self.max_context) for length in lengths]
        bars = len(series) * request.samples * request.horizon
        with tqdm(total=bars, disable=not request.verbose, unit="bar", unit_scale=True) as progress:
            for parts in portions(lengths, request.horizon, request.samples, self.batch_tokens, slides_at):
                members = parts[0].members
                paths = {i: np.empty((request.samples, request.horizon, len(COLUMNS))) for i in members}
                for part in parts:
                    with torch.autocast(self.device.type, enabled=False):  # a caller's own would reach into packed weights
                        found = self._generate(series, part, request, seed, progress)
                    for i, values in zip(members, found, strict=True):
                        paths[i][part.first : part.last] = series[i].restore(values)
                yield from paths.items()

    def _generate(self, series: Sequence[Lookback], part: Portion, request: _Request, seed: int, progress: tqdm) -> list[np.ndarray]:
        """Normalised paths [S, horizon, 6] of each member of a portion."""
        predictor, tokenizer = self.inference.packed()
        keys = np.array([series[i].key for i in part.members], dtype=np.uint64)
        draws = uniforms(seed, keys, np.arange(part.first, part.last), request.horizon)
        draws = self._tensor(draws.astype(np.float32) if self.device.type == "mps" else draws)
        bars = [self._tensor(np.stack([series[i].values for i in group])) for group in part.groups]
        stamps = [self._tensor(np.stack([series[i].stamps for i in group])) for group in part.groups]
        prefixes = [encode_bars(tokenizer, values) for values in bars]
        rows = draws.shape[0] * draws.shape[1]
        made = generate(
            predictor,
            prefixes,
            stamps,
            draws,
            request.how,
            self.max_context,
            rolling=request.context == "rolling",
            on_step=lambda: progress.update(rows),
        )
        sizes = [len(group) for group in part.groups]
        pieces = zip(*(ids.split(sizes) for ids in made), strict=True)
        values = [decode_paths(tokenizer, prefix, piece, self.max_context) for prefix, piece in zip(prefixes, pieces, strict=True)]
        return list(torch.cat(values).float().cpu().numpy())

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


@dataclass(frozen=True)
class _Finish:
    """What `predict` makes of a forecast."""

    request: _Request
    return_samples: bool
    quantiles: Sequence[float]
    prob_up: bool

    def __post_init__(self) -> None:
        checked_levels(self.quantiles, self.request.samples)  # before the work, not after it

    def __call__(self, forecast: Forecast) -> pd.DataFrame | np.ndarray:
        return forecast.paths if self.return_samples else forecast.frame(self.quantiles, self.prob_up)
