"""What data-parallel training sends, how long that takes, and how much of it hides behind the backward pass: 1 and 2 gloo processes.

Our own optimiser step (`Stepper`, DDP, bf16, cached tokens), with and without accumulation. Bytes are counted twice, by a communication
hook and in the profiler's trace, and compared with arithmetic. The share hidden is that of the union of the all-reduces' intervals that
lies inside the backward pass, from torch.profiler's traces of both ranks. Throughput: one process alone, two each for itself, two that
train one model, in turns. From the buckets seen, a timeline (`benchmarks.networks`) tells where communication shows on many GPUs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.profiler import ProfilerActivity, profile

from finetune.engine.batches import step_micros, to_device
from finetune.engine.command import run_command
from finetune.engine.distributed import World, world
from finetune.engine.files import read_json, write_json
from finetune.engine.optimisation import Stepper
from finetune.engine.settings import FitSettings
from finetune.engine.signals import StopRequest
from finetune.engine.splits import make_splits
from finetune.engine.tokens import with_cached_tokens

from .children import run_ranks
from .common import HORIZON, LENGTH, LOOKBACK, Report, Row, begin, end, interleaved, make_panel, parser_for, spread
from .model_flops import flops_per_token
from .networks import Bucket, Network, common_length, length, smallest_batch
from .ranks import make_task

NAME = "communication"
RATE = 1e-4
REACH_HIDDEN = 0.5  # share of the all-reduces inside the backward pass
REACH_KEPT = 0.9  # speed of two processes that train one model, as a share of two that train one each
ALONE, APART, TOGETHER = "1 process", "2 processes, a model each", "2 processes, one model"


@dataclass(frozen=True)
class Work:
    """What a child does; as JSON on its command line."""

    size: str
    batch: int
    accumulation: int
    amp: str
    rounds: int
    traces: int
    threads: int


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure each size and accumulation on two ranks, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--sizes", nargs="+", default=["mini", "small"], help="presets of the predictor, or small32 (default: mini small)")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4], help="micro-batches per step and rank (default: 1 4)")
    parser.add_argument("--batch", type=int, default=8, help="windows per micro-batch (default: 8)")
    parser.add_argument("--amp", choices=("off", "bf16"), default="bf16", help="precision (default: bf16)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the interleaved timing (default: 5)")
    parser.add_argument("--traces", type=int, default=3, help="steps traced (default: 3)")
    assumed = parser.add_argument_group("assumed of the GPUs")
    assumed.add_argument("--peak-tflops", type=float, default=989, help="bf16, dense (default: 989, an H100 or H200)")
    assumed.add_argument("--mfu", type=float, default=0.4, help="share of it that training reaches (default: 0.4)")
    assumed.add_argument("--nvlink-gbs", type=float, default=360, help="GB/s that each GPU sends in an all-reduce (default: 360 of 450)")
    assumed.add_argument("--network-gbps", type=float, default=400, help="Gb/s between two machines, 90 %% of it used (default: 400)")
    assumed.add_argument("--latency-us", type=float, nargs=2, default=[25, 60], help="of one all-reduce, in and between (default: 25 60)")
    assumed.add_argument("--waiting", type=float, default=0.05, help="share of a step from which waiting shows (default: 0.05)")
    args, report = begin(NAME, parser, argv)
    for size in args.sizes:
        for accumulation in args.accumulation:
            work = Work(size, args.batch, accumulation, args.amp, args.rounds, args.traces, args.threads)
            with tempfile.TemporaryDirectory() as folder:
                run_ranks(NAME, ["--child", json.dumps(asdict(work)), folder], 2)
                seen = [read_json(Path(folder) / f"rank-{rank}.json") for rank in (0, 1)]
            _report(report, work, seen)
            if accumulation == args.accumulation[0]:
                report.details[f"{size}: on many GPUs"] = _elsewhere(args, size, seen)
    return end(report, args)


# ---------------------------------------------------------------------- what both ranks told


def _report(report: Report, work: Work, seen: list[dict[str, Any]]) -> None:
    """Rows of one size and accumulation. seen: per rank, as `_Rank.measure` returns it."""
    name = f"{work.size}, {work.accumulation} x {work.batch} windows"
    hook, trace, told = seen[0]["bytes by hook"], seen[0]["bytes in trace"], seen[0]["bytes by arithmetic"]
    shown = f"{hook:,} (hook), {trace:,} (trace), {told:,} (arithmetic)"
    equal = all(rank["bytes by hook"] == rank["bytes in trace"] == told for rank in seen)
    report.rows.append(Row(f"bytes all-reduced per optimiser step and rank, {name}", "all three equal", shown, equal))
    steps = [step for rank in seen for step in rank["traces"]]
    busy, hidden = (sum(step[key] for step in steps) for key in ("all-reduce", "inside backward"))
    share = hidden / busy
    measure = f"share of the all-reduces inside the backward pass, {name}"
    report.rows.append(Row(measure, f">= {REACH_HIDDEN:.0%}", f"{share:.0%}", share >= REACH_HIDDEN))
    windows = {ALONE: 1, APART: 2, TOGETHER: 2}
    times = seen[0]["seconds"]
    speed = {side: n * work.accumulation * work.batch / statistics.median(times[side]) for side, n in windows.items()}
    kept = statistics.median(apart / together for apart, together in zip(times[APART], times[TOGETHER], strict=True))  # of one round
    told = f"{kept:.2f} of two that train a model each; {speed[TOGETHER] / speed[ALONE]:.2f}x one process"
    report.rows.append(Row(f"speed of 2 processes that train one model, {name}", f">= {REACH_KEPT}", told, kept >= REACH_KEPT))
    report.details |= {f"{name}: {side}, s per step": spread(values) for side, values in times.items()}
    report.details |= {f"{name}: {side}, windows/s": f"{value:.3g}" for side, value in speed.items()}
    report.details[f"{name}: all-reduces of a traced step, ms"] = spread([step["all-reduce"] * 1e3 for step in steps])
    report.details[f"{name}: of them after the backward pass, ms"] = spread(
        [(step["all-reduce"] - step["inside backward"]) * 1e3 for step in steps]
    )
    report.details[f"{name}: the same all-reduces and nothing else, ms"] = spread(seen[0]["bare seconds"], 1e3)
    report.details[f"{name}: buckets, MB at share of the backward pass"] = ", ".join(
        f"{bucket.size / 1e6:.2f} at {bucket.ready:.2f}" for bucket in _buckets(seen)
    )


def _buckets(seen: list[dict[str, Any]]) -> list[Bucket]:
    """Sizes by the hook; when they were ready: median over traces and ranks."""
    moments = zip(*(step["ready"] for rank in seen for step in rank["traces"]), strict=True)
    return [Bucket(statistics.median(ready), size) for ready, size in zip(moments, seen[0]["buckets"], strict=True)]


def _elsewhere(args: argparse.Namespace, size: str, seen: list[dict[str, Any]]) -> str:
    """The paragraph about 8 GPUs and 2 x 8."""
    buckets, flops = _buckets(seen), seen[0]["flops per window"]
    s_per_window = flops / (args.peak_tflops * 1e12 * args.mfu)
    within, between = args.latency_us
    networks = [
        Network("8 GPUs (NVLink)", 8, args.nvlink_gbs, within),
        Network(f"2 x 8 GPUs ({args.network_gbps:g} Gb/s between them)", 16, args.network_gbps / 8 * 0.9, between),
    ]
    found = []
    for network in networks:
        batch = smallest_batch(buckets, s_per_window, network, args.waiting)
        whole = sum(network.seconds(bucket.size) for bucket in buckets)
        found.append(
            f"on {network.name} the {len(buckets)} all-reduces take {whole * 1e3:.2f} ms, and communication shows (more than "
            f"{args.waiting:.0%} of a step is waiting) below {batch} windows of {LENGTH - 1} tokens per GPU and optimiser step"
        )
    return (
        f"{sum(b.size for b in buckets) / 1e6:.1f} MB of gradients, {flops / 1e9:.2f} GFLOP per window, {s_per_window * 1e6:.1f} us at "
        f"{args.mfu:.0%} of {args.peak_tflops:g} TFLOP/s: {'; '.join(found)}. Assumed: {args.nvlink_gbs:g} GB/s sent by each GPU "
        f"over NVLink, 90 % of {args.network_gbps:g} Gb/s between machines for all their GPUs together, {within:g} and {between:g} us of "
        "latency per all-reduce; t = latency + 2 (n - 1)/n x bytes/bandwidth, one after another, each from when its bucket was ready here; "
        "a lower MFU leaves more time to hide it, accumulation over a micro-batches divides the windows per micro-batch by a"
    )


# ---------------------------------------------------------------------- in the child


class _Rank:
    """One of two ranks: the same model twice, once trained alone and once with the other rank, on batches of cached tokens."""

    def __init__(self, work: Work, here: World, folder: Path):
        self.work, self.here, self.number = work, here, 0
        settings = FitSettings(epochs=10, batch_size=work.batch, accumulation_steps=work.accumulation, learning_rate=RATE, amp=work.amp)
        task, alone = (make_task("predictor", work.size).train() for _ in range(2))
        self.model = task.predictor
        bars = (LENGTH + work.batch * work.accumulation) * 5 // 4 + 8  # of 4 symbols, 4 in 5 bars to train on
        windows = make_splits(make_panel(4, bars), LOOKBACK, HORIZON, (0.8, 0.2, 0.0), say=lambda _: None)
        told = dict(mode="on", say=lambda _: None)
        train = with_cached_tokens(windows, task.tokenizer, folder / "cache", settings, here, StopRequest(), **told).train
        micros = step_micros(train, settings, here, 0, 0, work.batch * work.accumulation * here.size)
        self.batches = [(micro, to_device(train.gather(micro.index), here.device)) for micro in micros]
        self.steppers = {World(): Stepper(alone, settings, World()), here: Stepper(task, settings, here)}

    def step(self, world: World) -> None:
        self.number += 1
        result = self.steppers[world].step(self.batches, self.number, RATE, stop=False)
        self.sums_bytes = result.sums.numel() * result.sums.element_size()  # they travel beside the gradients

    def measure(self) -> dict[str, Any]:
        """Times first, then traces, then the hook, so that neither disturbs what comes before it."""
        sides = {
            ALONE: lambda: self._timed(lambda: self.here.is_main and self.step(World())),
            APART: lambda: self._timed(lambda: self.step(World())),
            TOGETHER: lambda: self._timed(lambda: self.step(self.here)),
        }
        seconds = interleaved(sides, self.work.rounds)
        traces = [self._traced() for _ in range(self.work.traces)]
        buckets = self._hooked()
        return {
            "seconds": seconds,
            "traces": traces,
            "buckets": buckets,
            "bytes by hook": sum(buckets) + self.sums_bytes,
            "bytes in trace": traces[-1]["bytes"],
            "bytes by arithmetic": sum(p.numel() * p.element_size() for p in self.model.parameters()) + self.sums_bytes,
            "bare seconds": [self._bare(buckets) for _ in range(self.work.rounds)],
            "flops per window": (LENGTH - 1) * flops_per_token(self.model.config, LENGTH - 1),
        }

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds until the slower rank is done."""
        self.here.barrier()
        begin_s = time.perf_counter()
        work()
        spent = torch.tensor([time.perf_counter() - begin_s], dtype=torch.float64)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        return float(spent)

    def _traced(self) -> dict[str, Any]:
        """One step under the profiler: seconds of all-reduce, of those inside the backward pass, when buckets set out, bytes."""
        self.here.barrier()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as traced:
            self.step(self.here)
        events = [(e.name, e.time_range.start / 1e6, e.time_range.end / 1e6, e.input_shapes) for e in traced.events()]
        forward = max(last for name, _, last, _ in events if name == "DistributedDataParallel.forward")  # of the micro-batch that sends
        backward = [(s, e) for name, s, e, _ in events if name.startswith("autograd::engine::evaluate_function") and s >= forward]
        first, last = min(s for s, _ in backward), max(e for _, e in backward)
        reduces = [(s, e, shapes[0][0] * 4) for name, s, e, shapes in events if name == "gloo:all_reduce"]  # float32
        sent = sorted(s for name, s, _, _ in events if name == "c10d::allreduce_" and s <= last)
        spans = [(s, e) for s, e, size in reduces if size > self.sums_bytes]
        return {
            "all-reduce": length(spans),
            "inside backward": common_length(spans, backward),
            "ready": [(s - first) / (last - first) for s in sent],
            "bytes": sum(size for _, _, size in reduces),
        }

    def _hooked(self) -> list[int]:
        """Bytes of each bucket of one step, as DDP hands them to a hook that passes them on."""
        sizes: list[int] = []

        def count(_, bucket):  # torch refuses annotations that are text, as they are here
            sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
            return allreduce_hook(None, bucket)

        self.steppers[self.here].model.register_comm_hook(None, count)
        self.step(self.here)
        return sizes

    def _bare(self, buckets: list[int]) -> float:
        """Seconds of all-reduces of these bytes, with nothing else to do."""
        tensors = [torch.ones(size // 4) for size in buckets]
        return self._timed(lambda: [work.wait() for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]])


def _child(work: str, folder: str) -> None:
    asked = Work(**json.loads(work))
    torch.set_num_threads(asked.threads)
    with world(timeout_s=300) as here:
        write_json(Path(folder) / f"rank-{here.rank}.json", _Rank(asked, here, Path(folder)).measure())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        run_command(lambda: main() and None)
