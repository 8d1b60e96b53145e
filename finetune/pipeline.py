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
from finetune.engine.checkpoint import is_complete
from finetune.engine.comet import CometSettings
from finetune.engine.config import resolved
from finetune.engine.distributed import World, world
from finetune.engine.errors import MissingFileError
from finetune.engine.files import ensure_writable_folder
from finetune.engine.run_sections import ExperimentSection
from finetune.engine.sections import DeviceSection, DistributedSection, ModelSection, TrainingSection
from finetune.engine.signals import StopRequest
from finetune.engine.stages import Place, Stage, check_vocabulary, finished, train_predictor, train_tokenizer
from finetune.engine.windows import Splits
from kronos import Kronos, KronosTokenizer, load_predictor, load_tokenizer, read_arguments

_CLASSES: dict[Stage, type] = {"tokenizer": KronosTokenizer, "predictor": Kronos}
_LOADERS: dict[Stage, Callable[..., Any]] = {"tokenizer": load_tokenizer, "predictor": load_predictor}
Say = Callable[[str], Any]


class Paths(Protocol):
    """Where weights come from and results go: `model_paths` of a configuration."""

    pretrained_tokenizer: str
    pretrained_predictor: str
    finetuned_tokenizer: str  # what the predictor is trained with
    base_save_path: str

    def folder(self, stage: Stage) -> Path: ...
    def best_model(self, stage: Stage) -> Path: ...
    @property
    def logs(self) -> Path: ...


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

    skip_existing: leaves out stages whose best_model is there and whole. Raises InputError for anything wrong with the input.
    """
    device = config.device.pick()
    if config.device.cpu_threads:
        torch.set_num_threads(config.device.cpu_threads)
    with world(device, config.distributed.world_backend) as here, StopRequest() as stop:
        say = print if here.is_main else lambda text: None
        here.on_main(lambda: str(ensure_writable_folder(config.model_paths.base_save_path)))
        todo = [stage for stage in stages if not (skip_existing and _exists(config, stage, say))]
        if todo == ["predictor"]:
            find_tokenizer(config, lambda text: None)  # refused before weights are loaded and bars are read
        models = {stage: _model(config, stage) for stage in todo}
        if len(models) == 2:
            check_vocabulary(models["tokenizer"], models["predictor"])
        panel, windows = config.cut(here, say)
        yield Job(config, panel, windows, models, here, stop, resume)


def run_stage(job: Job, stage: Stage) -> None:
    """Train one stage. The predictor takes the fine-tuned tokenizer, or, if none was trained, the pretrained one."""
    config, training = job.config, job.config.training
    place = _place(config, stage)
    pretrained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    settings = training.fit_settings(stage, str(job.world.device), config.device.panel_on_device)
    settings = replace(settings, score_start=settings.score_start and pretrained)  # random weights need no score
    model = job.models[stage]
    if stage == "tokenizer":
        train_tokenizer(model, job.windows, settings, place, world=job.world, stop=job.stop, resume=job.resume)
    else:
        train_predictor(
            model,
            load_tokenizer(tokenizer_of(job)),
            job.windows,
            settings,
            place,
            world=job.world,
            stop=job.stop,
            resume=job.resume,
            cache_tokens=training.cache_tokens,
            cache_limit_gib=training.cache_limit_gib,
            teacher_forcing=training.teacher_forcing,
        )
    job.say(f"{stage}: best weights in {place.best}, curves in {place.folder / 'curves.png'}")


def tokenizer_of(job: Job) -> str:
    """As `find_tokenizer`, for a job."""
    return find_tokenizer(job.config, job.say)


def find_tokenizer(config: Configuration, say: Say) -> str:
    """The tokenizer that the predictor is trained with: the fine-tuned one, or the pretrained one where none is trained.

    Raises MissingFileError if one is to be trained and is not there.
    """
    paths, experiment = config.model_paths, config.experiment
    if is_complete(Path(paths.finetuned_tokenizer)) or Path(paths.finetuned_tokenizer, "model.safetensors").is_file():
        return paths.finetuned_tokenizer
    if experiment.train_tokenizer or not experiment.pre_trained_tokenizer:
        raise MissingFileError(
            f"Predictor requires tokenizer: there is none in {paths.finetuned_tokenizer}. Train it first ({config.tokenizer_command}), "
            "name one in model_paths.finetuned_tokenizer, or set experiment.train_tokenizer: false to use pretrained_tokenizer as it is"
        )
    say(f"predictor: no fine-tuned tokenizer in {paths.finetuned_tokenizer}, using {paths.pretrained_tokenizer} as it is")
    return paths.pretrained_tokenizer


def _exists(config: Configuration, stage: Stage, say: Say) -> bool:
    place = _place(config, stage)
    if finished(place):
        say(f"{stage}: {place.best} is there already, skipped")
        return True
    if is_complete(place.best):
        say(f"{stage}: {place.best} is of a run that was not finished; training it again (use --resume to go on instead)")
    return False


def _place(config: Configuration, stage: Stage) -> Place:
    paths = config.model_paths
    return Place(paths.folder(stage), paths.best_model(stage), paths.logs, resolved(config), config.comet())


def _model(config: Configuration, stage: Stage) -> Any:
    """A stage's model: loaded, or of the wanted size with random weights."""
    named = config.model_paths.pretrained_tokenizer if stage == "tokenizer" else config.model_paths.pretrained_predictor
    trained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    if trained:
        return _LOADERS[stage](named, **config.model.dropouts(stage))
    sizes = config.model.arguments(stage) or read_arguments(_CLASSES[stage], config.model.config_file(stage, named))
    torch.manual_seed(config.training.seed)  # the same first weights on every rank and in every run
    return _CLASSES[stage](**{**sizes, **config.model.dropouts(stage)})
