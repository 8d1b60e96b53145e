"""Experiments side by side: one table of what differs and what came of it, and one picture of their validation losses."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python finetune_csv/compare_runs.py kaggle_finetuned/kaggle_stock_trends kaggle_finetuned/kaggle_stock_trends_stage3",
    "python finetune_csv/compare_runs.py finetuned/*/basemodel --out comparison",
]


def main() -> None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="an experiment's folder (all its stages), or a stage's, e.g. .../basemodel")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="folder for runs.md and runs.png (default: comparison)")
    args = parser.parse_args()

    from finetune.evaluation.run_comparison import as_text, comparison, read_runs, write_comparison

    runs = read_runs([Path(run).expanduser() for run in args.runs])
    print(as_text(comparison(runs)))
    print(*(f"written: {path}" for path in write_comparison(runs, Path(args.out).expanduser())), sep="\n")


if __name__ == "__main__":
    run_command(main)
