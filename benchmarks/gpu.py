"""Training and forecasting on a GPU, all in one call: rates, model-FLOPs utilisation, memory, the loader's share, beside the peer.

Ours: run folder, cached tokens, panel on the device, `fit` in bf16, with and without torch.compile. The peer, in its float32: end to end
with its DataLoader and workers, and its model's step on a batch that lies on the device already. Same bars, weights, batch. FLOPs: see
benchmarks/model_flops.py. `--device cpu --sizes tiny` runs the same code without a GPU, to try it; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from finetune.engine.command import run_command
from finetune.engine.files import write_text
from kronos.errors import InputError
from kronos.presets import TOKENIZER_OF, predictor_arguments, tokenizer_arguments

from .common import Report, Row, begin, end, parser_for, spread
from .gpu_forecast import forecast_row
from .model_flops import flops_per_token, peak_tflops, weights_in_products
from .our_training import RATE, Seen, Work, in_turns, loader_s, prepare, run_once, settings_of
from .peer import Peer
from .run_all import page

NAME = "gpu"
END_TO_END, READY, LOADER, MFU = 10.0, 3.0, 0.02, 0.45
CUTS = {"90+10": (90, 10), "512+48": (512, 48)}
BATCHES = {"90+10": 512, "512+48": 128}
TINY_CUTS = {"90+10": (12, 3), "512+48": (24, 4)}
_TINY = {"d_model": 32, "n_heads": 4, "ff_dim": 32}


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the code (default: cuda)")
    parser.add_argument("--sizes", nargs="+", default=["mini", "small", "base"], help="presets, or tiny (default: mini small base)")
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS), help="lookback + horizon (default: both)")
    parser.add_argument("--batch", type=int, default=0, help="windows per step (default: 512 at 90+10, 128 at 512+48)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turns (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per run (default: 20)")
    parser.add_argument("--workers", type=int, default=2, help="the peer's loader processes (default: 2, as its configuration)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of the device, where the table lacks it")
    args, report = begin(NAME, parser, argv)
    device = _device(args.device)
    report.machine |= hardware(device)
    for size in args.sizes:
        for cut in args.cuts:
            _one_case(args, report, device, size, cut)
        report.rows.append(forecast_row(args, device, _sizes(size), report.details, size))
    end(report, args)
    if args.out:
        write_text(args.out.with_suffix(".md"), page([asdict(report)], report.command))
    return report


def _device(name: str) -> torch.device:
    if name != "cpu" and not torch.cuda.is_available():
        raise InputError(
            f"--device {name}: torch {torch.__version__} sees no GPU here, so nothing is measured; --device cpu --sizes tiny tries the code"
        )
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: there are {torch.cuda.device_count()} GPUs; use a lower number")
        torch.cuda.set_device(device)
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures of a GPU need to be understood later."""
    if device.type != "cuda":
        return {"device": "cpu"}
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name,
        "memory": f"{facts.total_memory / 2**30:.0f} GiB",
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def _sizes(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of tokenizer and predictor."""
    if size == "tiny":
        tokenizer = {**tokenizer_arguments("base"), **_TINY, "n_enc_layers": 2, "n_dec_layers": 2}
        return tokenizer, {**predictor_arguments("mini"), **_TINY, "n_layers": 1}
    predictor = predictor_arguments(size)
    return tokenizer_arguments(TOKENIZER_OF[size]), predictor


def _one_case(args: argparse.Namespace, report: Report, device: torch.device, size: str, cut: str) -> None:
    """All rows of one size and length; if it breaks down (memory, say) that is a failed row and the others go on."""
    batch = args.batch or BATCHES[cut]
    bars = TINY_CUTS[cut] if size == "tiny" else CUTS[cut]
    case = f"{size} {cut}, batch {batch}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = prepare(Path(folder), "predictor", _sizes(size), bars, batch, args.steps, device)
            seen = _measure(args, work)
            for name in [name for name in seen if name.startswith("ours")]:
                _rows(report, case, name, seen, work)
            _utilisation(args, report, case, size, cut, seen, work)
            _loader(report, case, seen, work)
    except (InputError, torch.OutOfMemoryError) as error:
        report.rows.append(Row(f"{case}: training", "an end", f"broke down: {error}", False))
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(args: argparse.Namespace, work: Work) -> dict[str, list[Seen]]:
    """Runs of every side, in turns: ours without and with compile; the peer with its loader, and on a batch that lies ready."""
    sides: dict[str, Callable[[], Seen]] = {"ours": lambda: run_once(work, settings_of(work, amp="bf16"))}
    if not args.no_compile:
        sides["ours compiled"] = lambda: run_once(work, settings_of(work, amp="bf16", compile=True))
    with ExitStack() as stack:
        if args.peer:
            peer = stack.enter_context(Peer(args.peer, "peer_train", "finetune_csv", "finetune"))
            told = dict(folder=str(work.folder), stage="predictor", kind="qlib", device=str(work.device))
            peer("load", threads=args.threads, rate=RATE, lookback=work.lookback, horizon=work.horizon, **told)
            same = dict(batch=work.batch, steps=work.steps, clock="wall")
            sides["peer"] = lambda: Seen(peer("train", workers=args.workers, **same), 0.0)
            sides["peer's model, batch ready"] = lambda: Seen(peer("train_ready", **same), 0.0)
        return in_turns(sides, args.rounds)


def _median(runs: list[Seen]) -> float:
    return statistics.median(one.total_s for one in runs)


def _rows(report: Report, case: str, name: str, seen: dict[str, list[Seen]], work: Work) -> None:
    """Against the peer end to end, and against its model alone."""
    ours = _median(seen[name])
    peak = max(one.peak_gib for one in seen[name])
    told = f"{1 / ours:,.0f} samples/s, {work.length / ours:,.0f} tokens/s" + (f", peak {peak:.1f} GiB" if peak else "")
    report.details[f"{case}, {name}, samples/s"] = spread([one.total_s for one in seen[name]], inverse=True)
    for other, what, reach in (("peer", "end to end", END_TO_END), ("peer's model, batch ready", "end to end by its ready batch", READY)):
        if other in seen:
            theirs = _median(seen[other])
            report.details[f"{case}, {other}, samples/s"] = spread([one.total_s for one in seen[other]], inverse=True)
            shown = f"{theirs / ours:.2f}x: {told}"
            row = Row(f"{case}: {name}, bf16, {what}", f">= {reach:g}x", shown, theirs / ours >= reach, f"{1 / theirs:,.0f} samples/s")
            row.ratio = theirs / ours
            report.rows.append(row)
    if "peer" not in seen:
        report.rows.append(Row(f"{case}: {name}, bf16, end to end", "-", told, True))


def _utilisation(args: argparse.Namespace, report: Report, case: str, size: str, cut: str, seen: dict[str, list[Seen]], work: Work) -> None:
    """Model-FLOPs utilisation of each of ours; the goal is base at the longer cut, by the better of the two."""
    sizes = _sizes(size)[1]
    tokens = work.length - 1  # the predictor reads all but the last
    flops = flops_per_token(sizes, tokens)
    name = torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu"
    peak = args.peak_tflops or peak_tflops(name)
    used = {side: flops * tokens / statistics.median(one.step_s for one in runs) / 1e12 for side, runs in seen.items() if "ours" in side}
    report.details[f"{case}, FLOPs per token of training"] = f"{flops:.4g} ({weights_in_products(sizes):,} weights in products)"
    report.details[f"{case}, TFLOP/s"] = {side: f"{value:.4g}" for side, value in used.items()}
    best = max(used, key=lambda side: used[side])
    reach = MFU if (size, cut) == ("base", "512+48") else None
    if peak is None:
        told, passed = f"{used[best]:.3g} TFLOP/s; the peak of {name} is not known, give --peak-tflops", reach is None
    else:
        told, passed = f"{used[best] / peak:.1%} of {peak:g} TFLOP/s ({best})", not reach or used[best] / peak >= reach
    report.rows.append(Row(f"{case}: model-FLOPs utilisation, tokens cached", f">= {reach:.0%}" if reach else "-", told, passed))


def _loader(report: Report, case: str, seen: dict[str, list[Seen]], work: Work) -> None:
    """Order and gathering alone, of bars with their normalisation (more than cached tokens need), against the fastest step."""
    work.windows.train.to(work.device)
    alone = loader_s(work.windows.train, settings_of(work), work.device)
    step = min(statistics.median(one.step_s for one in runs) for name, runs in seen.items() if "ours" in name)
    place = work.windows.train.store.features.device.type
    told = f"{alone / step:.2%} (panel on {place}, gathered beside the step)"
    report.rows.append(Row(f"{case}: loader's share of the step", f"< {LOADER:.0%}", told, alone / step < LOADER))


if __name__ == "__main__":
    run_command(lambda: main() and None)
