"""Secure rounds in one process, for the tests: clients as plain functions (`Room`), or behind Flower's Message API (`TinyGrid`).

Both lose clients on request: lost={"share_keys": {3}} leaves client 3's reply to that stage, and all later ones, unanswered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from federated.secure import member
from federated.secure.cohort import Cohort
from federated.secure.encoding import Sum, decode, encode, word_count
from federated.secure.errors import Refused
from federated.secure.settings import SecureSettings
from federated.secure.terms import AGREE, CHECK_SHARES, MASKED_INPUT, SETUP, SHARE_KEYS, STAGES, UNMASK, Terms
from federated.update import Update

__all__ = [
    "AGREE",
    "CHECK_SHARES",
    "MASKED_INPUT",
    "SETUP",
    "SHARE_KEYS",
    "STAGES",
    "UNMASK",
    "Room",
    "TinyGrid",
    "clear_mean",
    "some_updates",
    "the_model",
]


def the_model(seed: int = 0, size: int = 40) -> dict[str, np.ndarray]:
    """A small model's arrays, one of them without dimensions."""
    rng = np.random.default_rng(seed)
    shapes = {"layer.weight": (size, 3), "layer.bias": (size,), "scale": ()}
    return {name: np.asarray(rng.normal(0, 0.3, shape), np.float32) for name, shape in shapes.items()}


def some_updates(base: Mapping[str, np.ndarray], clients: int, seed: int = 1) -> dict[int, Update]:
    """One update per client (ids 1, 2, ...) with different examples, changes and losses."""
    rng = np.random.default_rng(seed)
    return {
        node: Update(
            {name: np.asarray(values + rng.normal(0, 0.05, values.shape), np.float32) for name, values in base.items()},
            examples=int(rng.integers(20, 200)),
            metrics={"train_loss": float(rng.uniform(0, 3)), "val_loss": float(rng.normal())},
        )
        for node in range(1, clients + 1)
    }


def clear_mean(updates: Mapping[int, Update], nodes: list[int], equal: bool = False) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The weighted mean of arrays and metrics, without any protocol."""
    weights = np.array([1 if equal else updates[node].examples for node in nodes], np.float64)
    weights /= weights.sum()
    names = updates[nodes[0]].arrays
    arrays = {name: sum(w * updates[n].arrays[name].astype(np.float64) for w, n in zip(weights, nodes, strict=True)) for name in names}
    metrics = {k: float(sum(w * updates[n].metrics[k] for w, n in zip(weights, nodes, strict=True))) for k in updates[nodes[0]].metrics}
    return arrays, metrics


def largest_error(seen: Mapping[str, np.ndarray], clear: Mapping[str, np.ndarray]) -> float:
    """Over all values."""
    assert sorted(seen) == sorted(clear)
    return max(float(np.abs(seen[name] - clear[name]).max()) for name in clear)


@dataclass
class Room:
    """Clients and the server's notes. kept: each client's state. seen: (stage, client) -> (request, reply), lost replies included.

    worn: what a client did before it was asked to forget, by client: its state as it stood when its vector was sent.
    """

    updates: Mapping[int, Update]
    base: Mapping[str, np.ndarray]
    settings: SecureSettings = field(default_factory=lambda: SecureSettings(max_weight=256))
    lost: Mapping[str, set[int]] = field(default_factory=dict)
    run_id: int = 77
    server_round: int = 1
    seed: int = 5
    kept: dict[int, bytes] = field(default_factory=dict)
    worn: dict[int, bytes] = field(default_factory=dict)
    seen: dict[tuple[str, int], tuple[dict, dict]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        weight = 0 if self.settings.weights == "equal" else self.settings.max_weight
        threshold = self.settings.share_threshold(len(self.updates))
        clip = self.settings.clip_range or 1.0
        sparse, most = self.settings.neighbours or 0, self.settings.max_clipped
        self.terms = Terms(self.run_id, self.server_round, len(self.updates), threshold, sparse, clip, weight, most, self.seed)
        self.cohort = Cohort(self.settings, list(self.updates), self.terms, lambda metrics: word_count(self.base, metrics))

    def vector(self, node: int) -> np.ndarray:
        """A client's vector in clear."""
        update, rng = self.updates[node], np.random.default_rng([self.seed, self.server_round, node])
        return encode(update.arrays, self.base, update.examples, update.metrics, self.terms.scale, rng, self.terms.max_clipped)

    def respond(self, node: int, told: dict) -> dict:
        """What a client says to a request."""
        try:
            words = lambda terms: (self.vector(node), sorted(self.updates[node].metrics))  # noqa: E731
            self.kept[node], reply = member.respond(
                self.kept.get(node, b""), node, told, words, sparse=self.settings.neighbours is not None
            )
        except Refused as refusal:
            self.kept[node], reply = b"", {"refused": refusal.kind}
        if told["stage"] == MASKED_INPUT:
            self.worn[node] = self.kept[node]
        return reply

    def ask(self, stage: str, requests: dict[int, dict]) -> dict[int, dict]:
        self.gone |= set(self.lost.get(stage, set()))
        replies = {}
        for node, told in requests.items():
            replies[node] = self.respond(node, told)
            kept = {name: value.copy() if name == member.WORDS else value for name, value in replies[node].items()}
            self.seen[stage, node] = (told, kept)
        return {node: reply for node, reply in replies.items() if node not in self.gone}

    def total(self) -> np.ndarray:
        """The unmasked sum of a whole round."""
        return self.cohort.run(self.ask)

    def mean(self) -> Sum:
        """The decoded sum of a whole round."""
        return decode(self.total(), self.base, self.cohort.metrics, self.terms.scale)


class TinyGrid:
    """Clients behind `client.answer`, each with a context of its own, and what travelled.

    broken: stage -> clients whose app raises there, which Flower turns into an error reply.
    """

    def __init__(
        self, updates: Mapping[int, Update], lost: Mapping[str, set[int]] | None = None, broken: Mapping[str, set[int]] | None = None
    ):
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 77, 0, 0  # without it no process may make messages
        self.updates, self.lost, self.broken = updates, lost or {}, broken or {}
        self.gone: set[int] = set()
        self.calls: list[int] = []
        self.traffic: list = []
        self.timeouts: list[float | None] = []
        self.contexts = {node: Context(77, node, {"partition-id": node - 1}, RecordDict(), {}) for node in updates}

    def messages(self, base: Mapping[str, np.ndarray]) -> list:
        """What a strategy would send."""
        from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

        arrays = ArrayRecord({name: Array(values) for name, values in base.items()})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
        return [Message(content, node, "train") for node in self.updates]

    def work(self, msg, context) -> Update:
        self.calls.append(context.node_id)
        assert msg.content["config"]["server-round"] == 1
        return self.updates[context.node_id]

    def send_and_receive(self, messages, *, timeout=None):
        from flwr.app import Error, Message

        from federated.secure.client import RECORD, answer

        self.timeouts.append(timeout)
        replies = []
        for message in messages:
            node, stage = message.metadata.dst_node_id, message.content[RECORD]["stage"]
            self.gone |= self.lost.get(stage, set())
            if node in self.broken.get(stage, set()):
                replies.append(Message(Error(0, "the app raised"), reply_to=message))
            elif node not in self.gone:
                replies.append(answer(message, self.contexts[node], self.work))
                self.traffic.append((stage, node, message, replies[-1]))
        return replies[::-1]  # the order of replies must not matter
