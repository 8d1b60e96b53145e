"""From a store's fields to bars that can be trained on: what is dropped, and why, is counted for every symbol."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from finetune.data.checks import AMOUNT, CLOSE, VOLUME, impossible, usual_amount
from finetune.data.qlib_ranges import day
from finetune.data.qlib_store import Spans, Store, listed
from kronos.errors import InputError

FIELDS = ("open", "high", "low", "close", "volume", "amount", "vwap", "factor")
_FACTOR = FIELDS.index("factor")
_TOGETHER = 50  # symbols read at once
_TELL_EVERY_S = 30.0
Say = Callable[[str], Any]


@dataclass
class Lives:
    """Usable bars of S symbols, N in all, sorted by symbol, then time; a symbol's bars count as consecutive, whatever lay between.

    symbols [S]; offsets [S + 1]; place [N] int64 in the calendar; features [N, 6] float32 (KRONOS_NAMES); member [N] bool: in the pool
    on that day.
    dropped: symbol → why none of its bars is used. lost: why → symbol → bars left out of symbols that are used.
    kept: what a user should know of bars that are used. fields: name → number of symbols that have it.
    """

    symbols: list[str] = field(default_factory=list)
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    place: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.float32))
    member: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    dropped: dict[str, str] = field(default_factory=dict)
    lost: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    kept: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    fields: Counter[str] = field(default_factory=Counter)


def read_lives(store: Store, spans: Spans, first: int, last: int, *, needed: int, raw: bool, say: Say) -> Lives:
    """Bars first..last of the calendar of every symbol in `spans`, over its whole life; its memberships only mark rows.

    needed: bars that a symbol must have left. raw: prices / factor and volume * factor, instead of as stored. amount is the store's, or
    volume x mean of the four prices. say: shows a bar in a terminal; elsewhere it is told every half minute how far the reading is.
    Raises InputError naming a field that no symbol has.
    """
    lives, pieces = Lives(), []
    here = [symbol for symbol in sorted(spans) if store.has(symbol)]
    lives.dropped |= dict.fromkeys(sorted(set(spans) - set(here)), "not in the store")
    for symbols in _in_turn(here, say):
        read = store.features(symbols, [f"${name}" for name in FIELDS], store.calendar[first], store.calendar[last])
        codes, names = read.index.codes[0], read.index.levels[0]
        place = np.searchsorted(store.calendar, read.index.get_level_values(1).to_numpy())
        bounds = np.flatnonzero(np.diff(codes, prepend=-1, append=-1))  # the symbols' rows lie together
        found = [str(names[code]) for code in codes[bounds[:-1]]]
        lives.dropped |= dict.fromkeys(sorted(set(symbols) - set(found)), "no bar between the dataset's first and last day")
        values = read.to_numpy(np.float64)
        for symbol, low, high in zip(found, bounds[:-1], bounds[1:], strict=True):
            piece = _usable(symbol, values[low:high], raw, needed, lives)
            if piece is not None:
                bars, keep = piece
                pieces.append((symbol, place[low:high][keep], bars))
    _check_fields(lives, len(here), store, raw)
    if pieces:
        lives.symbols = [symbol for symbol, _, _ in pieces]
        lives.offsets = np.cumsum([0, *(len(place) for _, place, _ in pieces)])
        lives.place = np.concatenate([place for _, place, _ in pieces])
        lives.features = np.concatenate([bars for _, _, bars in pieces])
        lives.member = np.concatenate([_membership(spans[symbol], store.calendar)[place] for symbol, place, _ in pieces])
    return lives


def _in_turn(symbols: Sequence[str], say: Say) -> Iterable[Sequence[str]]:
    """Some symbols at a time, and how far that is."""
    told = time.monotonic()
    with tqdm(total=len(symbols), disable=None, unit="symbol", desc="reading the store", leave=False) as bar:
        for first in range(0, len(symbols), _TOGETHER):
            yield symbols[first : first + _TOGETHER]
            done = min(first + _TOGETHER, len(symbols))
            bar.update(done - first)
            if bar.disable and time.monotonic() - told > _TELL_EVERY_S:
                say(f"reading the store: {done:,} of {len(symbols):,} symbols")
                told = time.monotonic()


def _usable(symbol: str, values: np.ndarray, raw: bool, needed: int, lives: Lives) -> tuple[np.ndarray, np.ndarray] | None:
    """(features [k, 6] float32, kept rows [n] bool) of one symbol's values [n, FIELDS]; None, and why, where too little is left."""
    known = np.isfinite(values)
    some = known.any(axis=0)
    lives.fields.update(name for name, has in zip(FIELDS, some, strict=True) if has)
    wanted = [*range(VOLUME + 1), *([_FACTOR] if raw else [])]
    if absent := [f"${FIELDS[place]}" for place in wanted if not some[place]]:
        lives.dropped[symbol] = f"all of {', '.join(absent)} is NaN"
        return None
    bars = values[:, : AMOUNT + 1].copy()
    if raw:
        with np.errstate(divide="ignore", invalid="ignore"):  # a factor of 0 makes an infinite price, which is left out below
            bars[:, : CLOSE + 1] /= values[:, [_FACTOR]]
            bars[:, VOLUME] *= values[:, _FACTOR]
    unknown = ~known[:, AMOUNT]
    bars[unknown, AMOUNT] = usual_amount(bars)[unknown]
    lost: Counter[str] = Counter()
    complete = np.isfinite(bars).all(axis=1)
    suspended = ~known[:, : CLOSE + 1].any(axis=1)
    lost["suspended (no price)"] = int(suspended.sum())
    lost["NaN in some field"] = int((~complete & ~suspended).sum())
    keep = complete
    for finding in impossible(bars):
        lost[finding.kind] += int((finding.rows & keep).sum())
        keep = keep & ~finding.rows
    if keep.sum() < needed:
        why = f" of {len(keep):,}; left out: {_counted(lost)}" if lost.total() else ""
        lives.dropped[symbol] = f"too short: {keep.sum():,} usable bars{why}"
        return None
    for why, number in lost.items():
        if number:
            lives.lost[why][symbol] = number
    for what, rows in (("amount is volume x mean price, as the store has none", unknown), ("volume is 0, kept", bars[:, VOLUME] == 0)):
        if (rows & keep).any():
            lives.kept[what][symbol] = int((rows & keep).sum())
    return bars[keep].astype(np.float32), keep


def _membership(spans: Sequence[tuple[Any, Any]], calendar: np.ndarray) -> np.ndarray:
    """[D] bool: the calendar's bars inside one of the spans."""
    member = np.zeros(len(calendar), bool)
    for begin, end in spans:
        low, high = np.searchsorted(calendar, np.datetime64(begin)), np.searchsorted(calendar, np.datetime64(end), "right")
        member[low:high] = True
    return member


def _check_fields(lives: Lives, symbols: int, store: Store, raw: bool) -> None:
    """A field that no symbol has is the store's fault, not the symbols'."""
    wanted = (*FIELDS[: VOLUME + 1], *(("factor",) if raw else ()))
    absent = [f"${name}" for name in wanted if not lives.fields[name]]
    if symbols and lives.fields.total() and absent:
        fix = "set data.raw=false, or " if absent == ["$factor"] else ""
        raise InputError(
            f"{store.path}: {', '.join(absent)} is NaN for all {symbols:,} symbols that were read ({store.freq}, up to "
            f"{day(store.calendar[-1])}): {fix}give the store features/SYMBOL/{absent[0][1:]}.{store.freq}.bin"
        )


def tell(lives: Lives, say: Say) -> None:
    """A few lines on what was left out; the manifest has all of it."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for symbol, why in lives.dropped.items():
        kind, _, number = why.partition(": ")
        by_reason[kind].append(f"{symbol} {number.split(' ')[0]} bars" if number else symbol)
    for why, symbols in by_reason.items():
        say(f"symbols left out, {why}: {len(symbols):,} ({listed(symbols)})")
    for what, per_symbol in lives.lost.items():
        say(f"bars left out, {what}: {per_symbol.total():,} ({_most(per_symbol)})")
    for what, per_symbol in lives.kept.items():
        say(f"bars whose {what}: {per_symbol.total():,} ({_most(per_symbol)})")


def _most(counts: Counter[str]) -> str:
    return listed(f"{symbol} {number:,}" for symbol, number in counts.most_common())


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
