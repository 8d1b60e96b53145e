"""Forecasts: ours against upstream's KronosPredictor with the same weights and bars, in turns, from DataFrame to DataFrame.

Then what the faster forms cost in quality: contexts "fit" and "rolling" against "exact" where the window slides, bfloat16 and int8 against
float32; and whether cached generation drew the tokens that full recomputation draws. Weights are random unless --weights names trained
ones: times do not depend on that, scores of random weights say little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from finetune.engine.command import run_command
from kronos import Kronos, KronosPredictor, KronosTokenizer, load_predictor, load_tokenizer, presets, save_module
from kronos.bars import COLUMNS
from kronos.checking import Agreement, compare
from kronos.errors import InputError

from . import forecast_quality as quality
from .common import Report, Row, begin, clock_argument, end, interleaved, make_bars, parser_for, spread, timed
from .peer import Peer

NAME = "forecast"
CONTEXTS = ("exact", "fit", "rolling")


@dataclass(frozen=True)
class Case:
    """What is forecast: bars of lookback and horizon, series in one call, samples of each, tokens the model sees at once."""

    size: str
    lookback: int
    horizon: int
    series: int = 1
    samples: int = 1
    max_context: int = 512
    reach: tuple[float, ...] = (25.0,)  # times upstream's speed, one per context

    @property
    def contexts(self) -> tuple[str, ...]:
        """More than one where the window slides."""
        return CONTEXTS[: len(self.reach)]

    def __str__(self) -> str:
        return f"{self.size}, {self.lookback} -> {self.horizon}, {self.series} series x {self.samples} samples"


CASES = {
    "small": Case("small", 400, 112),
    "batch": Case("small", 90, 10, series=4, samples=5, reach=(30.0,)),
    "mini": Case("mini", 400, 112, max_context=2048),
    "sliding": Case("small", 512, 48, reach=(1.5, 15.0, 15.0)),
}
LOW = 1.5  # times float32's speed, the better of bfloat16 and int8


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--cases", type=_cases, default=",".join(CASES), help=f"measure these alone (default: {','.join(CASES)})")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the interleaved timing (default: 3)")
    parser.add_argument("--shrink", type=int, default=1, help="divide lookback and horizon by this, for a quick look (default: 1)")
    parser.add_argument("--data", metavar="CSV", type=Path, help="bars for times and scores (default: random walks)")
    parser.add_argument("--weights", metavar="DIR", type=Path, help="folder with a trained tokenizer/ and predictor/ for the scores")
    parser.add_argument("--origins", type=int, default=12, help="forecasts scored per comparison (default: 12)")
    parser.add_argument("--paths", type=int, default=20, help="sample paths of each (default: 20)")
    parser.add_argument("--steps", type=int, default=8, help="steps recomputed in full per case, spread over the horizon (default: 8)")
    clock_argument(parser)
    args, report = begin(NAME, parser, argv)
    cases = [
        replace(c, lookback=c.lookback // args.shrink, horizon=c.horizon // args.shrink) for c in map(CASES.get, args.cases.split(","))
    ]
    cases = [replace(c, max_context=c.max_context // args.shrink) for c in cases]
    bars = read_bars(args.data)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peer = stack.enter_context(Peer(args.peer, "peer_forecast")) if args.peer else None
        bars.to_csv(Path(folder) / "bars.csv", index=False)
        for case in cases:
            pair = _pair(Path(folder) / case.size, case.size)
            _against_peer(args, report, case, pair, bars, peer, Path(folder))
            _low_precision(args, report, case, pair, bars)
            _check_tokens(args, report, case, pair, bars)
    return end(report, args)


def _cases(names: str) -> str:
    """Type of --cases."""
    for name in names.split(","):
        if name not in CASES:
            raise argparse.ArgumentTypeError(f"there is no case {name!r}: choose among {', '.join(CASES)}")
    return names


def read_bars(path: Path | None) -> pd.DataFrame:
    """Bars with columns timestamps, open, ... amount. Raises InputError where the file is not such a table."""
    if path is None:
        made = make_bars(1, 8000)
        return pd.DataFrame(made["features"][0], columns=list(COLUMNS)).assign(timestamps=pd.to_datetime(made["times"]))
    frame = pd.read_csv(path).rename(columns=str.lower).rename(columns={"date": "timestamps"})
    missing = {"timestamps", "open", "high", "low", "close", "volume"} - set(frame.columns)
    if missing:
        raise InputError(f"--data {path} has no column {', '.join(sorted(missing))}: give bars with timestamps or date, open ... volume")
    if "amount" not in frame:
        frame["amount"] = frame["volume"] * frame[["open", "high", "low", "close"]].mean(axis=1)
    times = pd.to_datetime(frame["timestamps"], utc=True).dt.tz_localize(None)
    return frame[list(COLUMNS)].astype("float64").assign(timestamps=times)


def _pair(folder: Path, size: str) -> tuple[Kronos, KronosTokenizer]:
    """Random weights of a preset size, saved for the peer."""
    torch.manual_seed(0)
    model = Kronos(**presets.predictor_arguments(size)).eval()
    tokenizer = KronosTokenizer(**presets.tokenizer_arguments(presets.TOKENIZER_OF[size])).eval()
    save_module(model, folder / "predictor")
    save_module(tokenizer, folder / "tokenizer")
    return model, tokenizer


def windows(bars: pd.DataFrame, case: Case) -> tuple[list[pd.DataFrame], list[pd.Series], list[pd.Series]]:
    """Bars, their times and the times to come of each series: windows one after another. Raises InputError if there are too few bars."""
    length = case.lookback + case.horizon
    if len(bars) < length * case.series:
        raise InputError(f"there are {len(bars)} bars, {case} needs {length * case.series}: give a longer --data")
    parts = [bars.iloc[i * length : (i + 1) * length].reset_index(drop=True) for i in range(case.series)]
    past = [part[: case.lookback] for part in parts]
    return [p.drop(columns="timestamps") for p in past], [p["timestamps"] for p in past], [p["timestamps"][case.lookback :] for p in parts]


class _Ours:
    """Forecasts of one case by our KronosPredictor."""

    def __init__(self, args: argparse.Namespace, case: Case, pair: tuple[Kronos, KronosTokenizer], bars: pd.DataFrame, **precision: Any):
        self.clock, self.case, self.windows = args.clock, case, windows(bars, case)
        self.forecaster = KronosPredictor(*pair, "cpu", max_context=case.max_context, **precision)

    def frames(self, horizon: int | None = None, **options: Any) -> list[pd.DataFrame]:
        """The case's forecasts, or those of a shorter horizon."""
        horizon = horizon or self.case.horizon
        past, times, future = self.windows
        return self.forecaster.predict_batch(past, times, [part[:horizon] for part in future], horizon, verbose=False, seed=0, **options)

    def seconds(self, context: str = "exact") -> Callable[[], float]:
        return lambda: timed(lambda: self.frames(sample_count=self.case.samples, context=context), clock=self.clock)


def _against_peer(
    args: argparse.Namespace,
    report: Report,
    case: Case,
    pair: tuple[Kronos, KronosTokenizer],
    bars: pd.DataFrame,
    peer: Peer | None,
    folder: Path,
) -> None:
    """Seconds per call of ours in each context, in turns with the peer's, and the greedy forecasts of both side by side."""
    ours = _Ours(args, case, pair, bars)
    sides = {f"ours, {context}": ours.seconds(context) for context in case.contexts}
    if peer:
        peer("load", folder=str(folder / case.size), threads=args.threads)
        peer("bars", path=str(folder / "bars.csv"), lookback=case.lookback, horizon=case.horizon, series=case.series)
        sides["peer"] = _Warmed(peer, case, args.clock)
    seen = interleaved(sides, args.rounds)
    report.details |= {f"{case}: {name}, s": spread(values) for name, values in seen.items()}
    medians = {name: statistics.median(values) for name, values in seen.items()}
    for context, reach in zip(case.contexts, case.reach, strict=True):
        ratio = medians["peer"] / medians[f"ours, {context}"] if peer else None
        told = f"{ratio:.3g}x" if ratio else f"{medians[f'ours, {context}']:.3g} s"
        name = str(case) + (f", context {context}" if len(case.contexts) > 1 else "")
        against = f"{medians['peer']:.3g} s" if peer else ""
        report.rows.append(Row(name, f">= {reach:g}x", told, ratio is None or ratio >= reach, against, ratio))
    if peer:
        steps = min(case.horizon, 8)
        theirs = np.array(peer("greedy", max_context=case.max_context, horizon=steps))
        mine = np.array([frame.to_numpy() for frame in ours.frames(steps, top_k=1, top_p=1.0, consistent=False)])
        report.details[f"{case}: greedy forecasts, largest difference from the peer's"] = (
            f"{np.abs(mine / theirs - 1).max():.1e} of the value"
        )
    if len(case.contexts) > 1:
        _score_contexts(args, report, case, pair, bars)


class _Warmed:
    """The peer's side: its first call, which is not measured, forecasts 2 steps only. A whole one may take a minute."""

    def __init__(self, peer: Peer, case: Case, clock: str):
        self.peer, self.case, self.clock, self.horizon = peer, case, clock, min(2, case.horizon)

    def __call__(self) -> float:
        horizon, self.horizon = self.horizon, self.case.horizon
        return self.peer("seconds", max_context=self.case.max_context, horizon=horizon, samples=self.case.samples, clock=self.clock)


def _scored(args: argparse.Namespace, pair: tuple[Kronos, KronosTokenizer]) -> tuple[Kronos, KronosTokenizer]:
    """The pair that scores are taken of."""
    return (load_predictor(args.weights / "predictor"), load_tokenizer(args.weights / "tokenizer")) if args.weights else pair


def _score_contexts(args: argparse.Namespace, report: Report, case: Case, pair: tuple[Kronos, KronosTokenizer], bars: pd.DataFrame) -> None:
    """CRPS of fit and rolling against exact, on the same origins with the same random numbers."""
    forecaster = KronosPredictor(*_scored(args, pair), "cpu", max_context=case.max_context)
    origins = quality.origins(bars, case.lookback, case.horizon, args.origins)
    scores = {c: quality.crps(forecaster, origins, case.horizon, args.paths, context=c) for c in case.contexts}
    for context in case.contexts[1:]:
        report.details[f"{case}: CRPS with context {context}"] = quality.change(scores["exact"], scores[context])


def _low_precision(args: argparse.Namespace, report: Report, case: Case, pair: tuple[Kronos, KronosTokenizer], bars: pd.DataFrame) -> None:
    """Speed and quality of bfloat16 and int8 beside float32, for the cases in which nothing slides."""
    if len(case.contexts) > 1:
        return
    kinds = {"float32": None, "bfloat16": "bfloat16", "int8": "int8"}
    seen = interleaved({name: _Ours(args, case, pair, bars, precision=kind).seconds() for name, kind in kinds.items()}, args.rounds + 2)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    report.details |= {f"{case}: ours in {name}, s": spread(values) for name, values in seen.items()}
    ratios = {name: medians["float32"] / medians[name] for name in ("bfloat16", "int8")}
    told = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    wanted = case.size == "small"
    best = max(ratios.values())
    report.rows.append(Row(f"{case}, beside float32", f">= {LOW:g}x" if wanted else "-", told, not wanted or best >= LOW, ratio=best))
    origins = quality.origins(bars, case.lookback, case.horizon, args.origins)
    forecasters = {n: KronosPredictor(*_scored(args, pair), "cpu", max_context=case.max_context, precision=k) for n, k in kinds.items()}
    scores = {name: quality.crps(forecaster, origins, case.horizon, args.paths) for name, forecaster in forecasters.items()}
    for name in ratios:
        moved = quality.divergence(forecasters["float32"], forecasters[name], origins, case.horizon)
        told = f"{quality.change(scores['float32'], scores[name])}; next token: {moved}"
        report.details[f"{case}: CRPS in {name}"] = told


def _check_tokens(args: argparse.Namespace, report: Report, case: Case, pair: tuple[Kronos, KronosTokenizer], bars: pd.DataFrame) -> None:
    """Tokens of cached generation against full recomputation, in float32 and, on few steps, in float64."""
    stride = max(1, case.horizon // max(1, args.steps))
    for name, every in (("float32", stride), ("float64", stride * 4)):
        models = [module.double() if name == "float64" else module for module in pair]
        found = Agreement(0, 0, 0)
        for inputs in quality.generated(models[0], models[1], *windows(bars, case), case.horizon, case.samples, case.max_context):
            one = compare(models[0], *inputs, range(0, case.horizon, every))
            found = Agreement(*map(sum, zip(found, one, strict=True)))
        allowed = "0 different" + (", ties counted" if name == "float32" else ", no ties")
        passed = found.different == 0 and (name == "float32" or found.ties == 0)
        report.rows.append(Row(f"{case}: tokens equal to full recomputation, {name}", allowed, str(found), passed))
    for module in pair:
        module.float()


if __name__ == "__main__":
    run_command(lambda: main() and None)
