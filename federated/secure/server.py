"""The server's side in Flower's Message API: one secure round over a Grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from federated.update import MALFORMED, from_record, last_line
from kronos.errors import InputError

from .client import RECORD, digest_of
from .cohort import Cohort, Requests
from .encoding import Arrays, Scale, Sum, decode, range_for, word_count
from .errors import SecureAggregationHalted
from .member import WORDS
from .settings import SecureSettings
from .terms import MASKED_INPUT, UNMASK, Terms

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)
LOGGED = 300  # characters of a client's error
QUICK_SHARE = 0.1  # of the round's time, for each of the five stages without training


@dataclass(frozen=True)
class SecureOutcome:
    """The result of a secure round.

    arrays: weighted mean of the clients' weights by name, float64. examples: their sum, None with equal weights. metrics: weighted means.
    survivors: node ids in the mean. dropped: stage -> node ids lost there (those lost from agree on are in the mean all the same). reasons:
    node id -> why it was lost. refused: the same of those who would have been clipped or counted too much. clipped: values clipped, all
    clients. clip_range: ±.
    error_bound: most that rounding can have moved a value. bytes_up, bytes_down: of all stages, records as they are sent.
    """

    arrays: dict[str, np.ndarray]
    examples: int | None
    metrics: dict[str, float]
    survivors: list[int]
    dropped: dict[str, list[int]]
    reasons: dict[int, str]
    refused: dict[int, str]
    clipped: int
    clip_range: float
    error_bound: float
    bytes_up: int
    bytes_down: int


@dataclass
class SecureRound:
    """A secure round: `exchange` does it."""

    settings: SecureSettings

    def exchange(self, grid: Grid, messages: Iterable[Message], *, timeout_s: float | None, seed: int, server_round: int) -> SecureOutcome:
        """Ask the nodes of `messages` to train, and return the mean of what they came to.

        messages: a strategy's, one per node, all with the same content, which has one ArrayRecord. timeout_s: of the whole round: a tenth
        for each of the five quick stages, the rest for training; None: no limit. seed: of the rounding. Raises SecureAggregationHalted,
        and InputError for settings that cannot serve these nodes or this model.
        """
        sent = {message.metadata.dst_node_id: message for message in messages}
        base = _base(list(sent.values()))
        terms = self._terms(base, len(sent), run=next(iter(sent.values())).metadata.run_id or 0, server_round=server_round, seed=seed)
        post = _Post(grid, sent, timeout_s, server_round)
        digest = digest_of(next(iter(sent.values())).content)
        cohort = Cohort(self.settings, sent, terms, lambda metrics: word_count(base, metrics), digest)
        total = cohort.run(post.ask)
        result = self._decoded(total, base, cohort, terms.scale)
        return SecureOutcome(
            arrays=result.arrays,
            examples=result.weight if terms.max_weight else None,
            metrics=result.metrics,
            survivors=cohort.survivors,
            dropped={stage: nodes for stage, nodes in cohort.lost.items() if nodes},
            reasons=cohort.reasons,
            refused=cohort.refused,
            clipped=result.clipped,
            clip_range=terms.clip,
            error_bound=terms.scale.error_bound(result.count, result.weight),
            bytes_up=post.bytes_up,
            bytes_down=post.bytes_down,
        )

    def _terms(self, base: Arrays, clients: int, *, run: int, server_round: int, seed: int) -> Terms:
        """What the clients are told. Raises InputError for too few of them, or a range too wide for the accuracy asked."""
        settings = self.settings
        if clients < settings.min_clients:
            fix = "sample more (min-fit-clients), or train without --secure"
            raise InputError(
                f"secure aggregation: round {server_round} asks {clients} clients, and {settings.min_clients} are the least; {fix}"
            )
        terms = Terms(
            run=run,
            round=server_round,
            clients=clients,
            threshold=settings.share_threshold(clients),
            neighbours=settings.neighbours or 0,
            clip=settings.clip_range or range_for(base),
            max_weight=0 if settings.weights == "equal" else int(settings.max_weight or 0),
            max_clipped=settings.max_clipped,
            seed=seed,
        )
        bound = terms.scale.step
        if bound > settings.max_error:
            said = f"±{terms.clip:g} for {clients} clients rounds the mean by up to {bound:.2g}, more than max_error {settings.max_error:g}"
            raise InputError(f"secure aggregation: a clipping range of {said}; set a smaller clip_range or a larger max_error")
        return terms

    def _decoded(self, total: np.ndarray, base: Arrays, cohort: Cohort, scale: Scale) -> Sum:
        """The sum's numbers. Raises SecureAggregationHalted where masks did not cancel or weights were too small for max_error."""

        def halted(reason: str) -> SecureAggregationHalted:
            return SecureAggregationHalted(UNMASK, cohort.left, cohort.quorum, reason)

        try:
            result = decode(total, base, cohort.metrics, scale)
        except ValueError as error:
            raise halted(str(error)) from error
        if result.count != len(cohort.survivors):
            raise halted(f"the sum counts {result.count} vectors, and {len(cohort.survivors)} were sent: its masks did not cancel")
        bound = scale.error_bound(result.count, result.weight)
        if bound > self.settings.max_error:
            mean = result.weight / result.count
            fix = f"the mean weight is {mean:.1f}: set max_weight (now {scale.unit_weight}) nearer to it, or a smaller clip_range"
            raise halted(f"rounding may have moved the mean by {bound:.2g}, more than max_error {self.settings.max_error:g}; {fix}")
        return result


@dataclass
class _Post:
    """Carries requests and replies over the Grid, within the round's time, and counts bytes."""

    grid: Grid
    sent: dict[int, Message]
    timeout_s: float | None
    server_round: int
    bytes_up: int = 0
    bytes_down: int = 0
    begin_s: float = field(default_factory=time.monotonic)

    def ask(self, stage: str, requests: Requests) -> Requests:
        """One stage: requests by node -> records by node of those who answered with content."""
        from flwr.app import ConfigRecord, Message, RecordDict

        messages = []
        for node, request in requests.items():
            first = self.sent[node]
            content = RecordDict(dict(first.content.items())) if stage == MASKED_INPUT else RecordDict()
            content[RECORD] = ConfigRecord(request)
            self.bytes_down += content_bytes(content)
            messages.append(Message(content, node, first.metadata.message_type, ttl=first.metadata.ttl, group_id=str(self.server_round)))
        replies: Requests = {}
        for message in self.grid.send_and_receive(messages, timeout=self._stage_timeout_s(stage)):
            if message.has_error():
                said = shorten(last_line(message.error.reason), LOGGED)
                log.warning("secure aggregation: client %d ended with an error: %s", message.metadata.src_node_id, said)
                continue  # the cohort counts it as lost
            self.bytes_up += content_bytes(message.content)
            try:
                replies[message.metadata.src_node_id] = _reply(message.content)
            except MALFORMED as error:
                log.warning("secure aggregation: client %d sent what cannot be read: %s", message.metadata.src_node_id, error)
        return replies

    def _stage_timeout_s(self, stage: str) -> float | None:
        if self.timeout_s is None:
            return None
        quick_s = QUICK_SHARE * self.timeout_s
        spent_s = time.monotonic() - self.begin_s
        return max(self.timeout_s - spent_s - 2 * quick_s, quick_s) if stage == MASKED_INPUT else quick_s


def content_bytes(content: RecordDict) -> int:
    """Bytes of a message's records: arrays as they are stored, everything else as it is sent."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    others = [*content.config_records.values(), *content.metric_records.values()]
    return arrays + sum(len(record.deflate()) for record in others)


def _reply(content: RecordDict) -> dict[str, Any]:
    reply: dict[str, Any] = dict(content.config_records.get(RECORD, {}))
    for record in content.array_records.values():
        if WORDS in record and record[WORDS].dtype == "uint32":
            reply[WORDS] = record[WORDS].numpy()
    return reply


def _base(messages: Sequence[Message]) -> dict[str, np.ndarray]:
    """The arrays that every message carries. Raises InputError where they differ: changes from different models have no mean."""
    records = [list(message.content.array_records.values()) for message in messages]
    if not records or any(len(found) != 1 or found[0] != records[0][0] for found in records):
        raise InputError("secure aggregation: every client must be sent the same model, as one record of arrays")
    base = from_record(records[0][0])
    return base
