"""Train anew from the weights of another run: those of equal name and shape are taken, heads and columns may differ."""

from finetune.engine.command import run_command
from tft.train_command import train_command

EXAMPLES = [
    "python tft/warm_start_train.py --config configs/tft/model_config.yaml --ckpt runs/.../checkpoints/best",
    "python tft/warm_start_train.py --config configs/tft/model_config.yaml --ckpt best --set lr=3e-4",
]

if __name__ == "__main__":
    run_command(lambda: train_command(__doc__ or "", "warm_start_train", "warm", EXAMPLES))
