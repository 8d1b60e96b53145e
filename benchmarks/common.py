"""What the benchmarks share: arguments, machine facts, bars, interleaved timing, and a report that is printed and saved."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.panel import Panel, SeriesInfo
from finetune.engine.command import command_parser
from finetune.engine.files import write_json
from finetune.engine.windows import Source

ROOT = Path(__file__).resolve().parent.parent  # the repository: children are started here, so that `python -m benchmarks.x` is found
LOOKBACK, HORIZON = 90, 10
LENGTH = LOOKBACK + HORIZON + 1  # rows of a window
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Row:
    """One line of the table."""

    measure: str
    reach: str
    seen: str
    passed: bool
    peer: str = ""  # the same measure of the peer in the same run; empty without one
    ratio: float | None = None  # how many times better ours is


@dataclass
class Report:
    """What a benchmark found, where and how."""

    name: str
    command: str
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # medians, spreads, sizes: whatever the rows were computed from

    def show(self) -> None:
        """Print facts, details and rows."""
        print(f"\n{self.name}: {self.command}\n  " + ", ".join(f"{k} {v}" for k, v in self.machine.items()))
        for key, value in self.details.items():
            print(f"  {key}: {as_text(value)}")
        for row in self.rows:
            against = f"; peer {row.peer}" if row.peer else ""
            ratio = f", ratio {row.ratio:.3g}" if row.ratio is not None else ""
            print(f"  {'PASS' if row.passed else 'FAIL'}  {row.measure}: {row.seen} (reach {row.reach}{against}{ratio})", flush=True)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(path), asdict(self))


def as_text(value: Any) -> str:
    """Nested facts as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{k} ({as_text(v)})" if isinstance(v, dict) else f"{k} {v}" for k, v in value.items())
    return str(value)


def parser_for(name: str, description: str) -> argparse.ArgumentParser:
    """Arguments every benchmark takes: --peer, --out, --threads."""
    parser = command_parser(description, [f"python -m benchmarks.{name} --peer /path/to/Kronos --out benchmarks/results/{name}.json"])
    parser.add_argument(
        "--peer", metavar="PATH", type=Path, help="a public checkout of upstream to measure beside ours; without it only ours is shown"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="save the report as JSON")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (default: 1)")
    return parser


def clock_argument(parser: argparse.ArgumentParser) -> None:
    """--clock, for benchmarks of speed: on a machine shared with others the wall clock counts their work too."""
    told = "wall time, or this process's own CPU time where others use the machine too (with 1 thread; default: wall)"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=told)


def begin(name: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Report]:
    """Parse, pin this process's threads, start a report.

    The command shown holds every argument that is not a default; paths, which differ from machine to machine, as PATH.
    """
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the children
    torch.set_num_threads(args.threads)
    flags = "".join(f" --{k.replace('_', '-')}{_given(v)}" for k, v in vars(args).items() if k != "out" and v != parser.get_default(k))
    return args, Report(name, f"python -m benchmarks.{name}{flags}", machine_facts(args.threads))


def _given(value: Any) -> str:
    if value is True:
        return ""  # the flag says it all
    if isinstance(value, Path):
        return " PATH"
    return " " + (" ".join(map(str, value)) if isinstance(value, list) else str(value))


def end(report: Report, args: argparse.Namespace) -> Report:
    """Show the report, and save it where asked."""
    report.machine["load after"] = _load()
    report.show()
    if args.out:
        report.save(args.out)
    return report


def machine_facts(threads: int) -> dict[str, Any]:
    """CPU, cores, threads, versions, date and how busy the machine is: what a number needs to be understood later."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load before": _load(),
    }


def cpu_model() -> str:
    """The processor's name, and its family and model numbers where the name says little."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    facts = {k.strip(): v.strip() for k, v in lines.items()}
    return f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def make_bars(n_symbols: int, n_bars: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random walks of valid 5-minute bars: features [S, N, 6] float32, stamps [N, 5] uint8 (UTC), times [N] int64 ns."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, (n_symbols, n_bars)), axis=1))
    open_ = np.concatenate([np.full((n_symbols, 1), 100.0), close[:, :-1]], axis=1)
    high = np.maximum(open_, close) * (1 + rng.uniform(0, 0.002, close.shape))
    low = np.minimum(open_, close) * (1 - rng.uniform(0, 0.002, close.shape))
    volume = rng.uniform(1e3, 1e5, close.shape)
    amount = volume * (open_ + high + low + close) / 4
    minutes = 5 * np.arange(n_bars, dtype=np.int64)
    times = np.datetime64("2020-01-01", "ns").astype(np.int64) + minutes * 60_000_000_000
    days = times.astype("datetime64[ns]").astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    stamps = np.stack(
        [
            minutes % 60,
            minutes // 60 % 24,
            (days.astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday
            (days - months).astype(np.int64) + 1,
            months.astype(np.int64) % 12 + 1,
        ],
        axis=1,
    ).astype(np.uint8)
    return {"features": np.stack([open_, high, low, close, volume, amount], axis=2).astype(np.float32), "stamps": stamps, "times": times}


def make_panel(n_symbols: int, n_bars: int, seed: int = 0) -> Panel:
    """The bars of `make_bars` as a panel."""
    bars = make_bars(n_symbols, n_bars, seed)
    return Panel.build(
        features=bars["features"].reshape(-1, 6),
        stamps=np.tile(bars["stamps"], (n_symbols, 1)),
        times=np.tile(bars["times"], n_symbols),
        offsets=np.arange(n_symbols + 1) * n_bars,
        series=[SeriesInfo(f"S{i:04d}", "5min") for i in range(n_symbols)],
    )


def interleaved(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every side once per round, in turn, after one unmeasured round; whatever else the machine does then hits all sides alike.

    A side does a fixed piece of work and returns seconds per unit. Returns each side's `rounds` figures.
    """
    for side in sides.values():
        side()
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seen[name].append(side())
    return seen


def timed(work: Callable[[], object], units: float = 1, clock: str = "wall") -> float:
    """Seconds per unit of one call, on one of the CLOCKS."""
    now = CLOCKS[clock]
    begin_s = now()
    work()
    return (now() - begin_s) / units


def spread(values: Sequence[float], scale: float = 1.0, unit: str = "", inverse: bool = False) -> str:
    """Median and range as text; `inverse` turns seconds per unit into units per second."""
    if not values:
        return "none"
    shown = [1 / v if inverse else v * scale for v in values]
    return f"median {statistics.median(shown):.4g}{unit} ({min(shown):.4g} to {max(shown):.4g}, {len(shown)} rounds)"


class AtFirstBatch:
    """A source of windows that calls `tell` once, just before its first batch is gathered."""

    def __init__(self, source: Source, tell: Callable[[], None]):
        self.source, self.tell, self.facts = source, tell, source.facts
        self.told = False

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> None:
        self.source.to(device)

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        if not self.told:
            self.told = True
            self.tell()
        return self.source.gather(index)

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        return self.source.stamps(index)

    def describe(self, index: np.ndarray) -> list[str]:
        return self.source.describe(index)
