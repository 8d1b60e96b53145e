"""What the clients of a secure round refuse, and what a round costs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import secure_aggregation
from federated.secure import keys, shamir
from federated.secure.errors import KINDS, Refused, SecureAggregationHalted
from federated.secure.member import Member, respond
from federated.secure.server import SecureRound, content_bytes
from federated.secure.settings import SecureSettings
from federated.update import Update
from kronos.errors import InputError
from tests.secure_world import (
    AGREE,
    CHECK_SHARES,
    MASKED_INPUT,
    SETUP,
    SHARE_KEYS,
    UNMASK,
    Room,
    TinyGrid,
    clear_mean,
    largest_error,
    some_updates,
    the_model,
)

SETTINGS = SecureSettings(max_weight=256)


# What a client refuses


def opened(stage, clients=5):
    """A room whose clients stand before `stage`, and the request that client 1 would be sent."""
    base = the_model(size=4)
    room, held = Room(some_updates(base, clients), base, SETTINGS), {}

    def stopping(at, requests):
        if at == stage:
            held.update(requests[1])
            raise KeyboardInterrupt
        return room.ask(at, requests)

    with pytest.raises(KeyboardInterrupt):
        room.cohort.run(stopping)
    return room, held


def refuses(room, told, match):
    """Client 1 refuses, and has nothing left to answer a sound request with."""
    with pytest.raises(Refused, match=match) as refused:
        respond(room.kept[1], 1, told, lambda terms: (room.vector(1), []))
    assert refused.value.kind == "protocol"
    assert room.respond(1, told) == {"refused": "protocol"} and room.kept[1] == b""


def test_a_client_gives_one_kind_of_share_for_each_peer_by_the_survivors_that_it_confirmed():
    room, told = opened(AGREE)
    room.respond(1, {**told, "survivors": [1, 2, 3, 4]})
    for node in (2, 3, 4):
        room.respond(node, {**told, "survivors": [1, 2, 3, 4]})
    member = Member.from_bytes(room.kept[1])
    tags = [keys.confirm(*Member.from_bytes(room.kept[n])._between(n, 1), member._seen()) for n in (2, 3, 4)]
    second = {"survivors": [1, 2, 3, 5]}  # is not read
    reply = room.respond(1, {**told, "stage": UNMASK, "nodes": [2, 3, 4], "tags": tags, **second})
    shares = dict(zip(reply["nodes"], reply["shares"], strict=True))
    assert shares == {**{n: member.seed_shares[n] for n in (1, 2, 3, 4)}, 5: member.key_shares[5]}


@pytest.mark.parametrize(
    "survivors, why",
    [
        ([2, 3, 4, 5], "is not among the survivors"),
        ([1, 2, 3], "fewer than the threshold of 4"),
        ([1, 2, 3, 4, 4], "not a list of different clients"),
        (None, "not a list of different clients"),
    ],
)
def test_a_client_refuses_a_list_of_survivors_that_cannot_be(survivors, why):
    room, told = opened(AGREE)
    refuses(room, {**told, "survivors": survivors}, why)


def test_a_client_unmasks_nothing_until_a_threshold_has_confirmed_and_false_confirmations_do_not_count():
    room, told = opened(UNMASK)
    few = {**told, "nodes": told["nodes"][:2], "tags": told["tags"][:2]}
    refuses(room, few, "3 clients were told of the same survivors and model; the threshold is 4")
    room, told = opened(UNMASK)
    false = {**told, "tags": [bytes(32), *told["tags"][1:]]}
    assert room.respond(1, false)["nodes"] == [1, 2, 3, 4, 5], "one client that lies cannot halt a round"
    room, told = opened(UNMASK)
    refuses(room, {**told, "tags": [bytes(32)] * 2 + told["tags"][2:]}, "3 clients were told")
    for nodes in ([1, *told["nodes"][1:]], [99, *told["nodes"][1:]]):
        room, told = opened(UNMASK)
        refuses(room, {**told, "nodes": nodes}, "could confirm")


def test_a_client_never_answers_below_the_threshold():
    room, told = opened(MASKED_INPUT)
    refuses(room, {**told, "nodes": told["nodes"][:2]}, "fewer than the threshold of 4")
    room, told = opened(SHARE_KEYS)
    refuses(room, {**told, **{name: told[name][:3] for name in ("nodes", "cipher_keys", "mask_keys")}}, "4 of 3 share holders")


@pytest.mark.parametrize(
    "stage, names, few",
    [
        (SETUP, ["clients"], lambda value: 4),
        (SHARE_KEYS, ["nodes", "cipher_keys", "mask_keys"], lambda value: value[:4]),
        (MASKED_INPUT, ["nodes"], lambda value: value[:3]),
        (AGREE, ["survivors"], lambda value: value[:4]),
    ],
)
def test_a_client_takes_no_part_with_fewer_clients_than_its_owner_wants_though_the_threshold_is_there(stage, names, few):
    room, told = opened(stage)
    told = {**told, **{name: few(told[name]) for name in names}}
    kept = room.kept.get(1, b"")
    if stage != SETUP:
        kept = replace(Member.from_bytes(kept), least=5).to_bytes()
    with pytest.raises(Refused, match=f"4 clients in stage {stage}, and its owner wants 5 ") as refused:
        respond(kept, 1, told, lambda terms: (room.vector(1), []), least=5)
    assert refused.value.kind == "few"
    respond(room.kept.get(1, b""), 1, told, lambda terms: (room.vector(1), []), least=4)


def test_a_client_answers_one_unmasking_and_no_second_one():
    room, told = opened(UNMASK)
    first = room.respond(1, told)
    assert first["nodes"] == [1, 2, 3, 4, 5] and room.kept[1] == b""
    for again in (told, {**told, "nodes": [3, 4, 5], "tags": told["tags"][1:]}):
        assert room.respond(1, again) == {"refused": "protocol"}


@pytest.mark.parametrize("stage", [SHARE_KEYS, CHECK_SHARES, MASKED_INPUT, AGREE])
def test_a_client_does_no_stage_twice_nor_out_of_order(stage):
    room, told = opened(stage)
    room.respond(1, told)
    refuses(room, told, "due is")
    for ahead in {CHECK_SHARES, MASKED_INPUT, AGREE, UNMASK} - {stage}:
        room, told = opened(SHARE_KEYS)
        refuses(room, {**told, "stage": ahead}, "due is 'share_keys'")


def test_a_client_refuses_a_stage_of_another_round_or_run():
    for change in ({"round": 2}, {"run": 78}):
        room, told = opened(SHARE_KEYS)
        refuses(room, {**told, **change}, "due is")


def test_a_client_refuses_a_list_of_keys_with_a_stranger_under_its_name_or_one_key_twice():
    strangers = keys.public_of(keys.new_private()), keys.mask_public_of(shamir.new_secret())
    for name, stranger in zip(("cipher_keys", "mask_keys"), strangers, strict=True):
        room, told = opened(SHARE_KEYS)
        refuses(room, {**told, name: [stranger, *told[name][1:]]}, "others under its id")
        room, told = opened(SHARE_KEYS)
        refuses(room, {**told, name: [*told[name][:-1], told[name][1]]}, "holds one twice")
    room, told = opened(SHARE_KEYS)
    refuses(room, {**told, **{name: told[name][1:] for name in ("nodes", "cipher_keys", "mask_keys")}}, "lacks this client's")


def test_a_client_refuses_a_threshold_that_lets_two_groups_open_one_secret():
    base = the_model(size=4)
    room = Room(some_updates(base, 5), base, SETTINGS)
    room.terms = room.cohort.terms = replace(room.terms, threshold=2)
    with pytest.raises(SecureAggregationHalted) as halted:
        room.total()
    assert halted.value.stage == SHARE_KEYS and halted.value.survivors == []


@pytest.mark.parametrize(
    "terms",
    [
        {"clients": 2, "threshold": 2},
        {"threshold": 1},
        {"threshold": 6},
        {"clip": np.nan},
        {"max_weight": -1},
        {"max_clipped": 1.0},
        {"clip": "x"},
        {"threshold": 2.5},
    ],
)
def test_a_client_refuses_terms_nobody_may_agree_to(terms):
    base = the_model(size=4)
    room = Room(some_updates(base, 5), base, SETTINGS)
    assert room.respond(1, {"stage": SETUP, **room.terms.told(), **terms}) == {"refused": "protocol"}


def test_a_client_takes_no_shares_that_another_client_sealed_and_shares_no_masks_with_its_pretended_sender():
    room, told = opened(CHECK_SHARES)
    swapped = [told["sealed"][1], told["sealed"][0], *told["sealed"][2:]]
    assert room.respond(1, {**told, "sealed": swapped}) == {"bad": [2, 3]}
    refuses(room, {**told, "stage": MASKED_INPUT}, "sound shares came from")


@pytest.mark.parametrize("change", [{"numbers": [1]}, {"numbers": "x"}, {"seed_proofs": []}, {"nodes": [2, 3, 4, 99]}])
def test_a_client_refuses_a_request_to_check_shares_that_cannot_be(change):
    room, told = opened(CHECK_SHARES)
    refuses(room, {**told, **change}, "one value for each of|one for each of|were not listed")


def test_what_a_client_keeps_reads_back_the_same_and_is_gone_when_the_round_is():
    room, _ = opened(UNMASK)
    member = Member.from_bytes(room.kept[1])
    assert Member.from_bytes(member.to_bytes()) == member and len(member.seed_shares) == 5
    assert json.loads(room.kept[1])["stage"] == AGREE
    room, _ = opened(SETUP)
    room.total()
    assert set(room.kept.values()) == {b""}


# A round over Flower


def rounded(settings=SETTINGS, updates=None, base=None, **kwargs):
    base = the_model() if base is None else base
    grid = TinyGrid(some_updates(base, 6) if updates is None else updates, **kwargs)
    return grid, SecureRound(settings).exchange(grid, grid.messages(base), timeout_s=None, seed=3, server_round=1)


def test_each_client_works_once_and_two_rounds_agree_to_the_bit_though_every_mask_differs():
    (grid, first), (other, second) = rounded(), rounded()
    assert sorted(grid.calls) == [1, 2, 3, 4, 5, 6]
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays) and first.metrics == second.metrics

    def sent(grid):
        return [reply.content.array_records for stage, _, _, reply in grid.traffic if stage == MASKED_INPUT]

    assert all(one != two for one, two in zip(sent(grid), sent(other), strict=True))


def test_upload_is_at_most_a_tenth_more_than_the_clear_weights():
    base = {"w": np.zeros((400, 500), np.float32)}
    updates = {node: Update({"w": base["w"] + 0.01 * node}, 100, {"loss": 1.0}) for node in range(1, 11)}
    grid, outcome = rounded(updates=updates, base=base)
    clear = sum(content_bytes(message.content) for message in grid.messages(base))
    assert outcome.bytes_up <= 1.1 * clear and outcome.bytes_up == sum(content_bytes(reply.content) for *_, reply in grid.traffic)
    assert clear < outcome.bytes_down <= 1.1 * clear  # the model travels down once
    assert largest_error(outcome.arrays, clear_mean(updates, outcome.survivors)[0]) <= 2e-5


def test_no_reply_holds_examples_losses_or_weights_in_clear():
    grid, _ = rounded()
    for stage, node, _, reply in grid.traffic:
        assert not reply.content.metric_records
        for record in reply.content.config_records.values():
            assert not [value for value in record.values() if isinstance(value, int | float)], (stage, node)
        if stage == MASKED_INPUT:
            (array,) = (array for record in reply.content.array_records.values() for array in record.values())
            words = array.numpy()
            assert words.dtype == np.uint32 and not set(words[:5].tolist()) & {1, grid.updates[node].examples}


def test_equal_weights_give_the_plain_mean_and_hide_the_examples():
    grid, outcome = rounded(SecureSettings(weights="equal"))
    arrays, metrics = clear_mean(grid.updates, outcome.survivors, equal=True)
    assert outcome.examples is None and largest_error(outcome.arrays, arrays) <= 2e-5
    assert outcome.metrics == pytest.approx(metrics, abs=1e-6)


def moved(updates, nodes, by):
    return {n: replace(u, arrays={k: v + np.float32(by if n in nodes else 0) for k, v in u.arrays.items()}) for n, u in updates.items()}


def test_one_poisoned_client_refuses_and_is_named_and_two_of_six_halt_the_round(caplog):
    updates = some_updates(the_model(), 6)
    grid, outcome = rounded(updates=moved(updates, {2}, 1e6))
    assert outcome.survivors == [1, 3, 4, 5, 6] and list(outcome.refused) == [2] and outcome.dropped == {MASKED_INPUT: [2]}
    assert "set a larger one" in outcome.refused[2] and "changed by more than ±" in caplog.text
    reply = next(reply for stage, node, _, reply in grid.traffic if (stage, node) == (MASKED_INPUT, 2))
    assert reply.content.config_records["secure-aggregation"] == {"refused": "range"}  # how far is its own affair
    with pytest.raises(SecureAggregationHalted, match=r"clients \[2, 3\] refused.*set a larger one"):
        rounded(updates=moved(updates, {2, 3}, 2.5))


def test_an_update_with_nan_is_left_out_and_the_mean_stays_finite():
    updates = some_updates(the_model(), 6)
    _, outcome = rounded(updates=moved(updates, {4}, np.nan))
    assert outcome.dropped == {MASKED_INPUT: [4]} and not outcome.refused
    assert largest_error(outcome.arrays, clear_mean(updates, outcome.survivors)[0]) <= 2e-5


def test_a_client_whose_metrics_differ_from_most_is_left_out():
    updates = some_updates(the_model(), 6)
    updates[5] = replace(updates[5], metrics={"loss": 1.0})
    _, outcome = rounded(updates=updates)
    assert outcome.survivors == [1, 2, 3, 4, 6]
    assert largest_error(outcome.arrays, clear_mean(updates, outcome.survivors)[0]) <= 2e-5


def test_a_range_or_max_weight_too_large_for_the_accuracy_asked_is_refused():
    with pytest.raises(InputError, match="clip_range or a larger max_error"):
        rounded(SecureSettings(max_weight=256, clip_range=1e5))
    with pytest.raises(SecureAggregationHalted, match=r"set max_weight \(now 1073741824\) nearer"):
        rounded(SecureSettings(max_weight=1 << 30))


def test_too_few_clients_or_models_that_differ_are_refused_before_anything_is_sent():
    base = the_model()
    with pytest.raises(InputError, match="asks 2 clients, and 3 are the least"):
        rounded(updates=some_updates(base, 2))
    grid = TinyGrid(some_updates(base, 3))
    messages = [*grid.messages(base)[:2], *grid.messages(the_model(seed=9))[2:]]
    with pytest.raises(InputError, match="the same model"):
        SecureRound(SETTINGS).exchange(grid, messages, timeout_s=None, seed=0, server_round=1)
    with pytest.raises(InputError, match="the same model"):
        SecureRound(SETTINGS).exchange(grid, [], timeout_s=None, seed=0, server_round=1)
    assert not grid.traffic


def test_an_error_of_the_training_is_not_swallowed():
    base = the_model()
    grid = TinyGrid(some_updates(base, 3))
    grid.work = lambda msg, context: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        SecureRound(SETTINGS).exchange(grid, grid.messages(base), timeout_s=None, seed=0, server_round=1)


def test_every_kind_of_refusal_is_explained():
    assert all(text and text == text.strip() for text in KINDS.values())


def test_the_benchmark_measures_bytes_errors_and_seconds(capsys):
    report = secure_aggregation.main(["--clients", "3", "5", "--parameters", "16000", "--rounds", "1"])
    assert len(report.rows) == 16 and all(row.passed for row in report.rows)
    assert "5 clients, 16,000 values: a round: secure median" in capsys.readouterr().out
