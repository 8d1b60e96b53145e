"""What the commands that train a single stage share: parse, load, train."""

from pkgutil import resolve_name

from finetune.engine.command import command_parser, common_arguments


def train_one(stage: str, description: str, command: str, schema: str, config: str | None = None, *, after: str = "") -> None:
    """Parse the command line and train one stage.

    schema: the configuration's class, such as "finetune_csv.config:CsvConfig". config: the file that holds without --config.
    after: what is called with the job when it is trained, such as "finetune.after_training:draw_forecast".
    Raises InputError for anything wrong with the input.
    """
    given = "" if config else " --config C.yaml"
    parser = command_parser(description, [f"python {command}{given} [--resume] [--set training.batch_size=16]"])
    common_arguments(parser, config=config)
    args = parser.parse_args()

    from finetune.pipeline import prepared, run_stage  # after the arguments: --help need not wait for torch

    with prepared(resolve_name(schema).load(args.config, args.overrides), [stage], resume=args.resume) as job:
        run_stage(job, stage)
        if after:
            resolve_name(after)(job)
