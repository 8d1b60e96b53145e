"""Windows of a fused panel as batches for the Temporal Fusion Transformer, gathered without any per-sample Python.

A window belongs to its origin t, the last encoder row. Encoder rows end at t; decoder rows carry only what is known ahead of t; the label
is targets[t], made of bars after t. Past targets enter lagged by their own horizon, so that at row r only labels appear whose bars had
closed by then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.data.panel import Panel
from finetune.engine.windows import Splits, Store, Windows
from kronos.errors import InputError
from tft.newest import Newest, newest_windows
from tft.rows import Say
from tft.scales import Scales
from tft.target_panel import close_times
from tft.vocabulary import Vocabulary
from tft.window_rows import LAG, Columns, Rows, choose_columns, lagged, scaled, series_of, target_places
from tft.window_splits import Horizon, SplitRule, cut_times, horizons_of, moment, origin_runs, possible_origins

_COLUMNS = 16  # columns copied out together to be measured: all at once would be a second panel


class TftSource:
    """The windows of one split, as `finetune.engine.windows.Source` wants them. Index i names the same window for ever.

    shared: batches of consecutive windows say so ("blocks" [1, B]), so that the network selects each of their rows once.
    """

    def __init__(self, rows: Rows, windows: Windows, facts: Mapping[str, Any], shared: bool = False):
        self.table, self.windows, self.shared = rows, windows, shared
        self.encoder, self.prediction = windows.lookback, windows.horizon
        self.facts = {**windows.facts, **facts}

    def __len__(self) -> int:
        return len(self.windows)

    def to(self, device: torch.device) -> None:
        self.table.to(device)

    def rows(self, index: np.ndarray | None = None) -> np.ndarray:
        """int64 [n] panel rows of the origins (the last encoder rows) of some windows, or of all."""
        index = np.arange(len(self)) if index is None else index
        return self.windows.start_rows(index) + self.encoder - 1

    def targets(self) -> np.ndarray:
        """float32 [n, K] labels of all windows as batches have them (real targets standardised), NaN where unknown."""
        return self.table.labels[torch.from_numpy(self.rows())].cpu().numpy()

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """past [B, E, Fp], known [B, E+P, Fk] float32; categorical [B, E+P, Fc], static [B, 2] (symbol, period), period [B], row [B]
        int64; targets [B, K] float32, NaN = unknown. `blocks` [1, B] where it holds and `shared` asks for it."""
        table, starts = self.table, self.windows.start_rows(index)
        batch = table.cut(starts, self.encoder, self.prediction)
        origins = starts + self.encoder - 1
        row = torch.from_numpy(origins).to(table.labels.device)
        static = table.static[torch.from_numpy(series_of(table.panel, origins)).to(table.static.device)]
        batch |= {"static": static, "targets": table.labels.index_select(0, row), "period": static[:, 1], "row": row}
        if self.shared and len(starts) and (np.diff(starts) == 1).all():
            batch["blocks"] = torch.zeros(1, len(starts))
        return batch

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        """Time features of a batch's rows: [B, E+P, 5] uint8."""
        return self.windows.stamps(index)

    def describe(self, index: np.ndarray) -> list[str]:
        return self.windows.describe(index)


class Blocks:
    """A source whose items are blocks of n consecutive windows: a batch of k items is k · n windows and says so ("blocks" [k, n]).

    Blocks of a run lie side by side, the last one moved back to end with the run, so that every window comes up in each pass, a few of
    them twice. `alone`: windows in runs shorter than n, of which no block can be made. `distinct`: those that do come up.
    """

    def __init__(self, source: TftSource, n: int):
        runs = np.diff(source.windows.first_of_run)
        if n < 1 or not (runs >= n).any():
            raise InputError(f"blocks: no {n} training windows follow each other (the longest run is {runs.max(initial=0)}); choose fewer")
        self.source, self.n, self.per_item, self.runs = source, n, n, runs
        self.first_block = np.concatenate([[0], np.cumsum(np.where(runs >= n, -(-runs // n), 0))])
        self.alone, self.distinct = int(runs[runs < n].sum()), int(runs[runs >= n].sum())
        self.facts = {**source.facts, "windows per block": n}

    def __len__(self) -> int:
        return int(self.first_block[-1])

    def windows_at(self, index: np.ndarray) -> np.ndarray:
        """int64 [k · n] windows of k blocks. Raises IndexError beyond the end."""
        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"block {index.min()}..{index.max()} outside 0..{len(self) - 1}")
        run = np.searchsorted(self.first_block, index, side="right") - 1
        within = np.minimum((index - self.first_block[run]) * self.n, self.runs[run] - self.n)
        return ((self.source.windows.first_of_run[run] + within)[:, None] + np.arange(self.n)).reshape(-1)  # [k, n] -> [k · n]

    def to(self, device: torch.device) -> None:
        self.source.to(device)

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return {**self.source.gather(self.windows_at(index)), "blocks": torch.zeros(len(index), self.n)}

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        return self.source.stamps(self.windows_at(index))

    def describe(self, index: np.ndarray) -> list[str]:
        return self.source.describe(self.windows_at(index))


@dataclass(frozen=True)
class TftWindows:
    """What `make_windows` made of a panel. `test` may be empty. cuts: end of training and of validation, ns UTC.

    possible [N] bool: rows that can be an origin, labelled or not. left_out: groups too short for one window, with their length.
    """

    panel: Panel
    manifest: Mapping[str, Any]
    targets: tuple[str, ...]
    encoder: int
    prediction: int
    columns: Columns
    vocabulary: Vocabulary
    scales: Scales
    left_out: list[str]
    cuts: tuple[int, int]
    possible: np.ndarray
    table: Rows
    train: TftSource
    val: TftSource
    test: TftSource

    @property
    def splits(self) -> Splits:
        """What `fit` takes."""
        return Splits(self.train, self.val, self.test)

    @property
    def sizes(self) -> dict[str, Any]:
        """What of `TftSizes` the columns decide."""
        past, known, categorical, _ = self.columns
        categories = self.vocabulary.sizes(categorical)
        return {"past": len(past), "known": len(known), "categories": categories, "statics": self.vocabulary.statics}

    def in_blocks(self, n: int) -> Splits:
        """Training in blocks of n consecutive windows: `FitSettings.batch_size` then counts blocks (give val_batch_size in windows).

        Validation and test are window by window as before, but say where a batch's windows follow each other. Raises InputError if no
        n training windows do.
        """
        val, test = (TftSource(source.table, source.windows, source.facts, shared=True) for source in (self.val, self.test))
        return Splits(Blocks(self.train, n), val, test)

    def everything(self) -> TftSource:
        """Every window that the panel has, labelled or not, of any split: for forecasts on a panel of later bars."""
        whole = origin_runs(self.panel, self.possible, np.zeros(self.panel.n_series, np.int64), (np.iinfo(np.int64).max,) * 2)["train"]
        return _source(self.table, "all", whole, self.encoder, self.prediction, {})

    def predict(self, newest: int = 1, calendar: str = "") -> Newest:
        """Windows that end at the `newest` last bars of each series, whose future calendar is computed; labels are NaN.

        calendar: of the exchange_calendars library ("XNYS", "24/7"), for series that name none. Raises InputError: a column that is known
        ahead but not of the calendar, a market that closes and names no calendar, no series long enough.
        """
        return newest_windows(self.table, self.manifest, self.encoder, self.prediction, newest, calendar, len(self.targets))


def make_windows(
    panel: Panel,
    manifest: Mapping[str, Any],
    *,
    targets: Sequence[str],
    real_targets: Sequence[str] = (),
    encoder: int = 96,
    prediction: int = 1,
    rule: SplitRule | None = None,
    focus_period: Sequence[str] | str = (),
    reals: Sequence[str] | None = None,
    categoricals: Sequence[str] | None = None,
    past_targets: Sequence[str] = (),
    scale_inputs: bool = False,
    horizon: Horizon = None,
    vocabulary: Vocabulary | None = None,
    scales: Scales | None = None,
    cuts: tuple[int, int] | None = None,
    say: Say = print,
) -> TftWindows:
    """Windows of a fused panel (and its manifest, {} for a plain table), split by time with purge and embargo.

    targets: columns of the labels, in this order. real_targets: those of them that are standardised per (symbol, period).
    reals, categoricals: input columns; None: all of that kind. past_targets: targets that are also inputs, lagged by their horizon,
    standardised, 0 where unknown. focus_period: windows of series of these periods alone. scale_inputs: standardise real columns per
    (symbol, period) too (a panel of tft/indicating.py already is). horizon: bars, where the manifest does not say.
    vocabulary, scales, cuts: of another run, used as they are; else all symbols, periods and categories of the panel, statistics of its
    training rows, and what `rule` says. With `scales` a split may be empty.
    Raises InputError: names that are not there, constant columns, groups all too short, an empty training, validation or wanted test.
    """
    rule, focus = rule or SplitRule(), (focus_period,) if isinstance(focus_period, str) and focus_period else tuple(focus_period)
    both = [*targets, *(name for name in past_targets if name not in targets)]
    places = target_places(panel, both, "targets")
    columns = choose_columns(panel, manifest, reals, categoricals, past_targets)
    horizons = horizons_of(panel, manifest, both, horizon)
    possible, left_out = possible_origins(panel, encoder, prediction, focus, say)
    if cuts is None:
        cuts = cut_times(np.asarray(panel.times), rule, manifest)
        _warn_of_thresholds(manifest, cuts[0], say)
    raw = np.asarray(panel.targets[:, places])
    labelled = possible & ~np.isnan(raw[:, : len(targets)]).all(axis=1)
    runs = origin_runs(panel, labelled, horizons.max(axis=1), cuts)
    if scales is None:
        _refuse_empty(runs, rule, cuts, panel)
        scales = _fitted(panel, raw, both, real_targets, past_targets, runs["train"], columns if scale_inputs else None, cuts[0])
    vocabulary = vocabulary or Vocabulary.register(panel, columns.categorical)
    labels = scaled(panel, raw[:, : len(targets)], targets, scales)
    lags = _lags(panel, raw, both, past_targets, horizons, scales)
    table = Rows(panel, columns, vocabulary, labels, lags, scales)
    facts = _facts(targets, columns, vocabulary, scales)
    made = [_source(table, name, runs[name], encoder, prediction, facts) for name in ("train", "val", "test")]
    settled = (tuple(targets), encoder, prediction, columns, vocabulary, scales, left_out, cuts, possible, table)
    return TftWindows(panel, manifest, *settled, *made)


def _source(table: Rows, name: str, runs: Any, encoder: int, prediction: int, facts: Mapping[str, Any]) -> TftSource:
    starts, counts = runs
    how = dict(lookback=encoder, horizon=prediction, extra_rows=0, normalise="none")
    return TftSource(table, Windows(Store(table.panel), name, starts - (encoder - 1), counts, **how), facts)


def _facts(targets: Sequence[str], columns: Columns, vocabulary: Vocabulary, scales: Scales) -> dict[str, Any]:
    """What else tells these windows from others, for a run that is resumed."""
    plain = [
        list(targets),
        [sorted(part) if isinstance(part, frozenset) else part for part in columns],
        vocabulary.as_dict(),
        scales.as_dict(),
    ]
    digest = hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
    return {"targets": list(targets), "columns, codes and scales": digest}


def _fitted(
    panel: Panel,
    raw: np.ndarray,
    names: Sequence[str],
    real: Sequence[str],
    past: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    inputs: Columns | None,
    train_end: int,
) -> Scales:
    """Statistics of the real targets and of class targets that are inputs over the labels of training; of input columns over the rows
    that had closed by its end."""
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(first, first + count) for first, count in zip(*train, strict=True))])
    wanted = [*real, *(name + LAG for name in past if name not in real)]
    columns = raw[:, [names.index(name.removesuffix(LAG)) for name in wanted]]
    scales = Scales.fit(panel, columns, wanted, rows)
    if inputs is None:
        return scales
    reals = [name for name in (*inputs.past, *inputs.known) if not name.endswith(LAG)]
    place = {column.name: k for k, column in enumerate(panel.columns)}
    closed = np.flatnonzero(close_times(panel) <= train_end)
    for first in range(0, len(reals), _COLUMNS):
        part = reals[first : first + _COLUMNS]
        scales = scales.beside(Scales.fit(panel, panel.features[:, [place[name] for name in part]], part, closed))
    return scales


def _lags(panel: Panel, raw: np.ndarray, names: Sequence[str], past: Sequence[str], horizons: np.ndarray, scales: Scales) -> np.ndarray:
    """[N, len(past)] lagged targets, standardised; NaN where unknown."""
    at = [names.index(name) for name in past]
    known_as = [name if name in scales.names else name + LAG for name in past]
    return lagged(panel, scaled(panel, raw[:, at], known_as, scales), horizons[:, at])


def _warn_of_thresholds(manifest: Mapping[str, Any], train_end: int, say: Say) -> None:
    """Thresholds of targets were fitted on everything up to the manifest's date."""
    until = manifest.get("train_until")
    if until and manifest.get("thresholds") and moment(train_end) < until:
        say(
            f"warning: training ends at {moment(train_end)}, but thresholds of targets were made of bars up to {until}; set train_until: "
            f"{until}, or make the targets again with this split"
        )


def _refuse_empty(runs: Mapping[str, Any], rule: SplitRule, cuts: tuple[int, int], panel: Panel) -> None:
    test = rule.test_days if rule.val_mode == "days" else rule.test_ratio
    for name, wanted in (("train", True), ("val", True), ("test", bool(test))):
        if wanted and not runs[name][1].sum():
            first, last = (moment(int(t)) for t in (panel.times.min(), panel.times.max()))
            raise InputError(
                f"the {name} split has no window: bars run {first} to {last}, training to {moment(cuts[0])}, validation to "
                f"{moment(cuts[1])}, with the largest target horizon left out on both sides of each; change val_{rule.val_mode}, "
                f"test_{rule.val_mode} or train_until, shorten max_encoder_length, or give more bars"
            )
