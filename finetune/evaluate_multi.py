"""How good are a registered model's forecasts? Its evaluation on held-out bars, and the macro report where `report.macro` asks for it."""

from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command


def main() -> None:
    parser = command_parser(__doc__ or "", ["python finetune/evaluate_multi.py --config model_b_1d --set evaluation.max_origins=300"])
    common_arguments(parser, resume=False)
    args = parser.parse_args()

    from finetune.evaluation.macro import macro_report  # after the arguments: --help need not wait for torch
    from finetune.evaluation.trained import evaluate_trained, find_pair, trained_forecaster
    from finetune.multi_config import ModelConfig

    config = ModelConfig.load(args.config, args.overrides)
    find_pair(config)  # before reading bars
    panel = config.data.load()
    folder = Path(config.model_paths.base_save_path, "evaluation")
    if config.report.macro:  # first: evaluation.json then tells that all of it is done
        macro_report(config, panel, trained_forecaster(config), folder)
    if config.evaluation.enabled:
        evaluate_trained(config, panel, out=folder)


if __name__ == "__main__":
    run_command(main)
