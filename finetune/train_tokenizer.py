"""Fine-tune the tokenizer on the panels that qlib_data_preprocess.py made: the second of the four Qlib commands."""

from pathlib import Path

from finetune.engine.command import run_command
from finetune.one_stage import train_one

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "qlib_csi300.yaml"

if __name__ == "__main__":
    run_command(lambda: train_one("tokenizer", __doc__ or "", "finetune/train_tokenizer.py", "finetune.config:QlibConfig", str(DEFAULT)))
