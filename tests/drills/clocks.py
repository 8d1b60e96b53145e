"""Clocks: time zones, clock changes, leap days, exchange calendars, and a machine's clock that jumps. Checked against other libraries.

"instants": every way to write a time, in any zone, against datetime and zoneinfo. "naive": wall clocks around clock changes, of which those
that are skipped or come twice must be refused. "mixed": CSVs whose rows carry different offsets. "exchanges": bars of real sessions, half
days and clock changes included, against exchange_calendars; and the bars to come. "jumps": a training under whose feet the clock is set
forward and back, to the bits of an undisturbed one.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import sys
import time
import warnings
import zoneinfo
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import exchange_calendars
import numpy as np
import pandas as pd

from finetune.data.load import load_panel
from finetune.data.timestamps import read_times, stamp_features
from finetune.engine.files import read_json, read_json_lines
from kronos.calendar import future_times
from tests.bars import make_frame
from tests.drills import common
from tests.drills.common import Failed, Round, differences, expect
from tests.drills.isolated import judge
from tests.drills.malformed_csv import section

ZONES = (
    *("America/New_York", "Europe/London", "Australia/Sydney", "Asia/Shanghai", "Asia/Kolkata", "UTC", "Europe/Berlin", "Asia/Tokyo"),
    *("Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "Asia/Tehran", "Pacific/Apia", "America/St_Johns", "Asia/Beirut"),
)
EXCHANGES = ("XNYS", "XLON", "XASX", "XHKG", "XSHG", "XTKS", "XFRA", "XBOM")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _ns(moment: dt.datetime) -> int:
    """Nanoseconds since 1970, UTC; of a naive moment, of its wall clock."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def _expected_stamps(wall: dt.datetime) -> list[int]:
    return [wall.minute, wall.hour, wall.weekday(), wall.day, wall.month]


@cache
def _changes(zone: str, year: int) -> tuple[dt.datetime, ...]:
    """Instants (UTC) at which a zone's clock changes in a year, to the minute."""
    where, found = zoneinfo.ZoneInfo(zone), []
    hours = [dt.datetime(year, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=i) for i in range(366 * 24)]
    offsets = [hour.astimezone(where).utcoffset() for hour in hours]
    for before, after, old, new in zip(hours, hours[1:], offsets, offsets[1:], strict=False):
        if old != new:
            minutes = [before + dt.timedelta(minutes=i) for i in range(61)]
            found.append(next(one for one in minutes if one.astimezone(where).utcoffset() == new))
        del after
    return tuple(found)


def _instants(draw: random.Random, zone: str, count: int) -> list[dt.datetime]:
    """Instants near clock changes, leap days, turns of the year, and anywhere from 1971 to 2105, sorted, each once."""
    found = set()
    while len(found) < count:
        year = draw.randrange(1971, 2106)
        kind = draw.random()
        if kind < 0.5 and (changes := _changes(zone, draw.randrange(1995, 2037))):
            around = draw.choice(changes) + dt.timedelta(minutes=draw.randrange(-200, 200))
        elif kind < 0.7:
            leap = draw.choice((1972, 2000, 2024, 2096, 2104))
            around = dt.datetime(leap, 2, 28, tzinfo=dt.UTC) + dt.timedelta(minutes=draw.randrange(4000))
        elif kind < 0.8:
            around = dt.datetime(year, 12, 31, 12, tzinfo=dt.UTC) + dt.timedelta(minutes=draw.randrange(1500))
        else:
            around = dt.datetime(year, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=draw.randrange(365 * 86_400))
        found.add(around)
    return sorted(found)


def _offset_text(moment: dt.datetime, draw: random.Random) -> str:
    """A moment with its offset; offsets of seconds, which no file writes, become UTC."""
    east = moment.utcoffset() or dt.timedelta()
    if east.total_seconds() % 60:
        moment, east = moment.astimezone(dt.UTC), dt.timedelta()
    text = moment.strftime(draw.choice(("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y/%m/%d %H:%M:%S")))
    minutes = int(east.total_seconds() // 60)
    if not minutes:
        return text + draw.choice(("Z", "+00:00", "+0000", " UTC"))
    sign, hours, rest = "-" if minutes < 0 else "+", abs(minutes) // 60, abs(minutes) % 60
    return f"{text}{sign}{hours:02d}{draw.choice((':', ''))}{rest:02d}"


# ------------------------------------------------------------------ readers


def instants(seed: int, place: Path) -> Callable[[], Any]:
    """Times that fix an instant, in one layout per column, moved to a zone's wall clock."""
    draw = random.Random(seed)
    zone = draw.choice(ZONES)
    moments = _instants(draw, zone, 60)
    written = zoneinfo.ZoneInfo(draw.choice(ZONES))
    layout = draw.choice(("text", "s", "ms", "ns", "datetimes"))

    def read() -> str:
        if layout == "text":
            values: Any = [_offset_text(moment.astimezone(written), draw) for moment in moments]
        elif layout == "datetimes":
            values = pd.Series(pd.DatetimeIndex(moments).tz_convert(str(written)))
        else:
            kept = [moment for moment in moments if moment.year >= 1974]
            moments[:] = kept
            values = np.array([_ns(moment) for moment in kept]) // {"s": 10**9, "ms": 10**6, "ns": 1}[layout]
        found = read_times(values, timezone=zone)
        expect(not found.faults and not found.missing.any(), f"{layout}: {[fault.what for fault in found.faults]}")
        expect(found.times.tolist() == [_ns(moment) for moment in moments], f"{layout}: other instants")
        walls = [moment.astimezone(zoneinfo.ZoneInfo(zone)).replace(tzinfo=None) for moment in moments]
        expect(found.wall.tolist() == [_ns(wall) for wall in walls], f"{layout}: other wall clocks in {zone}")
        expect(stamp_features(found.wall).tolist() == [_expected_stamps(wall) for wall in walls], f"{layout}: other stamps in {zone}")
        return "read"

    return read


def naive(seed: int, place: Path) -> Callable[[], Any]:
    """Wall clocks without an offset: an instant where there is one, a fault where there is none or two."""
    draw = random.Random(seed)
    zone = draw.choice(ZONES)
    where = zoneinfo.ZoneInfo(zone)
    walls = sorted({moment.replace(tzinfo=None) for moment in _instants(draw, zone, 80)})

    def meaning(wall: dt.datetime) -> int | None:
        """The instant, None where the clock is skipped or comes twice; by going to UTC and back, as PEP 495 has it."""
        both = {wall.replace(tzinfo=where, fold=fold).astimezone(dt.UTC) for fold in (0, 1)}
        true = [one for one in both if one.astimezone(where).replace(tzinfo=None) == wall]
        return _ns(true[0]) if len(true) == 1 else None

    def read() -> str:
        found = read_times([str(wall) for wall in walls], timezone=zone)
        expected = [meaning(wall) for wall in walls]
        refused = {int(row) for fault in found.faults for row in fault.rows}
        expect(refused == {row for row, one in enumerate(expected) if one is None}, f"{zone}: other times are refused")
        kept = [row for row in range(len(walls)) if row not in refused]
        expect([found.times[row] for row in kept] == [expected[row] for row in kept], f"{zone}: other instants")
        stamps = stamp_features(found.wall)
        expect([stamps[row].tolist() for row in kept] == [_expected_stamps(walls[row]) for row in kept], f"{zone}: other stamps")
        return "read"

    return read


def mixed(seed: int, place: Path) -> Callable[[], Any]:
    """A CSV of hourly bars whose rows are written in different zones, in any order: sorted by instant; one without a zone is refused."""
    draw = random.Random(seed)
    zone = draw.choice(ZONES)
    changes = _changes(zone, draw.randrange(2000, 2030)) or (dt.datetime(2024, 2, 29, tzinfo=dt.UTC),)
    first = (draw.choice(changes) - dt.timedelta(hours=20)).replace(minute=0)
    moments = [first + dt.timedelta(hours=i) for i in range(48)]
    frame = make_frame(len(moments), seed=seed)
    frame["timestamps"] = [_offset_text(moment.astimezone(zoneinfo.ZoneInfo(draw.choice(ZONES))), draw) for moment in moments]
    lacking = draw.random() < 0.25
    if lacking:
        frame.loc[draw.randrange(len(frame)), "timestamps"] = str(draw.choice(moments).replace(tzinfo=None))
    shuffled = frame.sample(frac=1, random_state=seed) if draw.random() < 0.5 else frame
    (place / "in").mkdir(parents=True)
    shuffled.to_csv(place / "in" / "bars.csv", index=False)
    how = section(place / "in" / "bars.csv", draw)
    how.timezone, how.missing, how.stamp = zone, "error", "open"

    def read() -> str:
        panel = load_panel(how, say=lambda _: None)
        expect(not lacking, "a time without a zone among times with one was read")
        expect(panel.times.tolist() == [_ns(moment) for moment in moments], "other instants, or another order")
        walls = [moment.astimezone(zoneinfo.ZoneInfo(zone)).replace(tzinfo=None) for moment in moments]
        expect(panel.stamps.tolist() == [_expected_stamps(wall) for wall in walls], f"other stamps in {zone}")
        expect(np.array_equal(panel.features[:, 3], frame["close"].to_numpy(np.float32)), "bars stand at other times")
        return "read"

    return read


@cache
def _calendar(name: str) -> Any:
    warnings.simplefilter("ignore")  # exchange_calendars with pandas 3
    return exchange_calendars.get_calendar(name, start="2015-01-01", end="2025-12-31")


def exchanges(seed: int, place: Path) -> Callable[[], Any]:
    """Bars of an exchange's sessions, written in UTC, as wall clock, or with offsets: stamps by its clock; and the bars that come next."""
    draw = random.Random(seed)
    calendar = _calendar(draw.choice(EXCHANGES))
    zone, minutes, side = str(calendar.tz), draw.choice((5, 15, 30, 60)), draw.choice(("left", "right"))
    around = [day for year in range(2016, 2025) for day in _changes(zone, year)] + [dt.datetime(2024, 2, 29, tzinfo=dt.UTC)]
    middle = draw.choice(around) if draw.random() < 0.8 else dt.datetime(draw.randrange(2016, 2025), 12, 24, tzinfo=dt.UTC)
    at = int(calendar.sessions.searchsorted(pd.Timestamp(middle).tz_localize(None))) - draw.randrange(6)
    grid = calendar.trading_index(
        calendar.sessions[at], calendar.sessions[at + 12], pd.Timedelta(minutes, "min"), intervals=True, force=True, parse=False
    )
    times = getattr(grid, side)
    known = len(times) - draw.randrange(1, len(times) // 3)
    layout = draw.choice(("utc", "wall", "offsets"))

    def read() -> str:
        frame = make_frame(known, seed=seed)
        moved = {"utc": times, "wall": times.tz_convert(zone).tz_localize(None), "offsets": times.tz_convert(zone)}[layout]
        frame["timestamps"] = moved[:known].astype(str)
        (place / "out").mkdir(exist_ok=True)
        frame.to_csv(place / "out" / "bars.csv", index=False)
        how = section(place / "out" / "bars.csv", draw)
        how.timezone, how.missing, how.stamp = zone, "error", "auto"
        panel = load_panel(how, say=lambda _: None)
        expect(panel.times.tolist() == times[:known].as_unit("ns").asi8.tolist(), f"{calendar.name}: other instants")
        walls = [moment.to_pydatetime() for moment in times[:known].tz_convert(zone)]
        expect(panel.stamps.tolist() == [_expected_stamps(wall) for wall in walls], f"{calendar.name}: other stamps")
        given = moved[:known] if layout != "offsets" else times[:known].tz_convert(zone)
        coming = future_times(given, len(times) - known, calendar.name)
        expect(list(coming) == list(moved[known:]), f"{calendar.name}, {minutes} min, {side}: other bars to come")
        return "read"

    return read


# ------------------------------------------------------------------ the machine's clock


def _jumping(seed: int) -> None:
    """In the child: from now on the wall clock is set back and forward, by seconds to decades, about every third look at it."""
    draw, true = random.Random(seed), time.time
    shift = [0.0]

    def jumped() -> float:
        if draw.random() < 0.3:
            shift[0] = draw.choice((0, -3600, 3600, -86_400 * 365 * 20, 86_400 * 365 * 10, -0.5, 1e6))
        return true() + shift[0]

    local, text = time.localtime, time.strftime
    time.time = jumped
    time.time_ns = lambda: int(jumped() * 1e9)
    time.localtime = lambda seconds=None: local(jumped() if seconds is None else seconds)
    time.strftime = lambda layout, moment=None: text(layout, time.localtime() if moment is None else moment)


def jumps(whole: dict[str, Any], seed: int, place: Path) -> None:
    """A training with such a clock, stopped half-way and resumed after all file times were set to anything."""
    draw = random.Random(seed)
    config = common.write_config(place)
    base, arguments = common.output(config), [common.BOTH, "--config", str(config)]
    child = common.start(arguments, place / "log", before=lambda: _jumping(seed))
    until = time.monotonic() + draw.random() * 2.5
    while time.monotonic() < until and not child.ended():
        time.sleep(0.01)
    child.kill(9 if draw.random() < 0.5 else 15)
    child.wait()
    for path in place.rglob("*"):
        moment = draw.choice((0, 1, 2**31, time.time() + 1e8, time.time() - 1e8))
        os.utime(path, (moment, moment))
    ended = common.run([*arguments, "--resume"], place / "log", before=lambda: _jumping(seed + 1))
    expect(ended.code == 0, f"--resume ended with {ended.code}:\n{ended.text[-3000:]}")
    told = differences(whole, common.results(base))
    expect(not told, f"not the bits of the undisturbed run: {told[:5]}")
    for stage in common.STAGES:
        seconds = [line["time_s"] for line in read_json_lines(base / stage / "metrics.jsonl")]
        expect(all(0 <= one < 120 for one in seconds), f"times of {min(seconds)} to {max(seconds)} s were logged")
        expect(0 <= (read_json(base / stage / "summary.json") or {})["wall_time_s"] < 120, "a wall time that is none")


def kinds(folder: Path) -> dict[str, Round]:
    """Each kind's rounds; the jumps' first one makes the undisturbed run."""

    @cache
    def whole() -> dict[str, Any]:
        config = common.write_config(folder / "undisturbed")
        ended = common.run([common.BOTH, "--config", str(config)], folder / "undisturbed" / "log")
        expect(ended.code == 0, f"the undisturbed run ended with {ended.code}:\n{ended.text[-2000:]}")
        return common.results(common.output(config))

    def of(make: Callable[[int, Path], Callable[[], Any]]) -> Round:
        def act(seed: int, place: Path) -> None:
            judge(make(seed, place), place)

        return act

    readers = {make.__name__: of(make) for make in (instants, naive, mixed, exchanges)}
    return readers | {"jumps": lambda seed, place: jumps(whole(), seed, place)}


if __name__ == "__main__":
    try:
        common.main("clocks", kinds, __doc__ or "", 100)
    except Failed as fault:
        sys.exit(f"clocks: {fault}")
