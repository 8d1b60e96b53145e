"""The page and the picture of what was measured: the newest saved report of each benchmark, as a table and as bars with goal marks.

Reads benchmarks/results/<date>-<name>.json, writes the table into benchmarks/README.md between its marks, and draws docs/benchmarks.png.
Nothing is measured here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.engine.command import command_parser, run_command
from finetune.engine.curves import BLUE, FAINT, INK, MUTED, VERMILION, new_figure, quiet_axes, save_figure
from finetune.engine.files import read_json, write_text

from .common import ROOT
from .run_all import NAMES

BEGIN, END = "<!-- results -->", "<!-- /results -->"
_SHOWN = 4  # rows of one benchmark in the table; the others are counted
_NO_SPEED = ("loss", "upload", "distinct windows")  # ratios that are not of time or memory: not drawn


class Bar(NamedTuple):
    """One ratio. goal: NaN where none was set."""

    label: str
    ratio: float
    goal: float
    passed: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, write both."""
    parser = command_parser(__doc__, ["python -m benchmarks.ratios"])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of saved reports")
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks" / "README.md", help="page with the table's marks")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "benchmarks.png", help="the picture to draw")
    args = parser.parse_args(argv)
    reports = newest(args.results)
    before, _, rest = args.page.read_text(encoding="utf-8").partition(BEGIN)
    write_text(args.page, f"{before}{BEGIN}\n{table(reports)}{END}{rest.partition(END)[2]}")
    draw(args.picture, bars(reports))
    print(f"{len(reports)} reports, {len(bars(reports))} ratios: {args.page}, {args.picture}")


def newest(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> report, the newest of each benchmark and variant (`tft`, `tft-quality`; `-wall` and `-cpu` are clocks, not variants)."""
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*-*-*-*.json")):
        date, variant = path.stem[:10], re.sub("-(wall|cpu)$", "", path.stem[11:])
        if variant not in found or date >= found[variant][0]:
            found[variant] = (date, path)
    return {path.name: read_json(path) for _, path in sorted(found.values(), key=lambda item: _place(item[1]))}


def _place(path: Path) -> tuple[int, str]:
    """In the order of run_all; what it does not run comes last."""
    name = path.stem[11:].partition("-")[0]
    return (NAMES.index(name) if name in NAMES else len(NAMES), path.stem)


# ---------------------------------------------------------------------- the table


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line per report, and one per benchmark that has none."""
    lines = ["| benchmark | what | goals and figures seen | saved report | command |", "| --- | --- | --- | --- | --- |"]
    for file, report in reports.items():
        seen, machine = _figures(report["rows"]), report["machine"]
        saved = f"[{machine['date']}](results/{file}): {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}"
        lines.append(_line(report["name"], seen, saved, report["command"]))
    measured = {report["name"] for report in reports.values()}
    for name in (*NAMES, "gpu"):
        if name not in measured:
            lines.append(_line(name, "no saved report", "", f"python -m benchmarks.{name}"))
    return "\n".join(lines) + "\n"


def _line(name: str, seen: str, saved: str, command: str) -> str:
    what = (ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    cells = [f"[{name}]({name}.py)", " ".join(what.split()), seen, saved, f"`{command}`"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figures(rows: list[dict[str, Any]]) -> str:
    """What failed first, then what has a goal, then the rest; the first few of them."""
    ordered = sorted(rows, key=lambda row: (row["passed"], row["reach"] in ("-", "printed", "")))
    told = []
    for row in ordered[:_SHOWN]:
        goal = "" if row["reach"] in ("-", "printed", "") else f" (goal {row['reach']}{'' if row['passed'] else ': **missed**'})"
        told.append(f"{row['measure']}: {row['seen']}{goal}")
    passed = sum(row["passed"] for row in ordered[_SHOWN:])
    return "<br>".join([*told, *([f"and {passed} more that pass"] if passed else [])])


# ---------------------------------------------------------------------- the picture


def bars(reports: dict[str, dict[str, Any]]) -> list[Bar]:
    """Rows that are measured beside a peer and say how many times faster or smaller ours is."""
    out = []
    for report in reports.values():
        for row in report["rows"]:
            if row["ratio"] and row["peer"] and not any(word in row["measure"] for word in _NO_SPEED):
                out.append(Bar(f"{report['name']}: {row['measure']}", row["ratio"], goal_of(row), row["passed"]))
    return out


def goal_of(row: dict[str, Any]) -> float:
    """The goal as a ratio: as it stands (">= 2.5x"), or beside the peer's own figure (">= 250,000" windows/s where it makes 2,587)."""
    reach, peer = (_number(row[key]) for key in ("reach", "peer"))
    if row["reach"].startswith(">=") and row["reach"].rstrip().endswith("x"):
        return reach
    same_unit = row["reach"].split()[-1].isalpha() == row["peer"].split()[-1].isalpha()
    if not same_unit or not peer or not reach:
        return float("nan")
    return reach / peer if row["reach"].startswith(">=") else peer / reach


def _number(text: str) -> float:
    found = re.search(r"\d[\d,]*\.?\d*(?:e-?\d+)?", text)
    return float(found[0].replace(",", "")) if found else 0.0


def draw(path: Path, shown: list[Bar]) -> None:
    """Bars on a logarithmic scale, each with its figure; a black mark where the goal is."""
    figure = new_figure(1300, 130 + 26 * max(1, len(shown)))
    height = figure.get_size_inches()[1] * 100
    axes = figure.add_axes((0.5, 46 / height, 0.46, 1 - 110 / height))
    quiet_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    places = range(len(shown))
    axes.barh(places, [b.ratio - 1 for b in shown], left=1, color=[BLUE if b.passed else VERMILION for b in shown], height=0.62)
    for place, bar in zip(places, shown, strict=True):
        axes.text(np.nanmax([1, bar.ratio, bar.goal]) * 1.06, place, f"{bar.ratio:.3g}×", va="center", fontsize=9, color=INK)
        if bar.goal > 0:  # not NaN
            axes.plot([bar.goal] * 2, [place - 0.44, place + 0.44], color=INK, linewidth=2, solid_capstyle="butt")
    axes.set_xscale("log")
    axes.set_xlim(0.7, 2 * max([10.0, *(b.ratio for b in shown)]))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], ["1×", "2×", "5×", "10×", "20×", "50×", "100×", "200×"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(list(places), [b.label if len(b.label) < 92 else b.label[:90] + "…" for b in shown], fontsize=8.5, color=INK)
    axes.axvline(1, color=MUTED, linewidth=1)
    figure.text(
        0.012, 1 - 26 / height, "How many times faster (or smaller) than the peer, measured in the same run", fontsize=13, color=INK
    )
    told = "1× = the peer (public Kronos code; for tft pytorch-forecasting). Black mark: the goal. Orange bar: the goal was missed."
    figure.text(0.012, 1 - 46 / height, told, fontsize=9.5, color=MUTED)
    save_figure(figure, path)


if __name__ == "__main__":
    run_command(main)
