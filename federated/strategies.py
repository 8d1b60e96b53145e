"""How updates become the next global model. Flower's own strategies do the arithmetic; what is theirs to mend is mended here.

    fedavg, fedprox, fedadam, fedyogi   take the mean, which is made first: it may come from a secure round, and get noise
    median, trimmed-mean, krum          take the single updates
Flower 1.41's Krum measures distances as |x|² + |y|² - 2xy in float32: with weights of norm 30 and updates of norm 0.01 that is rounding
noise. Its trimmed mean of fewer than 1 / beta clients trims nobody. Both are mended below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedTrimmedAvg, FedYogi
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from federated.settings import NEED_SINGLE_UPDATES, Settings
from federated.update import ARRAYS, CONFIG, EXAMPLES, METRICS, from_record, to_record

_ALL = dict(
    fraction_train=1.0,  # who is asked is chosen before, from seed and round: Flower's choice is another one in each run
    min_train_nodes=1,
    min_evaluate_nodes=1,
    min_available_nodes=1,
    weighted_by_key=EXAMPLES,
    arrayrecord_key=ARRAYS,
    configrecord_key=CONFIG,
)


class _OneNode:
    """A grid for a strategy that only wants to see the weights a round starts from."""

    def get_node_ids(self) -> list[int]:
        return [1]


class TrimmedMean(FedTrimmedAvg):
    """Cuts off at least one client at each end."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies, beta = list(replies), self.beta
        self.beta = max(beta, 1 / len(replies)) if len(replies) > 2 else beta
        try:
            return super().aggregate_train(server_round, replies)
        finally:
            self.beta = beta


class Krum(FedAvg):
    """The one update that is nearest to its n - f - 2 nearest (Blanchard et al. 2017), distances between changes, in float64."""

    def __init__(self, malicious: int, **same: Any):
        super().__init__(**same)
        self.malicious, self._base = malicious, {}

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self._base = from_record(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        return super().aggregate_train(server_round, [replies[self.nearest([from_record(r.content[ARRAYS]) for r in replies])]])

    def nearest(self, updates: list[dict[str, np.ndarray]]) -> int:
        """Which of the updates Krum picks; the first of equals."""
        changes = [np.concatenate([(u[n].astype(np.float64) - self._base[n]).ravel() for n in sorted(u)]) for u in updates]
        closest = max(1, len(changes) - self.malicious - 2)
        scores = [
            sum(sorted(float(np.square(a - b).sum()) for j, b in enumerate(changes) if j != i)[:closest]) for i, a in enumerate(changes)
        ]
        return int(np.argmin(scores))


def make_strategy(settings: Settings) -> FedAvg:
    """The strategy of the run."""
    if settings.strategy == "median":
        return FedMedian(**_ALL)
    if settings.strategy == "trimmed-mean":
        return TrimmedMean(**_ALL, beta=settings.trim_fraction)
    if settings.strategy == "krum":
        return Krum(settings.malicious_clients, **_ALL)
    if settings.strategy == "fedadam":
        return FedAdam(**_ALL, eta=settings.server_learning_rate)
    if settings.strategy == "fedyogi":
        return FedYogi(**_ALL, eta=settings.server_learning_rate)
    return FedAvg(**_ALL)


def begin(strategy: FedAvg, server_round: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Tell the strategy which weights the round starts from. Its messages are not sent: who is asked is ours to say, from the seed."""
    list(strategy.configure_train(server_round, to_record(arrays), ConfigRecord(), cast(Grid, _OneNode())))


def takes_mean(settings: Settings) -> bool:
    return settings.strategy not in NEED_SINGLE_UPDATES


def mean_of(contents: list[RecordDict]) -> dict[str, np.ndarray]:
    """The mean of the replies' arrays, weighted by their examples: Flower's arithmetic, in the order given."""
    return from_record(aggregate_arrayrecords([RecordDict({ARRAYS: c[ARRAYS], METRICS: c[METRICS]}) for c in contents], EXAMPLES))


def step(strategy: FedAvg, server_round: int, contents: list[RecordDict]) -> dict[str, np.ndarray]:
    """The next global weights, float32, from what the clients (or their mean) came to."""
    replies = [Message(RecordDict({ARRAYS: c[ARRAYS], METRICS: c[METRICS]}), 1, "train") for c in contents]
    arrays, _ = strategy.aggregate_train(server_round, replies)
    assert arrays is not None  # there is always a reply here
    return {name: array.astype(np.float32) for name, array in from_record(arrays).items()}


def as_reply(arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """A mean as the one reply of a round."""
    mean = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return RecordDict({ARRAYS: to_record(mean), METRICS: MetricRecord({EXAMPLES: 1})})


def moments(strategy: FedAvg) -> dict[str, dict[str, torch.Tensor]]:
    """What a strategy remembers from round to round (fedadam, fedyogi), as a checkpoint holds it."""
    kept = {name: getattr(strategy, name, None) for name in ("m_t", "v_t")}
    return {name: {k: torch.from_numpy(np.array(v)) for k, v in value.items()} for name, value in kept.items() if value}


def restore(strategy: FedAvg, saved: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Put `moments` back."""
    for name, value in saved.items():
        setattr(strategy, name, {k: v.numpy() for k, v in value.items()})
