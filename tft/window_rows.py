"""The rows that windows are cut from: real columns side by side, category codes, labels and lagged targets, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from finetune.data.panel import Panel
from finetune.engine.windows import as_tensor, cut_rows, fits
from kronos.errors import InputError
from tft.indicators import nearest
from tft.rows import columns_named
from tft.scales import Scales
from tft.vocabulary import Vocabulary

LAG = "_lag"
_CHUNK = 1 << 14  # rows copied together: a piece of 100 columns stays in the cache


class Columns(NamedTuple):
    """Names of a batch's columns. past: those of the panel, then lagged targets. categorical beyond now only if in `ahead`."""

    past: tuple[str, ...]
    known: tuple[str, ...]
    categorical: tuple[str, ...]
    ahead: frozenset[str]


def choose_columns(
    panel: Panel, manifest: Mapping[str, Any], reals: Sequence[str] | None, categoricals: Sequence[str] | None, lagged: Sequence[str]
) -> Columns:
    """Columns by name, None for all of their kind. Raises InputError: missing, of the wrong kind, the same in all rows of a plain table."""
    kinds = {column.name: column.kind for column in panel.columns}
    real = [name for name, kind in kinds.items() if kind != "categorical"] if reals is None else list(reals)
    categorical = [name for name, kind in kinds.items() if kind == "categorical"] if categoricals is None else list(categoricals)
    for who, names, other in (("reals", real, categorical), ("categoricals", categorical, real)):
        columns_named(panel, names, who)
        twice = [name for name in names if names.count(name) > 1 or name in other]
        if twice:
            raise InputError(f"{who}: {twice[0]!r} is named twice; name it once, under reals or under categoricals")
    codes = [name for name in real if kinds[name] == "categorical"]
    if codes:
        raise InputError(f"reals: {codes[0]!r} holds categories, whose order means nothing; name it under categoricals")
    if "targets" not in manifest:
        _refuse_constant(panel, real + categorical)
    past = [name for name in real if kinds[name] == "past"] + [name + LAG for name in lagged]
    ahead = frozenset(name for name in categorical if name in manifest.get("calendar", {}))
    return Columns(tuple(past), tuple(name for name in real if kinds[name] == "known"), tuple(categorical), ahead)


def _refuse_constant(panel: Panel, names: Sequence[str]) -> None:
    """A fused panel was looked through when it was made; other tables are here."""
    left = np.array(columns_named(panel, list(names), "columns"), np.int64)
    for first in range(0, panel.n_rows, _CHUNK):
        if not len(left):
            return
        left = left[(panel.features[first : first + _CHUNK, left] == panel.features[0, left]).all(axis=0)]
    told = ", ".join(f"{panel.columns[k].name} = {panel.features[0, k]:g}" for k in left[:10])
    if told:
        raise InputError(
            f"{len(left)} columns have the same value in all {panel.n_rows:,} rows and tell a model nothing: {told}; leave them out"
        )


def target_places(panel: Panel, targets: Sequence[str], who: str) -> list[int]:
    """Positions of targets. Raises InputError naming the one that the panel does not have."""
    names = list(panel.target_names)
    for target in targets:
        if target not in names:
            there = f"; it has {', '.join(names)}" if names else ", which has none: make them with python tft/target_config.py"
            raise InputError(f"{who}: {target!r} is not among the targets of the panel{nearest(target, names)}{there}")
    return [names.index(target) for target in targets]


def series_of(panel: Panel, rows: np.ndarray) -> np.ndarray:
    """[n] number of the series that each row belongs to."""
    return np.searchsorted(panel.offsets, rows, side="right") - 1


def scaled(panel: Panel, values: np.ndarray, names: Sequence[str], scales: Scales) -> np.ndarray:
    """values [N, K] of all rows, standardised per series as `scales` knows the names; float32 [N, K]."""
    mean, deviation = scales.per_series(panel, names)
    out = np.empty(values.shape, np.float32)
    for s, (first, end) in enumerate(zip(panel.offsets[:-1], panel.offsets[1:], strict=True)):
        out[first:end] = (values[first:end] - mean[s]) / deviation[s]
    return out


def lagged(panel: Panel, values: np.ndarray, horizons: np.ndarray) -> np.ndarray:
    """[N, K] values as many rows later in the same series as their horizon [S, K]: what had become known by then. Unknown ones NaN."""
    out = np.full(values.shape, np.nan, np.float32)
    for s, (first, end) in enumerate(zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True)):
        for k, h in enumerate(horizons[s].tolist()):
            out[min(end, first + h) : end, k] = values[first : max(first, end - h), k]
    return out


class Rows:
    """Tensors over all rows of a panel. reals [N, R]: columns `own` (past ones) then `known` from `first` on; the panel's own memory where
    it has them side by side in this order. lags [N, L]: past targets, kept apart so that they make no copy of all the others.
    codes [N, Fc] int64, labels [N, K] float32, static [S, 2] int64."""

    def __init__(self, panel: Panel, columns: Columns, vocabulary: Vocabulary, labels: np.ndarray, lags: np.ndarray, scales: Scales):
        self.panel, self.columns, self.vocabulary, self.scales = panel, columns, vocabulary, scales
        self.own = list(columns.past[: len(columns.past) - lags.shape[1]])
        reals, self.first = self._reals()
        self.reals, self.labels, self.lags = as_tensor(reals), as_tensor(labels), as_tensor(np.nan_to_num(lags, copy=False))
        values = [panel.features[:, k] for k in columns_named(panel, columns.categorical, "categoricals")]
        codes = [vocabulary.codes(name, v) for name, v in zip(columns.categorical, values, strict=True)]
        self.codes = torch.from_numpy(np.stack(codes, 1) if codes else np.empty((panel.n_rows, 0), np.int64))
        self.hidden = torch.tensor([k for k, name in enumerate(columns.categorical) if name not in columns.ahead], dtype=torch.long)
        self.static = torch.from_numpy(vocabulary.static_codes(panel))

    def _reals(self) -> tuple[np.ndarray, int]:
        panel, names = self.panel, [*self.own, *self.columns.known]
        places = columns_named(panel, names, "reals")
        plain = not set(names) & set(self.scales.names)
        side_by_side = bool(places) and places == list(range(places[0], places[0] + len(places)))
        if plain and side_by_side and 2 * len(places) >= len(panel.columns):  # a window copies whole rows: most of them should be wanted
            return panel.features, places[0]
        out = np.empty((panel.n_rows, len(places)), np.float32)
        mean, deviation = (part.astype(np.float32) for part in self.scales.per_series(panel, names))
        for s, (begin, end) in enumerate(zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True)):
            for first in range(begin, end, _CHUNK):
                part = slice(first, min(end, first + _CHUNK))
                piece = np.take(panel.features[part], places, axis=1)
                out[part] = piece if plain else (piece - mean[s]) / deviation[s]
        return out, 0

    def to(self, device: torch.device) -> None:
        """Move to an accelerator whose free memory takes it with room to spare."""
        if fits(device, self.reals, self.lags, self.codes, self.labels):
            names = ("reals", "lags", "codes", "labels", "static", "hidden")
            for name in names:
                setattr(self, name, getattr(self, name).to(device))

    def cut(self, starts: np.ndarray, encoder: int, prediction: int) -> dict[str, torch.Tensor]:
        """The temporal part of a batch: windows of encoder + prediction rows from each start; past columns stop at the encoder's end."""
        at = torch.from_numpy(starts).to(self.reals.device)
        reals, lags, codes = (cut_rows(part, at, encoder + prediction) for part in (self.reals, self.lags, self.codes))
        return split_window(self, reals, lags, codes, encoder)


def split_window(rows: Rows, reals: torch.Tensor, lags: torch.Tensor, codes: torch.Tensor, encoder: int) -> dict[str, torch.Tensor]:
    """reals [B, E+P, R], lags [B, E+P, L], codes [B, E+P, Fc] → past [B, E, Fp], known [B, E+P, Fk], categorical [B, E+P, Fc].

    A category that is not known ahead is 0 (unknown) in the prediction rows.
    """
    own, known = len(rows.own), len(rows.columns.known)
    if len(rows.hidden):
        codes[:, encoder:, rows.hidden.to(codes.device)] = 0
    first = rows.first
    past = reals[:, :encoder, first : first + own]
    return {
        "past": torch.cat((past, lags[:, :encoder]), -1) if lags.shape[-1] else past,
        "known": reals[:, :, first + own : first + own + known],
        "categorical": codes,
    }
