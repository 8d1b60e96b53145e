"""What is done with a trained pair before a command ends: the forecast picture, the evaluation's report."""

from __future__ import annotations

from pathlib import Path

from finetune.data.config import PipelineConfig
from finetune.engine.places import is_complete
from finetune.pipeline import Job, tokenizer_of
from kronos import load_predictor, load_tokenizer

_MADE_AGAIN = "training is done and saved. The same command with --resume makes it"


def draw_forecast(job: Job) -> Path | None:
    """Lookback, truth and forecast of the newest held-out window, if both models are there and the picture is wanted. Rank 0 only."""
    config: PipelineConfig = job.config
    best = config.model_paths.best_model("predictor")
    if not (config.forecast.enabled and job.world.is_main and is_complete(best)):
        return None
    path = Path(config.model_paths.base_save_path, "forecast.png")
    with job.stop.at_once(f"while the forecast was drawn; {_MADE_AGAIN}"):
        _draw(job, config, best, path)
    job.say(f"forecast: {path}")
    return path


def _draw(job: Job, config: PipelineConfig, best: Path, path: Path) -> None:
    from finetune.evaluation.preview import draw_preview  # matplotlib takes a second to import, and only rank 0 draws

    predictor, tokenizer = load_predictor(str(best)), load_tokenizer(tokenizer_of(job))
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


def score_forecasts(job: Job) -> None:
    """The evaluation's report on held-out bars, if both models are there and `evaluation.enabled` is set. Rank 0 only."""
    config: PipelineConfig = job.config
    if not (config.evaluation.enabled and job.world.is_main and is_complete(config.model_paths.best_model("predictor"))):
        return
    with job.stop.at_once(f"during the evaluation; {_MADE_AGAIN}"):
        from finetune.evaluation.trained import evaluate_trained  # imported by nobody who does not evaluate

        evaluate_trained(config, job.panel, device=str(job.world.device), say=job.say)
