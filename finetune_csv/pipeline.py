"""What the CSV pipeline does beside training: which stages, the forecast picture, the report."""

from __future__ import annotations

from pathlib import Path

from finetune.engine.checkpoint import is_complete
from finetune.engine.errors import InputError
from finetune.engine.stages import Stage
from finetune.pipeline import Job, tokenizer_of
from finetune_csv.config import CsvConfig
from kronos import load_predictor, load_tokenizer


def draw_forecast(job: Job) -> Path | None:
    """Lookback, truth and forecast of the newest held-out window, if both models are there and the picture is wanted. Rank 0 only."""
    config: CsvConfig = job.config
    best = config.model_paths.best_model("predictor")
    if not (config.forecast.enabled and job.world.is_main and is_complete(best)):
        return None
    from finetune.evaluation.preview import draw_preview  # matplotlib takes a second to import, and only rank 0 draws

    predictor, tokenizer = load_predictor(str(best)), load_tokenizer(tokenizer_of(job))
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
    config: CsvConfig = job.config
    if not (config.evaluation.enabled and job.world.is_main and is_complete(config.model_paths.best_model("predictor"))):
        return
    from finetune.evaluation.trained import evaluate_trained  # imported by nobody who does not evaluate

    evaluate_trained(config, job.panel, device=str(job.world.device), say=job.say)


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
