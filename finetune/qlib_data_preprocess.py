"""Read a Qlib store into training, validation and test panels: the first of the four Qlib commands."""

from pathlib import Path

from finetune.engine.command import command_parser, common_arguments, run_command

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "qlib_csi300.yaml"
EXAMPLES = [
    "python finetune/qlib_data_preprocess.py                                  the documented settings, configs/qlib_csi300.yaml",
    "python finetune/qlib_data_preprocess.py --set data.instrument=csi800 data.qlib_data_path=~/stores/cn_data",
    "python finetune/qlib_data_preprocess.py --export-pickle frames            also train_data.pkl, val_data.pkl, test_data.pkl",
]


def main() -> None:
    """Parse, read, save."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, config=str(DEFAULT), resume=False)
    parser.add_argument(
        "--export-pickle",
        choices=("frames", "samples"),
        help="also write the three pickles of the public code: frames (symbol -> DataFrame) or samples (one dictionary per window)",
    )
    args = parser.parse_args()

    from finetune.config import QlibConfig  # after the arguments: --help need not wait for torch
    from finetune.data.qlib_panels import build_panels, save_panels

    config = QlibConfig.load(args.config, args.overrides)
    folder = Path(config.data.dataset_path)
    panels = build_panels(config.data, say=print)
    save_panels(folder, panels)
    if args.export_pickle:
        from finetune.data.qlib_pickles import write_pickles

        write_pickles(panels, folder, args.export_pickle, config.data)
    print(f"done: panels and manifest.json in {folder}; next: {config.tokenizer_command}")


if __name__ == "__main__":
    run_command(main)
