"""What train_kaggle.sh asks of the configuration before and after training: KEY=VALUE lines, or with --dry-run what it would cost."""

from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [
    "python finetune_csv/launch.py --config configs/kaggle_config.yaml --processes 8      how it would be started",
    "python finetune_csv/launch.py --config configs/kaggle_config.yaml --dry-run          what it would cost; writes nothing",
]


def main() -> int | None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config=str(ROOT / "configs" / "kaggle_config.yaml"))
    parser.add_argument("--processes", metavar="N", default="1", help="how many, or all: one per GPU")
    parser.add_argument("--dist-backend", choices=["gloo", "nccl"], default="", help="how processes talk to each other")
    parser.add_argument("--skip-tokenizer", action="store_true", help="the predictor only")
    parser.add_argument("--skip-basemodel", action="store_true", help="the tokenizer only")
    parser.add_argument("--skip-existing", action="store_true", help="without stages whose best model is there already")
    parser.add_argument("--dry-run", action="store_true", help="windows, steps, parameters and hours, measured on a few real steps")
    parser.add_argument("--ended", metavar="CODE", type=int, help="torchrun ended with this code: print the true one")
    parser.add_argument("--since", metavar="FILE", type=Path, help="with --ended: made when the training began")
    parser.add_argument("--log", metavar="FILE", type=Path, help="with --ended: what the training printed")
    parser.add_argument("--status", metavar="FILE", type=Path, action="append", default=[], help="with --ended: status.json of a stage")
    args = parser.parse_args()

    import sys

    from finetune.engine.torchrun import true_code
    from finetune_csv.config import CsvConfig
    from finetune_csv.launching import check_data, plan_launch, results
    from finetune_csv.pipeline import stages_of

    if args.ended is not None:
        since = args.since.stat().st_mtime if args.since else 0.0
        print(true_code(args.ended, args.status, since, args.log, lambda text: print(text, file=sys.stderr)))
        return None
    config = CsvConfig.load(args.config, args.overrides)
    stages = stages_of(config, skip_tokenizer=args.skip_tokenizer, skip_basemodel=args.skip_basemodel)
    check_data(config)
    launch = plan_launch(config, args.processes, args.dist_backend)
    if args.dry_run:
        from finetune_csv.rehearsal import rehearse

        print(*launch.notes, sep="\n")
        rehearse(args.config, [*args.overrides, *launch.overrides], stages, launch.processes, skip_existing=args.skip_existing)
        return None
    places = config.model_paths
    lines = [("processes", launch.processes), ("logs", places.logs)]
    lines += [("status", places.folder(stage) / "status.json") for stage in stages]
    lines += [("torchrun", flag) for flag in launch.torchrun] + [("set", one) for one in launch.overrides]
    lines += [("say", note) for note in launch.notes]
    lines += [("done", line) for line in results(config, stages, args.config, args.overrides)]
    print(*(f"{name}={value}" for name, value in lines), sep="\n")
    return None


if __name__ == "__main__":
    run_command(main)
