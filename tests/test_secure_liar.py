"""A server that departs from the protocol: it names different survivors to different clients, or sends them different models."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from federated.secure import keys, shamir
from federated.secure.client import digest_of
from federated.secure.encoding import decode
from federated.secure.errors import Refused, SecureAggregationHalted
from federated.secure.masks import add_stream
from federated.secure.member import WORDS, respond, self_mask_key, sign_between
from federated.secure.server import SecureRound
from federated.secure.settings import SecureSettings
from federated.secure.terms import Terms
from federated.update import Update
from tests.curious import chance_of_uniform
from tests.secure_world import AGREE, CHECK_SHARES, MASKED_INPUT, SETUP, SHARE_KEYS, UNMASK, Room, TinyGrid, some_updates, the_model

EQUAL = SecureSettings(weights="equal", clip_range=64.0, threshold=0.51)
NO_WORDS = np.zeros(5, np.uint32)
LIKELY = 1e-6  # a p-value below this is no accident


def stories(clients, threshold, wanted):
    """Survivors as the liar names them to each client: every client beyond `wanted` counts as lost to a threshold of them."""
    lost_to = dict.fromkeys(range(wanted + 1, clients + 1), 0)
    told = {}
    for node in range(clients, 0, -1):  # those that shall count as lost first: they cannot be told so of themselves
        others = sorted((n for n in lost_to if n != node and lost_to[n] < threshold), key=lost_to.get)[: clients - threshold]
        for other in others:
            lost_to[other] += 1
        told[node] = [n for n in range(1, clients + 1) if n not in others]
    assert all(count >= threshold for count in lost_to.values())
    return told


def attacked(clients, wanted):
    """(what the liar reads, the sum over the first `wanted` clients, the threshold). Raises SecureAggregationHalted where they refuse."""
    room = Room({n: Update({"w": np.full(3, float(n), np.float32)}, 1, {}) for n in range(1, clients + 1)}, {"w": np.zeros(3)}, EQUAL)
    threshold = room.terms.threshold
    told = stories(clients, threshold, wanted)
    answers = {}

    def lying(stage, requests):
        if stage == AGREE:
            requests = {node: {**request, "survivors": told[node]} for node, request in requests.items()}
        replies = room.ask(stage, requests)
        if stage == AGREE:  # a list that fits the honest half of the server, which is not to notice
            replies = {
                node: {
                    "nodes": [n for n in range(1, clients + 1) if n != node],
                    "tags": [dict(zip(r["nodes"], r["tags"], strict=True)).get(n, bytes(32)) for n in range(1, clients + 1) if n != node],
                }
                for node, r in replies.items()
            }
        if stage == UNMASK:
            answers.update(replies)
        return replies

    check = room.cohort._stage

    def confirmed(ask, stage, requests, check_reply):
        if stage == UNMASK:  # each gets what those of its story's survivors said
            for node, request in requests.items():
                pairs = [(n, t) for n, t in zip(request["nodes"], request["tags"], strict=True) if n in told[node]]
                request |= {"nodes": [n for n, _ in pairs], "tags": [t for _, t in pairs]}
        return check(ask, stage, requests, check_reply)

    room.cohort._stage = confirmed
    room.cohort._check_shares = lambda node, reply: None
    room.cohort._unmask = lambda total, replies: None
    room.cohort.run(lying)
    shares = {node: [] for node in told}
    for node, reply in answers.items():
        for owner, share in zip(reply["nodes"], reply["shares"], strict=True):
            if (owner > wanted) == (owner not in told[node]):
                shares[owner].append(share)
    total = sum((room.seen[MASKED_INPUT, node][1][WORDS] for node in range(1, wanted + 1)), np.uint32(0))
    seen = room.terms.digest(room.cohort.sent)
    opened = {node: shamir.combine(found, threshold) for node, found in shares.items()}
    for node in range(1, wanted + 1):
        add_stream(total, self_mask_key(room.cohort.binding, opened[node]), -1)
        for lost in range(wanted + 1, clients + 1):
            public = room.cohort.public
            key = keys.mask_key(room.cohort.binding, opened[lost], public[lost]["mask_key"], public[node]["mask_key"], seen)
            add_stream(total, key, -sign_between(node, lost))
    return total, sum((room.vector(node) for node in range(1, wanted + 1)), np.uint32(0)), threshold


@pytest.mark.parametrize("clients, wanted", [(10, 4), (40, 5)])
def test_different_survivors_for_different_clients_open_nothing(clients, wanted):
    with pytest.raises(SecureAggregationHalted) as halted:
        attacked(clients, wanted)
    assert halted.value.stage == UNMASK and halted.value.survivors == []


@pytest.mark.parametrize("clients, wanted", [(10, 4), (40, 5)])
def test_if_clients_did_not_compare_what_they_were_told_the_same_attack_reads_the_sum_of_a_few(clients, wanted, monkeypatch):
    monkeypatch.setattr(keys, "confirms", lambda *_: True)
    read, clear, threshold = attacked(clients, wanted)
    assert wanted < threshold and np.array_equal(read, clear)


def told_apart(stage, **other):
    """(a room of six, an `ask` that tells all but client 1 something else, which makes their updates zero)."""
    updates = {n: Update({"w": np.full(20_000, 0.125 * (n == 1), np.float32)}, 1, {}) for n in range(1, 7)}
    room = Room(updates, {"w": np.zeros(20_000)}, EQUAL)

    def lying(at, requests):
        if at == stage:
            requests = {node: request if node == 1 else {**request, **other} for node, request in requests.items()}
        return room.ask(at, requests)

    return room, lying


def test_a_client_that_alone_is_shown_another_model_leaves_noise_and_not_its_update():
    room, lying = told_apart(MASKED_INPUT, sent=b"a model that leaves no update")
    total = room.cohort.run(lying)
    assert room.cohort.survivors == list(room.updates)  # the sum would be client 1's vector and what is known of the others
    assert chance_of_uniform(total - sum((room.vector(node) for node in range(2, 7)), np.uint32(0))) > LIKELY
    with pytest.raises(ValueError, match="did not cancel"):
        decode(total, room.base, [], room.terms.scale)


def test_a_client_that_alone_is_told_to_part_from_another_leaves_noise_and_not_its_update():
    room, _ = told_apart(MASKED_INPUT)

    def lying(at, requests):
        if at == MASKED_INPUT:  # as if 1 and 6 were in dispute, of which 6 hears nothing
            requests = {**requests, 1: {**requests[1], "nodes": requests[1]["nodes"][:-1]}}
        return room.ask(at, requests)

    total = room.cohort.run(lying)
    assert 1 in room.cohort.survivors
    assert chance_of_uniform(total - sum((room.vector(node) for node in range(2, 7)), np.uint32(0))) > LIKELY


def test_a_client_that_alone_is_told_other_terms_shares_nothing_and_sends_no_vector():
    room, lying = told_apart(SETUP, clip=1e12)
    room.cohort.run(lying)
    assert room.cohort.survivors == [2, 3, 4, 5, 6] and room.cohort.lost[CHECK_SHARES] == [1]
    assert (MASKED_INPUT, 1) not in room.seen


@pytest.mark.parametrize("odd, why", [({1}, "did not cancel"), ({1, 2, 3}, "breaks the protocol")])
def test_different_models_for_different_clients_halt_the_round(odd, why):
    base = the_model(size=4)
    grid = TinyGrid(some_updates(base, 6))
    send = grid.send_and_receive

    def lying(messages, timeout=None):
        messages = list(messages)
        for message in messages:
            if message.metadata.dst_node_id in odd and "arrays" in message.content:
                other = TinyGrid(some_updates(base, 1)).messages({name: np.asarray(values + 1) for name, values in base.items()})[0]
                message.content["arrays"] = other.content["arrays"]
        return send(messages, timeout=timeout)

    grid.send_and_receive = lying
    secure = SecureRound(SecureSettings(max_weight=256, clip_range=4.0))
    with pytest.raises(SecureAggregationHalted, match=why):
        secure.exchange(grid, grid.messages(base), timeout_s=None, seed=0, server_round=1)


# Nine honest clients, five to a list:
# the holders of 2's and 3's keys (7, 8, 9) can take them for lost while those of 1's seed (4, 5) do not
LISTS = {1: {1, 2, 3, 4, 5}, 2: {1, 2, 7, 8, 9}, 3: {1, 3, 7, 8, 9}, 4: {1, 4, 5, 6}, 5: {1, 4, 5, 6}, 6: {4, 5, 6}}
FIRST = {1, 2, 3, 4, 5}
LISTS |= {node: {2, 3, 7, 8, 9} for node in (7, 8, 9)}
FIVE = Terms(run=1, round=1, clients=5, threshold=3, neighbours=0, clip=1.0, max_weight=0, max_clipped=0.0, seed=0)


@pytest.mark.parametrize(
    "lists, terms",
    [(LISTS, dict.fromkeys(LISTS, FIVE)), (dict.fromkeys(FIRST, FIRST), dict.fromkeys(FIRST - {1}, FIVE))],
)
def test_shares_of_a_client_that_was_shown_another_list_of_keys_or_other_terms_do_not_open(lists, terms):
    terms = {1: replace(FIVE, clip=1e12), **terms}
    kept, public, dealt = {}, {}, {}

    def ask(node, stage, **told):
        kept[node], reply = respond(kept.get(node, b""), node, {"stage": stage, "run": 1, "round": 1, **told}, lambda _: (NO_WORDS, []))
        return reply

    for node in lists:
        public[node] = ask(node, SETUP, **terms[node].told())
    for node, listed in lists.items():
        nodes = sorted(listed)
        found = {f"{name}s": [public[peer][name] for peer in nodes] for name in ("cipher_key", "mask_key")}
        dealt[node] = ask(node, SHARE_KEYS, nodes=nodes, **found)
    for node, listed in lists.items():
        sources = sorted(peer for peer in listed - {node} if node in dealt[peer]["nodes"])
        told = {f"{kind}_proofs": [dealt[peer][f"{kind}_proof"] for peer in sources] for kind in ("seed", "key")}
        told["sealed"] = [dealt[peer]["sealed"][dealt[peer]["nodes"].index(node)] for peer in sources]
        told["numbers"] = [sorted(lists[peer]).index(node) + 1 for peer in sources]
        bad = ask(node, CHECK_SHARES, nodes=sources, **told)["bad"]
        assert bad == [peer for peer in sources if (lists[peer], terms[peer]) != (listed, terms[node])]
        with pytest.raises(Refused, match="sound shares came from"):
            ask(node, MASKED_INPUT, nodes=sources)


def test_a_client_shares_masks_with_all_unless_its_owner_says_otherwise():
    with pytest.raises(Refused, match="neighbours only"):
        respond(b"", 1, {"stage": SETUP, **replace(FIVE, neighbours=2).told()}, lambda _: (NO_WORDS, []))


def test_the_digest_tells_models_and_settings_apart_and_not_the_protocols_own_part():
    grid, base = TinyGrid({1: None}), the_model(size=4)

    def digest(arrays, **config):
        message = grid.messages(arrays)[0]
        for name, value in config.items():
            message.content["config"][name] = value
        return digest_of(message.content)

    assert digest(base) == digest(dict(reversed(base.items())))
    changed = {**base, "scale": np.asarray(base["scale"] + np.float32(1e-6))}
    turned = {**base, "layer.bias": base["layer.bias"][::-1].copy()}
    assert len({digest(base), digest(changed), digest(turned), digest(base, facts="x")}) == 4


def test_the_digest_of_what_is_sent_is_the_digest_of_what_arrives():
    content = TinyGrid({1: None}).messages(the_model(size=4))[0].content
    content["config"]["share"], content["config"]["facts"], content["config"]["model"] = 1.0, "{}", b"packed"
    objects = {name: found.deflate() for name, found in get_all_nested_objects(content).items()}  # as Flower sends them
    assert digest_of(inflate_object_from_contents(content.object_id, objects)) == digest_of(content)
