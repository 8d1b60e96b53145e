"""Constructor arguments of the published sizes (arXiv 2508.02739), and the hub ids and contexts that go with them."""

import re
from typing import Any

from kronos.errors import InputError

_TOKENIZER = {
    "d_in": 6,
    "d_model": 256,
    "n_heads": 4,
    "ff_dim": 512,
    "n_enc_layers": 4,
    "n_dec_layers": 4,
    "ffn_dropout_p": 0.0,
    "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
    "s1_bits": 10,
    "s2_bits": 10,
    "beta": 0.05,
    "gamma0": 1.0,
    "gamma": 1.1,
    "zeta": 0.05,
}

TOKENIZERS: dict[str, dict[str, Any]] = {"base": {**_TOKENIZER, "group_size": 4}, "2k": {**_TOKENIZER, "group_size": 5}}


def _predictor(n_layers: int, d_model: int, n_heads: int, ff_dim: int, dropouts: tuple[float, float, float, float]) -> dict[str, Any]:
    names = ("ffn_dropout_p", "resid_dropout_p", "attn_dropout_p", "token_dropout_p")
    sizes = {"s1_bits": 10, "s2_bits": 10, "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "ff_dim": ff_dim}
    return {**sizes, **dict(zip(names, dropouts, strict=True)), "learn_te": True}


PREDICTORS: dict[str, dict[str, Any]] = {
    "mini": _predictor(4, 256, 4, 512, (0.2, 0.2, 0.0, 0.0)),
    "small": _predictor(8, 512, 8, 1024, (0.25, 0.25, 0.1, 0.1)),
    "base": _predictor(12, 832, 16, 2048, (0.2, 0.2, 0.0, 0.0)),
    "large": _predictor(18, 1664, 32, 3072, (0.0, 0.0, 0.0, 0.0)),  # its weights were never published
}

MAX_CONTEXT = {"mini": 2048, "small": 512, "base": 512, "large": 512}  # bars
TOKENIZER_OF = {"mini": "2k", "small": "base", "base": "base", "large": "base"}
HUB_IDS = {
    "tokenizer": {"base": "NeoQuasar/Kronos-Tokenizer-base", "2k": "NeoQuasar/Kronos-Tokenizer-2k"},
    "predictor": {"mini": "NeoQuasar/Kronos-mini", "small": "NeoQuasar/Kronos-small", "base": "NeoQuasar/Kronos-base"},
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def may_be_hub_id(name: str) -> bool:
    """Whether a name that is no folder could be a hub repository's: owner/name."""
    return bool(_HUB_ID.fullmatch(name))


def tokenizer_arguments(size: str) -> dict[str, Any]:
    """Constructor arguments of the tokenizer `size` ("base" or "2k"); raises InputError for any other name."""
    return _pick(TOKENIZERS, size, "tokenizer")


def predictor_arguments(size: str) -> dict[str, Any]:
    """Constructor arguments of the predictor `size` ("mini", "small", "base", "large"); raises InputError for any other name."""
    return _pick(PREDICTORS, size, "predictor")


def _pick(table: dict[str, dict[str, Any]], size: str, what: str) -> dict[str, Any]:
    if size not in table:
        raise InputError(f"there is no {what} preset {size!r}: choose one of {', '.join(table)}")
    return dict(table[size])
