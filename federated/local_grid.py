"""Flower's Grid inside one process: the ServerApp's messages go straight to the ClientApp, one client after the other.

No process per client, no network, no serialisation to disk: five times faster than Ray on a small model, and the same arithmetic. What it
is not: clients share one process, so nothing but the code keeps their bars apart, and only `--engine ray` shows what Ray would do.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from federated.update import PARTITION
from finetune.engine.errors import Interrupted
from kronos.errors import InputError

log = logging.getLogger(__name__)
_RUN = 1


class LocalGrid(Grid):
    """`clients` nodes with ids 1.., whose partitions are 0... Each keeps its context from round to round.

    node_config: further values of every node's configuration. A reply that took longer than the timeout counts as lost, as it would be if
    clients worked side by side; nothing interrupts it.
    """

    def __init__(self, app: ClientApp, clients: int, run_config: Mapping[str, Any], node_config: Mapping[str, Any] | None = None):
        self.app, self._run = app, None
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN, 0, 0  # without it no process may make messages
        self._contexts = {
            k + 1: Context(
                run_id=_RUN,
                node_id=k + 1,
                node_config={PARTITION: k, "num-partitions": clients, **(node_config or {})},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for k in range(clients)
        }
        self.lost: set[int] = set()  # nodes that are down: they are not listed and do not answer

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._contexts if node not in self.lost]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("use send_and_receive")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.lost:
                continue
            begin = time.perf_counter()
            reply = self._answer(message, self._contexts[node])
            if timeout is None or time.perf_counter() - begin <= timeout:
                replies.append(reply)
        return replies

    def _answer(self, message: Message, context: Context) -> Message:
        """The client's reply; whatever goes wrong in it is its own error, except a wish to stop."""
        try:
            reply = self.app(message, context)
        except Interrupted:
            raise
        except Exception as error:
            if not isinstance(error, InputError):
                log.warning("client %s: %s", context.node_config[PARTITION], traceback.format_exc())
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)
        return reply
