"""Features and targets in, one fused panel out: slower periods and the market carried down without look-ahead. The third of the three."""

from finetune.engine.command import command_parser, common_arguments, run_command, to_paste

EXAMPLES = [
    "python tft/data_fusion.py --config configs/tft/demo_data.yaml",
    "python tft/data_fusion.py --config configs/tft/data.yaml --parquet outputs/fused.parquet",
]


def main() -> None:
    """Parse, load, fuse, save."""
    parser = command_parser(__doc__ or "", EXAMPLES)
    common_arguments(parser, resume=False)
    parser.add_argument("--parquet", metavar="FILE", help="also write the long table there (output.parquet is the same)")
    args = parser.parse_args()

    from finetune.data.load import summary  # after the arguments: --help need not wait
    from finetune.engine.config import load_config
    from tft.data_config import TftDataConfig
    from tft.fusion import fuse
    from tft.long_tables import write_parquet
    from tft.rows import open_with_manifest, save_with_manifest

    config = load_config(TftDataConfig, args.config, args.overrides)
    panel, manifest = open_with_manifest(config.output.targets, to_paste("tft/target_config.py", "--config", args.config))
    fused = fuse(panel, config.fusion, constant=config.features.constant, say=print)
    manifest = {**manifest, "made_by": "data_fusion.py"}
    save_with_manifest(fused, config.output.fused, manifest)
    print(summary(fused))
    parquet = args.parquet or config.output.parquet
    if parquet:
        write_parquet(fused, parquet, manifest)
        print(f"long table: {parquet}")
    kinds = [column.kind for column in fused.columns]
    shares = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("past", "known", "categorical"))
    print(f"done: {len(kinds)} columns ({shares}), {len(fused.target_names)} targets in {config.output.fused}")


if __name__ == "__main__":
    run_command(main)
