"""Read the competition's train.csv and test.csv into a folder for training: panel, test rows and report. The first Kaggle command."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python finetune_csv/kaggle_data_preprocess.py --train train.csv --test test.csv --out kaggle_data",
    "python finetune_csv/kaggle_data_preprocess.py --train train.csv --test test.csv --out kaggle_data --lookback 90 --max-ffill 0 --force",
]


def main() -> None:
    """Parse, prepare."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--train", metavar="FILE", type=Path, required=True, help="train.csv, or train.csv.gz")
    parser.add_argument("--test", metavar="FILE", type=Path, required=True, help="test.csv: ID, Date")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where panel, test rows and report go, e.g. kaggle_data")
    parser.add_argument("--lookback", type=int, default=256, help="bars a forecast looks back on; tickers too short are left out (256)")
    parser.add_argument("--predict", type=int, default=1, help="bars a forecast looks ahead (1)")
    parser.add_argument(
        "--max-ffill", type=int, default=5, help="repeat the bar before for at most so many empty ones in a row (5; 0: never)"
    )
    parser.add_argument(
        "--splits",
        choices=("auto", "adjust", "keep"),
        default="auto",
        help="auto: adjust for stock splits if the file is not adjusted yet, and say so; adjust: by every split; keep: never",
    )
    parser.add_argument(
        "--timezone", default="America/New_York", help="the exchange's zone, whose midnight begins a bar (America/New_York)"
    )
    parser.add_argument("--skip-truncated", action="store_true", help="drop a last line that was cut short, instead of stopping")
    parser.add_argument("--force", action="store_true", help="make it again although it is there")
    args = parser.parse_args()

    from finetune.data.kaggle_panel import KaggleSettings, prepare  # after the arguments: --help need not wait for Arrow

    settings = KaggleSettings(args.lookback, args.predict, args.max_ffill, args.splits, args.timezone)
    prepare(args.train, args.test, args.out, settings, skip_truncated=args.skip_truncated, force=args.force)
    print(f"done: panel, test.parquet and report.md in {args.out}; next: python finetune_csv/kaggle_validate.py --data {args.out}")


if __name__ == "__main__":
    run_command(main)
