"""Go on with a run from its last checkpoint, in its own folder, as if it had never stopped."""

from finetune.engine.command import run_command
from tft.train_command import train_command

EXAMPLES = [
    "python tft/train_resume.py --ckpt last                                    the newest run, with its own configuration",
    "python tft/train_resume.py --config configs/tft/model_config.yaml --ckpt runs/.../checkpoints/last",
    "python tft/train_resume.py --ckpt runs/... --set max_epochs=20",
]

if __name__ == "__main__":
    run_command(lambda: train_command(__doc__ or "", "train_resume", "resume", EXAMPLES))
