"""The two stages every Kronos pipeline has, tokenizer then predictor, from models and windows to a finished run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kronos import Kronos, KronosTokenizer
from kronos.errors import InputError

from .balance import distinct
from .checkpoint import is_complete
from .comet import CometSettings
from .distributed import World
from .errors import Interrupted
from .files import read_json
from .kronos_tasks import PredictorTask, TokenizerTask
from .settings import FitSettings
from .signals import StopRequest
from .task import Task
from .tokens import with_cached_tokens
from .tracking import Run
from .trainer import FitResult, fit
from .windows import Splits

Stage = Literal["tokenizer", "predictor"]


@dataclass(frozen=True)
class Place:
    """Where one stage keeps its files, and what is recorded there."""

    folder: Path
    best: Path
    logs: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    comet: CometSettings | None = None


def train_tokenizer(
    tokenizer: KronosTokenizer,
    windows: Splits,
    settings: FitSettings,
    place: Place,
    *,
    world: World,
    stop: StopRequest,
    resume: bool = False,
) -> FitResult:
    """Fine-tune a tokenizer; its best weights end up in `place.best`. Raises what `fit` raises."""
    task = TokenizerTask(tokenizer, windows.train.facts["lookback"])
    return _train("tokenizer", task, windows, settings, place, world, stop, resume)


def train_predictor(
    predictor: Kronos,
    tokenizer: KronosTokenizer,
    windows: Splits,
    settings: FitSettings,
    place: Place,
    *,
    world: World,
    stop: StopRequest,
    resume: bool = False,
    cache_tokens: str = "auto",
    cache_limit_gib: float = 4.0,
    teacher_forcing: bool = False,
) -> FitResult:
    """Fine-tune a predictor on the tokens of a frozen tokenizer, encoded once where that fits (see `tokens`).

    Raises InputError if the two do not share a vocabulary, and what `fit` raises.
    """
    check_vocabulary(tokenizer, predictor)
    task = PredictorTask(predictor, tokenizer, windows.train.facts["lookback"], teacher_forcing)

    def cached(run: Run) -> Splits:
        return with_cached_tokens(
            windows, tokenizer, place.folder / "cache", settings, world, stop, mode=cache_tokens, limit_gib=cache_limit_gib, say=run.say
        )

    return _train("predictor", task, windows, settings, place, world, stop, resume, cached)


def check_vocabulary(tokenizer: KronosTokenizer, predictor: Kronos) -> None:
    """Raises InputError unless both split their bits alike."""
    theirs = [(m.config["s1_bits"], m.config["s2_bits"]) for m in (tokenizer, predictor)]
    if theirs[0] != theirs[1]:
        raise InputError(
            f"the tokenizer makes tokens of {theirs[0][0]} + {theirs[0][1]} bits, but the predictor reads {theirs[1][0]} + {theirs[1][1]}; "
            "use a pair made for each other"
        )


def finished(place: Place) -> bool:
    """Whether a stage's result is there and no later run of it stopped half-way."""
    status = read_json(place.folder / "status.json") or {}
    return is_complete(place.best) and status.get("state", "done") == "done"


def _train(
    name: Stage,
    task: Task,
    windows: Splits,
    settings: FitSettings,
    place: Place,
    world: World,
    stop: StopRequest,
    resume: bool,
    prepare: Any = None,
) -> FitResult:
    if stop.requested:
        raise Interrupted(f"stopped by {stop.name} before the {name} was trained; the same command with --resume goes on")
    with Run.create(
        place.folder,
        config=place.config,
        is_main=world.is_main,
        resume=resume,
        name=name,
        best=place.best,
        logs=place.logs,
        comet=place.comet,
    ) as run:
        effective = settings.batch_size * settings.accumulation_steps * world.size
        run.say(
            f"{name}: {_count(task):,} parameters on {world.device} × {world.size}, {distinct(windows.train):,} training and "
            f"{len(windows.val):,} validation windows, effective batch {effective}, {settings.epochs} epochs, amp {settings.amp}"
        )
        ready = prepare(run) if prepare else windows
        result = fit(task, ready, settings, run, world=world, stop=stop, resume=resume)
        run.finish(
            {
                "task": name,
                "parameters": _count(task),
                "monitor": settings.monitor,
                "best_score": result.best_score,
                "best_epoch": result.best_epoch + 1,
                "steps": result.steps,
                "skipped_steps": result.skipped_steps,
                "history": result.history,
                "effective_batch": effective,
                "world_size": world.size,
                "device": str(world.device),
                "training_wall_s": result.wall_s,
                "windows": {k: distinct(w) for k, w in zip(("train", "val", "test"), windows, strict=True)},
                "data": dict(windows.train.facts),
            }
        )
    return result


def _count(task: Task) -> int:
    return sum(p.numel() for p in task.trained().parameters())
