"""The file to hand in: ID and Pred (0 or 1) for every row of test.csv, in its order."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = ["python finetune_csv/generate_submission.py --predictions predictions.csv --test test.csv --out submission.csv"]


def main() -> None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--predictions", metavar="FILE", default="predictions.csv", help="what kaggle_inference.py wrote")
    parser.add_argument("--test", metavar="FILE", required=True, help="the competition's test.csv")
    parser.add_argument("--out", metavar="FILE", default="submission.csv", help="the file to write (default: submission.csv)")
    args = parser.parse_args()

    from finetune_csv.submission import make_submission

    make_submission(*(Path(path).expanduser() for path in (args.predictions, args.test, args.out)))


if __name__ == "__main__":
    run_command(main)
