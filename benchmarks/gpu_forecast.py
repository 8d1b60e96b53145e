"""The forecasting row of `benchmarks.gpu`: paths of many series in one call, ours and the peer's, on the same device."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kronos import Kronos, KronosPredictor, KronosTokenizer, save_module

from .common import Row, interleaved, make_bars, spread, timed
from .peer import Peer

SERIES, LOOKBACK, HORIZON, PATHS = 32, 360, 60, 20
CONTEXT = 512
NAMES = ("open", "high", "low", "close", "volume", "amount")


def forecast_row(
    args: argparse.Namespace, device: torch.device, models: tuple[dict[str, Any], dict[str, Any]], details: dict[str, Any], size: str
) -> Row:
    """Forecasts per second: a forecast is PATHS paths of HORIZON bars for one series. models: arguments of tokenizer and predictor."""
    series, lookback, horizon, paths = (2, 12, 2, 2) if size == "tiny" else (SERIES, LOOKBACK, HORIZON, PATHS)
    bars = make_bars(1, series * (lookback + horizon))
    values = bars["features"][0].reshape(series, lookback + horizon, 6)
    stamps = bars["stamps"].reshape(series, lookback + horizon, 5)
    torch.manual_seed(0)
    tokenizer, predictor = KronosTokenizer(**models[0]).eval(), Kronos(**models[1]).eval()
    forecaster = KronosPredictor(predictor, tokenizer, device, max_context=CONTEXT)

    def ours() -> float:
        return timed(lambda: forecaster.predict_arrays(values[:, :lookback], stamps, horizon, sample_count=paths, seed=0), series)

    with tempfile.TemporaryDirectory() as folder:
        save_module(predictor, Path(folder) / "predictor")
        save_module(tokenizer, Path(folder) / "tokenizer")
        frame = pd.DataFrame(values.reshape(-1, 6), columns=list(NAMES)).assign(timestamps=pd.to_datetime(bars["times"]))
        frame.to_csv(Path(folder) / "bars.csv", index=False)
        if args.peer:
            with Peer(args.peer, "peer_forecast") as peer:
                peer("load", folder=folder, threads=args.threads, device=str(device))
                peer("bars", path=f"{folder}/bars.csv", lookback=lookback, horizon=horizon, series=series)
                told = dict(max_context=CONTEXT, horizon=horizon, samples=paths, clock="wall")
                seen = interleaved({"ours": ours, "peer": lambda: peer("seconds", **told) / series}, args.rounds)
        else:
            seen = interleaved({"ours": ours}, args.rounds)
    details |= {f"{size}, forecasts, {name}, per s": spread(values_s, inverse=True) for name, values_s in seen.items()}
    rates = {name: 1 / float(np.median(values_s)) for name, values_s in seen.items()}
    ratio = rates["ours"] / rates["peer"] if "peer" in rates else None
    measure = f"{size}: forecasts per second, {series} series, {lookback} bars, {horizon} ahead, {paths} paths"
    return Row(measure, "-", f"{rates['ours']:.2f}", True, f"{rates['peer']:.2f}" if ratio else "", ratio)
