"""What the command lines of the three commands that train have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from finetune.engine.command import command_parser, common_arguments

How = Literal["new", "resume", "warm"]
_CKPT = {
    "resume": "checkpoint to go on from: last, or a path such as runs/.../checkpoints/last (default: last)",
    "warm": "checkpoint whose weights are taken: best, last, or a path such as runs/.../checkpoints/best",
}


def train_command(description: str, script: str, how: How, examples: Sequence[str]) -> None:
    """Parse the command line and train. Raises InputError for anything wrong with the input."""
    parser = command_parser(description, examples)
    common_arguments(parser, config="" if how == "resume" else None, resume=False)
    if how != "new":
        parser.add_argument("--ckpt", metavar="CHECKPOINT", default="last" if how == "resume" else "", help=_CKPT[how])
    args = parser.parse_args()

    from finetune.engine.config import load_config  # after the arguments: --help need not wait for torch
    from kronos.errors import InputError
    from tft.config import TftConfig
    from tft.run_folder import CONFIG_NAME, find_run
    from tft.train_run import train

    path, ckpt = args.config, getattr(args, "ckpt", "")
    if how == "resume" and not path:
        path = str(find_run(ckpt, load_config(TftConfig, None, args.overrides).output_dir) / "configs" / CONFIG_NAME)
    config = load_config(TftConfig, path, args.overrides)
    if how == "warm" and not (ckpt or config.warm_start_ckpt):
        raise InputError("--ckpt is missing; name the checkpoint whose weights are taken, such as runs/.../checkpoints/best")
    resume = ckpt if how == "resume" else config.resume_ckpt if how == "new" else ""
    warm = (ckpt or config.warm_start_ckpt) if how == "warm" else config.warm_start_ckpt if how == "new" else ""
    train(config, script, resume=resume, warm=warm)
