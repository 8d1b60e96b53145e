"""What a trained run looks at: importance of variables overall, over time, by symbol and by period; attention by lag. Data and pictures."""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python tft/interpret.py --run runs/train_multi_tft-20251101_1200",
    "python tft/interpret.py --run runs/... --split train --windows 20000 --out looked_at",
]


def main() -> None:
    """Parse, load, look, write."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--run", metavar="FOLDER", required=True, help="a run of train_multi_tft.py, or one of its checkpoints")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="whose windows (default: val)")
    parser.add_argument("--windows", type=int, default=4096, help="how many, evenly spread over the split (default: 4096)")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's: a panel folder, .parquet, .pkl or .csv")
    parser.add_argument("--checkpoint", metavar="NAME", default="best", help="whose weights, e.g. best-epoch=03 (default: best)")
    parser.add_argument("--out", metavar="FOLDER", help="where tables and pictures go (default: the run's folder interpretation)")
    args = parser.parse_args()

    import numpy as np

    from kronos.errors import InputError  # after the arguments: --help need not wait
    from tft.interpret_run import look_at, write_interpretation
    from tft.run_folder import run_of
    from tft.training import load_run

    if args.windows < 1:
        raise InputError(f"--windows {args.windows}: give a whole number from 1")
    prepared = load_run(args.run, args.data, checkpoint=args.checkpoint)
    looked = look_at(prepared, args.split, args.windows)
    folder = Path(args.out) if args.out else run_of(Path(args.run)) / "interpretation"
    written = write_interpretation(looked, np.asarray(prepared.panel.times)[looked.row], folder, args.split)
    print(f"{len(looked.row):,} windows of {args.split}")
    for part, weights in looked.weights.items():
        order = weights.mean(0).argsort()[::-1][:5]
        print(f"{part}: " + ", ".join(f"{looked.names[part][k]} {100 * weights[:, k].mean():.1f} %" for k in order))
    print(f"done: {len(written)} files in {folder}")


if __name__ == "__main__":
    run_command(main)
