"""Training runs in one table: script, epochs, the best one, metrics, wall time, and what weights each began with."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python tft/stage_summary.py runs/*",
    "python tft/stage_summary.py runs/train_multi_tft-* --out summary      also summary/runs.md and summary/runs.csv",
]


def main() -> None:
    """Parse, read, show, write."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders; what is none is left out and named")
    parser.add_argument("--out", metavar="FOLDER", default="stage_summary", help="for runs.md and runs.csv (default: stage_summary)")
    args = parser.parse_args()

    from finetune.evaluation.run_comparison import as_text  # after the arguments: --help need not wait
    from tft.report_runs import read_all, table, write_tables

    rows = read_all(args.runs)
    print(as_text(table(rows)))
    print(*(f"written: {path}" for path in write_tables(rows, Path(args.out))), sep="\n")


if __name__ == "__main__":
    run_command(main)
