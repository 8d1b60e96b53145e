"""Training from bars to steps on a CPU, samples per second: ours as its command runs it, beside the peer's trainer with its own loader.

Ours: run folder, tokens cached (a tenth of the encoding is counted), `fit`: order, gathering, step in bf16, checks, log, TensorBoard.
The peer: its Dataset under a DataLoader with workers, the body of its loop in its float32, scheduler, a printed line. Same bars, same
weights, same batch, same threads, in turns. The clock cpu counts what each training process uses; the peer's workers are then free.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.engine.command import run_command
from kronos.presets import predictor_arguments, tokenizer_arguments

from .common import HORIZON, LOOKBACK, Report, Row, begin, clock_argument, end, parser_for, spread
from .our_training import EPOCHS, RATE, Seen, Work, in_turns, loader_s, prepare, run_once, settings_of
from .peer import Peer
from .step_profile import profiler, shares

NAME = "train_end_to_end"
REACH = 2.5
SIZES = ("mini", "small")


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="presets of the predictor (default: mini small)")
    parser.add_argument("--stages", nargs="+", choices=("predictor", "tokenizer"), default=["predictor", "tokenizer"])
    parser.add_argument("--batch", type=int, default=32, help="windows per step (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side, in turns (default: 5)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per run (default: 4)")
    parser.add_argument("--loader", choices=("csv", "qlib"), default="csv", help="which of the peer's data sets (default: csv)")
    parser.add_argument("--workers", type=int, default=2, help="the peer's loader processes (default: 2)")
    parser.add_argument("--fp32", action="store_true", help="ours in float32 as well")
    parser.add_argument("--compile", action="store_true", help="ours compiled as well (training.compile; needs a C++ compiler)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    cases = [("predictor", size) for size in args.sizes if "predictor" in args.stages]
    cases += [("tokenizer", "base")] if "tokenizer" in args.stages else []
    for stage, size in cases:
        with tempfile.TemporaryDirectory() as folder:
            _measure(args, report, stage, size, Path(folder))
    return end(report, args)


def _measure(args: argparse.Namespace, report: Report, stage: str, size: str, folder: Path) -> None:
    models = tokenizer_arguments("base"), predictor_arguments(size if stage == "predictor" else "mini")
    work = prepare(folder, stage, models, (LOOKBACK, HORIZON), args.batch, args.steps)
    ways = {"ours, bf16": {"amp": "bf16"}}
    ways |= {"ours, float32": {"amp": "off"}} if args.fp32 else {}
    ways |= {"ours, bf16, compiled": {"amp": "bf16", "compile": True}} if args.compile else {}
    sides: dict[str, Callable[[], Seen]] = {
        name: lambda way=way: run_once(work, settings_of(work, **way), clock=args.clock) for name, way in ways.items()
    }
    if args.peer:
        with Peer(args.peer, "peer_train", "finetune_csv", "finetune") as peer:
            told = dict(folder=str(folder), stage=stage, kind=args.loader, device="cpu", lookback=LOOKBACK, horizon=HORIZON)
            peer("load", threads=args.threads, rate=RATE, **told)
            theirs = dict(batch=args.batch, steps=args.steps, workers=args.workers, clock=args.clock)
            seen = in_turns({**sides, "peer": lambda: Seen(peer("train", **theirs), 0.0)}, args.rounds)
    else:
        seen = in_turns(sides, args.rounds)
    _report(args, report, f"{stage}, {size}", seen)
    _where(args, report, f"{stage}, {size}", work)


def _report(args: argparse.Namespace, report: Report, case: str, seen: dict[str, list[Seen]]) -> None:
    """A row per precision of ours; the goal is the predictor's in bf16."""
    rates = {name: 1 / statistics.median(one.total_s for one in runs) for name, runs in seen.items()}
    report.details |= {f"{case}, {name}, samples/s": spread([one.total_s for one in runs], inverse=True) for name, runs in seen.items()}
    ours = seen["ours, bf16"]
    fill = statistics.median(one.fill_s for one in ours) * args.batch
    if fill:
        report.details[f"{case}, encoding counted per step"] = f"{fill * 1e3:.3g} ms (over {EPOCHS} epochs)"
    for name in [name for name in rates if name.startswith("ours")]:
        reach = REACH if "bf16" in name and case.startswith("predictor") else None
        ratio = rates[name] / rates["peer"] if "peer" in rates else None
        told = f"{ratio:.2f}x, {rates[name]:.1f} samples/s" if ratio else f"{rates[name]:.1f} samples/s"
        report.rows.append(
            Row(
                f"{case}: training end to end, {args.batch} x {LOOKBACK + HORIZON + 1} tokens, {name}",
                f">= {reach}x" if reach else "-",
                told,
                not reach or ratio is None or ratio >= reach,
                f"{rates['peer']:.1f} samples/s in float32" if ratio else "",
                ratio,
            )
        )


def _where(args: argparse.Namespace, report: Report, case: str, work: Work) -> None:
    """A run of ours under torch.profiler, and the loader by itself."""
    settings, watched = settings_of(work, amp="bf16"), profiler()
    seen = run_once(work, settings, watch=watched)
    report.details[f"{case}, ours, share of the step's time (torch.profiler)"] = shares(watched)
    loader = loader_s(work.windows.train, settings, work.device)
    report.details[f"{case}, ours, order and gathering, in a thread beside the step"] = f"{loader / seen.step_s:.2%} of the step's time"


if __name__ == "__main__":
    run_command(lambda: main() and None)
