"""One training run of the Temporal Fusion Transformer: ranks, weights to begin with, a run folder, and the project's loop."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from finetune.engine.beginning import begin, restarted_in
from finetune.engine.command import to_paste
from finetune.engine.config import resolved
from finetune.engine.distributed import World, world
from finetune.engine.errors import InputError, Interrupted
from finetune.engine.places import Place, newest_last
from finetune.engine.signals import StopRequest
from finetune.engine.stages import train_task
from finetune.engine.tracking import Run
from finetune.engine.windows import Splits
from tft.config import TftConfig
from tft.run_folder import find_run, find_weights, new_folder, write_snapshot
from tft.task import WarmStart, warm_start
from tft.training import Prepared, prepare
from tft.windows import Blocks


def train(config: TftConfig, script: str, *, resume: str = "", warm: str = "", stop: StopRequest | None = None) -> Path:
    """Train as configured, in a new run folder, or on in the one of checkpoint `resume`; from the weights of `warm`, if named.

    Joins the other ranks under torchrun, whose restarted workers go on with the run that they began. stop: a signal that ends it at its
    next step; None listens to the system's.
    Returns the run folder. Raises InputError, and Interrupted once the last checkpoint is saved.
    """
    device = config.device.pick()
    if config.device.cpu_threads:
        torch.set_num_threads(config.device.cpu_threads)
    _check_precision(config, device)
    ranks = world(device, config.distributed.world_backend, config.distributed.timeout_s, again="python tft/train_resume.py --ckpt last")
    with ranks as here, StopRequest() if stop is None else nullcontext(stop) as stop:
        say = (lambda text: print(text, flush=True)) if here.is_main else lambda text: None
        former = here.on_main(lambda: str(find_run(resume, config.output_dir) if resume else _of_this_launch(config.output_dir) or ""))
        start = here.on_main(lambda: str(find_weights(warm, config.output_dir))) if warm else ""
        prepared = prepare(config, say=say)
        taken = warm_start(prepared.task, start) if start else None
        folder = Path(former or here.on_main(lambda: str(_opened(prepared, script))))
        try:
            _fit(prepared, folder, start, taken, here, stop, bool(former))
        except Interrupted as interruption:
            _keep_settings(prepared, folder, here)
            raise Interrupted(_how_to_go_on(folder)) from interruption
        _keep_settings(prepared, folder, here)
        say(f"best weights in {folder / 'checkpoints' / 'best'}, curves in {folder / 'curves.png'}")
        say(f"next: {to_paste('tft/predict.py', '--run', folder)}")
    return folder


def _check_precision(config: TftConfig, device: str) -> None:
    """Raises InputError where the processor has no float16 LSTM: most do not."""
    if config.precision != "16-mixed" or torch.device(device).type == "cuda":
        return
    try:
        with torch.autocast(torch.device(device).type, torch.float16):
            torch.nn.LSTM(8, 8).to(device)(torch.zeros(1, 1, 8, device=device))
    except RuntimeError as error:
        raise InputError(f"precision: 16-mixed is not possible on {device} (it has no LSTM in float16); use bf16-mixed or 32") from error


def _of_this_launch(output: str) -> Path | None:
    """The run that restarted workers go on with: the one that their own torchrun began, if it got so far."""
    return next((folder for folder in sorted(Path(output).glob("*/")) if restarted_in(folder)), None)


def _opened(prepared: Prepared, script: str) -> Path:
    folder = new_folder(prepared.config.output_dir, script)
    begin(folder)
    write_snapshot(folder, prepared.config, prepared.manifest)
    return folder


def _keep_settings(prepared: Prepared, folder: Path, here: World) -> None:
    """A run that went on with other settings, such as more epochs, goes on with these the next time."""
    if here.is_main:
        write_snapshot(folder, prepared.config, prepared.manifest)


def _fit(prepared: Prepared, folder: Path, start: str, taken: WarmStart | None, here: World, stop: StopRequest, resume: bool) -> None:
    def begun(run: Run) -> Splits:
        prepared.task.say = run.say
        if taken is not None:
            run.say(f"{start}: {taken}")
        if isinstance(splits.train, Blocks):
            run.say(_told_of_blocks(splits.train))
        return splits

    splits = prepared.splits
    place = Place(folder, folder / "checkpoints" / "best", folder / "logs", resolved(prepared.config))
    settings = prepared.settings(str(here.device))
    former = newest_last(folder / "checkpoints") if resume else None
    train_task("tft", prepared.task, splits, settings, place, here, stop, resume, begun, _facts(prepared, start, taken, former))


def _told_of_blocks(blocks: Blocks) -> str:
    told = f"shared rows: windows come in blocks of {blocks.n} that follow each other"
    if blocks.alone:
        told += f"; {blocks.alone:,} training windows never come up, since fewer than {blocks.n} follow each other there (block_length)"
    return told


def _facts(prepared: Prepared, start: str, taken: WarmStart | None, former: Path | None) -> dict[str, Any]:
    """What summary.json holds besides what every task's does."""
    facts: dict[str, Any] = {
        "mode": prepared.mode,
        "targets": prepared.task.config["targets"],
        "periods": list(prepared.vocabulary.periods),
        "symbols": list(prepared.vocabulary.symbols),
        "left_out": prepared.left_out,
        "shared_rows": prepared.config.block_length if prepared.config.shared_rows else 0,
    }
    if former is not None:
        facts["resumed_from"] = former.name
    if taken is not None:
        facts["warm_start"] = {"from": start, "loaded": taken.loaded, "skipped": taken.skipped}
    return facts


def _how_to_go_on(folder: Path) -> str:
    if newest_last(folder / "checkpoints") is None:
        return f"stopped before the first checkpoint of {folder}; the same command starts anew"
    return f"stopped; everything is saved. {to_paste('tft/train_resume.py', '--ckpt', folder / 'checkpoints' / 'last')} goes on from there"
