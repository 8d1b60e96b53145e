"""The client's side in Flower's Message API: one entry for the six stages of a secure round."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from federated.consent import Consent
from federated.update import PARTITION, Update, from_record, to_record

from .encoding import encode
from .errors import Refused
from .member import SENT, WORDS, respond
from .terms import Terms

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict

RECORD = "secure-aggregation"  # name of the ConfigRecord in messages and in the client's state, and of the masked vector's ArrayRecord
log = logging.getLogger(__name__)


def is_secure(msg: Message) -> bool:
    """Whether a message belongs to a secure round."""
    return RECORD in msg.content.config_records


def answer(msg: Message, context: Context, work: Callable[[Message, Context], Update], sparse: bool = False) -> Message:
    """Reply to one stage of a secure round.

    work: the local training; called once a round, in masked_input. sparse: see `member.respond`. How many clients there must be is for the
    node's owner to say (`Consent.min_secure_clients`).
    Secrets are kept in context.state, which does not leave the client.
    A refusal is a reply that names its kind; what exactly was wrong stays in this client's log. Errors of `work` are not caught, nor
    InputError for a node_config that cannot be read.
    """
    from flwr.app import ConfigRecord, Message, RecordDict

    node, state = msg.metadata.dst_node_id, context.state.config_records
    kept = bytes(state[RECORD]["kept"]) if RECORD in state else b""

    def produce(terms: Terms) -> tuple[np.ndarray, list[str]]:
        update = work(msg, context)
        rng = np.random.default_rng([terms.seed, terms.round, int(context.node_config.get(PARTITION, node))])
        base = from_record(next(iter(msg.content.array_records.values())))
        words = encode(update.arrays, base, update.examples, update.metrics, terms.scale, rng, terms.max_clipped)
        return words, sorted(update.metrics)

    reply: dict[str, Any]
    try:
        told = {**msg.content.config_records[RECORD], SENT: digest_of(msg.content)}
        kept, reply = respond(kept, node, told, produce, sparse, Consent.of(context.node_config).min_secure_clients)
    except Refused as refusal:
        log.warning("secure aggregation: this client leaves the round: %s", refusal)
        kept, reply = b"", {"refused": refusal.kind}
    state[RECORD] = ConfigRecord({"kept": kept})
    content = RecordDict()
    if WORDS in reply:
        content[f"{RECORD}-vector"] = to_record({WORDS: reply.pop(WORDS)})
    content[RECORD] = ConfigRecord(reply)
    return Message(content, reply_to=msg)


def digest_of(content: RecordDict) -> bytes:
    """SHA-256 of all that a request holds besides the protocol's own: the model above all. The same for all clients of an honest server."""
    code = hashlib.sha256()
    for name in sorted(content):
        if name == RECORD:
            continue
        for key, value in sorted(content[name].items()):
            stored = value.data if hasattr(value, "data") else value if isinstance(value, bytes) else repr(value).encode()
            shape = tuple(getattr(value, "shape", ()))  # whether it is held as a list or not
            facts = repr([name, key, getattr(value, "dtype", None), shape, getattr(value, "stype", None), len(stored)])
            code.update(facts.encode() + stored)
    return code.digest()
