"""Make a model's bars (4h, 1d, ...) of finer ones: the panel that its training reads."""

from finetune.engine.command import command_parser, common_arguments, run_command

EXAMPLES = [
    "python finetune/prepare_kronos_data.py --config model_a_4h",
    "python finetune/prepare_kronos_data.py --config model_b_1d --set timeframe.calendar=XSHG 'timeframe.source=bars/*_5min.csv'",
    "python finetune/prepare_kronos_data.py --config model_a_4h --check 'bars/*_4h.csv'     compare with published 4h bars",
]


def main() -> None:
    """Parse, make, save, check."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, resume=False)
    parser.add_argument("--force", action="store_true", help="make the panel again, also where it was made of the same files")
    parser.add_argument(
        "--check",
        metavar="FILE",
        nargs="+",
        default=[],
        help="files of published bars of the same period: every bar that differs is listed with the reason",
    )
    args = parser.parse_args()

    from finetune.config_manager import ConfigManager  # after the arguments: --help need not wait for torch
    from finetune.data.resampling_source import prepare

    config = ConfigManager().load_config(args.config, args.overrides)
    panel = prepare(config, force=args.force, check=args.check, say=print)
    print(f"done: {panel.n_rows:,} bars of {config.timeframe.period} in {config.panel_folder}; next: {config.tokenizer_command}")
    if not config.is_prepared_from_source:
        print(f"note: data.data_path is {', '.join(config.data.data_path)}, so training reads that and not this panel")


if __name__ == "__main__":
    run_command(main)
