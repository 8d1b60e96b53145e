"""Train a Temporal Fusion Transformer on fused bars of several periods and targets."""

from finetune.engine.command import run_command
from tft.train_command import train_command

EXAMPLES = [
    "python tft/train_multi_tft.py --config configs/tft/demo_model.yaml",
    "python tft/train_multi_tft.py --config configs/tft/model_config.yaml --set max_epochs=3 focus_period=1h",
    "torchrun --nproc_per_node=2 tft/train_multi_tft.py --config configs/tft/model_config.yaml",
]

if __name__ == "__main__":
    run_command(lambda: train_command(__doc__ or "", "train_multi_tft", "new", EXAMPLES))
