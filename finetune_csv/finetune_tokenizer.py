"""Fine-tune the tokenizer alone, on a CSV of bars."""

from finetune.engine.command import run_command
from finetune.one_stage import train_one

if __name__ == "__main__":
    run_command(lambda: train_one("tokenizer", __doc__ or "", "finetune_csv/finetune_tokenizer.py", "finetune_csv.config:CsvConfig"))
