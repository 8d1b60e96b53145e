"""Features in, features and targets out: what the bars after each row do. The second of the three commands that make TFT data."""

from finetune.engine.command import command_parser, common_arguments, run_command, to_paste

EXAMPLES = [
    "python tft/target_config.py --config configs/tft/demo_data.yaml",
    "python tft/target_config.py --config configs/tft/data.yaml --set targets.horizon='{1h: 24, 4h: 6, 1d: 5}'",
    "python tft/target_config.py --list                                              every target with its formula",
]


def main() -> None:
    """Parse, load, compute, save."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config="", resume=False)
    parser.add_argument("--list", action="store_true", help="print every target, its parameters and its formula, and stop")
    args = parser.parse_args()

    from kronos.errors import InputError  # after the arguments: --help need not wait

    if args.list:
        from tft.describe import target_table

        print(target_table())
        return
    if not args.config:
        raise InputError("--config is missing; give e.g. --config configs/tft/demo_data.yaml")

    from finetune.engine.config import load_config
    from tft.data_config import TftDataConfig
    from tft.rows import open_with_manifest, save_with_manifest
    from tft.target_panel import target_panel

    config = load_config(TftDataConfig, args.config, args.overrides)
    features, noted = open_with_manifest(config.output.features, to_paste("tft/indicating.py", "--config", args.config))
    panel, manifest = target_panel(features, config.targets, print)
    save_with_manifest(panel, config.output.targets, {**noted, **manifest, "made_by": "target_config.py"})
    until = f"rows whose future had closed by {manifest['train_until']}"
    print(f"thresholds come from {config.targets.thresholds or until}")
    done = f"done: {len(panel.target_names)} targets in {config.output.targets}"
    print(f"{done}; next: {to_paste('tft/data_fusion.py', '--config', args.config)}")


if __name__ == "__main__":
    run_command(main)
