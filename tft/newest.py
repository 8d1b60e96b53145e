"""Windows that end at the newest bars: what follows them is not there yet, but its calendar is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from finetune.data.frames import wall_clock
from finetune.data.panel import Panel, SeriesInfo
from finetune.data.timestamps import stamp_features
from finetune.engine.windows import cut_rows
from kronos.calendar import future_times
from kronos.errors import InputError
from tft.indicators_calendar import calendar_rows
from tft.window_rows import Rows, split_window

_RHYTHM = 500  # last bars that the step to the next one is told from


class Newest:
    """A few windows, held as one batch; a `Source` like the others. future [n, P]: times of the decoder rows, wall clock, ns."""

    def __init__(self, batch: dict[str, torch.Tensor], future: np.ndarray, panel: Panel):
        self.batch, self.future, self.panel = batch, future, panel
        self.facts = {"data": panel.fingerprint, "number of windows": len(self)}

    def __len__(self) -> int:
        return len(self.batch["row"])

    def to(self, device: torch.device) -> None:
        self.batch = {key: value.to(device) for key, value in self.batch.items()}

    def rows(self, index: np.ndarray | None = None) -> np.ndarray:
        """int64 [n] panel rows of the origins of some windows, or of all."""
        rows = self.batch["row"].cpu().numpy()
        return rows if index is None else rows[index]

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """A batch as of any other split; its labels are NaN."""
        chosen = torch.from_numpy(np.asarray(index, np.int64)).to(self.batch["row"].device)
        return {key: value.index_select(0, chosen) for key, value in self.batch.items()}

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        """Time features of the decoder rows: [B, P, 5] uint8."""
        future = self.future[index]
        return torch.from_numpy(stamp_features(future.reshape(-1)).reshape(*future.shape, 5))

    def describe(self, index: np.ndarray) -> list[str]:
        times = self.panel.times[self.rows(index)].astype("datetime64[ns]").astype("datetime64[s]")
        series = np.searchsorted(self.panel.offsets, self.rows(index), side="right") - 1
        return [f"{self.panel.series[s].symbol} up to {time}" for s, time in zip(series, times, strict=True)]


def newest_windows(
    rows: Rows, manifest: Mapping[str, Any], encoder: int, prediction: int, newest: int, calendar: str, targets: int
) -> Newest:
    """The last `newest` windows of every series that has any; see `TftWindows.predict`."""
    panel, made, futures = rows.panel, [], []
    stretch = np.union1d(panel.offsets[:-1], panel.breaks)
    for s, end in enumerate(panel.offsets[1:].tolist()):
        begin = int(stretch[np.searchsorted(stretch, end) - 1])
        first = max(begin + encoder - 1, end - newest)  # the first origin
        if first >= end:
            continue
        begin = first - encoder + 1
        ahead = _next_times(panel, s, end, prediction, calendar)
        reals, codes = _beyond(rows, manifest, s, stamp_features(ahead))
        lags = np.zeros((len(reals), rows.lags.shape[1]), np.float32)
        at, parts = torch.arange(end - first), []
        for there, beyond in ((rows.reals, reals), (rows.lags, lags), (rows.codes, codes)):
            whole = torch.cat((there[begin:end].cpu(), torch.from_numpy(beyond)))
            parts.append(cut_rows(whole.contiguous(), at, encoder + prediction))
        window = split_window(rows, *parts, encoder)
        static = rows.static[s].cpu().expand(len(at), -1)
        made.append({**window, "static": static, "period": static[:, 1], "row": first + at})
        walls = np.append(wall_clock(panel, first, end).to_numpy("datetime64[ns]").astype(np.int64), ahead)
        futures.append(np.lib.stride_tricks.sliding_window_view(walls[1:], prediction))
    if not made:
        raise InputError(f"no series has {encoder} bars in a row up to its newest; give more bars or lower max_encoder_length")
    batch = {key: torch.cat([window[key] for window in made]) for key in made[0]}
    batch["targets"] = torch.full((len(batch["row"]), targets), float("nan"))
    return Newest(batch, np.concatenate(futures), panel)


def _next_times(panel: Panel, series: int, end: int, count: int, calendar: str) -> np.ndarray:
    """[count] int64 ns on the wall clock: when the bars after the last one of a series are stamped."""
    info: SeriesInfo = panel.series[series]
    walls = wall_clock(panel, max(int(panel.offsets[series]), end - _RHYTHM), end)
    return (
        future_times(walls, count, info.calendar or calendar or None, f"{info.symbol} {info.period}: ")
        .to_numpy("datetime64[ns]")
        .astype(np.int64)
    )


def _beyond(rows: Rows, manifest: Mapping[str, Any], series: int, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real columns and codes of rows without bars: calendar columns as computed and scaled, the rest 0, which no window shows."""
    noted, columns = manifest.get("calendar", {}), rows.columns
    reals = np.zeros((len(stamps), rows.reals.shape[1]), np.float32)
    mean, deviation = (part[series] for part in rows.scales.per_series(rows.panel, columns.known))
    first = rows.first + len(rows.own)
    reals[:, first : first + len(columns.known)] = (calendar_rows(noted, columns.known, stamps) - mean) / deviation
    codes = np.zeros((len(stamps), len(columns.categorical)), np.int64)
    for k, name in enumerate(columns.categorical):
        if name in columns.ahead:
            codes[:, k] = rows.vocabulary.codes(name, calendar_rows(noted, [name], stamps)[:, 0])
    return reals, codes
