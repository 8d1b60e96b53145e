"""Forecasts for DataFrames of bars: the call signature of the public `KronosPredictor`, cached generation underneath."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from kronos.bars import COLUMNS, Lookback, prepare
from kronos.errors import InputError
from kronos.generation import decode_paths, encode_bars, generate
from kronos.network import Kronos
from kronos.sampling import Sampling, uniforms
from kronos.tokenizer import KronosTokenizer

_BATCH_TOKENS = 16384  # tokens computed together (prefix per series, horizon per sample): bounds memory


def default_device() -> torch.device:
    """CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class KronosPredictor:
    """Forecasts bars with a predictor and its tokenizer. Both are moved to `device` (default: CUDA, else MPS, else CPU).

    max_context: tokens the model sees at once (512 for small and base, 2048 for mini). clip: bound on z-scores.
    """

    def __init__(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        device: torch.device | str | None = None,
        max_context: int = 512,
        clip: float = 5,
        batch_tokens: int = _BATCH_TOKENS,
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

    def predict(
        self,
        df: pd.DataFrame,
        x_timestamp: Sequence,
        y_timestamp: Sequence,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        *,
        seed: int | None = None,
        return_samples: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Forecast `pred_len` bars after `df` (columns open, high, low, close and, if known, volume, amount; oldest first).

        T, top_k, top_p: sampling (see `Sampling`; both limits apply). sample_count: paths. verbose: progress bar.
        seed: the same seed gives the same paths for the same bars, alone or in a batch; without it torch's generator is asked for one.
        Returns the mean over paths, a DataFrame indexed by `y_timestamp`, or with return_samples the paths [samples, pred_len, 6].
        Raises InputError naming what is wrong.
        """
        sampling = Sampling(T, top_k, top_p)
        series = prepare(df, x_timestamp, y_timestamp, _positive("pred_len", pred_len), self.clip)
        paths = self._paths([series], pred_len, sampling, _positive("sample_count", sample_count), seed, verbose)[0]
        return paths if return_samples else _mean(paths, y_timestamp)

    def predict_batch(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Sequence],
        y_timestamp_list: Sequence[Sequence],
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
        *,
        seed: int | None = None,
        return_samples: bool = False,
    ) -> list[pd.DataFrame] | list[np.ndarray]:
        """`predict` for many series at once, of any lengths; results in the order given. Raises InputError naming the series."""
        counts = {len(df_list), len(x_timestamp_list), len(y_timestamp_list)}
        if len(counts) != 1:
            raise InputError(
                f"df_list, x_timestamp_list and y_timestamp_list have {len(df_list)}, {len(x_timestamp_list)} and {len(y_timestamp_list)} "
                "entries: give one of each per series"
            )
        sampling = Sampling(T, top_k, top_p)
        given = enumerate(zip(df_list, x_timestamp_list, y_timestamp_list, strict=True))
        _positive("pred_len", pred_len)
        series = [prepare(df, x, y, pred_len, self.clip, f"series {i}: ") for i, (df, x, y) in given]
        results = self._paths(series, pred_len, sampling, _positive("sample_count", sample_count), seed, verbose)
        return results if return_samples else [_mean(paths, y) for paths, y in zip(results, y_timestamp_list, strict=True)]

    def _paths(
        self, series: Sequence[Lookback], horizon: int, how: Sampling, samples: int, seed: int | None, verbose: bool
    ) -> list[np.ndarray]:
        """Sampled paths of each series, [samples, horizon, 6] float64 in the bars' own units."""
        if horizon > self.max_context:
            raise InputError(f"pred_len {horizon} exceeds max_context {self.max_context}: forecast fewer bars at once")
        seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        results = [np.empty((samples, horizon, len(COLUMNS))) for _ in series]
        batches = list(self._batches(series, horizon, samples))
        with _evaluating(self.model, self.tokenizer), tqdm(total=horizon * len(batches), disable=not verbose, unit="step") as bar:
            for members, numbers in batches:
                chosen = [series[i] for i in members]
                keys = np.array([one.key for one in chosen], dtype=np.uint64)
                draws = uniforms(seed, keys, numbers, horizon)
                values = self._generate(chosen, horizon, draws, how, bar)
                for i, one, paths in zip(members, chosen, values, strict=True):
                    results[i][numbers] = one.restore(paths)
        return results

    def _batches(self, series: Sequence[Lookback], horizon: int, samples: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """(series, sample numbers) computed together: within the token budget; series that slide only beside others of their length."""
        lengths = [len(one.values) for one in series]
        slides = [length + horizon > self.max_context for length in lengths]
        order = sorted(range(len(series)), key=lambda i: (slides[i], lengths[i]))
        batch: list[int] = []
        for i in order:
            mates = not batch or (slides[i] == slides[batch[0]] and (not slides[i] or lengths[i] == lengths[batch[0]]))
            if not mates or (len(batch) + 1) * self._tokens(lengths[i], horizon, samples) > self.batch_tokens:
                yield from self._sample_chunks(batch, lengths, horizon, samples)
                batch = []
            batch.append(i)
        yield from self._sample_chunks(batch, lengths, horizon, samples)

    def _tokens(self, length: int, horizon: int, samples: int) -> int:
        return min(length, self.max_context) + samples * min(horizon, self.max_context)

    def _sample_chunks(self, batch: list[int], lengths: list[int], horizon: int, samples: int) -> Iterator[tuple[list[int], np.ndarray]]:
        if batch:
            room = max(1, (self.batch_tokens // len(batch) - min(max(lengths[i] for i in batch), self.max_context)) // horizon)
            for first in range(0, samples, room):
                yield batch, np.arange(first, min(first + room, samples))

    def _generate(self, series: Sequence[Lookback], horizon: int, draws: np.ndarray, how: Sampling, bar: tqdm) -> np.ndarray:
        """Normalised paths [B, S, horizon, 6] of series that may be computed together."""
        lengths = np.array([len(one.values) for one in series])
        size = int(lengths.max())
        values = np.zeros((len(series), size, len(COLUMNS)), dtype=np.float32)
        stamps = np.zeros((len(series), size + horizon, 5), dtype=np.int64)
        for row, one in enumerate(series):
            length = lengths[row]
            values[row, :length], stamps[row, :length], stamps[row, size:] = one.values, one.stamps[:length], one.stamps[length:]
        padded = torch.as_tensor(lengths, device=self.device) if lengths.min() < size else None
        prefix = encode_bars(self.tokenizer, self._tensor(values))
        clock = self._tensor(stamps)
        numbers = self._tensor(draws.astype(np.float32) if self.device.type == "mps" else draws)
        made = generate(self.model, prefix, clock, numbers, how, self.max_context, padded, bar.update)
        return decode_paths(self.tokenizer, prefix, made, self.max_context, padded).float().cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}: it must be a whole number, 1 or more")
    return int(value)


def _mean(paths: np.ndarray, y_timestamp: Sequence) -> pd.DataFrame:
    return pd.DataFrame(paths.mean(0), columns=list(COLUMNS), index=y_timestamp)


@contextmanager
def _evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode again afterwards."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
