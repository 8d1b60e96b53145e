"""Clients lost at each stage of a secure round: the mean over the others is right to 2e-5, or the round halts and says why."""

import numpy as np
import pytest

from federated.secure.errors import SecureAggregationHalted
from federated.secure.server import SecureRound
from federated.secure.settings import SecureSettings
from tests.secure_world import (
    AGREE,
    CHECK_SHARES,
    MASKED_INPUT,
    SETUP,
    SHARE_KEYS,
    STAGES,
    UNMASK,
    Room,
    TinyGrid,
    clear_mean,
    largest_error,
    some_updates,
    the_model,
)

SETTINGS = SecureSettings(max_weight=256)
REACH = 2e-5


def in_the_mean(clients, lost):
    """Whoever sent its vector is in the mean, also when it was lost afterwards."""
    gone = set().union(*(lost.get(stage, set()) for stage in (SETUP, SHARE_KEYS, CHECK_SHARES, MASKED_INPUT)))
    return [node for node in range(1, clients + 1) if node not in gone]


def check(room, lost):
    result = room.mean()
    nodes = in_the_mean(len(room.updates), lost)
    arrays, metrics = clear_mean(room.updates, nodes)
    assert room.cohort.survivors == nodes and result.count == len(nodes)
    assert result.weight == sum(room.updates[node].examples for node in nodes)
    assert largest_error(result.arrays, arrays) <= REACH
    assert result.metrics == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize("stage", [None, *STAGES])
@pytest.mark.parametrize("clients", [3, 5])
def test_a_client_lost_at_any_stage_leaves_the_mean_of_the_others(stage, clients):
    base, lost = the_model(), {stage: {2}} if stage else {}
    check(Room(some_updates(base, clients), base, SETTINGS, lost), lost)


@pytest.mark.parametrize("stage", [None, *STAGES])
@pytest.mark.parametrize("how", ["silent", "error"])
def test_a_client_lost_at_any_stage_over_flower_leaves_the_mean_of_the_others(stage, how):
    base, lost = the_model(), {stage: {2}} if stage else {}
    updates = some_updates(base, 5)
    grid = TinyGrid(updates, **{"lost" if how == "silent" else "broken": lost})
    outcome = SecureRound(SETTINGS).exchange(grid, grid.messages(base), timeout_s=60, seed=0, server_round=1)
    nodes = in_the_mean(5, lost)
    arrays, metrics = clear_mean(updates, nodes)
    assert outcome.survivors == nodes and outcome.dropped == ({stage: [2]} if stage else {})
    assert outcome.examples == sum(updates[node].examples for node in nodes)
    assert largest_error(outcome.arrays, arrays) <= outcome.error_bound <= REACH
    assert outcome.metrics == pytest.approx(metrics, abs=1e-6)


def test_one_lost_at_every_stage_of_the_same_round_leaves_the_mean_of_the_others():
    base, lost = the_model(), {SETUP: {1}, SHARE_KEYS: {4}, CHECK_SHARES: {2}, MASKED_INPUT: {6}, AGREE: {3}, UNMASK: {9}}
    check(Room(some_updates(base, 13), base, SecureSettings(max_weight=256, threshold=0.51), lost), lost)


def test_with_few_neighbours_losses_at_every_stage_leave_the_mean_of_the_others():
    base, lost = the_model(), {SETUP: {1}, SHARE_KEYS: {4}, CHECK_SHARES: {2}, MASKED_INPUT: {6}, AGREE: {3}, UNMASK: {9}}
    room = Room(some_updates(base, 16), base, SecureSettings(max_weight=256, threshold=0.51, neighbours=12), lost)
    check(room, lost)
    assert max(len(peers) for peers in room.cohort.neighbours.values()) == 12 < 14


def test_any_pattern_of_losses_gives_the_right_mean_or_halts_exactly_when_too_few_are_left():
    base, rng, halted = the_model(size=4), np.random.default_rng(0), 0
    for _ in range(60):
        where = rng.choice([*STAGES, "never"], size=6, p=[0.06, 0.06, 0.06, 0.06, 0.05, 0.05, 0.66])
        lost = {stage: {node for node in range(1, 7) if where[node - 1] == stage} for stage in STAGES}
        room = Room(some_updates(base, 6), base, SETTINGS, lost)
        if sum(where == "never") >= SETTINGS.quorum(6):
            check(room, lost)
            continue
        halted += 1
        with pytest.raises(SecureAggregationHalted):
            room.total()
    assert 5 < halted < 55  # both happened


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_survivors_halt_the_round_with_stage_survivors_and_threshold(stage):
    base = the_model()
    grid = TinyGrid(some_updates(base, 5), lost={stage: {1, 3}})
    with pytest.raises(SecureAggregationHalted) as halted:
        SecureRound(SETTINGS).exchange(grid, grid.messages(base), timeout_s=60, seed=0, server_round=1)
    assert (halted.value.stage, halted.value.survivors, halted.value.threshold) == (stage, [2, 4, 5], 4)
    assert stage in str(halted.value) and "[1, 3]" in str(halted.value)


def test_a_round_can_be_done_again_after_one_that_halted():
    base = the_model()
    grid = TinyGrid(some_updates(base, 4), lost={MASKED_INPUT: {1, 2}})
    secure = SecureRound(SETTINGS)
    with pytest.raises(SecureAggregationHalted):
        secure.exchange(grid, grid.messages(base), timeout_s=60, seed=0, server_round=1)
    grid.lost, grid.gone = {}, set()
    assert secure.exchange(grid, grid.messages(base), timeout_s=60, seed=0, server_round=1).survivors == [1, 2, 3, 4]


def test_survivors_that_fell_apart_into_groups_halt_the_round():
    base, lost = the_model(size=4), {MASKED_INPUT: {1, 4}}
    room = Room(some_updates(base, 6), base, SecureSettings(max_weight=256, threshold=0.51, neighbours=2), lost)
    ask = room.ask

    def ring_in_order(stage, requests):
        if stage == SHARE_KEYS:  # 1-2-3-4-5-6-1: without 1 and 4 it is 2-3 and 5-6
            room.cohort.neighbours = {node: {(node - 2) % 6 + 1, node % 6 + 1} for node in range(1, 7)}
            room.cohort.holders = {node: sorted({node} | peers) for node, peers in room.cohort.neighbours.items()}
            requests = {node: {**request, **room.cohort._listed(node)} for node, request in requests.items()}
        return ask(stage, requests)

    with pytest.raises(SecureAggregationHalted, match="fell apart"):
        room.cohort.run(ring_in_order)


def test_the_quick_stages_get_a_tenth_of_the_time_each_and_training_the_rest():
    base = the_model(size=4)
    grid = TinyGrid(some_updates(base, 4))
    SecureRound(SETTINGS).exchange(grid, grid.messages(base), timeout_s=100, seed=0, server_round=1)
    setup, share, checked, train, agree, unmask = grid.timeouts
    assert (setup, share, checked, agree, unmask) == (10, 10, 10, 10, 10) and 70 < train <= 80
