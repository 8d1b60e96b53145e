"""CSV bars in, fine-tuned tokenizer and predictor and a forecast picture out. What is wrong with the input shows before training starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from finetune.data.load import load_panel
from finetune.data.panel import Panel
from finetune.engine.checkpoint import is_complete
from finetune.engine.config import resolved
from finetune.engine.distributed import World, world
from finetune.engine.errors import InputError, MissingFileError
from finetune.engine.files import ensure_writable_folder
from finetune.engine.signals import StopRequest
from finetune.engine.splits import make_splits
from finetune.engine.stages import Place, Stage, check_vocabulary, finished, train_predictor, train_tokenizer
from finetune.engine.windows import Splits
from finetune_csv.config import CsvConfig
from kronos import Kronos, KronosTokenizer, load_predictor, load_tokenizer, read_arguments

_CLASSES: dict[Stage, type] = {"tokenizer": KronosTokenizer, "predictor": Kronos}
_LOADERS: dict[Stage, Callable[..., Any]] = {"tokenizer": load_tokenizer, "predictor": load_predictor}


@dataclass
class Job:
    """A configuration with its bars read, its windows cut and its models made."""

    config: CsvConfig
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
def prepared(config: CsvConfig, stages: Sequence[Stage], *, resume: bool = False, skip_existing: bool = False) -> Iterator[Job]:
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
        models = {stage: _model(config, stage) for stage in todo}
        if len(models) == 2:
            check_vocabulary(models["tokenizer"], models["predictor"])
        panel = _panel(config, here, say)
        data = config.data
        windows = make_splits(
            panel,
            data.lookback_window,
            data.predict_window,
            data.ratios,
            split=data.split,
            stride=data.window_stride,
            clip=data.clip,
            say=say,
        )
        yield Job(config, panel, windows, models, here, stop, resume)


def run_stage(job: Job, stage: Stage) -> None:
    """Train one stage. The predictor takes the fine-tuned tokenizer, or, if none was trained, the pretrained one."""
    config, training = job.config, job.config.training
    place = _place(config, stage)
    pretrained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    settings = config.fit_settings(stage, str(job.world.device))
    settings = replace(settings, score_start=settings.score_start and pretrained)  # random weights need no score
    model = job.models[stage]
    if stage == "tokenizer":
        train_tokenizer(model, job.windows, settings, place, world=job.world, stop=job.stop, resume=job.resume)
    else:
        train_predictor(
            model,
            load_tokenizer(_tokenizer_for_predictor(job)),
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


def draw_forecast(job: Job) -> Path | None:
    """Lookback, truth and forecast of the newest held-out window, if both models are there and the picture is wanted. Rank 0 only."""
    config = job.config
    best = config.model_paths.best_model("predictor")
    if not (config.forecast.enabled and job.world.is_main and is_complete(best)):
        return None
    from finetune.evaluation.preview import draw_preview  # matplotlib takes a second to import, and only rank 0 draws

    predictor, tokenizer = load_predictor(str(best)), load_tokenizer(_tokenizer_for_predictor(job))
    path = Path(config.model_paths.base_save_path, "forecast.png")
    draw_preview(
        path,
        job.panel,
        job.windows,
        predictor,
        tokenizer,
        config.forecast,
        max_context=config.data.max_context,
        clip=config.data.clip,
        seed=config.training.seed,
        device=str(job.world.device),
        title=config.experiment.name,
    )
    job.say(f"forecast: {path}")
    return path


def score_forecasts(job: Job) -> None:
    """The evaluation's report on held-out bars, if both models are there and `evaluation.enabled` is set. Rank 0 only."""
    config = job.config
    if not (config.evaluation.enabled and job.world.is_main and is_complete(config.model_paths.best_model("predictor"))):
        return
    from finetune.evaluation.trained import evaluate_trained  # imported by nobody who does not evaluate

    evaluate_trained(config, job.panel, device=str(job.world.device), say=job.say)


def _exists(config: CsvConfig, stage: Stage, say: Callable[[str], None]) -> bool:
    place = _place(config, stage)
    if finished(place):
        say(f"{stage}: {place.best} is there already, skipped")
        return True
    if is_complete(place.best):
        say(f"{stage}: {place.best} is of a run that was not finished; training it again (use --resume to go on instead)")
    return False


def _place(config: CsvConfig, stage: Stage) -> Place:
    paths = config.model_paths
    return Place(paths.folder(stage), paths.best_model(stage), paths.logs, resolved(config), config.experiment.comet())


def _panel(config: CsvConfig, here: World, say: Callable[[str], None]) -> Panel:
    """The panel, read once; further ranks open rank 0's copy memory-mapped, so that all share its pages."""
    columns = {name: theirs for name, theirs in config.data.columns if theirs != name}
    paths = config.data.data_path
    section = SimpleNamespace(**{**dict(config.data), "columns": columns, "data_path": paths[0] if len(paths) == 1 else paths})
    if here.size == 1:
        return load_panel(section, say=say)
    folder = Path(config.model_paths.base_save_path, "cache", "panel")
    here.on_main(lambda: str(load_panel(section, say=say).save(folder)))
    return Panel.open(folder)


def _model(config: CsvConfig, stage: Stage) -> Any:
    """A stage's model: loaded, or of the wanted size with random weights."""
    named = config.model_paths.pretrained_tokenizer if stage == "tokenizer" else config.model_paths.pretrained_predictor
    trained = config.experiment.pre_trained_tokenizer if stage == "tokenizer" else config.experiment.pre_trained_predictor
    if trained:
        return _LOADERS[stage](named, **config.model.dropouts(stage))
    sizes = config.model.arguments(stage) or read_arguments(_CLASSES[stage], config.model.config_file(stage, named))
    torch.manual_seed(config.training.seed)  # the same first weights on every rank and in every run
    return _CLASSES[stage](**{**sizes, **config.model.dropouts(stage)})


def _tokenizer_for_predictor(job: Job) -> str:
    paths = job.config.model_paths
    if is_complete(Path(paths.finetuned_tokenizer)) or Path(paths.finetuned_tokenizer, "model.safetensors").is_file():
        return paths.finetuned_tokenizer
    if job.config.experiment.train_tokenizer or not job.config.experiment.pre_trained_tokenizer:
        raise MissingFileError(
            f"there is no fine-tuned tokenizer in {paths.finetuned_tokenizer}: train it first (finetune_csv/finetune_tokenizer.py), "
            "name one in model_paths.finetuned_tokenizer, or set experiment.train_tokenizer: false to use pretrained_tokenizer as it is"
        )
    job.say(f"predictor: no fine-tuned tokenizer in {paths.finetuned_tokenizer}, using {paths.pretrained_tokenizer} as it is")
    return paths.pretrained_tokenizer


def stages_of(config: CsvConfig, *, skip_tokenizer: bool = False, skip_basemodel: bool = False) -> list[Stage]:
    """The stages to train, by the configuration and the command's flags. Raises InputError if none is left."""
    experiment = config.experiment
    stages: list[Stage] = []
    if experiment.train_tokenizer and not skip_tokenizer:
        stages.append("tokenizer")
    if experiment.train_basemodel and not skip_basemodel:
        stages.append("predictor")
    chosen, trained = config.model_paths.finetuned_tokenizer, config.model_paths.best_model("tokenizer")
    if len(stages) == 2 and Path(chosen) != trained:
        raise InputError(
            f"model_paths.finetuned_tokenizer is {chosen}, but the tokenizer that is trained first goes to {trained} and is not used; "
            "leave the key empty, or use --skip-tokenizer"
        )
    if not stages:
        raise InputError(
            "nothing to train: both stages are switched off (experiment.train_tokenizer, experiment.train_basemodel, --skip-tokenizer, "
            "--skip-basemodel); switch one on"
        )
    return stages
