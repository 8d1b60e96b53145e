"""The peer's forecasts of a backtest, by `generate_predictions` of its finetune/qlib_test.py. Runs in a child process (`benchmarks.peer`).

Its model is loaded once: what is timed is its data set, its loader, `auto_regressive_inference` and its signals.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.common import LOOKBACK, timed
from benchmarks.peer import serve

_state: dict[str, Any] = {}


def load(folder: str, threads: int) -> bool:
    """Load the pair and the bars that ours saved, each once: what is timed is the forecasts."""
    with redirect_stderr(StringIO()):  # a banner of gym, which qlib imports
        import qlib_test  # the peer's; imported here, where what it prints does not come between the answers

    qlib_test.tqdm = lambda batches, **_: batches
    torch.set_num_threads(threads)
    pair = qlib_test.load_models({"device": "cpu", "tokenizer_path": f"{folder}/tokenizer", "model_path": f"{folder}/predictor"})
    qlib_test.load_models = lambda config: pair
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


def greedy() -> dict[str, list[list[float]]]:
    """Its signals [days, symbols] of the likeliest token at every step, in z-scores as it makes them."""
    found = _predict(sample_count=1, top_k=1, top_p=1.0)[1]
    return {name: frame.to_numpy().tolist() for name, frame in found.items()}


if __name__ == "__main__":
    serve({"load": load, "seconds": seconds, "greedy": greedy})
