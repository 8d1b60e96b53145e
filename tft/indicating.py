"""Bars in, features out: indicators, anomaly scores and rolling normalisation. The first of the three commands that make TFT data."""

from finetune.engine.command import command_parser, common_arguments, run_command, to_paste

EXAMPLES = [
    "python tft/indicating.py --config configs/tft/demo_data.yaml",
    "python tft/indicating.py --config configs/tft/data.yaml --set data.data_path='bars/*.csv' features.normalise=zscore",
    "python tft/indicating.py --list                                              every feature with its parameters",
]


def main() -> None:
    """Parse, load, compute, save."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config="", resume=False)
    parser.add_argument("--list", action="store_true", help="print every feature, its parameters and what it means, and stop")
    args = parser.parse_args()

    from kronos.errors import InputError  # after the arguments: --help need not wait

    if args.list:
        from tft.describe import feature_table

        print(feature_table())
        return
    if not args.config:
        raise InputError("--config is missing; give e.g. --config configs/tft/demo_data.yaml")

    from finetune.data.load import summary
    from finetune.engine.config import load_config
    from tft.data_config import TftDataConfig
    from tft.features import calendar_of, feature_panel, plan
    from tft.rows import save_with_manifest

    config = load_config(TftDataConfig, args.config, args.overrides)
    if not any(isinstance(value, dict) for line in config.features.use if isinstance(line, dict) for value in line.values()):
        plan(config.features.use, normalise="none")  # a mistake in a line is told before any bar is read
    panel = feature_panel(config.data.load(print), config.features, print)
    save_with_manifest(panel, config.output.features, {"made_by": "indicating.py", "calendar": calendar_of(panel, config.features)})
    print(summary(panel))
    done = f"done: {len(panel.columns) - 6} features in {config.output.features}"
    print(f"{done}; next: {to_paste('tft/target_config.py', '--config', args.config)}")


if __name__ == "__main__":
    run_command(main)
