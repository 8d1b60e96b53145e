"""The client's side of the protocol, numbers and bytes only: `respond` takes what was kept and what was asked, and gives both anew.

A member goes through the stages once and in order. Whatever it refuses, or after it has unmasked, it keeps nothing: a second request,
however worded, finds no secrets to answer with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from . import keys, proofs, shamir
from .errors import Refused
from .masks import add_stream
from .settings import MIN_SURVIVORS
from .terms import AGREE, CHECK_SHARES, MASKED_INPUT, SETUP, SHARE_KEYS, STAGES, UNMASK, Terms

WORDS = "words"  # key of a reply's masked vector
SEED, KEY = "seed", "key"  # the two secrets that are shared
SENT = "sent"  # key under which the client itself puts a digest of the model it was sent into the request that it answers
Produce = Callable[[Terms], tuple[np.ndarray, list[str]]]  # the vector in clear [words] uint32, and the metrics' names
log = logging.getLogger(__name__)


def respond(
    kept: bytes, node: int, told: Mapping[str, Any], produce: Produce, sparse: bool = False, least: int = MIN_SURVIVORS
) -> tuple[bytes, dict[str, Any]]:
    """Answer one request.

    kept: what the last call returned (b"" at first). node: this client's id. told: the request. produce: called once a round, in
    masked_input, after the other clients' shares were checked. sparse: whether this client takes part where masks are shared with a few
    neighbours only, where nothing shows a client that others were given other lists of keys. least: clients that share masks with this one,
    itself included, below which it takes no part.
    Returns what to keep and the reply. Raises Refused; keep nothing then.
    """
    stage = told.get("stage")
    if stage == SETUP:  # always a new round: secrets of an unfinished one are gone
        terms = Terms.heard(told)
        if terms.neighbours and not sparse:
            raise Refused("protocol", f"asked to share masks with {terms.neighbours} neighbours only, which this client does not")
        member = Member.join(node, terms, least)
        member.need(terms.clients)
        return member.to_bytes(), member.public_keys()
    if not kept:
        raise Refused("protocol", f"asked for {stage!r}, and no round is open")
    member = Member.from_bytes(kept)
    member.enter(stage, told)
    if stage == SHARE_KEYS:
        reply = member.share_keys(told)
    elif stage == CHECK_SHARES:
        reply = member.check_shares(told)
    elif stage == MASKED_INPUT:
        member.meet(told)
        member.sent = bytes(told.get(SENT, b""))
        words, names = produce(member.terms)
        reply = {WORDS: member.mask(words), "metrics": names}
    elif stage == AGREE:
        reply = member.agree(told)
    else:
        return b"", member.unmask(told)
    return member.to_bytes(), reply


@dataclass
class Member:
    """One client in one round.

    least: see `respond`. cipher_private, mask_private, seed: its secrets, 32 bytes each. peers: neighbour -> public (cipher key, mask key).
    seed_shares, key_shares: owner -> share held here, its own included, of those whose shares were sound. cohort: those of them with whom
    masks are shared, itself included.
    sent: digest of the model that was trained. survivors: everybody whose vector is in the sum, as the server told it.
    """

    node: int
    terms: Terms
    stage: str
    least: int
    cipher_private: bytes
    mask_private: bytes
    seed: bytes
    peers: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    seed_shares: dict[int, bytes] = field(default_factory=dict)
    key_shares: dict[int, bytes] = field(default_factory=dict)
    cohort: list[int] = field(default_factory=list)
    sent: bytes = b""
    survivors: list[int] = field(default_factory=list)

    @classmethod
    def join(cls, node: int, terms: Terms, least: int) -> Member:
        """A member with fresh secrets."""
        return cls(node, terms, SETUP, least, keys.new_private(), shamir.new_secret(), shamir.new_secret())

    @property
    def binding(self) -> keys.Binding:
        """What the round's keys are bound to."""
        return keys.Binding(self.terms.run, self.terms.round)

    def public_keys(self) -> dict[str, Any]:
        """Reply of setup."""
        return {"cipher_key": keys.public_of(self.cipher_private), "mask_key": keys.mask_public_of(self.mask_private)}

    def need(self, clients: int) -> None:
        """Raises Refused for fewer clients than the threshold, or than this one's owner wants."""
        if clients < self.terms.threshold:
            raise Refused("protocol", f"{clients} clients are left, fewer than the threshold of {self.terms.threshold}")
        if clients < self.least:
            raise Refused("few", f"{clients} clients in stage {self.stage}, and its owner wants {self.least} (min-secure-clients)")

    def enter(self, stage: Any, told: Mapping[str, Any]) -> None:
        """Go on to the next stage. Raises Refused for any other stage, run or round than the one that is due."""
        due = STAGES[STAGES.index(self.stage) + 1] if self.stage != UNMASK else None
        if stage != due or (told.get("run"), told.get("round")) != (self.terms.run, self.terms.round):
            asked = f"{stage!r} of run {told.get('run')}, round {told.get('round')}"
            raise Refused("protocol", f"asked for {asked}; due is {due!r} of run {self.terms.run}, round {self.terms.round}")
        self.stage = stage

    def share_keys(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Check the list of public keys, split both secrets among those on it, and seal each one's shares for it."""
        nodes, threshold = _nodes(told, "nodes"), self.terms.threshold
        pairs = list(zip(_bytes(told, "cipher_keys", nodes), _bytes(told, "mask_keys", nodes), strict=True))
        every = [key for pair in pairs for key in pair]
        sizes = {(keys.KEY_BYTES, keys.MASK_KEY_BYTES)}
        if len(set(every)) != len(every) or {tuple(map(len, pair)) for pair in pairs} - sizes:
            raise Refused("protocol", "the list of public keys holds one twice, or one of another length")
        listed = dict(zip(nodes, pairs, strict=True))
        if listed.get(self.node) != tuple(self.public_keys().values()):
            raise Refused("protocol", "the list of public keys lacks this client's, or has others under its id")
        if not threshold <= len(nodes) <= self.terms.clients or 2 * threshold <= len(nodes):
            raise Refused("protocol", f"{threshold} of {len(nodes)} share holders: too few, or two groups could each open a secret")
        self.need(len(nodes))
        self.peers = {node: pair for node, pair in listed.items() if node != self.node}
        public = self.public_keys()["mask_key"]
        dealt = {SEED: (self.seed, b""), KEY: (self.mask_private, public)}
        shares, shown = {}, {}
        for kind, (secret, key) in dealt.items():
            context = share_context(self.binding, kind, self.node, public)
            shares[kind], shown[f"{kind}_proof"] = proofs.deal(secret, threshold, len(nodes), context, key)
        own = nodes.index(self.node)
        self.seed_shares[self.node], self.key_shares[self.node] = shares[SEED][own], shares[KEY][own]
        seen = self._listed()
        sealed = {
            node: keys.seal(self.binding, self.cipher_private, self.peers[node][0], self.node, node, one + other, seen)
            for node, one, other in zip(nodes, shares[SEED], shares[KEY], strict=True)
            if node != self.node
        }
        return {"nodes": list(sealed), "sealed": list(sealed.values()), **shown}

    def check_shares(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Open the neighbours' shares and hold them against their proofs. Reply: whose are not sound; with these nothing is shared.

        Shares of a client that was shown other terms or another list of keys do not open: each would have holders of its own, and half of
        the holders of one client could take it for lost while half of another's take it for a survivor.
        """
        sources, bad = _nodes(told, "nodes"), []
        if not set(sources) <= set(self.peers):
            raise Refused("protocol", f"shares of clients whose keys were not listed: {sorted(set(sources) - set(self.peers))}")
        numbers = told.get("numbers")
        if not isinstance(numbers, list) or len(numbers) != len(sources) or not all(isinstance(number, int) for number in numbers):
            raise Refused("protocol", f"numbers is not one for each of {len(sources)} clients")
        columns = [_bytes(told, name, sources) for name in ("sealed", f"{SEED}_proofs", f"{KEY}_proofs")]
        seen = self._listed()
        for source, number, *given in zip(sources, numbers, *columns, strict=True):
            try:
                self._receive(seen, source, number, *given)
            except (Refused, ValueError) as error:
                log.warning("secure aggregation: this client shares nothing with client %d: %s", source, error)
                bad.append(source)
        return {"bad": bad}

    def _receive(self, seen: bytes, source: int, number: int, sealed: bytes, *shown: bytes) -> None:
        """Keep both shares of `source`, whose proofs are `shown`. seen: of `_listed`. Raises Refused or ValueError."""
        cipher, public = self.peers[source]
        plain = keys.unseal(self.binding, self.cipher_private, cipher, source, self.node, sealed, seen)
        pair = plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]
        for kind, key, share, proof in zip((SEED, KEY), (b"", public), pair, shown, strict=True):
            context = share_context(self.binding, kind, source, public)
            if not proofs.Proof.read(proof, self.terms.threshold, context, key).fits(share, number):
                raise ValueError(f"its share of client {source}'s {kind} does not fit those of the others")
        self.seed_shares[source], self.key_shares[source] = pair

    def meet(self, told: Mapping[str, Any]) -> None:
        """Take the list of those with whom masks are shared: some of those whose shares were sound. Raises Refused for others."""
        nodes = _nodes(told, "nodes")
        if not set(nodes) <= set(self.seed_shares) - {self.node}:
            raise Refused("protocol", f"asked to share masks with {nodes}; sound shares came from {sorted(self.seed_shares)}")
        self.cohort = sorted([*nodes, self.node])
        self.need(len(self.cohort))

    def mask(self, words: np.ndarray) -> np.ndarray:
        """`words` [N] uint32 under the self-mask and the masks shared with the cohort; changes and returns the array.

        Shared masks hang on the terms and the model: those of two clients who were shown different ones do not cancel, and no answer of
        theirs takes them off. Without it the sum of all but one could be made zero, and the sum were that one's update.
        """
        seen, own = self.terms.digest(self.sent), self.public_keys()["mask_key"]
        add_stream(words, self_mask_key(self.binding, self.seed), 1)
        for peer in self.cohort:
            if peer != self.node:
                key = keys.mask_key(self.binding, self.mask_private, own, self.peers[peer][1], seen)
                add_stream(words, key, sign_between(self.node, peer))
        return words

    def agree(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Take the server's list of survivors, this one and no other, and confirm it and the model to every neighbour on it."""
        self.survivors = _nodes(told, "survivors")
        alive, _ = self._parted()
        if self.node not in alive:
            raise Refused("protocol", f"this client sent its vector, and is not among the survivors {self.survivors}")
        self.need(len(alive))
        peers = [node for node in alive if node != self.node]
        return {"nodes": peers, "tags": [keys.confirm(*self._between(self.node, peer), self._seen()) for peer in peers]}

    def unmask(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """For each of the cohort one share: of the seed if it sent its vector, of the masks' key if it did not. Never both.

        told: confirmations of the neighbours; false ones do not count. Only where a threshold of clients, itself included, was shown the
        same survivors and model: no two stories can have one, so that a server which tells several gets the shares of one at most. Those
        who confirm speak for themselves only: what a survivor was shown who does not confirm, `mask` and `check_shares` guard.
        """
        sources = _nodes(told, "nodes")
        alive, dropped = self._parted()
        if not set(sources) < set(alive) or self.node in sources:
            raise Refused("protocol", f"confirmations of {sources}, of whom only {alive} could confirm")
        tags = zip(sources, _bytes(told, "tags", sources), strict=True)
        known = 1 + sum(keys.confirms(tag, *self._between(source, self.node), self._seen()) for source, tag in tags)
        if known < self.terms.threshold:
            raise Refused("protocol", f"{known} clients were told of the same survivors and model; the threshold is {self.terms.threshold}")
        shares = [self.seed_shares[node] for node in alive] + [self.key_shares[node] for node in dropped]
        return {"nodes": alive + dropped, "shares": shares}

    def _listed(self) -> bytes:
        """What shares hang on: the terms and, unless neighbours have lists of their own, the list of everybody's keys."""
        if self.terms.neighbours:
            return self.terms.digest()
        listed = {**self.peers, self.node: tuple(self.public_keys().values())}
        return self.terms.digest(*(part for node in sorted(listed) for part in (str(node).encode(), *listed[node])))

    def _seen(self) -> bytes:
        """What this client was shown, as it confirms it."""
        return self.sent + b"".join(node.to_bytes(16, "big", signed=True) for node in sorted(self.survivors))

    def _parted(self) -> tuple[list[int], list[int]]:
        """Those of the cohort who survived, and those who did not."""
        alive = set(self.survivors)
        return [node for node in self.cohort if node in alive], [node for node in self.cohort if node not in alive]

    def _between(self, source: int, target: int) -> tuple[keys.Binding, bytes, bytes, int, int]:
        """What a confirmation of `source` to `target` hangs on; this client is one of the two."""
        peer = target if source == self.node else source
        return self.binding, self.cipher_private, self.peers[peer][0], source, target

    def to_bytes(self) -> bytes:
        """Everything, for the client's own context."""
        return json.dumps(asdict(self), default=lambda value: value.hex()).encode()

    @classmethod
    def from_bytes(cls, kept: bytes) -> Member:
        """What `to_bytes` gave."""
        plain = json.loads(kept)
        plain["terms"] = Terms(**plain["terms"])
        for name in ("cipher_private", "mask_private", "seed", "sent"):
            plain[name] = bytes.fromhex(plain[name])
        for name in ("seed_shares", "key_shares"):
            plain[name] = {int(node): bytes.fromhex(share) for node, share in plain[name].items()}
        plain["peers"] = {int(node): tuple(bytes.fromhex(key) for key in pair) for node, pair in plain["peers"].items()}
        return cls(**plain)


def self_mask_key(binding: keys.Binding, seed: bytes) -> bytes:
    """Key of the mask that a client takes off only through its neighbours' shares."""
    return binding.derive(seed, "self-mask")


def share_context(binding: keys.Binding, kind: str, dealer: int, mask_public: bytes) -> bytes:
    """What the shares of a client's secret of one kind, and their proof, are bound to."""
    return repr((binding.run, binding.round, kind, dealer)).encode() + mask_public


def sign_between(node: int, peer: int) -> int:
    """Of the two who share a mask one adds it and the other subtracts it."""
    return 1 if node < peer else -1


def _nodes(told: Mapping[str, Any], name: str) -> list[int]:
    nodes = told.get(name)
    if not isinstance(nodes, list) or not all(isinstance(node, int) for node in nodes) or len(set(nodes)) != len(nodes):
        raise Refused("protocol", f"{name} is not a list of different clients")
    return nodes


def _bytes(told: Mapping[str, Any], name: str, nodes: list[int]) -> list[bytes]:
    values = told.get(name)
    if not isinstance(values, list) or len(values) != len(nodes) or not all(isinstance(value, bytes) for value in values):
        raise Refused("protocol", f"{name} is not one value for each of {len(nodes)} clients")
    return values
