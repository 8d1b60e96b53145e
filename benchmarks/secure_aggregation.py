"""Secure aggregation: bytes against the clear float32 weights, error against the clear mean, seconds per round by number of clients.

A round goes through Flower's messages and `federated.secure` on both sides, in this process and without a network: the clients' work is
done one after the other, training is not part of it. "clear" sends the same updates back in clear through the same messages and takes
their mean. Each number of clients is timed with nobody lost; errors are measured with a client lost in each stage too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from federated.secure.client import answer
from federated.secure.server import SecureOutcome, SecureRound, content_bytes
from federated.secure.settings import SecureSettings
from federated.secure.terms import STAGES
from federated.update import CONFIG, Update, content_of, from_record, to_record, update_of
from finetune.engine.command import run_command

from .common import Report, Row, begin, end, interleaved, parser_for, spread, timed

if TYPE_CHECKING:
    from flwr.app import Context, Message

NAME = "secure_aggregation"
REACH_BYTES, REACH_ERROR = 1.1, 2e-5
MOST_EXAMPLES = 1024


def main(argv: Sequence[str] | None = None) -> Report:
    """Parse, measure each number of clients, report."""
    parser = parser_for(NAME, __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50], help="numbers of clients (default: 10 50)")
    parser.add_argument("--parameters", type=int, default=200_000, help="values of the model (default: 200000)")
    parser.add_argument("--neighbours", type=int, help="mask with so many clients only (even; default: with all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds timed (default: 3)")
    args, report = begin(NAME, parser, argv)
    for clients in args.clients:
        _measure(args, report, clients)
    return end(report, args)


def _measure(args: argparse.Namespace, report: Report, clients: int) -> None:
    rng = np.random.default_rng(0)
    base = {f"layer{i}": rng.normal(0, 0.1, args.parameters // 8).astype(np.float32) for i in range(8)}
    updates = {node: _update(base, rng) for node in range(1, clients + 1)}
    secure = SecureRound(SecureSettings(max_weight=MOST_EXAMPLES, neighbours=args.neighbours))
    outcomes: list[SecureOutcome] = []

    def secure_round(lost: Mapping[str, int] | None = None) -> None:
        grid = Clients(updates, lost or {})
        outcomes.append(secure.exchange(grid, grid.messages(base), timeout_s=None, seed=0, server_round=1))

    grid, upload = Clients(updates, {}), 0

    def clear_round() -> None:
        nonlocal upload
        replies = grid.in_clear(grid.messages(base))
        upload = sum(content_bytes(reply.content) for reply in replies)
        mean_of([update_of(reply.content) for reply in replies])

    sides = {"secure": lambda: timed(secure_round), "clear": lambda: timed(clear_round)}
    seen = interleaved(sides, args.rounds)
    ratio = outcomes[-1].bytes_up / upload
    errors = {"nobody lost": _error(outcomes[-1], updates)}
    for stage in STAGES:
        secure_round({stage: 2})
        errors[f"one lost in {stage}"] = _error(outcomes[-1], updates)
    told = f"{clients} clients, {args.parameters:,} values"
    report.details[f"{told}: a round"] = {side: spread(values, unit=" s") for side, values in seen.items()}
    report.details[f"{told}: a client's upload"] = f"{outcomes[0].bytes_up / clients:,.0f} bytes secure, {upload / clients:,.0f} in clear"
    report.rows.append(Row(f"{told}, upload secure over clear", f"<= {REACH_BYTES}", f"{ratio:.4f}", ratio <= REACH_BYTES, ratio=ratio))
    for case, error in errors.items():
        report.rows.append(Row(f"{told}, largest error, {case}", f"<= {REACH_ERROR:g}", f"{error:.2g}", error <= REACH_ERROR))


def _update(base: Mapping[str, np.ndarray], rng: np.random.Generator) -> Update:
    changed = {name: values + rng.normal(0, 0.01, values.shape).astype(np.float32) for name, values in base.items()}
    return Update(changed, int(rng.integers(64, MOST_EXAMPLES)))


def mean_of(updates: Sequence[Update]) -> dict[str, np.ndarray]:
    """The weighted mean, float64."""
    total = sum(update.examples for update in updates)
    return {k: sum(u.arrays[k].astype(np.float64) * (u.examples / total) for u in updates) for k in updates[0].arrays}


def _error(outcome: SecureOutcome, updates: Mapping[int, Update]) -> float:
    clear = mean_of([updates[node] for node in outcome.survivors])
    return max(float(np.abs(outcome.arrays[k] - clear[k]).max()) for k in clear)


class Clients:
    """The part of a Grid that a round uses, with the clients behind it. lost: stage -> the client that is silent from there on."""

    def __init__(self, updates: Mapping[int, Update], lost: Mapping[str, int]):
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0  # outside a run there is none, and messages need one
        self.updates, self.lost = updates, lost
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in updates}

    def messages(self, base: Mapping[str, np.ndarray]) -> list[Message]:
        """What a strategy sends."""
        from flwr.app import ConfigRecord, Message, RecordDict

        content = RecordDict({"arrays": to_record(base), CONFIG: ConfigRecord({"server-round": 1})})
        return [Message(content, node, "train") for node in self.updates]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Ask one after the other."""
        replies, silent = [], set()
        for message in messages:
            (secure,) = (record for record in message.content.config_records.values() if "stage" in record)
            silent |= {self.lost[stage] for stage in STAGES[: STAGES.index(secure["stage"]) + 1] if stage in self.lost}
            node = message.metadata.dst_node_id
            if node not in silent:
                replies.append(answer(message, self.contexts[node], self._work, sparse=True))
        return replies

    def in_clear(self, messages: Iterable[Message]) -> list[Message]:
        """The same work, and its result in clear."""
        from flwr.app import Message

        return [
            Message(content_of(self._work(message, self.contexts[node]), node - 1), reply_to=message)
            for message in messages
            for node in [message.metadata.dst_node_id]
        ]

    def _work(self, message: Message, context: Context) -> Update:
        from_record(message.content["arrays"])  # a client reads the model that it is sent
        return self.updates[context.node_id]


def _command() -> int:
    return 0 if all(row.passed for row in main().rows) else 1


if __name__ == "__main__":
    run_command(_command)
