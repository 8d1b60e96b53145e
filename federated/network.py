"""A bad network, made up on purpose: a client mod that loses messages and delays them, the same way in every run of one seed.

    app = ClientApp(mods=[emulate(settings_of)])

A lost message is answered with Flower's error reply, which is what the server sees of a client whose time has run out, without
waiting for that. Which clients fail in a round, and at which stage of a secure round, follows from (seed, round, partition) alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federated.units import parse_bandwidth, parse_duration
from kronos.errors import InputError

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp.typing import ClientAppCallable, Mod

LOST = "the emulated network lost this message"
_TRAIN, _EVALUATE = "train", "evaluate"


@dataclass(frozen=True)
class NetworkSettings:
    """p_drop: chance that a client is lost in a round's training, and again in its evaluation. max_latency_s: one way, drawn per
    client and round from 0 to this. jitter_s: added to each message, from 0 to this. bandwidth_bps: bits per second, None for no limit."""

    p_drop: float = 0.0
    max_latency_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth_bps: float | None = None
    seed: int = 0

    @classmethod
    def parse(
        cls, p_drop: float, max_latency: str | float, latency_jitter: str | float, bandwidth_limit: str | float, seed: int
    ) -> NetworkSettings:
        """From the run-config's values. Raises InputError naming the key."""
        if isinstance(p_drop, bool) or not isinstance(p_drop, int | float) or not 0 <= p_drop <= 1:
            raise InputError(f"p-drop={p_drop!r}: expected a chance from 0 to 1, such as 0.1")
        return cls(
            float(p_drop),
            parse_duration(max_latency, "max-latency"),
            parse_duration(latency_jitter, "latency-jitter"),
            parse_bandwidth(bandwidth_limit, "bandwidth-limit"),
            int(seed),
        )

    @property
    def ideal(self) -> bool:
        """Whether there is nothing to emulate."""
        return self.p_drop == 0 and self.max_latency_s == 0 and self.jitter_s == 0 and self.bandwidth_bps is None


@dataclass(frozen=True)
class Weather:
    """What the network does to one client in one round.

    train_lost_at: None, or where in the round's training the client is lost, from 0 (its first message) to just under 1 (its last).
    """

    train_lost_at: float | None
    evaluate_lost: bool
    latency_s: float
    jitter_s: tuple[float, float]  # on the way down, on the way up

    def loses(self, kind: str, stage: int = 0, stages: int = 1) -> bool:
        """Whether a message is lost. kind: "train", "evaluate" or else (never lost).

        stage of stages: a secure round trains in six messages, and a client that was lost stays away for the rest of them.
        """
        if kind == _EVALUATE:
            return self.evaluate_lost
        return kind == _TRAIN and self.train_lost_at is not None and stage >= int(self.train_lost_at * stages)


def weather(settings: NetworkSettings, server_round: int, partition: int) -> Weather:
    """The network of one client in one round; a pure function of (seed, round, partition) and the settings."""
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed % 2**64, server_round, partition]))
    train, at, evaluate, latency, down, up = rng.random(6)  # always six: one setting does not change what another does
    return Weather(
        train_lost_at=float(at) if train < settings.p_drop else None,
        evaluate_lost=bool(evaluate < settings.p_drop),
        latency_s=float(latency) * settings.max_latency_s,
        jitter_s=(float(down) * settings.jitter_s, float(up) * settings.jitter_s),
    )


def transfer_s(size_bytes: int, bandwidth_bps: float | None) -> float:
    """Seconds that a message of this size takes on the wire."""
    return 8 * size_bytes / bandwidth_bps if bandwidth_bps else 0.0


def emulate(
    settings_of: Callable[[Context], NetworkSettings],
    *,
    round_of: Callable[[Message], int],
    stage_of: Callable[[Message], tuple[int, int]] = lambda message: (0, 1),
    sleep: Callable[[float], None] = time.sleep,
) -> Mod:
    """The client mod. settings_of: from a message's context (its run_config). round_of: the server's round of a message.

    stage_of: (stage, stages) of a training message in a secure round. sleep: replaced in tests.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        settings = settings_of(context)
        if settings.ideal:
            return call_next(message, context)
        today = weather(settings, round_of(message), int(context.node_config["partition-id"]))
        if today.loses(message.metadata.message_type.split(".")[0], *stage_of(message)):
            return _lost(message)
        sleep(today.latency_s + today.jitter_s[0] + transfer_s(size_of(message), settings.bandwidth_bps))
        reply = call_next(message, context)
        sleep(today.latency_s + today.jitter_s[1] + transfer_s(size_of(reply), settings.bandwidth_bps))
        return reply

    return mod


def size_of(message: Message) -> int:
    """Bytes of a message's records; an error has none."""
    from federated.secure.server import content_bytes  # Flower's own count_bytes fails on an empty list, which secure rounds send

    return content_bytes(message.content) if message.has_content() else 0


def _lost(message: Message) -> Message:
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode

    return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason=LOST), reply_to=message)
