"""CSV files as pickled DataFrames, for code that reads those; this project reads them through its allow-list reader only."""

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python tft/csv2Pkl.py bars/*.csv --out pkl/",
    "python tft/csv2Pkl.py bars/ --merge --out full_merged.pkl          one table with columns symbol and period",
]


def main() -> None:
    """Parse, read, write."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    from tft.csv_tables import convert, csv_arguments
    from tft.safe_pickle import write_pickle

    csv_arguments(parser, ".pkl")
    convert(parser.parse_args(), ".pkl", lambda table, target: write_pickle(table.to_pandas(), target))


if __name__ == "__main__":
    run_command(main)
