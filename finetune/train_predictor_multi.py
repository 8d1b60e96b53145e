"""Fine-tune a registered model's predictor on its fine-tuned tokenizer's tokens, and draw a forecast."""

from finetune.engine.command import run_command
from finetune.one_stage import train_one

if __name__ == "__main__":
    run_command(
        lambda: train_one(
            "predictor",
            __doc__ or "",
            "finetune/train_predictor_multi.py",
            "finetune.multi_config:ModelConfig",
            after="finetune.after_training:draw_forecast",
        )
    )
