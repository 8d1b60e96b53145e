"""The server's side of the protocol, numbers and bytes only.

`Cohort.run(ask)` asks the clients stage by stage through whatever carries messages and gives the unmasked sum. A client that does not
answer, answers nonsense or refuses is lost from then on: from setup the graph of neighbours is drawn among those who are left, after
check_shares masks are shared only with those whose shares arrived sound, so that a client lost early costs nothing later. Shares that come
back in unmask are held against their dealer's proof, so that false ones lose their sender and not the round.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from federated.update import MALFORMED

from . import keys, shamir
from .disputes import parted
from .errors import KINDS, RANGE_KINDS, Refused, SecureAggregationHalted
from .masks import add_stream
from .member import KEY, SEED, WORDS, self_mask_key, share_context, sign_between
from .proofs import Proof
from .settings import SecureSettings
from .terms import AGREE, CHECK_SHARES, MASKED_INPUT, SETUP, SHARE_KEYS, STAGES, UNMASK, Terms

Requests = dict[int, dict[str, Any]]  # by client
Ask = Callable[[str, Requests], Requests]  # stage, requests -> replies of those who answered
log = logging.getLogger(__name__)


class Cohort:
    """The clients of one round as the server sees them.

    nodes: ids of those asked. length: words of a vector for a number of metrics. sent: digest of the model they are sent. After `run`:
    lost (stage -> ids), reasons (id -> why it was lost), refused (the same, of those beyond range or weight), survivors (ids whose vectors
    are in the sum), metrics (names).
    """

    def __init__(self, settings: SecureSettings, nodes: Collection[int], terms: Terms, length: Callable[[int], int], sent: bytes = b""):
        self.sent = sent
        self.settings, self.terms, self.length = settings, terms, length
        self.asked = sorted(nodes)
        self.quorum = settings.quorum(len(self.asked))
        self.binding = keys.Binding(terms.run, terms.round)
        self.left = list(self.asked)
        self.lost: dict[str, list[int]] = {stage: [] for stage in STAGES}
        self.refused: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.heard: set[bytes] = set()  # public keys
        self.survivors: list[int] = []
        self.metrics: list[str] = []

    def run(self, ask: Ask) -> np.ndarray:
        """The six stages. Returns the sum of the survivors' vectors, [words] uint32. Raises SecureAggregationHalted."""
        self.public = self._stage(ask, SETUP, {node: self.terms.told() for node in self.left}, self._check_keys)
        self.neighbours = draw_neighbours(self.left, self.settings.neighbours)
        self.holders = {node: sorted(self.neighbours[node] | {node}) for node in self.left}  # of a client's shares, in the order of these
        self.proofs: dict[int, dict[str, Proof]] = {}
        sealed = self._stage(ask, SHARE_KEYS, {node: self._listed(node) for node in self.left}, self._check_sealed)
        self.sharing = {node: self.neighbours[node] & set(self.left) for node in self.left}  # who shares masks with whom
        told = self._stage(ask, CHECK_SHARES, {node: self._forwarded(node, sealed) for node in self.left}, self._check_told)
        self._part(told)
        vectors = self._stage(ask, MASKED_INPUT, {node: {"nodes": sorted(self.sharing[node])} for node in self.left}, self._check_vector)
        self._same_metrics(vectors)
        self._can_unmask(MASKED_INPUT)
        self.survivors = list(self.left)
        total = np.zeros(self.length(len(self.metrics)), np.uint32)
        for node in self.survivors:
            total += vectors.pop(node)[WORDS]
        told = self._stage(ask, AGREE, {node: {"survivors": self.survivors} for node in self.left}, self._check_tags)
        self._can_unmask(AGREE)
        shares = self._stage(ask, UNMASK, {node: self._confirmed(node, told) for node in self.left}, self._check_shares)
        self._unmask(total, shares)
        return total

    def _stage(self, ask: Ask, stage: str, requests: Requests, check: Callable[[int, dict[str, Any]], None]) -> Requests:
        """Ask everyone who is left, keep the sound replies; those without one are lost. Raises when fewer than the quorum are left."""
        place = {"stage": stage, "run": self.terms.run, "round": self.terms.round}
        replies = ask(stage, {node: {**request, **place} for node, request in requests.items()})
        sound = {}
        for node in requests:
            try:
                if node not in replies:
                    raise ValueError("no answer")
                if "refused" in replies[node]:
                    raise ValueError(KINDS.get(str(replies[node]["refused"]), "it refused"))
                check(node, replies[node])
                sound[node] = replies[node]
            except MALFORMED as error:
                self._lose(stage, node, str(error))
                if str(replies.get(node, {}).get("refused")) in RANGE_KINDS:
                    self.refused[node] = str(error)
        if len(self.refused) > self.settings.max_refused * len(self.asked):
            why = "; ".join(sorted(set(self.refused.values())))
            raise SecureAggregationHalted(stage, self.left, self.quorum, f"clients {sorted(self.refused)} refused to be clipped: {why}")
        self._need_quorum(stage)
        return sound

    def _lose(self, stage: str, node: int, why: str) -> None:
        log.warning("secure aggregation: client %d is lost in stage %s: %s", node, stage, why)
        self.reasons[node] = why
        self.left.remove(node)
        self.lost[stage].append(node)

    def _need_quorum(self, stage: str) -> None:
        if len(self.left) < self.quorum:
            gone = ", ".join(f"{where}: {nodes}" for where, nodes in self.lost.items() if nodes)
            why = f"too few of {len(self.asked)} clients are left; lost in {gone} ({self._said()})"
            raise SecureAggregationHalted(stage, self.left, self.quorum, why)

    def _said(self) -> str:
        return "; ".join(sorted(set(self.reasons.values())))

    def _check_keys(self, node: int, reply: dict[str, Any]) -> None:
        cipher, mask = reply["cipher_key"], reply["mask_key"]
        try:
            keys.agree(keys.new_private(), cipher)
            keys.mask_key(self.binding, shamir.new_secret(), b"", mask, b"")
        except Refused as error:
            raise ValueError(error.detail) from error
        if {cipher, mask} & self.heard:  # clients refuse a list that holds one twice
            raise ValueError("its public key is another client's")
        self.heard |= {cipher, mask}

    def _listed(self, node: int) -> dict[str, Any]:
        nodes = self.holders[node]
        return {"nodes": nodes, **{name: [self.public[peer][key] for peer in nodes] for name, key in _KEYS.items()}}

    def _check_sealed(self, node: int, reply: dict[str, Any]) -> None:
        if not _one_for_each(self.neighbours[node], reply["nodes"], reply["sealed"]):
            raise ValueError("it did not share its secrets with each neighbour")
        public, read = self.public[node]["mask_key"], {}
        for kind, key in ((SEED, b""), (KEY, public)):
            read[kind] = Proof.read(reply[f"{kind}_proof"], self.terms.threshold, share_context(self.binding, kind, node, public), key)
            if len(read[kind].hashes) != len(self.holders[node]):
                raise ValueError(f"a proof of {len(read[kind].hashes)} shares for {len(self.holders[node])} holders")
        self.proofs[node] = read

    def _forwarded(self, node: int, sealed: Requests) -> dict[str, Any]:
        sources = sorted(self.sharing[node])
        return {
            "nodes": sources,
            "numbers": [self._number(source, node) for source in sources],
            "sealed": [sealed[source]["sealed"][sealed[source]["nodes"].index(node)] for source in sources],
            **{f"{kind}_proofs": [sealed[source][f"{kind}_proof"] for source in sources] for kind in (SEED, KEY)},
        }

    def _number(self, owner: int, holder: int) -> int:
        """Of the share of `owner` that `holder` has."""
        return self.holders[owner].index(holder) + 1

    def _check_told(self, node: int, reply: dict[str, Any]) -> None:
        bad = reply["bad"]
        if not isinstance(bad, list) or not all(type(peer) is int for peer in bad) or not set(bad) <= self.sharing[node]:
            raise ValueError("it did not say whose shares are not sound")

    def _part(self, told: Requests) -> None:
        """Clients of whom one does not take the other's shares share nothing; who has too few holders so is lost."""
        disputes = {(node, peer) for node in self.left for peer in told[node]["bad"]}
        for node, peer in sorted(disputes):
            log.warning("secure aggregation: client %d finds the shares of client %d false", node, peer)
        self.sharing, lost = parted({node: self.sharing[node] & set(self.left) for node in self.left}, disputes, self.terms.threshold)
        for node, others in lost.items():
            self._lose(CHECK_SHARES, node, f"it and {others} do not take each other's shares")
        self._need_quorum(CHECK_SHARES)

    def _check_vector(self, node: int, reply: dict[str, Any]) -> None:
        words, names = reply[WORDS], reply["metrics"]
        if words.dtype != np.uint32 or words.shape != (self.length(len(names)),) or names != sorted(set(names)):
            raise ValueError(f"a vector of {words.shape} {words.dtype} for {len(names)} metrics does not fit the model that was sent")

    def _same_metrics(self, vectors: Requests) -> None:
        """Vectors with other metrics than most cannot be added: their clients are lost too, and their masks taken out like the rest."""
        common = Counter(tuple(vectors[node]["metrics"]) for node in self.left).most_common(1)[0][0]
        for node in [node for node in self.left if tuple(vectors[node]["metrics"]) != common]:
            self._lose(MASKED_INPUT, node, f"its metrics are {vectors[node]['metrics']}, most have {list(common)}")
        self.metrics = list(common)
        self._need_quorum(MASKED_INPUT)

    def _can_unmask(self, stage: str) -> None:
        """With sparse neighbours a quorum may be left and yet secrets not open, or survivors share no masks with the others."""
        for node in self.sharing:
            if len((self.sharing[node] | {node}) & set(self.left)) < self.terms.threshold:
                raise SecureAggregationHalted(stage, self.left, self.quorum, f"too few hold sound shares of client {node}")
        if stage == MASKED_INPUT and not connected(self.left, self.sharing):
            raise SecureAggregationHalted(stage, self.left, self.quorum, "survivors fell apart into groups, whose sums would show")

    def _check_tags(self, node: int, reply: dict[str, Any]) -> None:
        if not _one_for_each(self.sharing[node] & set(self.survivors), reply["nodes"], reply["tags"]):
            raise ValueError("it did not confirm the survivors to each neighbour")

    def _confirmed(self, node: int, told: Requests) -> dict[str, Any]:
        sources = sorted(self.sharing[node] & set(self.left))
        return {"nodes": sources, "tags": [told[source]["tags"][told[source]["nodes"].index(node)] for source in sources]}

    def _check_shares(self, node: int, reply: dict[str, Any]) -> None:
        if not _one_for_each(self.sharing[node] | {node}, reply["nodes"], reply["shares"]):
            raise ValueError("its shares are not those asked for")
        for owner, share in zip(reply["nodes"], reply["shares"], strict=True):
            kind = SEED if owner in self.survivors else KEY
            if not self.proofs[owner][kind].fits(share, self._number(owner, node)):
                raise ValueError(f"its share of client {owner}'s {kind} is not the one that it was dealt")

    def _unmask(self, total: np.ndarray, replies: Requests) -> None:
        """Take the survivors' self-masks and the lost clients' shared masks out of `total`, in place."""
        shares: dict[int, list[bytes]] = {node: [] for node in self.sharing}
        for reply in replies.values():
            for owner, share in zip(reply["nodes"], reply["shares"], strict=True):
                shares[owner].append(share)
        seen = self.terms.digest(self.sent)
        for node in self.sharing:
            try:
                secret = shamir.combine(shares[node], self.terms.threshold)
            except ValueError as error:
                why = f"secrets of client {node} do not open: {error} ({self._said()})"
                raise SecureAggregationHalted(UNMASK, self.left, self.quorum, why) from error
            if node in self.survivors:
                add_stream(total, self_mask_key(self.binding, secret), -1)
                continue
            own = self.public[node]["mask_key"]
            for peer in self.sharing[node] & set(self.survivors):
                key = keys.mask_key(self.binding, secret, own, self.public[peer]["mask_key"], seen)
                add_stream(total, key, -sign_between(peer, node))


_KEYS = {"cipher_keys": "cipher_key", "mask_keys": "mask_key"}


def _one_for_each(expected: Collection[int], nodes: Any, values: Any) -> bool:
    """Whether a reply has a value of bytes for each of these clients once, and for nobody else: what it says is sent on to others."""
    lists = isinstance(nodes, list) and isinstance(values, list)
    return lists and len(values) == len(nodes) and sorted(nodes) == sorted(expected) and all(isinstance(v, bytes) for v in values)


def draw_neighbours(nodes: Collection[int], degree: int | None) -> dict[int, set[int]]:
    """Who shares masks with whom: everybody, or the degree/2 next on both sides of a ring in random order (Bell et al., section 3)."""
    ring = sorted(nodes)
    if degree is None or degree >= len(ring) - 1:
        return {node: set(ring) - {node} for node in ring}
    random.SystemRandom().shuffle(ring)  # colluding clients must not know beforehand who sits beside whom
    offsets = [offset for offset in range(-(degree // 2), degree // 2 + 1) if offset]
    return {node: {ring[(i + offset) % len(ring)] for offset in offsets} for i, node in enumerate(ring)}


def connected(nodes: Collection[int], neighbours: Mapping[int, Collection[int]]) -> bool:
    """Whether every one of `nodes` reaches every other over neighbours among them."""
    left, reached = set(nodes), set()
    edge = {min(left)}
    while edge:
        reached |= edge
        edge = {peer for node in edge for peer in neighbours[node] if peer in left} - reached
    return reached == left
