"""Numbers that are not finite, put where they hurt: the step, symbols and times are named, and nothing is saved over a good checkpoint.

"bar": NaN or infinity in a saved panel's bar (training or validation; tokenizer, predictor with cached tokens and without), between a
stop and its --resume: refused by the panel's fingerprint, and a NaN that comes after that check, in training. "csv": the same in a CSV.
"weight", "gradient": one element of a random weight or gradient, after or in a random step.
"loss under fp16": an infinite loss. "overflow under fp16": infinite gradients in a step, which the scaler must skip unharmed and the run
tell. "fp16 throughout": in every step, which is no success.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.panel import Panel
from finetune.engine.checkpoint import load_last
from finetune.engine.files import read_json
from finetune.engine.places import newest_last
from tests.drills import common
from tests.drills.common import BOTH, PREDICTOR, STAGES, TOKENIZER, Failed, Round, clear_message, expect

ROWS = 90  # bars of each of the two series
_TRAIN, _VAL = (0, 50), (66, 90)  # rows that only training or only validation windows hold, whatever the gap between them
_WINDOW = re.compile(r"([A-Z]{3}) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\.(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_STEP = re.compile(r"step (\d+)\b")


def _panel(config: Path, folder: Path) -> Path:
    """The bars of a configuration as a saved panel, in `folder`."""
    from finetune_csv.config import CsvConfig

    return CsvConfig.load(config).data.load(lambda text: None).save(folder)


def _all_finite(base: Path) -> None:
    """Every weight and every optimiser state that was saved is finite, and every checkpoint is whole."""
    expect(not common.half_files(base), f"half files: {common.half_files(base)}")
    for path in base.rglob("*.safetensors"):
        bad = [name for name, value in common.load_file(path).items() if not value.isfinite().all()]
        expect(not bad, f"{path.relative_to(base)} holds {bad} that are not finite")
    for stage in STAGES:
        if newest := newest_last(base / stage / "checkpoints"):
            state = load_last(newest)[1]["optimiser"]["state"]
            bad = [key for key, of in state.items() if any(not v.isfinite().all() for v in of.values() if torch.is_tensor(v))]
            expect(not bad, f"{newest.relative_to(base)} holds optimiser state {bad} that is not finite")


def _names(message: str, symbol: str = "", time: np.datetime64 | None = None) -> None:
    """The message names windows by symbol and time; one that holds the bar, if it is known."""
    windows = [(s, np.datetime64(a), np.datetime64(b)) for s, a, b in _WINDOW.findall(message)]
    expect(windows, f"no symbol and time in: {message[:600]}")
    if symbol:
        hit = any(s == symbol and a <= time <= b for s, a, b in windows)
        expect(hit, f"{symbol} {time} is in none of the windows named: {message[:900]}")


def bar(trained: Path, panel: Path, seed: int, folder: Path) -> None:
    """A bar of the panel is damaged while the run is stopped."""
    draw = random.Random(seed)
    stage, part, cached = draw.choice(STAGES), draw.choice(("train", "val")), draw.choice(("on", "off"))
    series, row, column = draw.randrange(2), draw.randrange(*(_TRAIN if part == "train" else _VAL)), draw.randrange(6)
    base = folder / "out" / "run"
    shutil.copytree(trained / stage, base)
    shutil.copytree(panel, folder / "panel")
    if stage == "basemodel" and (base / stage / "cache").exists():
        shutil.rmtree(base / stage / "cache")
    config = common.write_config(folder, bars=ROWS, data__data_path=[str(folder / "panel")], training__cache_tokens=cached)
    features = np.load(folder / "panel" / "features.npy", mmap_mode="r+")
    features[series * ROWS + row, column] = value = draw.choice((np.nan, np.nan, np.inf, -np.inf))
    features.flush()
    script = TOKENIZER if stage == STAGES[0] else PREDICTOR
    command = [script, "--config", str(config), "--resume"]
    refused = clear_message(common.run(command, folder / "log"), 2)
    expect("its files changed" in refused, f"the changed panel was taken: {refused}")
    if np.isinf(value):  # among the bars to be forecast it would be cut off at data.clip, as every outlier is
        return _all_finite(base)
    ended = common.run(command, folder / "log-2", before=_unverified)
    message = clear_message(ended, 2)
    known = Panel.open(folder / "panel")
    _names(message, known.series[series].symbol, known.times[series * ROWS + row].astype("datetime64[ns]"))
    expect(_STEP.search(message) or cached == "on", f"no step in: {message[:300]}")
    _all_finite(base)


def _unverified() -> None:
    """In a child: as if the bar had been damaged after the panel was checked."""
    Panel.verify = lambda panel: None


def csv(seed: int, folder: Path) -> None:
    """A value of a CSV is NaN or infinite: refused before training, by file and row."""
    draw = random.Random(seed)
    config = common.write_config(folder, bars=ROWS)
    file, row, column = folder / f"{draw.choice(('AAA', 'BBB'))}.csv", draw.randrange(ROWS), draw.randint(1, 6)
    lines = file.read_text().splitlines()
    cells = lines[row + 1].split(",")
    cells[column] = draw.choice(("nan", "inf", "-inf", "", "1e39"))
    lines[row + 1] = ",".join(cells)
    file.write_text("\n".join(lines) + "\n")
    message = clear_message(common.run([BOTH, "--config", str(config)], folder / "log"), 2)
    # rows are told as an editor numbers them, the header being row 1
    expect(file.name in message and re.search(rf"\brow {row + 2}\b", message), f"file or row is missing in: {message[:600]}")


def _in_step(number: int, act: Callable[[Any, random.Random], None], draw: random.Random) -> Callable[[], None]:
    """A fault inside the process: `act(stepper, draw)` in place of the plain update of optimiser step `number`, counted over stages."""

    def before() -> None:
        from finetune.engine import optimisation

        plain, count = optimisation.Stepper._update, [0]

        def update(stepper: Any, correction: torch.Tensor) -> torch.Tensor:
            count[0] += 1
            if count[0] == number:
                act(stepper, draw)
            norm = plain(stepper, correction)
            if count[0] == number and hasattr(act, "after"):
                act.after(stepper, draw)
            return norm

        optimisation.Stepper._update = update

    return before


def _spoil(value: torch.Tensor, draw: random.Random) -> None:
    with torch.no_grad():
        value.view(-1)[draw.randrange(value.numel())] = draw.choice((float("nan"), float("inf")))


def _gradient(stepper: Any, draw: random.Random) -> None:
    _spoil(draw.choice([p.grad for p in stepper.parameters if p.grad is not None]), draw)


def _weight(stepper: Any, draw: random.Random) -> None:
    """Nothing before the update; `after` it the weight."""


_weight.after = lambda stepper, draw: _spoil(draw.choice(stepper.parameters), draw)


def spoiled(act: Callable[[Any, random.Random], None], seed: int, folder: Path) -> None:
    """A weight or a gradient that is not finite, in any step of either stage."""
    draw = random.Random(seed)
    config = common.write_config(folder, bars=ROWS)
    ended = common.run([BOTH, "--config", str(config)], folder / "log", before=_in_step(draw.randint(1, 36), act, draw))
    message = clear_message(ended, 2)
    expect(_STEP.search(message), f"no step in: {message[:300]}")
    _names(message)
    _all_finite(common.output(config))


def infinite_loss(seed: int, folder: Path) -> None:
    """Under fp16 an infinite loss is no overflow of the scale: it is told, not skipped."""
    draw = random.Random(seed)
    config = common.write_config(folder, bars=ROWS, training__amp="fp16")
    number = draw.randint(1, 18)

    def before() -> None:
        from finetune.engine.kronos_tasks import TokenizerTask

        plain, count = TokenizerTask.forward, [0]

        def forward(task: Any, batch: Any) -> Any:
            outcome = plain(task, batch)
            count[0] += task.training
            return outcome._replace(loss=outcome.loss * float("inf")) if task.training and count[0] == number else outcome

        TokenizerTask.forward = forward

    message = clear_message(common.run([BOTH, "--config", str(config)], folder / "log", before=before), 2)
    found = _STEP.search(message)
    expect(found and int(found[1]) == number, f"step {number} is not named: {message[:300]}")
    _names(message)
    _all_finite(common.output(config))


def overflow(seed: int, folder: Path) -> None:
    """Under fp16 a gradient that overflows is skipped, and training ends well."""
    draw = random.Random(seed)
    config = common.write_config(folder, bars=ROWS, training__amp="fp16")
    before = _in_step(draw.randint(1, 36), lambda stepper, d: _spoil(draw.choice([p.grad for p in stepper.parameters]), d), draw)
    ended = common.run([BOTH, "--config", str(config)], folder / "log", before=before)
    expect(ended.code == 0, f"code {ended.code}:\n{ended.text[-2000:]}")
    expect("overflowed in 1 of 18 steps" in ended.text, f"the skipped step is not told:\n{ended.text[-2000:]}")
    _all_finite(common.output(config))


def throughout(seed: int, folder: Path) -> None:
    """Under fp16 gradients overflow in every step: the short run learned nothing, and says so."""
    draw = random.Random(seed)
    config = common.write_config(folder, bars=ROWS, training__amp="fp16")

    def before() -> None:
        from finetune.engine import optimisation

        plain = optimisation.Stepper._update

        def update(stepper: Any, correction: torch.Tensor) -> torch.Tensor:
            _gradient(stepper, draw)
            return plain(stepper, correction)

        optimisation.Stepper._update = update

    message = clear_message(common.run([BOTH, "--config", str(config)], folder / "log", before=before), 2)
    expect("overflowed in every one of the 18 steps" in message, f"it says something else: {message[:300]}")
    status = read_json(common.output(config) / STAGES[0] / "status.json") or {}
    expect(status.get("state") == "failed", f"its status is {status.get('state')}")
    _all_finite(common.output(config))


def kinds(folder: Path) -> dict[str, Round]:
    """A run of each stage that was stopped in its fourth step, on a saved panel; then the rounds."""
    whole = common.write_config(folder / "whole", bars=ROWS)
    panel = _panel(whole, folder / "panel")
    expect(common.run([BOTH, "--config", str(whole)], folder / "whole-log").code == 0, "the undisturbed run failed")
    stopped: dict[str, Path] = {}
    for stage, script in zip(STAGES, (TOKENIZER, PREDICTOR), strict=True):
        config = common.write_config(folder / stage, bars=ROWS, data__data_path=[str(panel)])
        if stage == STAGES[1]:
            shutil.copytree(common.output(whole) / STAGES[0] / "best_model", common.output(config) / STAGES[0] / "best_model")
        stop = _in_step(4, lambda stepper, draw: os.kill(os.getpid(), signal.SIGTERM), random.Random(0))
        ended = common.run([script, "--config", str(config)], folder / f"{stage}-log", before=stop)
        expect(ended.code == 75, f"the run to be stopped ended with {ended.code}:\n{ended.text[-2000:]}")
        stopped[stage] = common.output(config)
    trained = folder / "stopped"
    trained.mkdir()
    for stage, place in stopped.items():
        shutil.copytree(place, trained / stage)
    return {
        "bar": lambda seed, place: bar(trained, panel, seed, place),
        "csv": csv,
        "weight": lambda seed, place: spoiled(_weight, seed, place),
        "gradient": lambda seed, place: spoiled(_gradient, seed, place),
        "loss under fp16": infinite_loss,
        "overflow under fp16": overflow,
        "fp16 throughout": throughout,
    }


if __name__ == "__main__":
    try:
        common.main("nan", kinds, __doc__ or "", 60)
    except Failed as fault:
        sys.exit(f"nan: {fault}")
