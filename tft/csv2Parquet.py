"""CSV files as parquet: a tenth of the size, read many times faster, with types."""

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python tft/csv2Parquet.py bars/*.csv --out parquet/",
    "python tft/csv2Parquet.py bars/ --merge --out all.parquet          one table with columns symbol and period",
]


def main() -> None:
    """Parse, read, write."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    from tft.csv_tables import convert, csv_arguments

    csv_arguments(parser, ".parquet")
    args = parser.parse_args()

    import pyarrow.parquet

    from kronos.files import atomic_path

    def write(table, target) -> None:
        with atomic_path(target) as temporary:
            pyarrow.parquet.write_table(table, temporary)

    convert(args, ".parquet", write)


if __name__ == "__main__":
    run_command(main)
