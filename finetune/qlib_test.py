"""Forecast every day of the test range, turn forecasts into signals and trade them in Qlib: the last of the four Qlib commands."""

import re
from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command
from kronos.errors import InputError

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "qlib_csi300.yaml"
EXAMPLES = [
    "python finetune/qlib_test.py --device cuda:0",
    "python finetune/qlib_test.py --config configs/qlib_crypto_daily.yaml --device cpu",
    "python finetune/qlib_test.py --set backtest.signal=mean backtest.n_symbol_hold=30",
    "python finetune/qlib_test.py --folds 4                                   train, validate and backtest four times, walking forward",
]


def on_device(text: str) -> list[str]:
    """The keys that --device sets. Raises InputError for anything but auto, cpu, mps, cuda and cuda:N."""
    found = re.fullmatch(r"(auto|cpu|mps|cuda)(?::(\d+))?", text)
    if not found or (found[2] and found[1] != "cuda"):
        raise InputError(f"--device {text}: give cpu, cuda, cuda:0, mps or auto")
    return [f"device.device={found[1]}", *([f"device.device_id={found[2]}"] if found[2] else [])]


def main() -> None:
    """Parse, check, run."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config=str(DEFAULT), resume=False)
    parser.add_argument("--device", default="", help="where to forecast: cpu, cuda:0, mps, auto (default: the configuration's)")
    parser.add_argument("--folds", type=int, default=0, metavar="N", help="walk forward: N times train, validate and backtest")
    args = parser.parse_args()
    overrides = args.overrides + (on_device(args.device) if args.device else [])

    from finetune.config import QlibConfig  # after the arguments: --help need not wait for torch
    from finetune.qlib_study import study, walk_forward

    config = QlibConfig.load(args.config, overrides)
    if args.folds:
        walk_forward(config, args.folds)
    else:
        study(config)


if __name__ == "__main__":
    run_command(main)
