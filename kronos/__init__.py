"""The Kronos K-line foundation model as a library: tokenizer, predictor, loading and saving of published checkpoints, forecasting."""

from kronos import presets
from kronos.errors import InputError, MissingFileError
from kronos.forecaster import KronosPredictor
from kronos.loading import fingerprint, load_predictor, load_tokenizer, read_arguments, save_module
from kronos.network import Kronos, PredictorLoss, next_token_loss
from kronos.sampling import Sampling
from kronos.tokenizer import KronosTokenizer, TokenizerOutput

__all__ = [
    "InputError",
    "Kronos",
    "KronosPredictor",
    "KronosTokenizer",
    "MissingFileError",
    "PredictorLoss",
    "Sampling",
    "TokenizerOutput",
    "fingerprint",
    "load_predictor",
    "load_tokenizer",
    "next_token_loss",
    "presets",
    "read_arguments",
    "save_module",
]
