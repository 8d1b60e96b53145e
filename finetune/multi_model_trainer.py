"""Train many models: a graph of (model, stage), one job after another or several at a time, each a process of its own.

--resume leaves out what is done. A stage is done if its result is whole and these settings would make it again: what was made, or begun,
with other settings, bars or weights is made anew, and the plan says what changed (training.tokenizer_epochs: 3 → 5). Settings that only
show, save or speed up may change. See finetune/results.py.
"""

from pathlib import Path

from finetune.engine.command import command_parser, run_command

EXAMPLES = [
    "python finetune/multi_model_trainer.py --dry-run                                   the plan for all models of configs/models",
    "python finetune/multi_model_trainer.py --models model_a_4h model_b_1d --mode parallel --max-workers 2",
    "python finetune/multi_model_trainer.py --models my.yaml --stage predictor --set training.batch_size=16",
    "python finetune/multi_model_trainer.py --models model_a_4h model_b_1d --resume     does only what is not done",
]


def arguments(parser) -> None:
    """The flags that say what to train and how; shared with quick_start_multi_model.py."""
    parser.add_argument("--models", metavar="MODEL", nargs="+", default=[], help="names in configs/models, or paths (default: all of them)")
    parser.add_argument("--stage", choices=["all", "tokenizer", "predictor"], default="all", help="what to train (default: all)")
    parser.add_argument("--mode", choices=["sequential", "parallel"], help="one job at a time, or --max-workers (default: sequential)")
    parser.add_argument("--max-workers", type=int, metavar="N", default=2, help="jobs at a time in parallel mode (default: 2)")
    parser.add_argument("--resume", action="store_true", help="do only what is not done with these settings, from the last checkpoints")
    parser.add_argument("--prepare", action="store_true", help="first make the panels that are not there")
    parser.add_argument("--time-limit-s", type=float, metavar="S", default=0.0, help="longest time of each job (default: none)")
    parser.add_argument("--grace-s", type=float, metavar="S", default=300.0, help="time to save before a job is killed (default: 300)")
    parser.add_argument("--logs", metavar="DIR", default="logs/multi_model_training", help="folder of logs, state and reports")
    told = "change keys of all models, e.g. --set training.epochs=3 training.batch_size=16"
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=told)


def wish_of(args):
    """The arguments as a Wish."""
    from finetune.jobs_session import Wish  # after the arguments: --help need not wait for torch

    return Wish(
        models=tuple(args.models),
        stage=args.stage,
        mode=args.mode or "sequential",
        workers=args.max_workers,
        resume=args.resume,
        prepare=args.prepare,
        overrides=tuple(args.overrides),
        time_limit_s=args.time_limit_s,
        grace_s=args.grace_s,
        logs=Path(args.logs).expanduser(),
    )


def main() -> int | None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan and write nothing")
    args = parser.parse_args()
    wish = wish_of(args)

    from finetune.jobs_session import plan_text, run_session, session_of

    session = session_of(wish)
    if args.dry_run:
        print(plan_text(session))
        return None
    return run_session(session)


if __name__ == "__main__":
    run_command(main)
