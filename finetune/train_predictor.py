"""Fine-tune the predictor on the fine-tuned tokenizer's tokens: the third of the four Qlib commands."""

from pathlib import Path

from finetune.engine.command import run_command
from finetune.one_stage import train_one

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "qlib_csi300.yaml"

if __name__ == "__main__":
    run_command(lambda: train_one("predictor", __doc__ or "", "finetune/train_predictor.py", "finetune.config:QlibConfig", str(DEFAULT)))
