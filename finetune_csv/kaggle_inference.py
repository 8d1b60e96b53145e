"""Probability of a rise for every row of test.csv, with scores on held-out bars beside it. Continues where it was stopped."""

from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [
    "python finetune_csv/kaggle_inference.py --data kaggle_data --out predictions.csv",
    "python finetune_csv/kaggle_inference.py --data kaggle_data --out p30.csv --horizon 30 --samples 64",
    "python finetune_csv/kaggle_inference.py --model NeoQuasar/Kronos-mini --tokenizer NeoQuasar/Kronos-Tokenizer-2k --out before.csv",
]


def main() -> None:
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config=str(ROOT / "configs" / "kaggle_config.yaml"), resume=False)
    parser.add_argument("--data", metavar="DIR", default="kaggle_data", help="folder that preprocessing made (default: kaggle_data)")
    parser.add_argument("--out", metavar="FILE", default="predictions.csv", help="ID, prob_up, Pred, reason (default: predictions.csv)")
    parser.add_argument("--model", metavar="DIR", default="", help="predictor (default: the one that the configuration trains)")
    parser.add_argument("--tokenizer", metavar="DIR", default="", help="tokenizer (default: the one that the configuration's model uses)")
    parser.add_argument("--horizon", metavar="N", type=int, default=0, help="bars ahead (default: data.predict_window)")
    parser.add_argument("--samples", metavar="N", type=int, default=0, help="sample paths per row (default: evaluation.samples)")
    args = parser.parse_args()

    import json

    from finetune_csv.config import CsvConfig
    from finetune_csv.rise_command import infer

    flags = [f"data.data_path={json.dumps(str(Path(args.data).expanduser() / 'panel'))}"]
    flags += [f"data.predict_window={args.horizon}"] if args.horizon else []
    flags += [f"evaluation.samples={args.samples}"] if args.samples else []
    config = CsvConfig.load(args.config, [*args.overrides, *flags])
    infer(config, Path(args.data).expanduser(), Path(args.out).expanduser(), model=args.model, tokenizer=args.tokenizer)


if __name__ == "__main__":
    run_command(main)
