"""Who takes part: every node is asked once what it is, and told apart by its partition: its node id is another in each run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federated.records import text_table
from federated.robust import version_mismatch
from federated.secure.settings import MIN_CLIENTS
from federated.settings import Settings, package_version
from federated.update import CLIENT, MALFORMED, PARTITION, VERSION, last_line, table
from kronos.errors import InputError

_TOLD = 100  # characters of a reason in the table
_WAIT_S = 1.0  # between two looks at which nodes are there
_FIT, _EVALUATE = 1, 2  # so that the two choices of a round differ
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Client:
    """A node that takes part: its partition, and what it told of its windows."""

    node: int
    partition: int
    told: dict[str, Any] = field(compare=False)

    @property
    def train(self) -> int:
        return int(self.told["train"])


@dataclass
class Roster:
    """The clients of a run by partition, and why others were left out. heard: raises one of MALFORMED for what the model cannot read."""

    grid: Grid
    settings: Settings
    say: Say
    heard: Callable[[dict[str, Any]], None]
    clients: dict[int, Client] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)  # by partition
    _seen: set[int] = field(default_factory=set)

    def call(self) -> None:
        """Wait for nodes and ask them. Raises InputError if nobody can take part."""
        nodes = self._wait()
        self._ask(nodes)
        self.say(self.table())
        if not self.clients:
            raise InputError(f"no partition can take part: {grouped(self.left_out) or 'no node answered'}")

    def online(self, least: int = 0) -> list[Client]:
        """Who is there now, by partition, once `least` nodes are. Nodes that came since are asked first: a restarted one has another id."""
        there = set(self._wait(least))
        if there - self._seen:
            self._ask(sorted(there - self._seen))
        return [self.clients[p] for p in sorted(self.clients) if self.clients[p].node in there]

    def choose(self, server_round: int, share: float, least: int, *, evaluate: bool = False) -> list[Client]:
        """The clients that are asked in a round: a function of seed, round and who is there."""
        least_there = MIN_CLIENTS if self.settings.secure and not evaluate else 0  # one that was killed is back in seconds
        there = self.online(min(least_there, len(self.clients)))
        count = min(len(there), max(least, int(share * len(there) + 1e-9)))
        rng = np.random.default_rng([self.settings.seed, server_round, _EVALUATE if evaluate else _FIT])
        return [there[i] for i in sorted(rng.permutation(len(there))[:count])]

    def table(self) -> str:
        """Samples per partition, and who is left out."""
        rows = [
            [str(c.partition), str(c.told["name"]), f"{c.train:,}", f"{c.told['val']:,}", ""]
            for c in map(self.clients.get, sorted(self.clients))
        ]
        rows += [[str(p), "", "", "", f"left out: {shorten(why, _TOLD)}"] for p, why in sorted(self.left_out.items())]
        return text_table(["partition", "bars", "training windows", "validation", ""], rows)

    def _wait(self, least: int = 0) -> list[int]:
        """Node ids once min-available-clients and `least` are there. Raises InputError after round-timeout-s."""
        least = max(least, self.settings.min_available_clients)
        deadline = time.monotonic() + self.settings.round_timeout_s
        while len(nodes := sorted(self.grid.get_node_ids())) < least:
            if time.monotonic() > deadline:
                asked = least == self.settings.min_available_clients
                wants = f"min-available-clients is {least}" if asked else f"secure wants {least}"
                fix = "train without secure" if self.settings.secure and least <= MIN_CLIENTS else "lower it"
                raise InputError(
                    f"{len(nodes)} nodes are there after {self.settings.round_timeout_s:g} s, and {wants}; start more nodes, or {fix}"
                )
            time.sleep(_WAIT_S)
        return nodes

    def _ask(self, nodes: Sequence[int]) -> None:
        messages = [Message(RecordDict(), node, "query") for node in nodes]
        replies = list(self.grid.send_and_receive(messages, timeout=self.settings.round_timeout_s))
        self._seen |= {reply.metadata.src_node_id for reply in replies}
        for reply in replies:
            if reply.has_error():
                self.say(f"node {reply.metadata.src_node_id} cannot take part: {last_line(reply.error.reason)}")
        for partition, node, version, told in sorted(filter(None, map(self._read, replies)), key=lambda answer: answer[:2]):
            self._enter(node, partition, version, told)

    def _read(self, reply: Message) -> tuple[int, int, str, dict[str, Any]] | None:
        """(partition, node, version, what it told) of a reply; None, and a line, for one that is none of this protocol."""
        if not reply.has_content():
            return None
        node = reply.metadata.src_node_id
        try:
            record = reply.content[CLIENT]
            told = table(json.loads(str(record["told"])))
            if "reason" in told:
                told = {"reason": str(told["reason"]) or "no reason given"}
            else:
                told |= {"name": str(told["name"]), "train": int(told["train"]), "val": int(told["val"])}
                self.heard(told)
            return int(record[PARTITION]), node, str(record[VERSION]), told
        except MALFORMED as error:
            self.say(f"node {node} cannot take part: its reply is not one of this protocol ({type(error).__name__}: {error})")
            return None

    def _enter(self, node: int, partition: int, version: str, told: dict[str, Any]) -> None:
        why = version_mismatch(version, self.settings.expected_version or package_version()) or told.get("reason")
        if why:
            self.left_out[partition] = why
            return
        former = self.clients.get(partition)
        if former and former.node in set(self.grid.get_node_ids()):
            raise InputError(f"two nodes say that they are partition {partition}: give each its own partition-id")
        if former:
            self.say(f"partition {partition} is back as another node")
        self.left_out.pop(partition, None)
        self.clients[partition] = Client(node, partition, told)


def grouped(reasons: Mapping[int, str]) -> str:
    """Reasons with the partitions they hold for, each reason once."""
    who: dict[str, list[str]] = {}
    for partition, why in sorted(reasons.items()):
        who.setdefault(why, []).append(str(partition))
    return "; ".join(f"partition{'s' * (len(which) > 1)} {', '.join(which)}: {why}" for why, which in who.items())


def partitions_of(clients: Iterable[Client]) -> list[int]:
    return [client.partition for client in clients]
