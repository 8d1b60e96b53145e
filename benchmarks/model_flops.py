"""Floating-point operations of a predictor's training step, by formula, and what a GPU could do in the same time.

Per token forward: 2 for each weight of a matrix product (embedding tables are looked up, not multiplied), plus attention: scores and mixing
are 2 x 2 x d x (keys seen), which is (T + 1) / 2 on average where attention is causal. Backward is twice forward, so a step is 3 x.
The tokenizer's encoding is not in it: its tokens are cached before the timed steps. The model's FLOPs are counted as published, whatever
an implementation saves; recomputed activations would not count either.
"""

from __future__ import annotations

import re
from typing import Any

# dense bf16 peak in TFLOP/s from the vendor's data sheets, without sparsity; the first name that the device's has as whole words counts
PEAK_TFLOPS: dict[str, float | None] = {
    "MIG": None,  # a part of a GPU
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": None,  # another card than the one below
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "L4": 121.0,
}


def weights_in_products(sizes: dict[str, Any]) -> int:
    """Weights that every token is multiplied with. sizes: a predictor's arguments."""
    d, layers, ff = sizes["d_model"], sizes["n_layers"], sizes["ff_dim"]
    block = 4 * d * d + 3 * d * ff  # queries, keys, values, output; the gated feed-forward
    fusion, dependency = 2 * d * d, 4 * d * d
    heads = d * (2 ** sizes["s1_bits"] + 2 ** sizes["s2_bits"])
    return layers * block + fusion + dependency + heads


def flops_per_token(sizes: dict[str, Any], length: int) -> float:
    """Of training (forward and backward) on sequences of `length` tokens."""
    attentions = sizes["n_layers"] + 1  # each block's, and the dependency layer's
    attention = attentions * 4 * sizes["d_model"] * (length + 1) / 2
    return 3 * (2 * weights_in_products(sizes) + attention)


def peak_tflops(device_name: str) -> float | None:
    """None for a device that is not in the table, or whose peak is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)
