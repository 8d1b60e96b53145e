"""A task from its windows to a finished run folder, and the two that every Kronos pipeline has: tokenizer, then predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kronos import Kronos, KronosTokenizer
from kronos.errors import InputError

from .allocator import freed_memory_kept
from .balance import distinct, per_item
from .distributed import World
from .errors import Interrupted
from .kronos_tasks import PredictorTask, TokenizerTask
from .places import Place, newest_last
from .settings import FitSettings
from .signals import StopRequest
from .task import Task
from .tokens import with_cached_tokens
from .tracking import Run
from .trainer import FitResult, fit
from .windows import Splits


def train_tokenizer(
    tokenizer: KronosTokenizer,
    windows: Splits,
    settings: FitSettings,
    place: Place,
    *,
    world: World,
    stop: StopRequest,
    resume: bool = False,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> FitResult:
    """Fine-tune a tokenizer; its best weights end up in `place.best`. facts: what else the summary holds. Raises what `fit` raises."""
    task = TokenizerTask(tokenizer, windows.train.facts["lookback"])
    return train_task("tokenizer", task, windows, settings, place, world, stop, resume, facts=facts)


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
    facts: Mapping[str, Any] = MappingProxyType({}),
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

    return train_task("predictor", task, windows, settings, place, world, stop, resume, cached, facts)


def check_vocabulary(tokenizer: KronosTokenizer, predictor: Kronos) -> None:
    """Raises InputError unless both split their bits alike."""
    theirs = [(m.config["s1_bits"], m.config["s2_bits"]) for m in (tokenizer, predictor)]
    if theirs[0] != theirs[1]:
        raise InputError(
            f"the tokenizer makes tokens of {theirs[0][0]} + {theirs[0][1]} bits, but the predictor reads {theirs[1][0]} + {theirs[1][1]}; "
            "use a pair made for each other"
        )


@freed_memory_kept()
def train_task(
    name: str,
    task: Task,
    windows: Splits,
    settings: FitSettings,
    place: Place,
    world: World,
    stop: StopRequest,
    resume: bool,
    prepare: Callable[[Run], Splits] | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> FitResult:
    """Train any task in a run folder of its own, from its first status to its summary.

    name: of its log, in messages and in the summary. prepare: makes the windows ready once the run can tell of it. facts: what else the
    summary holds. Raises what `fit` raises.
    """
    if stop.requested:
        raise Interrupted(f"stopped by {stop.name} before the {name} was trained; the same command with --resume goes on")
    with Run.create(
        place.folder,
        config=place.config,
        is_main=world.is_main,
        resume=resume and newest_last(place.folder / "checkpoints") is not None,  # else the former log is another run's, or comes again
        name=name,
        best=place.best,
        logs=place.logs,
        comet=place.comet,
    ) as run:
        effective = settings.batch_size * settings.accumulation_steps * world.size * per_item(windows.train)
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
                **facts,
            }
        )
    return result


def _count(task: Task) -> int:
    return sum(p.numel() for p in task.trained().parameters())
