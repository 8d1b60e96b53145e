"""The smallest Kronos that still has every part, with its windows; shared by tests of the loop."""

from __future__ import annotations

import torch
from bars import make_panel

from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.settings import FitSettings
from finetune.engine.signals import StopRequest
from finetune.engine.splits import make_splits
from finetune.engine.windows import Splits
from kronos import Kronos, KronosTokenizer

LOOKBACK, HORIZON = 12, 4
TOKENIZER = dict(
    d_in=6,
    d_model=16,
    n_heads=2,
    ff_dim=32,
    n_enc_layers=2,
    n_dec_layers=2,
    ffn_dropout_p=0.1,
    attn_dropout_p=0.1,
    resid_dropout_p=0.1,
    s1_bits=4,
    s2_bits=4,
    beta=0.05,
    gamma0=1.0,
    gamma=1.1,
    zeta=0.05,
    group_size=4,
)
PREDICTOR = dict(
    s1_bits=4,
    s2_bits=4,
    n_layers=1,
    d_model=16,
    n_heads=2,
    ff_dim=32,
    ffn_dropout_p=0.1,
    attn_dropout_p=0.1,
    resid_dropout_p=0.1,
    token_dropout_p=0.1,
    learn_te=True,
)


def settings(**changes) -> FitSettings:
    return FitSettings(**{**dict(epochs=3, batch_size=8, learning_rate=2e-3, clip_norm=1.0, log_interval=3, num_workers=0), **changes})


def tokenizer(seed: int = 0) -> KronosTokenizer:
    torch.manual_seed(seed)
    return KronosTokenizer(**TOKENIZER)


def predictor(seed: int = 1) -> Kronos:
    torch.manual_seed(seed)
    return Kronos(**PREDICTOR)


def tokenizer_task() -> TokenizerTask:
    return TokenizerTask(tokenizer(), LOOKBACK)


def predictor_task() -> PredictorTask:
    return PredictorTask(predictor(), tokenizer(), LOOKBACK)


def windows(n_series: int = 2, n_rows: int = 60, ratios=(0.7, 0.3, 0.0)) -> Splits:
    return make_splits(make_panel(n_series, n_rows), LOOKBACK, HORIZON, ratios, say=lambda _: None)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class StopAfter(StopRequest):
    """Asks to stop at the n-th time the loop looks, as a signal at that moment would."""

    def __init__(self, looks: int):
        self._left = looks
        super().__init__()
        self.name = "SIGTERM"

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0

    @requested.setter
    def requested(self, value: bool) -> None:
        return None
