"""A server that follows the protocol and keeps everything: what it holds after a round, and the attacks it tries on any scheme."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from federated.secure import keys, shamir
from federated.secure.masks import stream_words
from federated.secure.member import WORDS, Member, self_mask_key, sign_between
from tests.secure_world import MASKED_INPUT, UNMASK, Room

Vectors = Mapping[int, np.ndarray]  # by client


@dataclass
class Sight:
    """What the server holds. masked: vectors as they came. masks: those it can work out for each client, signed as they were added."""

    masked: Vectors
    masks: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def bare(self) -> dict[int, np.ndarray]:
        """Every vector without every mask that is known; words wrap, floats do not."""
        return {node: vector - sum(self.masks.get(node, []), np.zeros_like(vector)) for node, vector in self.masked.items()}


def sight_of(room: Room, colluding: frozenset[int] = frozenset()) -> Sight:
    """What the server and clients colluding with it hold after a round: seeds and keys opened by the shares that it was given, all the
    colluders' own secrets and shares, and every vector, late ones too."""
    masked = {node: reply[WORDS] for (stage, node), (_, reply) in room.seen.items() if stage == MASKED_INPUT and WORDS in reply}
    answers = [reply for (stage, node), (_, reply) in room.seen.items() if stage == UNMASK and node not in room.gone]
    alive, dropped = set(room.cohort.survivors), set(room.cohort.sharing) - set(room.cohort.survivors)
    threshold, binding, size = room.terms.threshold, keys.Binding(room.terms.run, room.terms.round), len(next(iter(masked.values())))

    def opened(owner: int) -> bytes:
        return shamir.combine([r["shares"][r["nodes"].index(owner)] for r in answers if owner in r["nodes"]], threshold)

    seen = room.terms.digest(room.cohort.sent)
    seeds, privates = {node: opened(node) for node in alive}, {node: opened(node) for node in dropped}
    for node in colluding:
        member = Member.from_bytes(room.worn[node])
        seeds[node], privates[node] = member.seed, member.mask_private
    masks: dict[int, list[np.ndarray]] = {node: [] for node in masked}
    for node in masked:
        if node in seeds:
            masks[node].append(stream_words(self_mask_key(binding, seeds[node]), size))
        for peer in set(masked) - {node}:
            if node in privates or peer in privates:
                mine, other = (node, peer) if node in privates else (peer, node)
                public = room.cohort.public
                key = keys.mask_key(binding, privates[mine], public[mine]["mask_key"], public[other]["mask_key"], seen)
                mask = stream_words(key, size)
                masks[node].append(mask if sign_between(node, peer) == 1 else np.zeros_like(mask) - mask)
    return Sight(masked, masks)


def chance_of_uniform(words: np.ndarray) -> float:
    """The smaller p-value of two chi-square tests: the words' bytes over 256 values, and their top 12 bits over 4,096."""
    by_byte = np.bincount(words.view(np.uint8), minlength=256)
    by_word = np.bincount(words >> np.uint32(20), minlength=4096)
    return min(stats.chisquare(by_byte).pvalue, stats.chisquare(by_word).pvalue)


def size_of(residual: np.ndarray) -> float:
    """Mean size; words are read with their sign."""
    signed = residual.view(np.int32) if residual.dtype == np.uint32 else residual
    return float(np.abs(signed.astype(np.float64)).mean())


def explains(sight: Sight, guess: Vectors) -> float:
    """How much is left over when the guess is taken off: 0 for the truth where all masks are known."""
    return sum(size_of(vector - guess[node]) for node, vector in sight.bare().items() if node in guess)


def told_apart(sight: Sight, guesses: list[Vectors]) -> int:
    """The attack: which of these sets of updates was it? The one that leaves least."""
    return int(np.argmin([explains(sight, guess) for guess in guesses]))


def subset_sums(vectors: Vectors, nodes: list[int]):
    """(subset, sum of its vectors) of every non-empty subset of `nodes`."""
    for count in range(1, len(nodes) + 1):
        for subset in itertools.combinations(nodes, count):
            yield subset, sum((vectors[node] for node in subset), np.zeros_like(vectors[nodes[0]]))


def searched_seed(words: np.ndarray, known: np.ndarray, seeds: range, generate) -> int | None:
    """The other attack: a seed whose stream explains the first words, some of which are known in clear; None if no seed does."""
    mask = (words[: len(known)].astype(np.uint32) - known.astype(np.uint32)).astype(np.int64)
    return next((seed for seed in seeds if np.array_equal(generate(seed, len(mask)), mask)), None)
