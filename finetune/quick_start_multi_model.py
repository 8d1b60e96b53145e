"""Start here: checks the machine, asks what to train, shows the plan, runs it. --yes asks nothing (for scripts)."""

import sys

from finetune.engine.command import command_parser, run_command
from finetune.multi_model_trainer import arguments, wish_of

EXAMPLES = [
    "python finetune/quick_start_multi_model.py                      asks",
    "python finetune/quick_start_multi_model.py --yes --models model_a_4h --mode sequential --set training.epochs=3",
]


def main() -> int | None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    arguments(parser)
    parser.add_argument("--yes", action="store_true", help="ask nothing: all models, all stages, bars made where they are not there")
    args = parser.parse_args()

    from dataclasses import replace

    from finetune.config_manager import ConfigManager
    from finetune.jobs_machine import checks, this_machine
    from finetune.jobs_questions import confirmed, wish_by_questions
    from finetune.jobs_session import plan_text, run_session, session_of
    from kronos.errors import InputError

    if not args.yes and not sys.stdin.isatty():
        raise InputError("there is no terminal to ask in; say what to train with flags and --yes, e.g. --yes --models model_a_4h")
    machine = this_machine()
    print("this machine")
    for fine, told in checks(machine, "."):
        print(f"  {'ok  ' if fine else 'LOW '} {told}")
    wish = replace(wish_of(args), prepare=True)
    if not args.mode:
        wish = replace(wish, mode="parallel" if max(len(machine.gpus), machine.cores) > 1 else "sequential")
    if not args.yes:
        wish = wish_by_questions(wish, ConfigManager())
    session = session_of(wish, machine=machine)
    print(f"\n{plan_text(session)}\n", flush=True)
    if not session.plan.todo:
        print("all of it is done already")
        return None
    if not args.yes and not session.plan.problems and not confirmed("start"):
        print("nothing was started")
        return None
    return run_session(session)


if __name__ == "__main__":
    run_command(main)
