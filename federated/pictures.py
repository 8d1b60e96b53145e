"""The picture of a run: convergence, participation, contribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from federated.records import RoundRecord
from finetune.engine.files import write_with

_MANY = 12  # clients whose own lines can be told apart


def draw_run(path: Path, rounds: Sequence[RoundRecord]) -> None:
    """Write a PNG with three panels: losses by round, who answered when, and whose samples made up the model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    convergence, participation, contribution = figure.subplots(1, 3)
    clients = sorted({p for r in rounds for p in r.asked})
    _convergence(convergence, rounds, clients)
    _participation(participation, rounds, clients)
    _contribution(contribution, rounds, clients)
    write_with(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def _convergence(axes, rounds: Sequence[RoundRecord], clients: Sequence[int]) -> None:
    numbers = [r.round for r in rounds]
    for partition in clients:
        own = [(r.round, r.loss[partition]) for r in rounds if partition in r.loss]
        if own:
            label = f"client {partition}" if len(clients) <= _MANY else None
            axes.plot(*zip(*own, strict=True), color="0.7", linewidth=0.8, label=label)
    if any("val_loss" in r.score for r in rounds):
        axes.plot(numbers, [r.score.get("val_loss", np.nan) for r in rounds], "o-", label="global model, validation", color="tab:blue")
    axes.plot(numbers, [r.train["train_loss"] for r in rounds], "s--", label="local training", color="tab:orange")
    if any("composite_score" in r.score for r in rounds):
        other = axes.twinx()
        other.plot(numbers, [r.score.get("composite_score", np.nan) for r in rounds], "^:", color="tab:green")
        other.set_ylabel("composite score", color="tab:green")
    axes.set(title="convergence", xlabel="round", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes.get_legend_handles_labels()
    shown = [(h, n) for h, n in zip(handles, labels, strict=True) if not n.startswith("client")]
    axes.legend(*zip(*shown, strict=True), fontsize=8)


def _participation(axes, rounds: Sequence[RoundRecord], clients: Sequence[int]) -> None:
    """Green answered, red was asked and failed, white was not asked."""
    from matplotlib.colors import ListedColormap

    grid = np.zeros((len(clients), len(rounds)))
    for column, r in enumerate(rounds):
        for row, partition in enumerate(clients):
            grid[row, column] = 2 if partition in r.answered else 1 if partition in r.asked else 0
    axes.imshow(grid, aspect="auto", cmap=ListedColormap(["white", "tab:red", "tab:green"]), vmin=0, vmax=2, interpolation="nearest")
    axes.set(title="participation (green: answered, red: failed)", xlabel="round", ylabel="partition")
    _ticks(axes.set_xticks, [r.round for r in rounds])
    _ticks(axes.set_yticks, clients)


def _contribution(axes, rounds: Sequence[RoundRecord], clients: Sequence[int]) -> None:
    """Share of the samples that went into the model; in secure rounds only who was in the mean is known."""
    hidden = all(not r.samples for r in rounds)
    totals = [sum((partition in r.answered) if hidden else r.samples.get(partition, 0) for r in rounds) for partition in clients]
    whole = max(1, sum(totals))
    axes.barh(range(len(clients)), [100 * total / whole for total in totals], color="tab:blue")
    axes.set(title="contribution", xlabel="% of the rounds' updates" if hidden else "% of the samples", ylabel="partition")
    _ticks(axes.set_yticks, clients)
    axes.invert_yaxis()


def _ticks(setter, names: Sequence[int]) -> None:
    step = max(1, len(names) // 15)
    setter(range(0, len(names), step), [str(name) for name in list(names)[::step]])
