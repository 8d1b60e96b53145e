"""One exchange of a round: requests out, replies in, sorted by partition and looked at; in clear or through secure aggregation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from federated.client_app import FACTS, MODEL, ROUND, SHARE, packed
from federated.privacy import norm_of
from federated.robust import Rules, accept, outliers
from federated.roster import Client
from federated.secure.server import SecureOutcome, SecureRound, content_bytes
from federated.settings import Settings
from federated.update import ARRAYS, CLIENT, CONFIG, MALFORMED, Update, last_line, table, to_record, update_of

Arrays = dict[str, np.ndarray]
_NOTHING = {"none": np.zeros(1, np.float32)}  # what a secure evaluation sums besides its metrics


@dataclass
class Answers:
    """What came of an exchange. contents: in clear, the accepted replies by partition; mean: of a secure one.

    failed: partition → why, for everyone who was asked and is not in the result.
    """

    failed: dict[int, str]
    bytes_down: int
    bytes_up: int
    contents: dict[int, RecordDict] = field(default_factory=dict)
    updates: dict[int, Update] = field(default_factory=dict)
    mean: SecureOutcome | None = None
    survivors: list[int] = field(default_factory=list)
    stages: dict[str, list[int]] = field(default_factory=dict)

    def leave_out(self, partition: int, why: str) -> None:
        """An update that was accepted is not, after all."""
        self.failed[partition] = why
        del self.updates[partition], self.contents[partition]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over those who answered, weighted by their windows."""
        if self.mean is not None:
            return dict(self.mean.metrics)
        total = sum(update.examples for update in self.updates.values())
        names = next(iter(self.updates.values())).metrics if self.updates else {}
        return {name: sum(u.examples * u.metrics[name] for u in self.updates.values()) / total for name in names}

    @property
    def examples(self) -> int | None:
        if self.mean is not None:
            return self.mean.examples
        return sum(update.examples for update in self.updates.values())


@dataclass
class Exchange:
    """Asks clients, for one run. facts: what every client needs to know of the run (vocabulary, class weights)."""

    grid: Grid
    settings: Settings
    facts: Mapping[str, Any]

    def requests(self, kind: str, clients: Sequence[Client], arrays: Arrays, server_round: int, share: float = 1.0) -> list[Message]:
        """Messages of one kind, "train" or "evaluate", to each client."""
        hidden = kind == "evaluate" and self.settings.secure
        content = {
            ARRAYS: to_record(_NOTHING if hidden else arrays),
            CONFIG: ConfigRecord({ROUND: server_round, FACTS: json.dumps(self.facts), SHARE: share}),
        }
        if hidden:
            content[MODEL] = packed(arrays)
        group = str(server_round)
        return [
            Message(RecordDict(dict(content)), c.node, kind, group_id=group, ttl=2 * self.settings.round_timeout_s + 60) for c in clients
        ]

    def describe(self, client: Client) -> tuple[dict[str, Any] | None, str]:
        """The model's description by one client, or None and why not."""
        request = Message(RecordDict({CONFIG: ConfigRecord({FACTS: json.dumps(self.facts)})}), client.node, "query.model")
        for reply in self.grid.send_and_receive([request], timeout=self.settings.round_timeout_s):
            if reply.has_error():
                return None, last_line(reply.error.reason)
            try:
                return table(json.loads(str(reply.content[CLIENT]["told"]))), ""
            except MALFORMED as error:
                return None, f"its reply is not one of this protocol ({type(error).__name__}: {error})"
        return None, "no reply"

    def in_clear(self, clients: Sequence[Client], messages: Sequence[Message], base: Arrays | None, rules: Rules) -> Answers:
        """Replies that may enter the result. base: the weights that updates started from; None: there are none (evaluation)."""
        of_node = {client.node: client.partition for client in clients}
        failed = {client.partition: f"no reply within {self.settings.round_timeout_s:g} s" for client in clients}
        replies = self.grid.send_and_receive(messages, timeout=self.settings.round_timeout_s)
        found: dict[int, RecordDict] = {}
        up = 0
        for reply in replies:
            partition = of_node[reply.metadata.src_node_id]
            if reply.has_error():
                failed[partition] = last_line(reply.error.reason)
                continue
            up += content_bytes(reply.content)
            found[partition] = reply.content
        answers = Answers(failed, sum(content_bytes(m.content) for m in messages), up)
        limits = {client.partition: client for client in clients}
        for partition in sorted(found):  # sorted: sums in another order differ in their last bits
            self._enter(answers, partition, found[partition], base, rules, limits[partition])
        _same_metrics(answers)
        if base is not None and self.settings.outlier_factor:
            for partition, why in outliers(answers.updates, base, self.settings.outlier_factor).items():
                answers.leave_out(partition, why)
        answers.survivors = list(answers.updates)
        answers.updates = {p: replace(update, arrays={}) for p, update in answers.updates.items()}  # their arrays are in `contents`
        return answers

    def _enter(self, answers: Answers, partition: int, content: RecordDict, base: Arrays | None, rules: Rules, client: Client) -> None:
        try:
            update = update_of(content)
        except MALFORMED as error:
            answers.failed[partition] = f"its reply is not one of this protocol ({type(error).__name__}: {error})"
            return
        most = 1 if self.settings.private else max(client.train, int(client.told["val"]))  # with noise all weigh the same
        why = accept(update, base or {}, Rules(rules.max_norm, rules.max_change, most))
        needed = "val_loss" if base is None else "train_loss"
        if why is None and needed not in update.metrics:
            why = f"its metrics lack {needed}"
        if why is not None:
            answers.failed[partition] = why
            return
        del answers.failed[partition]
        answers.updates[partition], answers.contents[partition] = update, content

    def hidden(self, secure: SecureRound, clients: Sequence[Client], messages: Sequence[Message], server_round: int) -> Answers:
        """The mean of a secure round. Raises SecureAggregationHalted."""
        of_node = {client.node: client.partition for client in clients}
        outcome = secure.exchange(
            self.grid, messages, timeout_s=self.settings.round_timeout_s, seed=self.settings.seed, server_round=server_round
        )
        lost = {stage: sorted(of_node[node] for node in nodes) for stage, nodes in outcome.dropped.items()}
        survivors = sorted(of_node[node] for node in outcome.survivors)
        stage_of = {node: stage for stage, nodes in outcome.dropped.items() for node in nodes if node not in outcome.survivors}
        failed = {of_node[node]: f"lost in stage {stage}: {outcome.reasons[node]}" for node, stage in stage_of.items()}
        return Answers(failed, outcome.bytes_down, outcome.bytes_up, mean=outcome, survivors=survivors, stages=lost)


def _same_metrics(answers: Answers) -> None:
    """Leave out whose metrics have other names than those of most: one client must not decide for the others."""
    names = {partition: tuple(sorted(update.metrics)) for partition, update in answers.updates.items()}
    for common, _ in Counter(names.values()).most_common(1):
        for partition in [partition for partition, own in names.items() if own != common]:
            answers.leave_out(partition, "its metrics have other names than those of most clients")


def model_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def moved(new: Arrays, old: Arrays) -> float:
    """How far the global weights moved (L2)."""
    return norm_of({name: new[name].astype(np.float64) - old[name] for name in new})
