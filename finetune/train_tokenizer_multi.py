"""Fine-tune a registered model's tokenizer on the bars that prepare_kronos_data.py made."""

from finetune.engine.command import run_command
from finetune.one_stage import train_one

if __name__ == "__main__":
    run_command(lambda: train_one("tokenizer", __doc__ or "", "finetune/train_tokenizer_multi.py", "finetune.multi_config:ModelConfig"))
