"""The Kronos K-line foundation model as a library: tokenizer, predictor, loading and saving of published checkpoints, forecasting.

Names are imported when first used (PEP 562): a command that only prints its --help, or finds a typo in a configuration,
need not wait seconds for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kronos.distribution import Forecast
    from kronos.errors import InputError, MissingFileError
    from kronos.forecaster import KronosPredictor
    from kronos.loading import fingerprint, load_predictor, load_tokenizer, read_arguments, save_module
    from kronos.network import Kronos, PredictorLoss, next_token_loss
    from kronos.sampling import Sampling
    from kronos.tokenizer import KronosTokenizer, TokenizerOutput

_HOMES = {
    "distribution": ("Forecast",),
    "errors": ("InputError", "MissingFileError"),
    "forecaster": ("KronosPredictor",),
    "loading": ("fingerprint", "load_predictor", "load_tokenizer", "read_arguments", "save_module"),
    "network": ("Kronos", "PredictorLoss", "next_token_loss"),
    "sampling": ("Sampling",),
    "tokenizer": ("KronosTokenizer", "TokenizerOutput"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Forecast",
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
    "read_arguments",
    "save_module",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kronos' has no attribute {name!r}")
    return getattr(import_module(f"kronos.{_HOME_OF[name]}"), name)
