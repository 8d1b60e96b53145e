"""The peer's forecasts of a backtest, by `generate_predictions` of its finetune/qlib_test.py. Runs in a child process (`benchmarks.peer`).

Its model is loaded once: what is timed is its data set, its loader, `auto_regressive_inference` and its signals.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.common import LOOKBACK, timed
from benchmarks.peer import serve

_state: dict[str, Any] = {}


class _Numpy:
    """numpy as the peer's module sees it, with some functions replaced."""

    def __init__(self, **functions: Any):
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _wide(function: Any) -> Any:
    return lambda values, **options: function(values, dtype=np.float64, **options)


def _clipped_to(dtype: type) -> Any:
    return lambda *given: np.clip(*given).astype(np.float32).astype(dtype)


def _numpy_for(arithmetic: str) -> ModuleType | _Numpy:
    """What its data set computes windows' means and deviations with: as it is, or in float64 and rounded to float32 at the end."""
    if arithmetic == "its own":
        return np
    return _Numpy(mean=_wide(np.mean), std=_wide(np.std), clip=_clipped_to(np.float64 if arithmetic == "float64" else np.float32))


def load(folder: str, threads: int) -> bool:
    """Load the pair and the bars that ours saved, each once: what is timed is the forecasts."""
    with redirect_stderr(StringIO()):  # a banner of gym, which qlib imports
        import qlib_test  # the peer's; imported here, where what it prints does not come between the answers

    qlib_test.tqdm = lambda batches, **_: batches
    torch.set_num_threads(threads)
    pair, wide = (
        qlib_test.load_models({"device": "cpu", "tokenizer_path": f"{folder}/tokenizer", "model_path": f"{folder}/predictor"})
        for _ in range(2)
    )
    _state["pairs"] = {"float32": pair, "float64": tuple(part.double() for part in wide)}
    qlib_test.load_models = lambda config: _state["pairs"][config.get("pair", "float32")]
    _state["module"] = qlib_test
    bars = np.load(f"{folder}/bars.npz")
    index = pd.DatetimeIndex(bars["times"], name="datetime")
    columns = qlib_test.Config().feature_list
    _state["frames"] = {f"S{i:04d}": pd.DataFrame(values, index, columns) for i, values in enumerate(bars["features"].astype("f8"))}
    _state["predict"] = qlib_test.generate_predictions
    return True


def _predict(bars: int | None = None, **options: Any) -> tuple[float, dict[str, pd.DataFrame]]:
    """Seconds, and its signals by day and symbol, over the first `bars` of each symbol."""
    frames = {name: frame.iloc[:bars].copy() for name, frame in _state["frames"].items()}  # it changes what it is given
    # batch_size counts windows times samples
    config = {"device": "cpu", "batch_size": 1000, "max_context": 512, "pred_len": 10, "clip": 5.0, "T": 0.6, "top_p": 0.9, "top_k": 0}
    found: dict[str, pd.DataFrame] = {}
    clock = options.pop("clock", "wall")
    seconds = timed(lambda: found.update(_state["predict"]({**config, **options}, frames)), clock=clock)
    return seconds, found


def seconds(samples: int, clock: str, warm: bool) -> float:
    """Seconds of all forecasts; with `warm` of one per symbol only."""
    return _predict(LOOKBACK + 10 if warm else None, sample_count=samples, clock=clock)[0]


def greedy(arithmetic: str) -> dict[str, list[list[float]]]:
    """Its signals [days, symbols] of the likeliest token at every step, in z-scores as it makes them.

    arithmetic: "its own"; "exact z-scores", whose means and deviations are float64; or "float64", in which its networks compute, too.
    """
    module, narrow = _state["module"], torch.Tensor.float
    module.np = _numpy_for(arithmetic)
    if arithmetic == "float64":
        torch.Tensor.float = torch.Tensor.double  # its norms and codes turn to float32 whatever they are given
    try:
        pair = "float64" if arithmetic == "float64" else "float32"
        found = _predict(sample_count=1, top_k=1, top_p=1.0, pair=pair)[1]
    finally:
        module.np, torch.Tensor.float = np, narrow
    return {name: frame.to_numpy().tolist() for name, frame in found.items()}


def zscores() -> list[list[list[float]]]:
    """Its windows [symbols x days, lookback, 6] as its models read them."""
    module = _state["module"]
    dataset = module.QlibTestDataset({name: frame.copy() for name, frame in _state["frames"].items()}, module.Config())
    return [dataset[place][0].tolist() for place in range(len(dataset))]


if __name__ == "__main__":
    serve({"load": load, "seconds": seconds, "greedy": greedy, "zscores": zscores})
