"""Forecasts of a trained run as a table, the newest bars' among them, and a report of how good they are beside LightGBM."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python tft/predict.py --run runs/train_multi_tft-20251101_1200 --out predictions.parquet",
    "python tft/predict.py --run runs/... --split latest --out now.csv                  the newest bar of each series only, no report",
    "python tft/predict.py --run runs/... --data outputs/tft/fused --split test latest  newer bars of the same columns",
]


def main() -> None:
    """Parse, load, forecast, judge, write."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--run", metavar="FOLDER", required=True, help="a run of train_multi_tft.py, or one of its checkpoints")
    parser.add_argument("--out", metavar="FILE", default="predictions.parquet", help=".parquet or .csv (default: predictions.parquet)")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("val", "test", "latest", "train", "all"),
        default=["val", "test", "latest"],
        help="latest: the newest bar of each series (default: val test latest)",
    )
    parser.add_argument("--calendar", default="", help="latest: exchange whose days follow, e.g. XNYS or 24/7, for series that name none")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's: a panel folder, .parquet, .pkl or .csv")
    parser.add_argument("--checkpoint", metavar="NAME", default="best", help="whose weights, e.g. best-epoch=03 (default: best)")
    parser.add_argument("--baselines", choices=("all", "prior", "none"), default="all", help="prior: without LightGBM; none: no report")
    parser.add_argument("--report", metavar="FOLDER", help="where the report goes (default: beside --out, its name and _report)")
    parser.add_argument("--seed", type=int, default=0, help="of LightGBM and of the resampled intervals")
    args = parser.parse_args()

    from kronos.errors import InputError  # after the arguments: --help need not wait
    from tft.prediction_table import chosen_sources, forecast, prediction_table, write_table
    from tft.report_run import report_split
    from tft.report_text import verdicts, write_report
    from tft.training import load_run

    if not args.out.endswith((".parquet", ".csv")):
        raise InputError(f"--out {args.out}: end the name with .parquet or .csv")
    prepared = load_run(args.run, args.data, checkpoint=args.checkpoint)
    sources = chosen_sources(prepared, args.split, args.calendar)
    outputs = forecast(prepared, sources)
    table = prediction_table(prepared, outputs)
    write_table(table, Path(args.out))
    counts = ", ".join(f"{len(found):,} {name}" for name, found in outputs.items())
    print(f"{args.out}: {len(table):,} rows, {len(prepared.task.losses.losses)} targets of {counts} windows")
    if args.baselines == "none":
        return
    found = report_split(prepared, Path(args.run), sources, outputs, with_lightgbm=args.baselines == "all", seed=args.seed)
    if found is None:
        print("no report: none of the splits has known outcomes; name val or test")
        return
    print("\n".join(verdicts(found)))
    out = Path(args.out)
    folder = Path(args.report) if args.report else out.with_name(f"{out.name.rsplit('.', 1)[0]}_report")
    print("report: " + ", ".join(map(str, write_report(found, folder, Path(args.run).name))))


if __name__ == "__main__":
    run_command(main)
