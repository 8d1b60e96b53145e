"""The peer's predictor training step, as its trainers have it: encode, forward, loss, backward, clip, AdamW. Runs in a child process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from model.kronos import Kronos, KronosTokenizer  # the peer's

from benchmarks.common import timed
from benchmarks.peer import serve

_state: dict[str, Any] = {}


def load(folder: str, threads: int, learning_rate: float, dropout: bool) -> int:
    """Load tokenizer, predictor and batches that ours saved in `folder`; returns the number of batches."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    changes = {} if dropout else dict.fromkeys(("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "token_dropout_p"), 0.0)
    model = Kronos.from_pretrained(f"{folder}/predictor", **changes).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    with np.load(f"{folder}/batches.npz") as saved:
        batches = [(torch.from_numpy(x), torch.from_numpy(stamps).float()) for x, stamps in zip(saved["x"], saved["stamps"], strict=True)]
    _state.update(
        tokenizer=KronosTokenizer.from_pretrained(f"{folder}/tokenizer").eval(), model=model, optimiser=optimiser, batches=batches
    )
    return len(batches)


def _step(x: torch.Tensor, stamps: torch.Tensor, forced: bool) -> float:
    model, optimiser = _state["model"], _state["optimiser"]
    with torch.no_grad():
        s1, s2 = _state["tokenizer"].encode(x, half=True)
    extra = {"use_teacher_forcing": True, "s1_targets": s1[:, 1:]} if forced else {}
    logits = model(s1[:, :-1], s2[:, :-1], stamps[:, :-1, :], **extra)
    loss, _, _ = model.head.compute_loss(logits[0], logits[1], s1[:, 1:], s2[:, 1:])
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=3.0)
    optimiser.step()
    return loss.item()


def curve() -> list[float]:
    """Loss of one step per batch, the coarse token given (teacher forcing), so that nothing is random."""
    return [_step(x, stamps, True) for x, stamps in _state["batches"]]


def steps(n: int, clock: str) -> float:
    """Seconds per step over `n` steps on batches that lie ready (the loader is not counted against the peer)."""
    batches = _state["batches"]
    return timed(lambda: [_step(*batches[i % len(batches)], False) for i in range(n)], n, clock)


if __name__ == "__main__":
    serve({"load": load, "curve": curve, "steps": steps})
