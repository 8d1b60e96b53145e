"""From the competition's files to a folder for training: one Panel, the test rows, a report. Never holds the file in memory.

Read in pieces, spilled into buckets of tickers; each bucket is sorted and cleaned; the panel is written ticker by ticker, in alphabetical
order, so that the same bars make the same panel whatever the order of their file.
"""

from __future__ import annotations

import os
import time
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.cleaning import Counts
from finetune.data.kaggle_cleaning import clean_bucket, policy_of
from finetune.data.kaggle_csv import CsvFile, open_csv
from finetune.data.kaggle_reading import SPLITS, WANTED, BarReader
from finetune.data.kaggle_report import as_markdown, identity, is_made_from, report_of
from finetune.data.kaggle_spill import RowFile, Spill, buckets_for
from finetune.data.kaggle_splits import CHOICES, SplitEvents, Verdict, adjust, judge
from finetune.data.kaggle_test_rows import TestFile, read_test_file
from finetune.data.kaggle_work import Pace, peak_mb, warn_of_disk, workplace
from finetune.data.panel import Panel, SeriesInfo
from finetune.data.panel_store import refuse_foreign
from finetune.data.panel_writer import PanelWriter
from finetune.data.timestamps import stamp_features
from finetune.engine.files import write_json, write_text
from kronos.errors import InputError
from kronos.files import explained

PANEL, TEST, REPORT, MANIFEST = "panel", "test.parquet", "report", "manifest.json"
_ROWS_AT_ONCE = 500_000
_DAY_NS = 86_400 * 10**9
Say = Callable[[str], Any]


@dataclass(frozen=True)
class KaggleSettings:
    """How the files are read. A ticker needs lookback + predict + 1 rows. splits: "auto", "adjust" or "keep"."""

    lookback: int = 256
    predict: int = 1
    max_ffill: int = 5
    splits: str = "auto"
    timezone: str = "America/New_York"

    def __post_init__(self) -> None:
        for flag, value, least in (("lookback", self.lookback, 1), ("predict", self.predict, 1), ("max-ffill", self.max_ffill, 0)):
            if value < least:
                raise InputError(f"--{flag}: {value} is less than {least}")
        if self.splits not in CHOICES:
            raise InputError(f"--splits: {self.splits!r} is not one of {', '.join(CHOICES)}")
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise InputError(f"--timezone: {self.timezone!r} is not an IANA time zone; write it as America/New_York") from None

    @property
    def needed(self) -> int:
        return self.lookback + self.predict + 1


def prepare(
    train: Path,
    test: Path,
    out: Path,
    settings: KaggleSettings | None = None,
    *,
    skip_truncated: bool = False,
    force: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Make `out`/panel, test.parquet, report.md, report.json and, last, manifest.json; returns the report.

    If `out` was made from these files with these settings already, that is said and nothing is done, unless `force`. Interrupted or
    failed, `out` is as it was before. Raises InputError (or MissingFileError) for what is wrong with the files, a full disk or `out`;
    Interrupted after a signal.
    """
    settings = settings or KaggleSettings()
    begin_s = time.perf_counter()
    optional = () if settings.splits == "keep" else (SPLITS,)
    file = open_csv(train, (*WANTED, *optional), skip_truncated=skip_truncated)
    test_file = read_test_file(test, skip_truncated=skip_truncated)
    made_from = identity(train, test, settings, skip_truncated)
    for note in (*file.notes, *test_file.file.notes):
        say(note)
    if not force and (report := is_made_from(out, made_from)):
        say(f"{out}: already there, made from the same files with the same settings; --force makes it again")
        return report
    refuse_foreign(out / PANEL)
    with workplace(out) as (work, stop):
        warn_of_disk(out, int(file.size * (4 if file.packed else 1.1)), say)
        job = _Job(file, test_file, settings, out, work, lambda what: Pace(what, stop, out, say), say)
        report = job.make(begin_s)
        job.publish(made_from, report)
    say(as_markdown(report, short=True))
    return report


@dataclass
class _Clean:
    """All cleaned bars on the disk, bucket after bucket. Row numbers count from the first. codes, firsts, lengths [T]; breaks [G]."""

    features: RowFile
    days: RowFile
    codes: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray
    breaks: np.ndarray
    events: SplitEvents
    span: tuple[int, int]
    counts: Counts = field(default_factory=lambda: defaultdict(Counter))
    short: dict[str, int] = field(default_factory=dict)


@dataclass
class _Job:
    """One run: its parts in order are `make`."""

    file: CsvFile
    test: TestFile
    settings: KaggleSettings
    out: Path
    work: Path
    pace: Callable[[str], Pace]
    say: Say

    def make(self, begin_s: float) -> dict[str, Any]:
        """Everything into the working folder; returns the report."""
        reader = BarReader(self.file)
        spill = Spill(self.work / "spill", buckets_for(self.file.size * (5 if self.file.packed else 1)))
        try:
            self._read(reader, spill)
            tickers = list(reader.tickers)
            asked = self.test.rows(reader.tickers)
            clean = self._clean(reader, spill, tickers)
            try:
                verdict = judge(clean.events, self.settings.splits)
                panel = self._write(clean, tickers, verdict)
            finally:
                clean.features.close()
                clean.days.close()
        finally:
            spill.close()
        asked.save(self.work / TEST)
        took_s = time.perf_counter() - begin_s
        speed = {"seconds": round(took_s, 2), "rows per second": round(reader.rows / took_s), "peak MB": round(peak_mb())}
        return report_of(self.settings, reader, clean, verdict, panel, asked, (*self.file.notes, *self.test.file.notes), speed)

    def _read(self, reader: BarReader, spill: Spill) -> None:
        pace = self.pace("reading")
        for bars in reader:
            spill.add(bars)
            pace.at(reader.rows, reader.share)
        spill.close()
        pace.done(reader.rows)
        if not reader.tickers:
            raise InputError(f"{self.file.path}: none of its {reader.rows:,} rows has a ticker; check the column Ticker")

    def _clean(self, reader: BarReader, spill: Spill, tickers: list[str]) -> _Clean:
        pace = self.pace("cleaning")
        policy, done, rows = policy_of(self.settings.max_ffill), 0, 0
        features, days = RowFile(self.work / "features", "<f4", (6,)), RowFile(self.work / "days", "<i4")
        parts, span, lengths_so_far = [], [], []
        counts: Counts = defaultdict(Counter)
        short: dict[str, int] = {}
        for number in range(spill.buckets):
            bars = spill.take(number)
            done += len(bars)
            part = clean_bucket(bars, tickers, policy=policy, needed=self.settings.needed)
            features.append(part.features)
            days.append(part.days)
            part.breaks, part.events.rows = part.breaks + rows, part.events.rows + rows
            rows += len(part.days)
            span += [int(part.days.min()), int(part.days.max())] if len(part.days) else []
            part.features = part.days = bars = np.empty(0)  # on the disk now
            parts.append(part)
            lengths_so_far.append(part.lengths)
            for what, per_ticker in part.counts.items():
                counts[what].update(per_ticker)
            short |= part.short
            pace.at(done, done / max(1, reader.rows))
        pace.done(done)
        lengths = np.concatenate(lengths_so_far)
        self._refuse_leftovers(counts, short, lengths, done)
        return _Clean(
            features,
            days,
            codes=np.concatenate([part.codes for part in parts]),
            firsts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            breaks=np.concatenate([part.breaks for part in parts]),
            events=SplitEvents.join([part.events for part in parts]),
            span=(min(span), max(span)),
            counts=counts,
            short=short,
        )

    def _refuse_leftovers(self, counts: Counts, short: dict[str, int], lengths: np.ndarray, rows: int) -> None:
        """InputError if next to nothing is left, which means that these are not daily bars of many days."""
        twice = sum(per_ticker.total() for what, per_ticker in counts.items() if "date there twice" in what)
        if twice > rows / 2:
            raise InputError(
                f"{self.file.path}: {twice:,} of {rows:,} rows repeat the date of another row of their ticker; these are not daily bars"
            )
        if not len(lengths):
            longest = max(short, key=lambda name: short[name]) if short else ""
            told = f"the longest, {longest!r}, has {short[longest]:,}" if short else "there is none"
            raise InputError(
                f"{self.file.path}: no ticker has the {self.settings.needed:,} rows that --lookback {self.settings.lookback} + --predict "
                f"{self.settings.predict} + 1 needs ({told}); give more bars, or reduce --lookback or --predict"
            )

    def _write(self, clean: _Clean, tickers: list[str], verdict: Verdict) -> Panel:
        pace = self.pace("writing")
        order = np.array(sorted(range(len(clean.codes)), key=lambda s: tickers[clean.codes[s]]))
        firsts, lengths = clean.firsts[order], clean.lengths[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))

        def moved(rows: np.ndarray) -> np.ndarray:
            series = np.searchsorted(clean.firsts, rows, side="right") - 1
            return rows - clean.firsts[series] + offsets[rank[series]]

        split_rows, ratios = moved(clean.events.rows[verdict.applied]), clean.events.ratios[verdict.applied]
        split_firsts = offsets[np.searchsorted(offsets, split_rows, side="right") - 1]
        first_day = clean.span[0]
        times, stamps = _calendar(*clean.span, self.settings.timezone)
        series = [SeriesInfo(tickers[clean.codes[s]], period="1d") for s in order]
        breaks = np.sort(moved(clean.breaks))
        with PanelWriter(
            self.work / PANEL, series=series, offsets=offsets, breaks=breaks, stamp="open", timezone=self.settings.timezone
        ) as writer:
            begin = 0
            while begin < len(order):
                end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _ROWS_AT_ONCE, side="right")) - 1)
                features = clean.features.read(firsts[begin:end], lengths[begin:end])
                here = np.flatnonzero((split_rows >= offsets[begin]) & (split_rows < offsets[end]))
                adjust(features, split_firsts[here] - offsets[begin], split_rows[here] - offsets[begin], ratios[here])
                days = clean.days.read(firsts[begin:end], lengths[begin:end]) - first_day
                writer.append(features, stamps[days], times[days])
                begin = end
                pace.at(int(offsets[end]), float(offsets[end] / offsets[-1]))
            panel = writer.finish()
        pace.done(int(offsets[-1]))
        return panel

    def publish(self, made_from: dict[str, Any], report: dict[str, Any]) -> None:
        """Put everything in its place; without the manifest, which goes first and comes last, the folder does not count as made."""
        write_json(self.work / f"{REPORT}.json", report)
        write_text(self.work / f"{REPORT}.md", as_markdown(report))
        with explained(self.out, "cannot write to folder"):
            (self.out / MANIFEST).unlink(missing_ok=True)
            if (self.out / PANEL).exists():
                os.rename(self.out / PANEL, self.work / "old")
            os.rename(self.work / PANEL, self.out / PANEL)
            for name in (TEST, f"{REPORT}.json", f"{REPORT}.md"):
                os.replace(self.work / name, self.out / name)
        write_json(self.out / MANIFEST, {**made_from, "panel": report["panel"]["fingerprint"]})


def _calendar(first_day: int, last_day: int, timezone: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every day from first to last: its midnight on the wall clock (int64 ns UTC) and its stamp features [n, 5]."""
    wall = np.arange(first_day, last_day + 1, dtype=np.int64) * _DAY_NS
    return midnights(wall // _DAY_NS, timezone), stamp_features(wall)


def midnights(days: np.ndarray, timezone: str) -> np.ndarray:
    """[n] int64 ns UTC of the beginning of each wall-clock day [n] (since 1970). Where a clock change skips midnight: the hour after."""
    local = pd.DatetimeIndex(np.asarray(days, np.int64).astype("datetime64[D]").astype("datetime64[ns]"))
    local = local.tz_localize(timezone, ambiguous=np.ones(len(local), bool), nonexistent="shift_forward")
    return local.tz_convert("UTC").tz_localize(None).as_unit("ns").to_numpy().astype(np.int64)
