"""Every benchmark, one after another in a process of its own, and one page with the table: what to reach, what was seen, passed or not.

Beside the page lies each benchmark's report as JSON, <date>-<name>.json: `python -m benchmarks.ratios` reads those.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from finetune.engine.command import run_command
from finetune.engine.files import write_text

from .common import ROOT, Report, Row, as_text, clock_argument, parser_for

NAMES = (
    *("loader", "coverage", "train_step", "train_end_to_end", "ranks", "communication", "resume", "panel_memory", "cost_laws"),
    *("forecast", "serve", "qlib_data", "day_forecasts", "backtest", "kaggle_data"),
    *("multi_model", "tft", "federated", "secure_aggregation"),
)
TIMED = ("loader", "train_step", "train_end_to_end", "cost_laws", "forecast", "day_forecasts", "backtest", "tft")  # take --clock


def names() -> tuple[str, ...]:
    """All that this machine can run: the GPU's only where there is one."""
    return (*NAMES, *(("gpu",) if torch.cuda.is_available() else ()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for, print the page and write it. Exit code 1 if a row failed."""
    parser = parser_for("run_all", __doc__)
    parser.add_argument("--only", nargs="+", choices=names(), default=list(names()), help="run these alone")
    parser.add_argument("--tft-peer", metavar="PYTHON", type=Path, help="tft's peer: the python of an environment with pytorch-forecasting")
    parser.add_argument("--folder", type=Path, help="where panel_memory makes or reuses its panel (default: a temporary folder)")
    clock_argument(parser)
    args = parser.parse_args(argv)
    out = (args.out or ROOT / "benchmarks" / "results" / f"{time.strftime('%Y-%m-%d')}-cpu.md").absolute()
    peers = dict.fromkeys(names(), args.peer) | {"tft": args.tft_peer}
    common = {name: [*(["--peer", str(peer.absolute())] if peer else []), "--threads", str(args.threads)] for name, peer in peers.items()}
    own = {"panel_memory": ["--folder", str(args.folder)] if args.folder else [], **{name: ["--clock", args.clock] for name in TIMED}}
    out.parent.mkdir(parents=True, exist_ok=True)
    reports = [_run(name, [*common[name], *own.get(name, [])], out.parent) for name in args.only]
    text = page(
        reports, "python -m benchmarks.run_all" + (" --peer PATH" if args.peer else "") + (" --clock cpu" if args.clock == "cpu" else "")
    )
    print(text)
    write_text(out, text)
    print(f"written to {out}")
    return 0 if all(row["passed"] for report in reports for row in report["rows"]) else 1


def _run(name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """One benchmark in a fresh process; its report as saved. One that breaks down is a failed row, so that the others are not lost."""
    out = folder / f"{time.strftime('%Y-%m-%d')}-{name}.json"
    out.unlink(missing_ok=True)  # what an earlier run saved is not this one's
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments, "--out", str(out)], cwd=ROOT)
    if done.returncode == 0:
        return json.loads(out.read_text())
    told = Report(name, f"python -m benchmarks.{name} {' '.join(arguments)}", {"date": time.strftime("%Y-%m-%d")})
    told.rows.append(Row(name, "an end", f"broke down with exit code {done.returncode}", False))
    return asdict(told)


def page(reports: Sequence[dict[str, Any]], command: str) -> str:
    """Markdown: the table, then for each benchmark its command, the machine and everything the rows were computed from."""
    lines = [
        f"# Benchmarks, {reports[0]['machine']['date']}",
        "",
        f"Made by `{command}` in the repository's root.",
        "",
        "| measure | peer | reach | seen | ratio | passed |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        for row in report["rows"]:
            ratio = f"{row['ratio']:.3g}" if row["ratio"] is not None else ""
            lines.append(
                "| "
                + " | ".join([row["measure"], row["peer"], row["reach"], row["seen"], ratio, "yes" if row["passed"] else "**no**"])
                + " |"
            )
    for report in reports:
        facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        lines += ["", f"## {report['name']}", "", f"`{report['command']}`  ", facts, ""]
        lines += [f"- {key}: {as_text(value)}" for key, value in report["details"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
