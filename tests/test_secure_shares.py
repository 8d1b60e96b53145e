"""A client that deals false shares, or hands back others than it was dealt: it loses its place, and the round goes on without it."""

import numpy as np
import pytest

from federated.secure import disputes, keys, proofs, shamir
from federated.secure.errors import SecureAggregationHalted
from federated.secure.member import KEY, SEED, Member, share_context
from federated.secure.settings import SecureSettings
from tests.secure_world import (
    CHECK_SHARES,
    MASKED_INPUT,
    SETUP,
    SHARE_KEYS,
    UNMASK,
    Room,
    clear_mean,
    largest_error,
    some_updates,
    the_model,
)

LIAR, HONEST = 2, 4
SETTINGS = SecureSettings(max_weight=256)


def room_of(clients, **kwargs):
    base = the_model(size=4)
    return Room(some_updates(base, clients), base, SETTINGS, **kwargs)


def right(room):
    """The sum is that of the survivors, and it was taken."""
    result = room.mean()
    arrays, _ = clear_mean(room.updates, room.cohort.survivors)
    assert largest_error(result.arrays, arrays) <= 2e-5
    return {stage: nodes for stage, nodes in room.cohort.lost.items() if nodes}


def lying(room, stage, change):
    """The liar's reply to `stage` is changed in place."""
    ask = room.ask

    def asked(at, requests):
        replies = ask(at, requests)
        if at == stage and LIAR in replies:
            change(replies[LIAR])
        return replies

    room.ask = asked


# False shares, dealt. Each makes the liar's reply to SHARE_KEYS anew: with shares and proofs of its own choice


def dealt(member, reply, secrets, spoil=lambda kind, shares: shares, targets=None):
    """Seal shares of other secrets, spoilt after their proof was made, for `targets` (None: everybody)."""
    nodes = sorted([*reply["nodes"], member.node])
    public, shares = member.public_keys()["mask_key"], {}
    for kind, secret in secrets.items():
        context, key = share_context(member.binding, kind, member.node, public), public if kind == KEY else b""
        shares[kind], reply[f"{kind}_proof"] = proofs.deal(secret, member.terms.threshold, len(nodes), context, key)
    own = nodes.index(member.node)
    member.seed_shares[member.node], member.key_shares[member.node] = shares[SEED][own], shares[KEY][own]
    false = {kind: spoil(kind, list(found)) for kind, found in shares.items()}
    for at, node in enumerate(reply["nodes"]):
        given = shares if targets is not None and node not in targets else false
        plain = given[SEED][nodes.index(node)] + given[KEY][nodes.index(node)]
        peer = member.peers[node][0]
        reply["sealed"][at] = keys.seal(member.binding, member.cipher_private, peer, member.node, node, plain, member._listed())


def garbage(member, reply, targets):
    def noise(kind, shares):
        return [share[:2] + shamir.new_secret() for share in shares]

    dealt(member, reply, {SEED: member.seed, KEY: member.mask_private}, noise, targets)


def short(member, reply, targets):
    dealt(member, reply, {SEED: member.seed, KEY: member.mask_private}, lambda kind, shares: [share[:-1] for share in shares], targets)


def doubled(member, reply, targets):
    dealt(member, reply, {SEED: member.seed, KEY: member.mask_private}, lambda kind, shares: shares[:1] * len(shares), targets)


def not_sealed(member, reply, targets):
    reply["sealed"] = [bytes(96) if node in targets else sealed for node, sealed in zip(reply["nodes"], reply["sealed"], strict=True)]


FALSE = [garbage, short, doubled, not_sealed]


def dealing(room, how, targets):
    def deal(reply):
        member = Member.from_bytes(room.kept[LIAR])
        how(member, reply, targets)
        room.kept[LIAR] = member.to_bytes()

    lying(room, SHARE_KEYS, deal)


@pytest.mark.parametrize("how", FALSE)
@pytest.mark.parametrize("clients", [3, 5, 8])
def test_false_shares_for_all_lose_their_dealer_alone(how, clients, caplog):
    room = room_of(clients)
    dealing(room, how, set(room.updates))
    assert right(room) == {CHECK_SHARES: [LIAR]}
    assert f"client 3 finds the shares of client {LIAR} false" in caplog.text


@pytest.mark.parametrize("how", FALSE)
@pytest.mark.parametrize("gone", [False, True])
def test_false_shares_for_one_part_the_two_and_halt_no_round_though_their_dealer_goes_away_afterwards(how, gone):
    room = room_of(8, lost={MASKED_INPUT: {LIAR}} if gone else {})
    dealing(room, how, {HONEST})
    assert right(room) == ({MASKED_INPUT: [LIAR]} if gone else {})
    assert HONEST not in room.cohort.sharing[LIAR] and LIAR not in room.cohort.sharing[HONEST]
    assert len(room.cohort.survivors) == 8 - gone


@pytest.mark.parametrize("clients", [3, 4, 5])
def test_where_no_holder_can_be_spared_false_shares_for_one_lose_their_dealer(clients):
    room = room_of(clients)
    dealing(room, garbage, {1})
    assert right(room) == {CHECK_SHARES: [LIAR]}


def test_shares_of_another_key_than_the_published_one_lose_their_dealer_before_it_can_go_away():
    room = room_of(5, lost={CHECK_SHARES: {LIAR}})
    dealing(room, lambda member, reply, targets: dealt(member, reply, {SEED: member.seed, KEY: shamir.new_secret()}), set())
    assert right(room) == {SHARE_KEYS: [LIAR]} and "shares of another key" in room.cohort.reasons[LIAR]


@pytest.mark.parametrize(
    "spoil_share",
    [
        lambda share: share[:2] + shamir.new_secret(),  # on no polynomial of the degree
        lambda share: (1).to_bytes(2, "big") + share[2:],  # all with one number
    ],
)
def test_shares_that_open_nothing_are_found_although_their_dealer_fixed_them_beforehand(monkeypatch, spoil_share):
    """Each share has its true hash."""
    room, shares_of = room_of(5), shamir.shares_of

    def spoilt(coefficients, count):
        return [spoil_share(share) for share in shares_of(coefficients, count)]

    def spoil(member, reply, targets):
        with monkeypatch.context() as patch:
            patch.setattr(shamir, "shares_of", spoilt)
            dealt(member, reply, {SEED: member.seed, KEY: member.mask_private})

    dealing(room, spoil, set())
    assert right(room) == {CHECK_SHARES: [LIAR]}


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: proof[:-1],
        lambda proof: b"",
        lambda proof: proof[:-32] + b"\xff" * 32,
        lambda proof: proof[32:],
        lambda proof: "text",
    ],
)
@pytest.mark.parametrize("kind", [SEED, KEY])
def test_what_is_no_proof_loses_its_sender(kind, change):
    room = room_of(5)
    lying(room, SHARE_KEYS, lambda reply: reply.update({f"{kind}_proof": change(reply[f"{kind}_proof"])}))
    assert right(room) == {SHARE_KEYS: [LIAR]}


@pytest.mark.parametrize("bad, lost", [([1], {}), ([1, 3, 4, 5, 6, 7, 8], {CHECK_SHARES: [LIAR]})])
def test_a_client_that_calls_sound_shares_false_harms_itself(bad, lost):
    room = room_of(8)
    lying(room, CHECK_SHARES, lambda reply: reply.update(bad=bad))
    assert right(room) == lost


@pytest.mark.parametrize("bad", [[LIAR], [99], "x", [1.5], None])
def test_nonsense_about_shares_loses_its_sender(bad):
    room = room_of(5)
    lying(room, CHECK_SHARES, lambda reply: reply.update(bad=bad))
    assert right(room) == {CHECK_SHARES: [LIAR]}


def test_two_that_bring_the_same_keys_lose_one_of_them_and_not_the_round():
    room = room_of(5)
    ask = room.ask

    def same(stage, requests):
        replies = ask(stage, requests)
        if stage == SETUP:
            replies[LIAR] = dict(replies[1])
        return replies

    room.ask = same
    assert right(room) == {SETUP: [LIAR]}


# False shares, handed back


def flipped(share):
    return share[:-1] + bytes([share[-1] ^ 1])


@pytest.mark.parametrize(
    "change",
    [
        lambda shares: [flipped(shares[0]), *shares[1:]],
        lambda shares: [share[:2] + shamir.new_secret() for share in shares],
        lambda shares: [shares[0][:-1], *shares[1:]],
        lambda shares: [*shares[1:], shares[0]],  # of other clients' secrets
        lambda shares: [(1).to_bytes(2, "big") + share[2:] for share in shares],  # another holder's number
        lambda shares: [share[:2] + b"\xff" * 32 for share in shares],
    ],
)
@pytest.mark.parametrize("lost", [{}, {MASKED_INPUT: {5}}])
def test_a_false_share_in_unmask_loses_its_sender_and_the_mean_is_right(change, lost):
    room = room_of(6, lost=lost)
    lying(room, UNMASK, lambda reply: reply.update(shares=change(reply["shares"])))
    assert right(room) == {**{stage: list(nodes) for stage, nodes in lost.items()}, UNMASK: [LIAR]}
    assert "is not the one that it was dealt" in room.cohort.reasons[LIAR]


def test_where_too_few_sound_shares_are_left_the_error_names_who_sent_the_false_ones():
    room = room_of(4, lost={MASKED_INPUT: {4}})
    lying(room, UNMASK, lambda reply: reply.update(shares=[flipped(share) for share in reply["shares"]]))
    with pytest.raises(SecureAggregationHalted, match=r"unmask: \[2\].*its share of client 1's seed is not the one that it was dealt"):
        room.total()


# The proof itself


def test_a_proof_and_one_share_fewer_than_the_threshold_fit_every_secret():
    """For any other secret there are polynomials with the same shares of these holders and the same sum: only a hash could tell."""
    secret, threshold = shamir.new_secret(), 4
    shares, data = proofs.deal(secret, threshold, 6, b"context")
    proof = proofs.Proof.read(data, threshold, b"context")
    other = int.from_bytes(shamir.new_secret(), "big")
    known = [(int.from_bytes(share[:2], "big"), int.from_bytes(share[2:], "big")) for share in shares[: threshold - 1]]
    points = [(0, other), *known]

    def value(x):  # of the polynomial through these points
        total = 0
        for i, (at, y) in enumerate(points):
            for k, (over, _) in enumerate(points):
                if k != i:
                    y = y * (x - over) * pow(at - over, -1, shamir.ORDER) % shamir.ORDER
            total += y
        return total % shamir.ORDER

    again = [x.to_bytes(2, "big") + shamir.packed(value(x)) for x in range(1, 7)]
    assert again[: threshold - 1] == shares[: threshold - 1] and shamir.combine(again, threshold) == shamir.packed(other)
    assert all(proof.fits(share, number) for number, share in enumerate(shares, 1))
    assert not any(proof.fits(share, number) for number, share in enumerate(again, 1) if number >= threshold)


def forged(guess, count=5, threshold=3):
    """(shares of no secret, their proof) of a dealer that knew the challenge beforehand."""
    sums = shamir.polynomial(shamir.new_secret(), threshold)
    shares = [number.to_bytes(2, "big") + shamir.new_secret() for number in range(1, count + 1)]
    blind = [shamir.value_at(sums, number) - guess * int.from_bytes(share[2:], "big") for number, share in enumerate(shares, 1)]
    hashes = [proofs._hash(b"context", share, other % shamir.ORDER) for share, other in zip(shares, blind, strict=True)]
    return shares, b"".join([*hashes, *map(shamir.packed, sums)])


def test_who_knew_the_challenge_beforehand_could_prove_anything_and_nobody_does(monkeypatch):
    def fitting():
        shares, data = forged(guess=12345)
        proof = proofs.Proof.read(data, 3, b"context")
        return [proof.fits(share, number) for number, share in enumerate(shares, 1)]

    assert not any(fitting())
    monkeypatch.setattr(proofs, "_challenge", lambda *_: 12345)
    assert all(fitting())


def test_a_proof_holds_for_its_own_context_and_key_only():
    private = shamir.new_secret()
    public, stranger = keys.mask_public_of(private), keys.mask_public_of(shamir.new_secret())
    shares, data = proofs.deal(private, 2, 3, b"one", public)
    assert proofs.Proof.read(data, 2, b"one", public).fits(shares[0], 1)
    for context, key in ((b"two", public), (b"one", stranger)):
        with pytest.raises(ValueError, match="another key"):
            proofs.Proof.read(data, 2, context, key)


def test_of_clients_in_dispute_those_with_most_disputes_go_first_and_honest_ones_stay_together():
    rng, everybody = np.random.default_rng(0), set(range(10))
    sharing = {node: everybody - {node} for node in everybody}
    for _ in range(200):
        liars = set(rng.choice(10, 2, replace=False).tolist())
        told = {(int(a), int(b)) for a, b in rng.integers(0, 10, (8, 2)) if a != b and {int(a), int(b)} & liars}
        left, lost = disputes.parted(sharing, told, threshold=7)
        assert set(lost) <= liars
        for node, peers in left.items():
            assert all(node in left[peer] for peer in peers) and (node in liars or everybody - liars - {node} <= peers)
            assert len(peers) >= 7 or not any(node in pair and set(pair) <= set(left) for pair in told)
