"""The picture at the end of a training run: the newest held-out window of a series or two, with truth and forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from finetune.data.frames import bars_frame
from finetune.data.panel import Panel
from finetune.engine.windows import Splits, Windows
from finetune.evaluation.plots import ForecastView, forecast_pictures
from kronos import Kronos, KronosPredictor, KronosTokenizer
from kronos.errors import InputError

_MOST_SERIES = 2  # side by side in one picture


class ForecastSettings(Protocol):
    """What of a configuration's `forecast` section is read here."""

    samples: int
    T: float
    top_p: float
    top_k: int
    symbol: str


def draw_preview(
    path: Path,
    panel: Panel,
    windows: Splits,
    predictor: Kronos,
    tokenizer: KronosTokenizer,
    settings: ForecastSettings,
    *,
    max_context: int,
    clip: float,
    seed: int,
    device: str,
    title: str,
) -> None:
    """Forecast the newest test (else validation) window of `settings.symbol`, or of the first two series that have one, and draw it.

    Raises InputError if the symbol is not in the panel or has no held-out window.
    """
    held_out = windows.test if len(windows.test) else windows.val
    assert isinstance(held_out, Windows)
    forecaster = KronosPredictor(predictor, tokenizer, device=device, max_context=max_context, clip=clip)
    views = []
    for series, start in newest_windows(panel, held_out, settings.symbol):
        origin, end = start + held_out.lookback, start + held_out.lookback + held_out.horizon
        history, truth = bars_frame(panel, start, origin), bars_frame(panel, origin, end)
        paths = forecaster.predict(
            history,
            pd.Series(history.index),
            pd.Series(truth.index),
            held_out.horizon,
            T=settings.T,
            top_k=settings.top_k,
            top_p=settings.top_p,
            sample_count=settings.samples,
            verbose=False,
            return_samples=True,
            seed=seed,
        )
        views.append(ForecastView(history, paths, truth, panel.series[series].symbol))
    sizes = f"lookback {held_out.lookback}, horizon {held_out.horizon}"
    note = f"{title}: newest {held_out.name} window, {sizes}; T {settings.T:g}, top-p {settings.top_p:g}"
    forecast_pictures(path, views, note=note)


def newest_windows(panel: Panel, held_out: Windows, symbol: str = "") -> list[tuple[int, int]]:
    """(series, first row) of the last window of up to two series, or of the one named `symbol`."""
    starts = held_out.start_rows(np.arange(len(held_out)))
    series = np.searchsorted(panel.offsets, starts, side="right") - 1
    newest = {int(s): int(row) for s, row in zip(series, starts, strict=True)}  # later rows overwrite earlier ones
    if not symbol:
        return list(newest.items())[:_MOST_SERIES]
    symbols = [info.symbol for info in panel.series]
    if symbol not in symbols:
        raise InputError(
            f"forecast.symbol: there is no series {symbol!r}; known are {', '.join(symbols[:10])}{' ...' if len(symbols) > 10 else ''}"
        )
    if symbols.index(symbol) not in newest:
        raise InputError(f"forecast.symbol: {symbol!r} has no {held_out.name} window; choose another, or leave the key empty")
    return [(symbols.index(symbol), newest[symbols.index(symbol)])]
