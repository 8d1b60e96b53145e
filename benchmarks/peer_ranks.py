"""One gloo rank of the peer's CSV training loop on the CPU: the model is wrapped for DDP and then called around it (`benchmarks.ranks`)."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from model.kronos import Kronos  # the peer's
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from kronos.presets import predictor_arguments


def train(folder: str, steps: int, batch: int, learning_rate: float, threads: int) -> None:
    """`steps` steps, each rank on windows of its own as a DistributedSampler deals them; saves the weights as peer-<rank>."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = Kronos(**predictor_arguments("mini"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    wrapped = DistributedDataParallel(model, find_unused_parameters=False).train()
    torch.manual_seed(100 + rank)
    for _ in range(steps):
        s1, s2 = torch.randint(1024, (2, batch, 101))
        stamps = torch.zeros(batch, 100, 5)
        logits = wrapped.module(s1[:, :-1], s2[:, :-1], stamps)
        loss, _, _ = wrapped.module.head.compute_loss(logits[0], logits[1], s1[:, 1:], s2[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.module.parameters(), max_norm=3.0)
        optimiser.step()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, f"{folder}/peer-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
