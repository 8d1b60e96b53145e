"""The Kronos K-line foundation model as a library: tokenizer, predictor, loading and saving of published checkpoints, forecasting."""

from kronos import presets
from kronos.loading import fingerprint, load_predictor, load_tokenizer, save_module
from kronos.network import Kronos, PredictorLoss, next_token_loss
from kronos.tokenizer import KronosTokenizer, TokenizerOutput

__all__ = [
    "Kronos",
    "KronosTokenizer",
    "PredictorLoss",
    "TokenizerOutput",
    "fingerprint",
    "load_predictor",
    "load_tokenizer",
    "next_token_loss",
    "presets",
    "save_module",
]
