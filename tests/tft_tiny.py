"""The smallest Temporal Fusion Transformer that still has every part, with its batches; shared by the tests of tft/."""

import math

import numpy as np
import torch

from tft.model import TemporalFusionTransformer, TftSizes
from tft.task import TftTask

SIZES = dict(past=3, known=2, categories=(4, 3), statics=(3, 2), hidden=8, heads=2, lstm_layers=2, dropout=0.0, hidden_continuous=4)
TARGETS = {"target_up": "WeightedBCE", "target_return": "SmoothL1", "target_band": "quantile"}


def sizes(**changes) -> TftSizes:
    return TftSizes(**{**SIZES, "outputs": {"up": 1, "band": 3}, **changes})


def model(seed: int = 0, **changes) -> TemporalFusionTransformer:
    torch.manual_seed(seed)
    return TemporalFusionTransformer(sizes(**changes)).double().eval()


def task(seed: int = 0, targets=TARGETS, **changes) -> TftTask:
    torch.manual_seed(seed)
    arguments = {key: changes.pop(key) for key in ("periods", "uncertainty", "stages", "composite", "facts") if key in changes}
    return TftTask({**SIZES, **changes}, targets, **arguments)


def batch(k=2, n=3, encoder=6, steps=1, of=None, dtype=torch.float64, seed=0) -> dict:
    """k blocks of n windows, each a row later than the one before, for sizes `of`."""
    of, draw = of or sizes(), torch.Generator().manual_seed(seed)
    rows = encoder + steps + n - 1

    def cut(x, length):
        return torch.stack([x[:, i : i + length] for i in range(n)], 1).flatten(0, 1).contiguous()

    def codes(counts, *shape):
        drawn = [torch.randint(0, count, shape, generator=draw) for count in counts]
        return torch.stack(drawn, -1) if drawn else torch.zeros(*shape, 0, dtype=torch.long)

    past, known = (torch.randn(k, rows, width, dtype=dtype, generator=draw) for width in (of.past, of.known))
    categorical, static = codes(of.categories, k, rows), codes(of.statics, k)
    return {
        "past": cut(past, encoder),
        "known": cut(known, encoder + steps),
        "categorical": cut(categorical, encoder + steps),
        "static": static.repeat_interleave(n, 0),
        "row": torch.arange(k * n),
        "period": torch.arange(k * n) % 2,
        "blocks": torch.empty(k, n),
    }


class Source:
    """40 windows for the loop, with labels to learn and some missing: every target of `TARGETS`."""

    def __init__(self, seed: int = 0):
        self.data = plain(batch(40, 1, dtype=torch.float32, seed=seed))
        last = self.data["past"][:, -1]
        self.data["targets"] = torch.stack(((last[:, 0] > 0).float(), last[:, 1], last[:, 2]), 1)
        self.data["targets"][::5, 1] = self.data["targets"][1::3, 0] = math.nan
        self.facts = {"seed": seed}

    def __len__(self) -> int:
        return 40

    def to(self, device: torch.device) -> None: ...

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return {key: value[index] for key, value in self.data.items()}

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def describe(self, index: np.ndarray) -> list[str]:
        return [f"window {i}" for i in index]


def plain(batch: dict) -> dict:
    """The same windows, without the word that they overlap."""
    return {key: value for key, value in batch.items() if key != "blocks"}
