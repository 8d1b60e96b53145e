"""Fine-tune the tokenizer alone, on a CSV of bars."""

from finetune.engine.command import command_parser, common_arguments, run_command


def main() -> None:
    parser = command_parser(
        __doc__ or "", ["python finetune_csv/finetune_tokenizer.py --config C.yaml [--resume] [--set training.batch_size=16]"]
    )
    common_arguments(parser)
    args = parser.parse_args()

    from finetune_csv.config import CsvConfig  # after the arguments: --help need not wait for torch
    from finetune_csv.pipeline import prepared, run_stage

    with prepared(CsvConfig.load(args.config, args.overrides), ["tokenizer"], resume=args.resume) as job:
        run_stage(job, "tokenizer")


if __name__ == "__main__":
    run_command(main)
