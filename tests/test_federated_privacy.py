"""Privacy: the noise has the promised size, and ε is what theory says of it."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.stats import norm

from federated.consent import Consent
from federated.privacy import Accountant, Mechanism, SystemNoise, clipped, difference, epsilon_of, norm_of
from kronos.errors import InputError

BASE = {"a": np.full((40, 50), 3.0, np.float32), "b": np.full(500, -1.0, np.float32)}


def _moved(by: float, seed: int = 0) -> dict[str, np.ndarray]:
    """BASE moved by a norm of `by` in a random direction."""
    rng = np.random.default_rng(seed)
    step = {name: rng.standard_normal(array.shape) for name, array in BASE.items()}
    return {name: (BASE[name] + step[name] * by / norm_of(step)).astype(np.float32) for name in BASE}


def _delta_of_gaussian(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian mechanism of sensitivity μ and unit noise (Balle and Wang 2018, theorem 8)."""
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


def test_an_update_longer_than_the_norm_is_scaled_as_a_whole_and_a_shorter_one_is_left_alone():
    long, short = _moved(10.0), _moved(0.5)
    cut = difference(clipped(long, BASE, 2.0), BASE)
    assert norm_of(cut) == pytest.approx(2.0, rel=1e-5)
    whole = difference(long, BASE)
    for name in cut:
        np.testing.assert_allclose(cut[name], 0.2 * whole[name], atol=1e-6)
    np.testing.assert_allclose(clipped(short, BASE, 2.0)["a"], short["a"], atol=1e-6)


def test_an_update_that_is_not_finite_or_of_another_shape_is_not_clipped_but_refused():
    for wrong in ({**BASE, "b": np.full(500, np.nan, np.float32)}, {**BASE, "b": np.zeros(3, np.float32)}, {"a": BASE["a"]}):
        with pytest.raises(ValueError, match=r"finite|shape|arrays"):
            clipped(wrong, BASE, 1.0)


def test_noise_shared_by_clients_sums_to_the_promised_standard_deviation():
    mechanism = Mechanism(clip=2.0, sigma=1.5)
    survivors, minimum = 9, 6
    share = mechanism.noise_share(secure=True, minimum_survivors=minimum)
    total = {name: np.zeros(array.shape) for name, array in BASE.items()}
    clean = {name: np.zeros(array.shape) for name, array in BASE.items()}
    for client in range(survivors):
        update = _moved(10.0, client)
        for name, delta in difference(mechanism.on_client(update, BASE, SystemNoise(), share), BASE).items():
            total[name] += delta
            clean[name] += difference(clipped(update, BASE, 2.0), BASE)[name]
    noise = np.concatenate([(total[name] - clean[name]).ravel() for name in BASE])
    z = mechanism.noise_multiplier(secure=True, minimum_survivors=minimum, survivors=survivors)
    assert z == pytest.approx(1.5 * math.sqrt(9 / 6))
    assert noise.std() == pytest.approx(z * 2.0, rel=6 / math.sqrt(2 * noise.size))  # six standard errors
    assert abs(noise.mean()) < 6 * z * 2.0 / math.sqrt(noise.size)


def test_without_secure_aggregation_each_client_adds_all_of_the_noise_itself():
    mechanism = Mechanism(clip=2.0, sigma=1.5)
    share = mechanism.noise_share(secure=False, minimum_survivors=6)
    noisy = mechanism.on_client(BASE, BASE, np.random.default_rng(0), share)
    noise = np.concatenate([delta.ravel() for delta in difference(noisy, BASE).values()])
    assert noise.std() == pytest.approx(3.0, rel=6 / math.sqrt(2 * noise.size))
    assert mechanism.noise_multiplier(secure=False, minimum_survivors=6, survivors=9) == 1.5


def test_in_server_mode_clients_only_clip_and_the_mean_gets_noise_for_its_number_of_clients():
    mechanism = Mechanism(clip=2.0, sigma=1.5, mode="server")
    clean = mechanism.on_client(_moved(10.0), BASE, SystemNoise())
    assert norm_of(difference(clean, BASE)) == pytest.approx(2.0, rel=1e-5)
    noise = np.concatenate([d.ravel() for d in difference(mechanism.on_server(BASE, 5, np.random.default_rng(1)), BASE).values()])
    assert noise.std() == pytest.approx(1.5 * 2.0 / 5, rel=6 / math.sqrt(2 * noise.size))
    assert mechanism.noise_multiplier(secure=True, minimum_survivors=2, survivors=8) == 1.5
    assert Mechanism(2.0, 1.5).on_server(BASE, 5, SystemNoise())["a"] is BASE["a"]


def test_noise_of_the_system_is_standard_normal_and_never_the_same_twice():
    first, second = SystemNoise().standard_normal((100, 1001)), SystemNoise().standard_normal((100, 1001))
    assert first.shape == (100, 1001)
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    for level in (0.01, 0.16, 0.5, 0.84, 0.99):
        assert (first < norm.ppf(level)).mean() == pytest.approx(level, abs=6 * math.sqrt(level * (1 - level) / first.size))


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("rounds", [1, 20])
def test_epsilon_is_the_gaussian_mechanisms_own(z, rounds):
    epsilon = epsilon_of([z] * rounds, 1e-5)
    mu = math.sqrt(rounds) / z
    assert _delta_of_gaussian(mu, epsilon) <= 1e-5  # never told too small
    assert _delta_of_gaussian(mu, epsilon * 0.999 - 1e-4) > 1e-5  # nor much too large
    renyi = RdpAccountant()
    renyi.compose(GaussianDpEvent(z), rounds)
    assert 0.85 * renyi.get_epsilon(1e-5) < epsilon <= renyi.get_epsilon(1e-5)


def test_many_rounds_are_worth_one_with_less_noise_and_their_order_does_not_matter():
    assert epsilon_of([2.0] * 16, 1e-5) == pytest.approx(epsilon_of([0.5], 1e-5))
    assert epsilon_of([1.0, 3.0, 2.0], 1e-5) == pytest.approx(epsilon_of([3.0, 2.0, 1.0], 1e-5))
    assert epsilon_of([1.0, 0.0], 1e-5) == math.inf
    assert epsilon_of([], 1e-5) == 0.0


def test_more_survivors_than_the_minimum_cost_less_epsilon():
    few, many = Accountant(1.0, 1e-5), Accountant(1.0, 1e-5)
    mechanism = Mechanism(1.0, 1.0)
    few.spend(mechanism.noise_multiplier(secure=True, minimum_survivors=4, survivors=4))
    many.spend(mechanism.noise_multiplier(secure=True, minimum_survivors=4, survivors=10))
    assert many.epsilon < few.epsilon == pytest.approx(epsilon_of([1.0], 1e-5))
    with pytest.raises(ValueError, match="fewer than the minimum"):
        mechanism.noise_multiplier(secure=True, minimum_survivors=4, survivors=3)


def test_the_budget_stops_before_it_is_exceeded_and_not_a_round_earlier():
    accountant = Accountant(sigma=1.0, delta=1e-5, target_epsilon=8.0)
    promised, rounds = accountant.rounds_left(), 0
    while accountant.allows_next():
        accountant.spend(1.0)
        rounds += 1
        assert accountant.epsilon <= 8.0
    assert rounds == promised > 1
    assert accountant.epsilon_with(1.0) > 8.0
    assert accountant.rounds_left() == 0


def test_a_resumed_run_goes_on_with_what_it_has_spent():
    whole = Accountant(1.5, 1e-5, 10.0)
    for _ in range(3):
        whole.spend(1.5)
    resumed = Accountant(1.5, 1e-5, 10.0, multipliers=[1.5, 1.5])
    assert resumed.spend(1.5) == whole.epsilon


def test_without_a_budget_epsilon_is_told_and_nothing_stops():
    accountant = Accountant(0.1, 1e-5)
    assert accountant.allows_next()
    assert accountant.rounds_left() is None
    assert accountant.epsilon_after(2) > accountant.epsilon_after(1) > 50


def test_settings_that_protect_nothing_or_allow_no_round_are_refused():
    for make in (
        lambda: Mechanism(0.0, 1.0),
        lambda: Mechanism(1.0, -1.0),
        lambda: Mechanism(1.0, 1.0, "both"),
        lambda: Accountant(1.0, 1.5),
        lambda: Accountant(1.0, 1e-5, -1.0),
        lambda: Accountant(0.1, 1e-5, 1.0),
    ):
        with pytest.raises(InputError, match="dp-"):
            make()


def test_a_node_takes_part_only_with_the_protection_that_its_owner_insists_on():
    owner = {"partition-id": 1, "require-secure": True, "min-dp-noise": 0.5}
    share = Mechanism(1.0, 1.0).noise_share(secure=True, minimum_survivors=4)
    insists = Consent.of(owner)
    assert insists.refused(secure=True, noise=share) is None
    assert "require-secure" in insists.refused(secure=False, noise=1.0) and "require-secure" in insists.refused(secure=False, noise=None)
    assert "min-dp-noise" in insists.refused(secure=True, noise=0.49)
    assert insists.refused(secure=True, noise=None) is None, "nothing is uploaded that noise could hide"
    assert Consent.of({"partition-id": 1}).refused(secure=False, noise=0.0) is None


def test_noise_is_added_before_weights_are_rounded_or_a_change_within_the_norm_could_be_twice_as_large():
    base = {"w": np.full(10_000, 1.5 * 2**24, np.float32)}  # float32 moves in steps of 2 here
    update = {"w": base["w"] + np.float32(2)}  # norm 200
    noisy = Mechanism(150.0, 0.02).on_client(update, base, np.random.default_rng(0))["w"]
    assert difference({"w": noisy}, base)["w"].mean() == pytest.approx(1.5, abs=0.15)


def test_what_an_owner_asks_is_refused_in_one_message_where_it_cannot_be_read():
    assert Consent.of({"min-secure-clients": 5}).min_secure_clients == 5 and Consent.of({}).min_secure_clients == 2
    wrong = {"require-secure": ["yes", 1], "min-dp-noise": ["much", -1, float("nan"), True], "min-secure-clients": [1, "5", 2.5, True]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(InputError, match=f"^node-config: {name} is .*; expected"):
                Consent.of({name: value})
    with pytest.raises(InputError, match="min-secure-client: there is no such key; did you mean min-secure-clients"):
        Consent.of({"partition-id": 1, "min-secure-client": 5})
    with pytest.raises(InputError, match=r"require-secure is 'x'.*min-secure-clients is 1.*min-dp-noise is 'y'"):
        Consent.of({"require-secure": "x", "min-secure-clients": 1, "min-dp-noise": "y"})
