"""How good are the forecasts? Rolling origins over held-out bars, beside baselines, with intervals and calibration."""

import json
from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command

EXAMPLES = [
    "python -m finetune.evaluation --config C.yaml                       the model that train_sequential.py --config C.yaml made",
    "python -m finetune.evaluation --config C.yaml --set evaluation.max_origins=300 evaluation.samples=200",
    "python -m finetune.evaluation --config C.yaml --model NeoQuasar/Kronos-small --tokenizer NeoQuasar/Kronos-Tokenizer-base --out before",
]


def main() -> None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, resume=False)
    parser.add_argument(
        "--model", metavar="DIR", default="", help="predictor: a folder or a hub id (default: the configuration's best model)"
    )
    parser.add_argument("--tokenizer", metavar="DIR", default="", help="tokenizer (default: the one that the configuration's model uses)")
    parser.add_argument("--data", metavar="PATH", nargs="+", help="bars in place of data.data_path, split by the same ratios")
    parser.add_argument("--split", choices=["test", "val"], help="bars to score, in place of evaluation.split")
    parser.add_argument("--out", metavar="DIR", help="folder of the report (default: evaluation/ in the experiment's folder)")
    args = parser.parse_args()

    from finetune.data.config import PipelineConfig  # after the arguments: --help need not wait for torch
    from finetune.engine.config import load_config
    from finetune.evaluation.trained import evaluate_trained, find_pair

    flags = [f"evaluation.split={args.split}"] if args.split else []
    flags += [f"data.data_path={json.dumps(args.data)}"] if args.data else []
    config = load_config(PipelineConfig, args.config, [*args.overrides, *flags])
    model, tokenizer = find_pair(config, args.model, args.tokenizer)  # before reading bars, which may take long
    evaluate_trained(
        config,
        config.data.load(),
        model=model,
        tokenizer=tokenizer,
        out=Path(args.out).expanduser() if args.out else None,
    )


if __name__ == "__main__":
    run_command(main)
