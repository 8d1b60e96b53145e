"""Look at features and targets before training: missing, constant, distribution, drift and correlation, as tables and pictures."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python tft/feature_healthcheck.py outputs/tft/fused                        tables and pictures in outputs/tft/fused_health",
    "python tft/feature_healthcheck.py table.parquet --out health --strict      exit code 2 if a feature is constant or missing",
]
_SHOWN = 30


def main() -> None:
    """Parse, read, report."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("data", help="a panel folder, or a table: .parquet, .pkl or .csv")
    parser.add_argument("--out", metavar="FOLDER", help="where the report goes (default: beside the data, its name and _health)")
    parser.add_argument("--strict", action="store_true", help="end with exit code 2 if a feature is constant or has missing values")
    args = parser.parse_args()

    from kronos.errors import InputError  # after the arguments: --help need not wait
    from tft.health import write_report
    from tft.long_tables import read_table

    frame, noted = read_table(args.data)
    source = Path(args.data)
    out = Path(args.out) if args.out else source.with_name(f"{source.name.split('.')[0]}_health")
    told = write_report(frame, noted.get("kinds", {}), out)
    for line in told[:_SHOWN]:
        print(line)
    if len(told) > _SHOWN:
        print(f"... and {len(told) - _SHOWN} more in {out / 'findings.txt'}")
    print(f"done: {len(frame):,} rows, {len(told)} findings; tables and pictures in {out}")
    bad = [line for line in told if line.startswith(("constant", "missing"))]
    if args.strict and bad:
        raise InputError(
            f"{args.data}: {len(bad)} columns are constant or have missing values, first: {bad[0]}; see {out / 'findings.txt'}"
        )


if __name__ == "__main__":
    run_command(main)
