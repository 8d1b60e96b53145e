"""Export a tokenizer and its predictor as one bundle: a folder, one .pth file, or programs of torch.export; float32 or int8.

The bundle is loaded again and its forecast compared before it is put in place. Load it with

    from kronos.bundle import load_bundle
    forecaster = load_bundle("X").forecaster()
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kronos.errors import InputError

if TYPE_CHECKING:
    from kronos.bundle import Bundle
    from kronos.exporting import Exported

_EXAMPLES = """examples:
  python -m kronos.export --tokenizer run/tokenizer/best_model --predictor run/basemodel/best_model --out my_bundle --card
  python -m kronos.export --tokenizer NeoQuasar/Kronos-Tokenizer-base --predictor NeoQuasar/Kronos-small --out small.pth --format pth
  python -m kronos.export --tokenizer T --predictor P --out small_int8 --quantize int8
  python -m kronos.export --tokenizer T --predictor P --out programs --format pt2
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m kronos.export --help")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser("python -m kronos.export", description=__doc__, epilog=_EXAMPLES, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("--tokenizer", metavar="DIR", required=True, help="folder or hub id of the tokenizer")
    parser.add_argument("--predictor", metavar="DIR", required=True, help="folder or hub id of the predictor that reads its tokens")
    parser.add_argument("--out", metavar="PATH", type=Path, required=True, help="folder to make, or with --format pth the file")
    parser.add_argument(
        "--format",
        default="folder",
        metavar="FORMAT",
        help="folder (default): safetensors and JSON; pth: one file; pt2: programs of torch.export",
    )
    parser.add_argument("--quantize", metavar="int8", help="int8: dynamic int8 for the linear layers (folder and pth)")
    parser.add_argument("--max-context", metavar="N", type=int, help="bars the model sees at once (default: that of its size, else 512)")
    parser.add_argument("--clip", metavar="Z", type=float, default=5.0, help="bound on z-scores (default: 5)")
    parser.add_argument(
        "--card", action="store_true", help="write a model card from summary.json and evaluation.json beside the saved pair"
    )
    args = parser.parse_args(argv)
    _check_choice("--format", args.format, ("folder", "pth", "pt2"))
    if args.quantize is not None:
        _check_choice("--quantize", args.quantize, ("int8",))
    return args


def _check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    if value == "torchscript":
        raise InputError("--format torchscript: torch.jit is deprecated in this torch; its successor is torch.export, so use --format pt2")
    if value not in choices:
        raise InputError(f"{flag} is {value!r}: choose {' or '.join(choices)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, export, report. Raises InputError for what the user can mend."""
    args = _arguments(argv)
    from kronos.exporting import export_pair  # after the arguments: --help and a typo need not wait for torch

    bundle = _load(args)
    card = _card(args) if args.card else ""
    _report(export_pair(bundle, args.out, format=args.format, quantize=args.quantize, card=card), args.format)


def _load(args: argparse.Namespace) -> Bundle:
    from kronos.bundle import Bundle
    from kronos.loading import load_predictor, load_tokenizer

    if not 0 < args.clip < 1e6:
        raise InputError(f"--clip is {args.clip}: it must be above 0 (5 for published weights)")
    tokenizer, model = load_tokenizer(args.tokenizer), load_predictor(args.predictor)
    context = args.max_context if args.max_context is not None else _context_of(model.config)
    bundle = Bundle(tokenizer, model, context, args.clip)
    bundle.forecaster("cpu")  # checks that the two fit each other
    return bundle


def _context_of(config: Mapping[str, Any]) -> int:
    """The context of the published size that this predictor has, else 512."""
    from kronos.presets import MAX_CONTEXT, PREDICTORS

    sizes = ("n_layers", "d_model", "n_heads", "ff_dim")
    known = [name for name, preset in PREDICTORS.items() if all(preset[key] == config[key] for key in sizes)]
    return MAX_CONTEXT[known[0]] if known else 512


def _card(args: argparse.Namespace) -> str:
    from kronos.card import model_card

    return model_card(args.tokenizer, args.predictor, format=args.format, quantize=args.quantize)


def _report(done: Exported, format: str) -> None:
    unit = "standard deviations of the lookback"
    if done.drift:
        drift = done.drift
        print(f"int8: the next token's distribution moves by {drift.nats:.2g} nats, the mean forecast by {drift.forecast:.2g} {unit}")
        print(f"      (tolerance {drift.tolerance:.2g}; another seed moves it by {drift.another_seed:.2g})")
    print(f"loaded again: the forecast deviates by at most {done.deviation:.2g} {unit} (tolerance {done.tolerance:g})")
    print(f"{done.path}: {format}, {done.size / 1e6:.1f} MB")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """`main` as a command: exit code 0, or 2 with one message for what the user can mend, or 130 after Ctrl-C."""
    try:
        main(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    run()
