"""What test_tft_ranks.py runs on each rank: python tft_rank_worker.py CONFIG [key=value ...] — a training run as the command does it."""

import sys

import torch

from finetune.engine.config import load_config
from tft.config import TftConfig
from tft.train_run import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    train(load_config(TftConfig, sys.argv[1], sys.argv[2:], {}), "ranks")
