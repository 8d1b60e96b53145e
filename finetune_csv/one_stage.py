"""What the two single-stage commands share: parse, load, train."""

from finetune.engine.command import command_parser, common_arguments


def train_one(stage: str, description: str, command: str) -> None:
    """Parse the command line and train one stage. Raises InputError for anything wrong with the input."""
    parser = command_parser(description, [f"python {command} --config C.yaml [--resume] [--set training.batch_size=16]"])
    common_arguments(parser)
    args = parser.parse_args()

    from finetune_csv.config import CsvConfig  # after the arguments: --help need not wait for torch
    from finetune_csv.pipeline import prepared, run_stage

    with prepared(CsvConfig.load(args.config, args.overrides), [stage], resume=args.resume) as job:
        run_stage(job, stage)
