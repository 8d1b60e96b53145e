"""What every command that trains Kronos shares: models and windows made ready, one stage trained after another.

What is wrong with the input shows before training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from finetune.data.panel import Panel
from finetune.engine.beginning import goes_on
from finetune.engine.comet import CometSettings
from finetune.engine.distributed import World, world
from finetune.engine.errors import InputError
from finetune.engine.files import ensure_writable_folder
from finetune.engine.locks import refuse_if_held
from finetune.engine.places import Place, Stage, finished, is_complete
from finetune.engine.run_sections import ExperimentSection
from finetune.engine.sections import DeviceSection, DistributedSection, ModelSection, TrainingSection
from finetune.engine.signals import StopRequest
from finetune.engine.stages import check_vocabulary, train_predictor, train_tokenizer
from finetune.engine.windows import Splits
from finetune.results import Paths, Say, changes, find_tokenizer, other_bars, place_of, used_weights
from kronos import Kronos, KronosTokenizer, load_predictor, load_tokenizer, read_arguments

_CLASSES: dict[Stage, type] = {"tokenizer": KronosTokenizer, "predictor": Kronos}
_LOADERS: dict[Stage, Callable[..., Any]] = {"tokenizer": load_tokenizer, "predictor": load_predictor}


class Configuration(Protocol):
    """What is asked of a YAML file's schema, whatever its bars are."""

    tokenizer_command: str  # how to train the tokenizer alone, for a message
    model_paths: Paths
    training: TrainingSection
    model: ModelSection
    experiment: ExperimentSection
    device: DeviceSection
    distributed: DistributedSection

    def cut(self, here: World, say: Say) -> tuple[Panel, Splits]:
        """Read the bars and cut the windows; on every rank, so that all share rank 0's work."""
        ...

    def comet(self) -> CometSettings | None: ...


@dataclass
class Job:
    """A configuration with its bars read, its windows cut and its models made. panel: the bars that pictures and scores are made of."""

    config: Any  # a Configuration; commands know which
    panel: Panel
    windows: Splits
    models: dict[Stage, Any]  # of the stages that are to be trained
    world: World
    stop: StopRequest
    resume: bool

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)


@contextmanager
def prepared(config: Configuration, stages: Sequence[Stage], *, resume: bool = False, skip_existing: bool = False) -> Iterator[Job]:
    """Join the other ranks, check and load everything the stages need, and listen for signals until the block ends.

    skip_existing: leaves out stages whose best_model is there and whole. It never trains over one, and never takes one that was made with
    other settings, bars or weights than these (see `results`): that is an InputError which says what changed, key by key.
    Raises InputError for anything wrong with the input, also where another run trains in one of the folders.
    """
    device = config.device.pick()
    if config.device.cpu_threads:
        torch.set_num_threads(config.device.cpu_threads)
    with world(device, config.distributed.world_backend, config.distributed.timeout_s) as here, StopRequest() as stop:
        say = print if here.is_main else lambda text: None
        here.on_main(lambda: _check_places(config, stages))
        todo = remaining(config, stages, say) if skip_existing else list(stages)
        if todo == ["predictor"]:
            find_tokenizer(config, lambda text: None)  # refused before weights are loaded and bars are read
        models = {stage: make_model(config, stage) for stage in todo}
        if len(models) == 2:
            check_vocabulary(models["tokenizer"], models["predictor"])
        panel, windows = config.cut(here, say)
        for stage in set(stages) - set(todo):
            if other_bars(config, stage, windows.train.facts["data"]):
                raise _made_otherwise(place_of(config, stage), stage, "it was trained on other bars")
        base = Path(config.model_paths.base_save_path)
        here.on_main(lambda: _check_places(config, stages))  # again: loading took a while, and now checkpoints are put aside
        resume = goes_on(base, [Path(config.model_paths.folder(stage)) for stage in todo], resume=resume, world=here)
        yield Job(config, panel, windows, models, here, stop, resume)


def run_stage(job: Job, stage: Stage) -> None:
    """Train one stage. The predictor takes the fine-tuned tokenizer, or, if none was trained, the pretrained one."""
    config, training = job.config, job.config.training
    place = place_of(config, stage)
    if job.resume and not finished(place) and (changed := changes(config, stage)):
        job.say(f"{stage}: goes on with other settings than it began with: {'; '.join(map(str, changed))}")
    pretrained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    settings = training.fit_settings(stage, str(job.world.device), config.device.panel_on_device)
    settings = replace(settings, score_start=settings.score_start and pretrained)  # random weights need no score
    model = job.models[stage]
    if stage == "tokenizer":
        train_tokenizer(model, job.windows, settings, place, world=job.world, stop=job.stop, resume=job.resume, facts=_facts(job, stage))
    else:
        tokenizer = tokenizer_of(job)
        train_predictor(
            model,
            load_tokenizer(tokenizer),
            job.windows,
            settings,
            place,
            world=job.world,
            stop=job.stop,
            resume=job.resume,
            cache_tokens=training.cache_tokens,
            cache_limit_gib=training.cache_limit_gib,
            teacher_forcing=training.teacher_forcing,
            facts=_facts(job, stage, tokenizer),
        )
    job.say(f"{stage}: best weights in {place.best}, curves in {place.folder / 'curves.png'}")


def _facts(job: Job, stage: Stage, tokenizer: str = "") -> dict[str, Any]:
    """For the summary that rank 0 writes: which weights went in."""
    return {"weights": used_weights(job.config, stage, tokenizer)} if job.world.is_main else {}


def tokenizer_of(job: Job) -> str:
    """As `find_tokenizer`, for a job."""
    return find_tokenizer(job.config, job.say)


def _check_places(config: Configuration, stages: Sequence[Stage]) -> str:
    """The folders can be written to, and nobody else trains there the tokenizer to be used, or a predictor of the one to train."""
    paths = config.model_paths
    ensure_writable_folder(paths.base_save_path)
    own = Path(paths.finetuned_tokenizer) == Path(paths.best_model("tokenizer"))
    both: tuple[Stage, ...] = ("tokenizer", "predictor")
    for stage in both if own or "tokenizer" in stages else stages:
        refuse_if_held(Path(paths.folder(stage)))
    return "free"


def remaining(config: Configuration, stages: Sequence[Stage], say: Say) -> list[Stage]:
    """The stages without a finished result. Raises InputError for a result that was made with other settings or weights than these."""
    todo = [stage for stage in stages if not _exists(config, stage, say)]
    if "tokenizer" in todo and "predictor" in set(stages) - set(todo):
        raise _made_otherwise(place_of(config, "predictor"), "predictor", "its tokenizer is gone, or was not finished")
    return todo


def _exists(config: Configuration, stage: Stage, say: Say) -> bool:
    """Whether a stage's result is there and whole. Raises InputError if it was made with other settings."""
    place = place_of(config, stage)
    if finished(place):
        if changed := changes(config, stage):
            raise _made_otherwise(place, stage, "; ".join(map(str, changed)))
        say(f"{stage}: {place.best} is there already, skipped")
        return True
    if is_complete(place.best):
        say(f"{stage}: {place.best} is of a run that was not finished; training it again (use --resume to go on instead)")
    return False


def _made_otherwise(place: Place, stage: Stage, told: str) -> InputError:
    return InputError(
        f"--skip-existing: the {stage} in {place.best} was not made with what is asked for now: {told}. Leave the flag out "
        "(or experiment.skip_existing: false) to train it again, set these back, or give this run a folder of its own (model_paths)"
    )


def make_model(config: Configuration, stage: Stage) -> Any:
    """A stage's model: loaded, or of the wanted size with random weights."""
    named = config.model_paths.pretrained_tokenizer if stage == "tokenizer" else config.model_paths.pretrained_predictor
    trained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    if trained:
        return _LOADERS[stage](named, **config.model.dropouts(stage))
    sizes = config.model.arguments(stage) or read_arguments(_CLASSES[stage], config.model.config_file(stage, named))
    torch.manual_seed(config.training.seed)  # the same first weights on every rank and in every run
    return _CLASSES[stage](**{**sizes, **config.model.dropouts(stage)})
