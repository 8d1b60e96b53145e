"""The federation: seconds and memory of rounds with many clients, and what federating costs in loss against one trainer with all bars.

Rounds: the tiny Kronos on random bars, all clients in one process. Loss: the small transformer on the daily S&P 500 and NASDAQ bars, each
round's weights scored on the validation windows of the trainer that has all bars. Both sides start from the same weights and take as many
epochs and, where no windows are lost, as many optimiser steps: a client's batch is the trainer's divided by the clients. What is judged is
the loss after the last epoch and that of the best one, each against the other side's, means over seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from finetune.engine.command import run_command
from finetune.engine.files import ensure_writable_folder, jsonable, read_json, read_json_lines, write_json, write_text

from .common import ROOT, Report, Row, begin, end, make_panel, parser_for

NAME = "federated"
FLAT = 0.03  # growth of memory after round 2 that counts as none
WITHIN = 0.03
CLIENTS, CLIENT_BATCH = 10, 13
BATCH = CLIENTS * CLIENT_BATCH  # of the one trainer: as many steps in an epoch as each client takes
YAML = """
data: {{data_path: {panel}, lookback_window: 30, predict_window: 5, train_ratio: 0.8, val_ratio: 0.2, test_ratio: 0.0}}
training: {{n_val_iter: 32}}
model:
  tokenizer: {{preset: base, d_model: 64, n_heads: 4, ff_dim: 128, n_enc_layers: 3, n_dec_layers: 3, s1_bits: 6, s2_bits: 6, group_size: 4}}
  predictor: {{preset: mini, n_layers: 3, d_model: 64, n_heads: 4, ff_dim: 128, s1_bits: 6, s2_bits: 6}}
experiment: {{pre_trained_tokenizer: false, pre_trained_predictor: false}}
device: {{device: cpu, cpu_threads: 1}}
"""


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, run, report."""
    parser = parser_for(NAME, __doc__ or "")
    parser.add_argument("--clients", type=int, default=50, help="clients of the timed rounds (default: 50)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; 0: none (default: 5)")
    parser.add_argument("--bars", type=int, default=150, help="bars per client (default: 150)")
    parser.add_argument(
        "--loss-rounds", type=int, default=5, help="rounds of the runs whose loss is compared; 0: leave them out (default: 5)"
    )
    parser.add_argument(
        "--local-epochs", type=int, default=1, help="epochs in each of them; the one trainer has as many in all (default: 1)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="seeds whose losses are averaged (default: 42)")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keep runs and figures here, and take what is there: it was interrupted, or done in parts",
    )
    args, report = begin(NAME, parser, argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = ensure_writable_folder(args.work or Path(temporary))
        if args.rounds:
            time_rounds(folder, args.clients, args.rounds, args.bars, report)
        if args.loss_rounds:
            compare_losses(folder, args.loss_rounds, args.local_epochs, args.seeds, report)
    return end(report, args)


def once(path: Path, measure: Callable[[], Any]) -> Any:
    """What `measure` returns, as JSON holds it; measured once and kept in `path`."""
    if (kept := read_json(path)) is None:
        write_json(path, kept := {"measured": jsonable(measure())})
    return kept["measured"]


def time_rounds(folder: Path, clients: int, rounds: int, bars: int, report: Report) -> None:
    """Seconds and resident memory of every round."""
    lines, memory = once(folder / f"rounds-{clients}-{rounds}-{bars}.json", lambda: timed_rounds(folder, clients, rounds, bars))
    seconds = [line["seconds"] for line in lines]
    growth = max(memory[1:]) / memory[1] - 1 if len(memory) > 1 else 0.0
    report.details["rounds"] = {
        "clients": clients,
        "weights MB": f"{lines[0]['model_bytes'] / 1e6:.2f}",
        "s": [f"{s:.1f}" for s in seconds],
        "MiB after each": [f"{m:.0f}" for m in memory],
        "MB up": f"{lines[0]['bytes_up'] / 1e6:.1f}",
    }
    report.rows.append(Row(f"a round of {clients} clients, seconds", "printed", f"{min(seconds):.1f} to {max(seconds):.1f} s", True))
    report.rows.append(Row("memory after round 2", f"grows ≤ {FLAT:.0%}", f"{growth:+.1%} ({memory[-1]:.0f} MiB)", growth <= FLAT))


def timed_rounds(folder: Path, clients: int, rounds: int, bars: int) -> tuple[list[dict[str, Any]], list[float]]:
    """The records of the rounds, and MiB of resident memory after each."""
    from federated import rounds as loop

    make_panel(clients, bars).save(folder / "panel")
    yaml = folder / "kronos.yaml"
    write_text(yaml, YAML.format(panel=folder / "panel"))
    memory: list[float] = []
    one_round = loop.Federation._round

    def measured(self: Any, number: int) -> None:
        one_round(self, number)
        memory.append(psutil.Process(os.getpid()).memory_info().rss / 2**20)

    loop.Federation._round = measured  # type: ignore[method-assign]
    try:
        run = simulate(folder / "many", clients, model_config=str(yaml), num_server_rounds=rounds, batch_size=32)
    finally:
        loop.Federation._round = one_round  # type: ignore[method-assign]
    return read_json_lines(run / "rounds.jsonl"), memory


def compare_losses(folder: Path, rounds: int, local: int, seeds: Sequence[int], report: Report) -> None:
    """Ten clients against one trainer with as many epochs, all scored on its validation windows. IID: every seed, the rest: the first."""
    kinds = {"IID": {"partitions": "iid"}, "by symbol-period": {}, "by symbol-period, fedprox": {"strategy": "fedprox"}}
    seen: dict[str, list[list[float]]] = {}
    windows: dict[str, str] = {}
    for seed in seeds:
        chosen = kinds if seed == seeds[0] else {"IID": kinds["IID"]}
        for name, changes in {"one trainer": None, **chosen}.items():
            kept = folder / f"loss-{rounds}-{local}-{name.replace(' ', '-')}-{seed}.json"
            losses, windows[name] = once(kept, partial(measured, folder, name, seed, rounds, local, changes))
            seen.setdefault(name, []).append(losses)
    report.details["training windows"] = windows
    for name, runs in seen.items():
        shown = {f"seed {seed}": " ".join(f"{loss:.4f}" for loss in losses) for seed, losses in zip(seeds, runs, strict=False)}
        report.details[f"loss by epoch, {name}"] = shown
    for name in kinds:
        ours, theirs = seen[name], seen["one trainer"][: len(seen[name])]
        (last, final), (best, top) = (_against(ours, theirs, pick) for pick in (lambda losses: losses[-1], min))
        reach = f"within {WITHIN:.0%}" if name == "IID" else "reported"
        measure = f"{CLIENTS} clients, {rounds} rounds of {local} epochs, {name}: loss over one trainer's, seeds: {len(ours)}"
        told = f"last epoch {last}, best with best {best}"
        report.rows.append(Row(measure, reach, told, name != "IID" or max(final, top) <= WITHIN))


def _against(ours: list[list[float]], theirs: list[list[float]], pick: Callable[[list[float]], float]) -> tuple[str, float]:
    """Means over seeds of what `pick` takes of each run, as text, and how much larger ours is."""
    one, other = (fmean(map(pick, runs)) for runs in (ours, theirs))
    return f"{one:.4f} over {other:.4f} ({one / other - 1:+.1%})", one / other - 1


def measured(folder: Path, name: str, seed: int, rounds: int, local: int, changes: dict[str, str] | None) -> tuple[list[float], str]:
    """The validation loss after each epoch of one trainer (changes: None), or after each round of clients, and their windows and steps."""
    fused = make_data(folder)
    judge = Judge(fused, rounds * local, seed)
    if changes is None:
        return judge.trained(), f"{len(judge.made.splits.train):,}, {judge.steps} steps an epoch"
    run = simulate(
        folder / f"{name.replace(' ', '-')}-{seed}",
        CLIENTS,
        **dict(model="tft", data_path=str(fused), num_server_rounds=rounds, local_epochs=local, fraction_evaluate=0.0),
        **dict(batch_size=CLIENT_BATCH, seed=seed, resume=True),
        **changes,
    )
    samples = read_json_lines(run / "rounds.jsonl")[0]["samples"].values()
    return judge(run), f"{sum(samples):,}, at most {-(-max(samples) // CLIENT_BATCH)} steps an epoch and client"


class Judge:
    """The trainer with all bars, and its validation windows, which score everybody's weights."""

    def __init__(self, fused: Path, epochs: int, seed: int):
        from federated.settings import read_settings
        from finetune.engine.config import load_config
        from tft.config import TftConfig
        from tft.training import prepare

        own = [f"data_path={fused}", f"batch_size={BATCH}", f"seed={seed}"]
        self.made = prepare(load_config(TftConfig, read_settings({"model": "tft"}).yaml, own), say=lambda _: None)
        self.settings = replace(self.made.settings(), epochs=epochs, schedule="constant", early_stop_patience=0, num_workers=0)

    @property
    def steps(self) -> int:
        """Optimiser steps of the trainer in an epoch."""
        return -(-len(self.made.splits.train) // BATCH)

    def trained(self) -> list[float]:
        """The validation loss after each epoch of training on everything, under the clients' settings."""
        from finetune.engine.trainer import fit

        return [epoch["val_loss"] for epoch in fit(self.made.task, self.made.splits, self.settings).history]

    def __call__(self, run: Path) -> list[float]:
        """The validation loss of the weights after each round of a run."""
        from safetensors.torch import load_file

        losses = []
        for kept in sorted((run / "checkpoints").glob("round-*")):
            self.made.task.load_state_dict(load_file(kept / "model.safetensors"))
            losses.append(self._score())
        return losses

    def _score(self) -> float:
        from finetune.engine.trainer import fit

        return fit(self.made.task, self.made.splits, replace(self.settings, epochs=0, score_start=True)).history[-1]["val_loss"]


def make_data(folder: Path) -> Path:
    """The fused panel of the daily bars, made by the three commands."""
    fused = folder / "tft" / "fused"
    if (folder / "tft" / "fused.json").exists():
        return fused
    for command in ("indicating", "target_config", "data_fusion"):
        arguments = ["--config", "configs/tft/demo_data.yaml", "--set", f"output.folder={json.dumps(str(folder / 'tft'))}"]
        subprocess.run([sys.executable, f"tft/{command}.py", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return fused


def simulate(folder: Path, clients: int, **changes: Any) -> Path:
    """A run in this process, without its output; returns its folder."""
    from federated.client_app import app
    from federated.local_grid import LocalGrid
    from federated.rounds import federate
    from federated.settings import outside, read_settings, run_config

    names = {"model_config": "model-config"}
    plain = {names.get(name) or outside(name): value for name, value in {**changes, "run_folder": str(folder)}.items()}
    settings = read_settings(plain)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return federate(LocalGrid(app, clients, run_config(settings)), settings)


if __name__ == "__main__":
    run_command(lambda: main() and None)
