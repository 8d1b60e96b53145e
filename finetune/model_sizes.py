"""How many parameters a model has, from its constructor arguments alone: a plan for many models must not wait for torch to build them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.engine.places import Stage

_TIMES = 60 + 24 + 7 + 32 + 13  # rows of the embeddings of minute, hour, weekday, day and month


def parameter_count(stage: Stage, arguments: Mapping[str, Any]) -> int:
    """Trainable parameters of a tokenizer or predictor built with these constructor arguments."""
    width, inner = arguments["d_model"], arguments["ff_dim"]
    coarse, fine = arguments["s1_bits"], arguments["s2_bits"]
    attention = 4 * _linear(width, width)
    block = attention + 3 * width * inner + 2 * width  # attention, gated feed-forward without biases, two norms
    if stage == "tokenizer":
        bits = coarse + fine
        blocks = arguments["n_enc_layers"] + arguments["n_dec_layers"] - 2  # one fewer is built on either side
        ends = _linear(arguments["d_in"], width) + _linear(width, arguments["d_in"])
        return ends + blocks * block + _linear(width, bits) + _linear(coarse, width) + _linear(bits, width)
    embedding = (2**coarse + 2**fine) * width + _linear(2 * width, width)
    times = _TIMES * width if arguments["learn_te"] else 0
    heads = _linear(width, 2**coarse) + _linear(width, 2**fine)
    return embedding + times + arguments["n_layers"] * block + width + heads + attention + width


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
