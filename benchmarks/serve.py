"""Requests per second and 99th percentile of the HTTP service (examples/serve.py): 16 clients on loopback, each with a series of its own.

Two services with the same random weights run side by side, each in a process of its own: one computes what waits together, the other one
request at a time. The clients turn to one, then to the other, in rounds, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.engine.command import run_command
from kronos import Kronos, KronosTokenizer, presets
from kronos.errors import InputError

from .common import HORIZON, LOOKBACK, ROOT, Report, Row, begin, end, make_bars, parser_for

NAME = "serve"
REACH = 1.5  # times the requests/s of one at a time
START_S = 60.0
_COLUMNS = ("open", "high", "low", "close", "volume", "amount")


@dataclass
class Side:
    """One service and how long each of its answers took, in seconds, round by round."""

    url: str
    rounds: list[list[float]] = field(default_factory=list)
    lasted_s: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Requests per second of each round."""
        return [len(waits) / lasted for waits, lasted in zip(self.rounds, self.lasted_s, strict=True)]

    def wait_ms(self, share: float) -> float:
        """A quantile of the time to an answer, over all rounds."""
        return 1000 * float(np.quantile(np.concatenate(self.rounds), share))


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, start both services, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--size", default="mini", choices=("tiny", "mini", "small", "base"), help="predictor (default: mini)")
    parser.add_argument("--clients", type=int, default=16, help="concurrent clients (default: 16)")
    parser.add_argument("--samples", type=int, default=5, help="paths of a request (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round, per side (default: 3)")
    args, report = begin(NAME, parser, argv)
    with ExitStack() as stack:
        bundle = _write_bundle(Path(stack.enter_context(tempfile.TemporaryDirectory())), args.size)
        sides = {most: Side(stack.enter_context(_service(bundle, most, args.threads))) for most in (args.clients, 1)}
        asyncio.run(_measure(list(sides.values()), args))
    _report(report, sides[args.clients], sides[1], args)
    return end(report, args)


def _write_bundle(folder: Path, size: str) -> Path:
    """Random weights: only the time counts."""
    from kronos.bundle import Bundle, write_folder

    known = "mini" if size == "tiny" else size
    small = {"d_model": 32, "n_heads": 4, "ff_dim": 64} if size == "tiny" else {}
    layers = [{"n_enc_layers": 2, "n_dec_layers": 2}, {"n_layers": 1}] if size == "tiny" else [{}, {}]
    torch.manual_seed(0)
    tokenizer = KronosTokenizer(**presets.tokenizer_arguments(presets.TOKENIZER_OF[known]) | small | layers[0])
    model = Kronos(**presets.predictor_arguments(known) | small | layers[1])
    write_folder(Bundle(tokenizer, model, presets.MAX_CONTEXT[known]), folder / "pair")
    return folder / "pair"


@contextmanager
def _service(bundle: Path, most: int, threads: int) -> Iterator[str]:
    """Address of a service in a process of its own, which computes at most `most` requests together."""
    arguments = ["--bundle", str(bundle), "--port", "0", "--device", "cpu", "--max-batch", str(most), "--threads", str(threads)]
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = process.stdout.readline()
            address = re.search(r"http://\S+", said)
            if address is None:
                raise InputError(f"the service did not start: {said}{process.stdout.read() if process.poll() is not None else ''}".strip())
            yield address[0]
        finally:
            process.terminate()
            process.wait(START_S)


def questions(count: int, samples: int) -> list[dict[str, Any]]:
    """A request for each client: its own series of LOOKBACK bars, HORIZON to forecast."""
    bars = make_bars(count, LOOKBACK)
    times = bars["times"].astype("datetime64[ns]").astype("datetime64[s]").astype(str)
    return [
        {
            "bars": [{"timestamp": time, **dict(zip(_COLUMNS, row, strict=True))} for time, row in zip(times, series, strict=True)],
            "horizon": HORIZON,
            "samples": samples,
        }
        for series in bars["features"].round(4).astype(float).tolist()
    ]


async def _measure(sides: list[Side], args: argparse.Namespace) -> None:
    """Fills both sides, in turns, after one unmeasured round of a request per client."""
    import httpx

    asked = questions(args.clients, args.samples)
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(limits=limits, timeout=START_S) as client:
        for side in sides:
            await asyncio.gather(*(_ask(client, side.url, one) for one in asked))
        for _ in range(args.rounds):
            for side in sides:
                begun = time.perf_counter()
                waits = await asyncio.gather(*(_keep_asking(client, side.url, one, begun + args.seconds) for one in asked))
                side.lasted_s.append(time.perf_counter() - begun)
                side.rounds.append([wait for one in waits for wait in one])


async def _keep_asking(client: Any, url: str, question: dict[str, Any], until: float) -> list[float]:
    """Asks again as soon as the answer is there; seconds of each answer."""
    waits = []
    while time.perf_counter() < until:
        waits.append(await _ask(client, url, question))
    return waits


async def _ask(client: Any, url: str, question: dict[str, Any]) -> float:
    begun = time.perf_counter()
    answer = await client.post(f"{url}/predict", json=question)
    if answer.status_code != 200:
        raise InputError(f"the service answered {answer.status_code}: {answer.text[:200]}")
    return time.perf_counter() - begun


def _report(report: Report, together: Side, alone: Side, args: argparse.Namespace) -> None:
    what = f"{args.size}, {LOOKBACK} to {HORIZON} x {args.samples} paths"
    for name, side in (("together", together), ("one at a time", alone)):
        rates = f"{statistics.median(side.rates):.4g} requests/s ({min(side.rates):.4g} to {max(side.rates):.4g}, {len(side.rates)} rounds)"
        report.details[f"{what}, {name}"] = f"{rates}, p50 {side.wait_ms(0.5):.0f} ms, p99 {side.wait_ms(0.99):.0f} ms"
    rate, single = (statistics.median(side.rates) for side in (together, alone))
    report.rows.append(
        Row(
            f"requests/s of {args.clients} concurrent clients, {what}, against one request at a time",
            f">= {REACH}x",
            f"{rate:.4g} against {single:.4g} requests/s, p99 {together.wait_ms(0.99):.0f} against {alone.wait_ms(0.99):.0f} ms",
            rate >= REACH * single,
            ratio=rate / single,
        )
    )


if __name__ == "__main__":
    run_command(lambda: main() and None)
