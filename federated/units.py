"""Numbers with units, as the run-config writes them: max-latency=200ms, bandwidth-limit=50mbps."""

from __future__ import annotations

import math
import re

from kronos.errors import InputError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BITS_PER_S = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]*)")


def parse_duration(value: str | float, key: str = "") -> float:
    """A duration in seconds: "200ms", "1.5s", "2m", "1h". Zero needs no unit; any other bare number is refused, for it may mean either.

    key: the setting's name, to begin the message with. Raises InputError.
    """
    return _scaled(value, key, _SECONDS, "200ms, 1.5s or 2m")


def parse_bandwidth(value: str | float, key: str = "") -> float | None:
    """A rate in bits per second (decimal: 1mbps is 10⁶), or None, no limit, for 0, "" and "none".

    Bits only: a capital B (50MBps) is refused, since it may be meant as bytes. key: the setting's name. Raises InputError.
    """
    if isinstance(value, str) and value.strip().lower() in ("", "none"):
        return None
    if isinstance(value, str) and re.search(r"B(ps|/s)?\s*$", value):
        raise InputError(f"{key} is {value!r}, in bytes? Rates are in bits: write 8 times as much with a small b (400mbps)".lstrip())
    return _scaled(value, key, _BITS_PER_S, "50mbps, 800kbps or none") or None


def _scaled(value: str | float, key: str, factors: dict[str, float], examples: str) -> float:
    match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value).strip())
    number, unit = (float(match[1]), match[2].lower()) if match else (math.nan, "")
    if number == 0 and not unit:
        return 0.0
    scaled = number * factors.get(unit, math.nan)
    if not math.isfinite(scaled):
        raise InputError(f"{key} is {value!r}; expected a number and its unit ({', '.join(factors)}), such as {examples}".lstrip())
    return scaled
