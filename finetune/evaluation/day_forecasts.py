"""A forecast for every symbol on every day it may start, saved as they come, so that a run that was stopped goes on where it was.

The bars to come are stamped by the market's calendar and never by the symbol's own later bars, which would tell that trading in it stops;
so the last days are forecast like any other. Random numbers belong to (seed, bars and stamps of the forecast): neither batches, nor a
restart, nor the other symbols change them. Forecasts are made in the order of days: what was stopped has the earliest days whole.
A signal (Ctrl-C, SIGTERM) is honoured after the batch under way, and what is finished is saved. One run at a time works in a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from finetune.data.kaggle_work import only_one
from finetune.data.panel import KRONOS_NAMES, Panel
from finetune.engine.errors import Interrupted
from finetune.engine.files import ensure_writable_folder, jsonable, read_json, remove_leftovers, write_json, write_with
from finetune.engine.signals import StopRequest
from finetune.evaluation.days import clock_of, has_before, series_of, stamps_ahead
from finetune.evaluation.origins import CLOSE
from kronos import KronosPredictor, fingerprint
from kronos.errors import InputError

_FORMAT = 2  # raised when the parts' names or contents change their meaning
_MANIFEST, _LOCK = "manifest.json", ".lock"
_PART = re.compile(r"part-(?:([0-9a-f]{8})-)?(\d+)-(\d+)\.npy")  # format 1 named no manifest
_SAVE_EVERY_S = 10.0
_TELL_EVERY_S = 30.0
_CPU_TOKENS = 4096  # computed together on a CPU: mini is 12 % faster than with 16384, whose activations leave the second-level cache
_OTHERS = {
    "predictor": "the predictor's weights are others",
    "tokenizer": "the tokenizer's weights are others",
    "bars": "the bars are others",
    "ahead": "the calendar's days to come are others",
}
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Draws:
    """How paths are drawn. series_at_once: forecasts computed together at most."""

    sample_count: int = 16
    T: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    series_at_once: int = 1000


@dataclass(frozen=True, eq=False)
class DayForecasts:
    """O forecasts, sorted by day, then as the panel's series are.

    days [O] datetime64[ns]: wall clock of the last known bar. symbols [O] str. last [O] float64: its close. rows [O]: its row in the panel.
    closes [O, samples, horizon] float32: sampled closes of the bars that follow on the market's calendar.
    """

    days: np.ndarray
    symbols: np.ndarray
    last: np.ndarray
    closes: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def forecast_days(
    predictor: KronosPredictor,
    panel: Panel,
    *,
    calendar: np.ndarray,
    folder: str | Path,
    lookback: int,
    horizon: int,
    settings: Draws,
    say: Say = print,
) -> DayForecasts:
    """Forecast `horizon` bars at every origin of the panel that has `lookback` unbroken bars up to it.

    calendar: the market's wall-clock times, increasing datetime64[ns], with as many of those to come as are known; beyond its end it is
    continued by its rhythm (`days.continued`). folder: keeps what is finished. A run with the same weights, bars and settings continues
    from it, another one says what differs and starts anew; the device and series_at_once may change in between.
    Raises InputError: no origin, a panel of other columns or another calendar, weights whose forecasts are not numbers, memory, the disk,
    another run at work in the folder. Raises Interrupted after a signal, once all that is finished is saved.
    """
    work = _Work.of(panel, np.asarray(calendar, "datetime64[ns]"), lookback, horizon, say)
    folder = ensure_writable_folder(folder)
    with only_one(folder, _LOCK, "another run is forecasting into this folder; wait for it, or give one of them another folder"):
        store = _Parts(folder, (len(work), settings.sample_count, horizon), _manifest(predictor, work, settings))
        done = store.open(say)
        if done < len(work):
            _forecast(predictor, work, settings, store, done, say)
    symbols = np.array([info.symbol for info in panel.series])[series_of(panel, work.rows)]
    return DayForecasts(work.days, symbols, work.last, store.closes, work.rows)


@dataclass(frozen=True, eq=False)
class _Work:
    """What is to be forecast: rows and days [O], their last closes [O], and the stamps of the bars that follow [O, horizon, 5]."""

    panel: Panel
    lookback: int
    rows: np.ndarray
    days: np.ndarray
    last: np.ndarray
    ahead: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, panel: Panel, calendar: np.ndarray, lookback: int, horizon: int, say: Say) -> _Work:
        names = tuple(column.name for column in panel.columns)
        if names != KRONOS_NAMES:
            raise InputError(f"the panel's columns are {', '.join(names)}: forecasts need {', '.join(KRONOS_NAMES)}; preprocess again")
        if len(calendar) < 2 or (np.diff(calendar) <= np.timedelta64(0)).any():
            raise InputError(f"the calendar of {len(calendar)} times is not increasing, or too short to forecast on: check the store")
        wanted = np.flatnonzero(panel.origin)
        enough = has_before(panel, wanted, lookback)
        close = np.asarray(panel.features[wanted, CLOSE], np.float64)
        rows = wanted[enough & (close > 0)]
        if short := int((~enough).sum()):
            say(f"left out: {short:,} of {len(wanted):,} forecasts with fewer than {lookback} bars before them")
        if worthless := int((enough & (close <= 0)).sum()):
            say(f"left out: {worthless:,} forecasts from a close of 0 or below, where returns mean nothing")
        if not len(rows):
            raise InputError(
                f"there is no day to forecast from: of {len(wanted):,} possible ones none has {lookback} bars before it (lookback_window); "
                "choose a longer or later range, or a shorter lookback"
            )
        days = clock_of(panel, rows)
        rows, days = (part[np.lexsort((rows, days))] for part in (rows, days))
        strange = ~np.isin(days, calendar)
        if strange.any():
            raise InputError(
                f"{int(strange.sum()):,} of {len(days):,} days to forecast from, e.g. {_day(days[strange][0])}, are not in the calendar of "
                f"{_day(calendar[0])} to {_day(calendar[-1])}: the panel was made from another store; preprocess again"
            )
        last = np.asarray(panel.features[rows, CLOSE], np.float64)
        return cls(panel, lookback, rows, days, last, stamps_ahead(calendar, days, horizon))

    def paths(self, predictor: KronosPredictor, first: int, last: int, settings: Draws) -> np.ndarray:
        """Sampled closes [last - first, samples, horizon]."""
        given = self.rows[first:last, None] + np.arange(1 - self.lookback, 1)
        stamps = np.concatenate([self.panel.stamps[given], self.ahead[first:last]], axis=1)
        how = dict(T=settings.T, top_k=settings.top_k, top_p=settings.top_p, sample_count=settings.sample_count, seed=settings.seed)
        return predictor.predict_arrays(self.panel.features[given], stamps, self.ahead.shape[1], consistent=False, **how)[..., CLOSE]

    def name(self, place: int) -> str:
        return f"{self.panel.series[int(series_of(self.panel, self.rows[place]))].symbol} on {_day(self.days[place])}"


def _forecast(predictor: KronosPredictor, work: _Work, settings: Draws, store: _Parts, done: int, say: Say) -> None:
    """Everything from forecast `done` on, in pieces that do not depend on where it begins; however it ends, what is finished is saved."""
    tokens = _CPU_TOKENS if predictor.device.type == "cpu" else predictor.batch_tokens
    together = max(1, min(settings.series_at_once, tokens // (work.lookback + settings.sample_count * work.ahead.shape[1])))
    days = len(np.unique(work.days[done:]))
    say(f"forecasts: {len(work) - done:,} on {days:,} days, {_day(work.days[done])} to {_day(work.days[-1])}, by {predictor.device}")
    with StopRequest() as stop, closing(store), _Progress(len(work), done, say) as shown:
        for first in range(done, len(work), together):
            last = min(first + together, len(work))
            store.add(first, _made(predictor, work, first, last, settings))
            shown.update(last)
            if stop.requested:
                break
    if stop.requested:
        kept = f"{last:,} of {len(work):,} forecasts are kept in {store.folder}"
        raise Interrupted(f"stopped by {stop.name}: {kept}; the same command continues")


def _made(predictor: KronosPredictor, work: _Work, first: int, last: int, settings: Draws) -> np.ndarray:
    """As `_Work.paths`, finite. Raises InputError."""
    try:
        made = work.paths(predictor, first, last, settings)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{predictor.device} has too little memory for {last - first} forecasts at once: lower inference.series_at_once "
            "(what is finished stays, and the run continues)"
        ) from error
    if not np.isfinite(made).all():
        place = first + int(np.argmin(np.isfinite(made).all((1, 2))))
        raise InputError(f"the model's forecast for {work.name(place)} is not a number: its training diverged; use other weights")
    return made


class _Parts:
    """Finished forecasts on disk: part-RUN-FIRST-LAST.npy, closes [LAST - FIRST, samples, horizon], one after another without a gap.

    RUN is a hash of the manifest: whatever happens to that file, no part is taken for one of another run.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], manifest: dict[str, Any]):
        self.folder, self.closes, self.manifest = folder, np.empty(shape, np.float32), jsonable(manifest)
        self._run = hashlib.blake2b(json.dumps(self.manifest, sort_keys=True).encode(), digest_size=4).hexdigest()
        self._made = self._saved = 0  # how many are finished, and on disk
        self._saved_at = time.monotonic()

    def open(self, say: Say) -> int:
        """How many forecasts of the same manifest are there; they are read. Those of another one are removed, and it is said why."""
        found = read_json(self.folder / _MANIFEST)
        remove_leftovers(self.folder)
        parts = sorted(path for path in self.folder.glob("part-*.npy") if _PART.fullmatch(path.name))
        if found == self.manifest:
            kept = [path for path in parts if self._read(path)]
            if kept:
                say(f"{self._saved:,} of {len(self.closes):,} forecasts were there ({self.folder})")
        else:
            kept = []
            if parts:
                say(f"forecasts start anew, those in {self.folder} do not fit: {_differences(found, self.manifest)}")
        for path in reversed(parts):  # from the end, so that being stopped here leaves no gap
            if path not in kept:
                path.unlink()
        write_json(self.folder / _MANIFEST, self.manifest)
        return self._saved

    def _read(self, path: Path) -> bool:
        """Take a part in if it follows on what is there; a damaged one ends what there is."""
        run, *ends = _PART.fullmatch(path.name).groups()
        first, last = (int(number) for number in ends)
        if run != self._run:
            return False
        try:
            part = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            return False
        wanted = (last - first, *self.closes.shape[1:])
        if first != self._saved or last > len(self.closes) or part.shape != wanted or part.dtype != np.float32:
            return False
        self.closes[first:last] = part
        self._made = self._saved = last
        return True

    def add(self, first: int, made: np.ndarray) -> None:
        """Take in the forecasts from `first` on; every few seconds they are saved."""
        self._made = first + len(made)
        self.closes[first : self._made] = made
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.close()

    def close(self) -> None:
        """Save what is finished and not on disk yet."""
        if self._made == self._saved:
            return
        part = self.closes[self._saved : self._made]
        name = f"part-{self._run}-{self._saved:09d}-{self._made:09d}.npy"
        write_with(self.folder / name, lambda path: np.save(path, part, allow_pickle=False))
        self._saved, self._saved_at = self._made, time.monotonic()


def _manifest(predictor: KronosPredictor, work: _Work, settings: Draws) -> dict[str, Any]:
    """Everything that decides the numbers; not what only rounds them differently (the device, how many are computed together)."""
    return {
        "format": _FORMAT,
        "predictor": fingerprint(predictor.model),
        "tokenizer": fingerprint(predictor.tokenizer),
        "bars": work.panel.fingerprint,
        "ahead": hashlib.blake2b(np.ascontiguousarray(work.ahead).data, digest_size=16).hexdigest(),
        "forecasts": len(work),
        "lookback_window": work.lookback,
        "predict_window": work.ahead.shape[1],
        **{name: getattr(settings, name) for name in ("T", "top_k", "top_p", "sample_count", "seed")},
        "max_context": predictor.max_context,
        "clip": predictor.clip,
        "precision": predictor.inference.precision,
    }


def _differences(found: Any, wanted: dict[str, Any]) -> str:
    """What of a manifest is not as wanted, in words."""
    if not isinstance(found, dict) or found.get("format") != wanted["format"]:
        return "this program did not write them, or an earlier version of it did"
    names = [name for name in wanted if found.get(name) != wanted[name]]
    told = [_OTHERS.get(name) or f"{name} is {wanted[name]}, was {found.get(name)}" for name in names]
    return ", ".join(told) or "their description holds something else, too"


class _Progress:
    """A bar in a terminal, elsewhere a line every half minute: how many, how fast, how long still."""

    def __init__(self, total: int, done: int, say: Say):
        self.total, self.began_with, self.say = total, done, say
        self.bar = tqdm(total=total, initial=done, disable=None, unit=" forecasts", desc="forecasts", dynamic_ncols=True)
        self.began = self.told = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, done: int) -> None:
        """After forecast number `done`."""
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        if not self.bar.disable or now - self.told < _TELL_EVERY_S:
            return
        rate = (done - self.began_with) / max(now - self.began, 1e-9)
        left_s = (self.total - done) / rate
        self.say(f"forecasts: {done:,} of {self.total:,}, {rate:.3g}/s, {left_s // 60:.0f} min {left_s % 60:.0f} s left")
        self.told = now


def _day(moment: np.datetime64) -> str:
    """A date, with the time of day where it has one."""
    text = np.datetime_as_string(moment, unit="m").replace("T", " ")
    return text.removesuffix(" 00:00")
