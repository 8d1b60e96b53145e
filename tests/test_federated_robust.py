"""Poisoned updates: refused at the door, or bounded by the strategies that look at single updates."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum
from flwr.supercore.task_identity import TaskIdentity

from federated.privacy import SystemNoise, difference, norm_of
from federated.robust import Rules, accept, enough_clients, noise_bound, outliers, version_mismatch
from federated.update import ARRAYS, Update, content_of, from_record
from kronos.errors import InputError


@pytest.fixture(autouse=True)
def in_a_run(monkeypatch):
    """Messages belong to a run; outside of Flower's processes there is none."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


BASE = {"w": np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10), "b": np.zeros(4, np.float32)}


def _update(delta: float, client: int = 0, examples: int = 100) -> Update:
    """What an honest client sends: every weight moved by about `delta` the same way."""
    rng = np.random.default_rng(client)
    return Update(
        {name: (a + delta * (1 + 0.1 * rng.random(a.shape))).astype(np.float32) for name, a in BASE.items()}, examples, {"loss": 1.0}
    )


def _changed(update: Update, **arrays) -> Update:
    return Update({**update.arrays, **arrays}, update.examples, update.metrics)


def test_an_honest_update_is_let_in():
    assert accept(_update(0.01), BASE, Rules(max_norm=1.0, max_examples=100)) is None


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (_changed(_update(0.01), b=np.array([0, np.nan, 0, 0], np.float32)), "finite"),
        (_changed(_update(0.01), b=np.array([0, np.inf, 0, 0], np.float32)), "finite"),
        (_changed(_update(0.01), w=BASE["w"] * 1e6), "changed by"),
        (_update(0.5), "norm"),
        (_changed(_update(0.01), b=np.zeros(5, np.float32)), "shape"),
        (_changed(_update(0.01), extra=np.zeros(5, np.float32)), "extra"),
        (_changed(_update(0.01), b=np.zeros(4, np.int64)), "int64"),
        (Update({"w": BASE["w"]}, 10), "arrays"),
        (_update(0.01, examples=0), "num-examples"),
        (_update(0.01, examples=101), "num-examples"),
        (Update(_update(0.01).arrays, 10, {"loss": float("nan")}), "loss"),
    ],
)
def test_a_poisoned_update_is_refused_and_the_reason_says_where(update, reason):
    assert reason in accept(update, BASE, Rules(max_norm=1.0, max_examples=100))


def test_an_update_a_million_times_too_large_stands_out_even_when_it_is_small_beside_the_weights():
    updates = {client: _update(1e-8, client) for client in range(4)} | {4: _update(1e-2, 4)}
    assert accept(updates[4], BASE, Rules()) is None
    assert list(outliers(updates, {n: a.astype(np.float64) for n, a in BASE.items()})) == [4]
    assert outliers({0: updates[0], 4: updates[4]}, BASE) == {}
    assert outliers({client: _update(0.01, client) for client in range(4)}, BASE) == {}


def test_a_noisy_honest_update_stays_below_the_bound_that_its_noise_is_given():
    noise = {"w": 0.3 * SystemNoise().standard_normal((2000,))}
    bound = noise_bound(1.0, 0.3, 2000)
    assert norm_of(noise) + 1.0 < bound < 1.3 * (1.0 + 0.3 * np.sqrt(2000))


def _aggregate(strategy, updates: dict[int, Update]) -> dict[str, np.ndarray]:
    """The strategy's next global weights from these clients' replies."""
    asked = [Message(RecordDict(), dst_node_id=client + 1, message_type="train") for client in updates]
    replies = [
        Message(content_of(update, client), reply_to=message) for message, (client, update) in zip(asked, updates.items(), strict=True)
    ]
    strategy.current_arrays = None
    arrays, _ = strategy.aggregate_train(1, replies)
    return from_record(arrays)


POISONS = {
    "sign flipped": _update(-0.01, 9),
    "sign flipped and larger": _update(-1.0, 9),
    "a million times": _update(1e4, 9),
    "constant": Update({name: np.full_like(a, 5.0) for name, a in BASE.items()}, 100, {"loss": 1.0}),
}
STRATEGIES = {
    "median": lambda: FedMedian(),
    "trimmed-mean": lambda: FedTrimmedAvg(beta=0.2),
    "krum": lambda: Krum(num_malicious_nodes=1),
}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_poisoned_client_of_five_cannot_move_the_model_outside_the_honest_updates(strategy, poison):
    honest = {client: _update(0.01, client) for client in range(4)}
    result = _aggregate(STRATEGIES[strategy](), honest | {4: POISONS[poison]})
    for name, array in result.items():
        stack = np.stack([update.arrays[name] for update in honest.values()])
        assert np.all((stack.min(0) - 1e-6 <= array) & (array <= stack.max(0) + 1e-6))


def test_the_plain_mean_follows_the_same_poison_which_is_why_those_strategies_exist():
    honest = {client: _update(0.01, client) for client in range(4)}
    moved = _aggregate(FedAvg(), honest | {4: POISONS["a million times"]})
    assert norm_of(difference(moved, BASE)) > 1000


def test_flowers_median_passes_a_nan_on_so_that_updates_are_checked_before_it():
    updates = {client: _update(0.01, client) for client in range(4)}
    updates[4] = _changed(_update(0.01, 4), b=np.full(4, np.nan, np.float32))
    assert np.isnan(_aggregate(FedMedian(), updates)["b"]).all()
    kept = {client: update for client, update in updates.items() if accept(update, BASE, Rules()) is None}
    assert sorted(kept) == [0, 1, 2, 3]
    assert np.isfinite(_aggregate(FedMedian(), kept)["b"]).all()


def test_another_version_is_named_and_refused():
    assert version_mismatch("1.2", "1.2") is None
    assert version_mismatch("anything", "") is None
    assert "'1.1', expected '1.2'" in version_mismatch("1.1", "1.2")
    assert version_mismatch("", "1.2")


def test_strategies_that_need_single_updates_are_refused_with_secure_or_with_too_few_clients():
    enough_clients("krum", 5, 1)
    enough_clients("fedavg", 1, 0, secure=True)
    for arguments, secure in [(("krum", 4, 1), False), (("median", 2, 1), False), (("trimmed-mean", 9, 1), True)]:
        with pytest.raises(InputError, match=arguments[0]):
            enough_clients(*arguments, secure=secure)


def test_weights_travel_through_flowers_records_unchanged():
    assert np.array_equal(from_record(content_of(_update(0.01), 0)[ARRAYS])["w"], _update(0.01).arrays["w"])
