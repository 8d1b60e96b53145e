"""Fine-tune the predictor (base model) alone, on a CSV of bars and the fine-tuned tokenizer."""

from finetune.engine.command import run_command
from finetune.one_stage import train_one

if __name__ == "__main__":
    run_command(lambda: train_one("predictor", __doc__ or "", "finetune_csv/finetune_base_model.py", "finetune_csv.config:CsvConfig"))
