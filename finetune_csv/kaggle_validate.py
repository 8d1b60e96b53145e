"""The checklist before training: is the folder of kaggle_data_preprocess.py whole, are its bars fit to train on, does the config fit it?"""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python finetune_csv/kaggle_validate.py --data kaggle_data",
    "python finetune_csv/kaggle_validate.py --data kaggle_data --config configs/kaggle_config.yaml --set data.lookback_window=90",
]


def main() -> int:
    """Parse, check, show; 2 if anything fails."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--data", metavar="FOLDER", type=Path, required=True, help="the folder that kaggle_data_preprocess.py made")
    parser.add_argument("--lookback", type=int, help="bars a forecast looks back on (the config's, else 256)")
    parser.add_argument("--predict", type=int, help="bars a forecast looks ahead (the config's, else 1)")
    parser.add_argument("--config", metavar="FILE", help="also check this training configuration")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="change keys of --config"
    )
    args = parser.parse_args()

    from finetune.data.kaggle_checks import FAIL, WARN, as_table, check_folder  # after the arguments: --help need not wait

    config, checks = None, []
    if args.config:
        config, check = _config_check(args.config, args.overrides, args.data)
        checks.append(check)
    lookback = args.lookback or (config.data.lookback_window if config else 256)
    predict = args.predict or (config.data.predict_window if config else 1)
    checks = [*check_folder(args.data, lookback, predict), *checks]
    print(as_table(checks))
    failed, warned = (sum(check.status == status for check in checks) for status in (FAIL, WARN))
    print(f"{failed} failed, {warned} warnings: " + ("not ready to train" if failed else "ready to train"))
    return 2 if failed else 0


def _config_check(path: str, overrides: list[str], data: Path) -> tuple:
    """(the configuration or None, the line about it)."""
    from finetune.data.kaggle_checks import FAIL, PASS, WARN, Check
    from finetune.engine.errors import InputError
    from finetune_csv.config import CsvConfig

    try:
        config = CsvConfig.load(path, overrides)
    except InputError as error:
        return None, Check("config", FAIL, str(error))
    wanted, given = (data / "panel").resolve(), [Path(path).expanduser().resolve() for path in config.data.data_path]
    if given != [wanted]:
        return config, Check("config", WARN, f"{path}: data.data_path is {', '.join(config.data.data_path)}, not {data / 'panel'}")
    room = config.data.lookback_window + config.data.predict_window
    if room > config.data.max_context:
        return config, Check("config", WARN, f"{path}: lookback + predict is {room}, more than max_context {config.data.max_context}")
    return config, Check("config", PASS, f"{path}: lookback {config.data.lookback_window}, predict {config.data.predict_window}")


if __name__ == "__main__":
    run_command(main)
