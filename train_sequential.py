"""Fine-tune Kronos on a CSV of bars: tokenizer, predictor, then a forecast picture and a report. Without arguments: the demo."""

from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command

DEMO = Path(__file__).resolve().parent / "configs" / "demo.yaml"
EXAMPLES = [
    "python train_sequential.py                                   the demo: real bars, tiny models, a few minutes",
    "python train_sequential.py --config configs/config_ali09988_candle-5min.yaml --set training.batch_size=16",
    "torchrun --standalone --nproc_per_node=8 train_sequential.py --config C.yaml",
    "python train_sequential.py --config C.yaml --resume           go on where it was stopped",
]


def main() -> None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config=str(DEMO))
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out stages whose best_model is there already; refused, with what changed, if it was made with other settings",
    )
    parser.add_argument("--skip-tokenizer", action="store_true", help="train the predictor only")
    parser.add_argument("--skip-basemodel", action="store_true", help="train the tokenizer only")
    args = parser.parse_args()

    from finetune.after_training import draw_forecast, score_forecasts
    from finetune.pipeline import prepared, run_stage
    from finetune_csv.config import CsvConfig  # after the arguments: --help need not wait for torch
    from finetune_csv.pipeline import stages_of

    config = CsvConfig.load(args.config, args.overrides)
    stages = stages_of(config, skip_tokenizer=args.skip_tokenizer, skip_basemodel=args.skip_basemodel)
    with prepared(config, stages, resume=args.resume, skip_existing=args.skip_existing or config.experiment.skip_existing) as job:
        for stage in job.models:
            run_stage(job, stage)
        draw_forecast(job)
        score_forecasts(job)
        job.say(f"done: everything is in {config.model_paths.base_save_path}")


if __name__ == "__main__":
    run_command(main)
