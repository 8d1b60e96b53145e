"""The cryptography of secure aggregation, and how numbers become words and come back."""

import itertools

import numpy as np
import pytest

from federated.secure import keys, shamir
from federated.secure.encoding import Scale, decode, encode, range_for, weight_limit
from federated.secure.errors import Refused
from federated.secure.masks import CHUNK_WORDS, add_stream, stream_words
from federated.secure.settings import SecureSettings
from kronos.errors import InputError

# Cryptography


def test_the_mask_is_the_chacha20_key_stream_of_the_rfc():
    block = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    block += "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    assert stream_words(bytes(32), 16).astype("<u4").tobytes().hex() == block  # RFC 8439, appendix A.1, first vector


def test_a_mask_longer_than_a_chunk_goes_on_and_comes_off_without_a_trace():
    words = np.arange(CHUNK_WORDS + 7, dtype=np.uint32)
    add_stream(words, bytes([1]) * 32, 1)
    assert np.array_equal(words - np.arange(len(words), dtype=np.uint32), stream_words(bytes([1]) * 32, len(words)))
    add_stream(words, bytes([1]) * 32, -1)
    assert np.array_equal(words, np.arange(CHUNK_WORDS + 7))


def test_both_sides_derive_one_mask_key_and_another_one_in_every_run_and_round_and_for_whatever_else_they_saw():
    one, two, three = (shamir.new_secret() for _ in range(3))
    first, second, third = map(keys.mask_public_of, (one, two, three))
    derived = keys.mask_key(keys.Binding(7, 1), one, first, second, b"seen")
    assert derived == keys.mask_key(keys.Binding(7, 1), two, second, first, b"seen")
    others = [keys.mask_key(b, one, first, second, b"seen") for b in (keys.Binding(7, 2), keys.Binding(8, 1), keys.Binding(71, 1))]
    others += [keys.mask_key(keys.Binding(7, 1), one, first, second, b"other")]
    assert len({derived, *others, keys.mask_key(keys.Binding(7, 1), one, first, third, b"seen")}) == 6


def test_sealed_shares_open_for_their_receiver_in_their_round_only_if_it_was_shown_the_same():
    one, two, three = (keys.new_private() for _ in range(3))
    sealed = keys.seal(keys.Binding(1, 1), one, keys.public_of(two), 10, 20, b"share", b"seen")
    assert keys.unseal(keys.Binding(1, 1), two, keys.public_of(one), 10, 20, sealed, b"seen") == b"share"
    for binding, private, source, target, given, seen in (
        (keys.Binding(1, 2), two, 10, 20, sealed, b"seen"),
        (keys.Binding(1, 1), three, 10, 20, sealed, b"seen"),
        (keys.Binding(1, 1), two, 11, 20, sealed, b"seen"),
        (keys.Binding(1, 1), two, 20, 10, sealed, b"seen"),
        (keys.Binding(1, 1), two, 10, 20, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"seen"),
        (keys.Binding(1, 1), two, 10, 20, b"short", b"seen"),
        (keys.Binding(1, 1), two, 10, 20, sealed, b"other"),
    ):
        with pytest.raises(Refused, match="do not open"):
            keys.unseal(binding, private, keys.public_of(one), source, target, given, seen)


def test_a_public_key_that_makes_every_secret_zero_is_refused():
    with pytest.raises(Refused, match="is not one"):
        keys.agree(keys.new_private(), bytes(32))
    for none in (bytes(33), b"\x02" + b"\xff" * 32, bytes(32)):
        with pytest.raises(Refused, match="public key"):
            keys.mask_key(keys.Binding(1, 1), shamir.new_secret(), b"", none, b"")


def test_any_threshold_of_shares_opens_a_secret_and_one_fewer_says_nothing():
    secret = shamir.new_secret()
    shares = shamir.shares_of(shamir.polynomial(secret, 3), 5)
    assert shamir.combine(shares[2:], 3) == shamir.combine([shares[4], shares[0], shares[2]], 3) == secret
    with pytest.raises(ValueError, match="2 different shares"):
        shamir.combine([shares[0], shares[1], shares[1]], 3)
    assert all(shamir.combine(pair, 2) != secret for pair in itertools.combinations(shares, 2))
    # two shares of threshold 3 fit every secret: for any other there is a third share that makes it come out
    x1, x2 = (int.from_bytes(share[: shamir.NUMBER_BYTES], "big") for share in shares[:2])
    y1, y2 = (int.from_bytes(share[shamir.NUMBER_BYTES :], "big") for share in shares[:2])
    other = int.from_bytes(bytes(range(32)), "big")
    l1, l2, l3 = (_lagrange(i, (x1, x2, 3)) for i in range(3))
    y3 = (other - y1 * l1 - y2 * l2) * pow(l3, -1, shamir.ORDER) % shamir.ORDER
    third = (3).to_bytes(shamir.NUMBER_BYTES, "big") + y3.to_bytes(shamir.VALUE_BYTES, "big")
    assert shamir.combine([*shares[:2], third], 3) == bytes(range(32))


def _lagrange(i, points):
    value = 1
    for j, x in enumerate(points):
        if j != i:
            value = value * x * pow(x - points[i], -1, shamir.ORDER) % shamir.ORDER
    return value


def test_the_field_has_the_order_of_the_curve_whose_keys_are_shared():
    assert all(pow(base, shamir.ORDER - 1, shamir.ORDER) == 1 for base in (2, 3, 5, 7))  # Fermat: enough to catch a wrong constant
    one, last = (keys.mask_public_of(shamir.packed(number)) for number in (1, shamir.ORDER - 1))
    assert one[1:] == last[1:] and one[0] != last[0]  # (ORDER - 1)·G is -G


def test_a_sum_of_points_is_known_by_its_first_coordinate_and_nothing_else_passes_for_it():
    a, b, c = (int.from_bytes(shamir.new_secret(), "big") for _ in range(3))
    point, public = (keys.mask_public_of(shamir.packed(number)) for number in (a, b))
    for factor in (a + c * b, a - c * b, c * b - a):
        assert keys.is_sum(shamir.packed(factor % shamir.ORDER), point, shamir.packed(c), public)
    for factor in (a + c * b + 1, c, a):
        assert not keys.is_sum(shamir.packed(factor % shamir.ORDER), point, shamir.packed(c), public)
    assert not keys.is_sum(bytes(32), point, shamir.packed(c), public) and not keys.is_sum(
        shamir.packed(a), bytes(33), shamir.packed(c), public
    )


# Numbers


def test_rounding_is_right_in_the_mean_and_the_same_with_the_same_seed():
    scale, base = Scale(1.0, 3, 0), {"w": np.zeros(20_000)}
    change = {"w": np.full(20_000, 0.3 * scale.step)}
    words = [encode(change, base, 1, {}, scale, np.random.default_rng(seed))[5:].view(np.int32) for seed in (1, 1, 2)]
    assert set(words[0]) == {0, 1} and words[0].mean() == pytest.approx(0.3, abs=0.02)
    assert np.array_equal(words[0], words[1]) and not np.array_equal(words[0], words[2])


@pytest.mark.parametrize("clients", [3, 10, 50, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sum_cannot_overflow_with_every_value_of_every_client_at_the_edge(clients, sign):
    scale, base = Scale(2.0, clients, 9), {"w": np.zeros(3)}
    rng = np.random.default_rng(0)
    total = sum((encode({"w": np.full(3, sign * 2.0)}, base, 9, {"m": sign * 2.0**20}, scale, rng) for _ in range(clients)), np.uint32(0))
    result = decode(total, base, ["m"], scale)
    assert (result.count, result.weight) == (clients, 9 * clients)
    assert result.arrays["w"] == pytest.approx(sign * 2.0, abs=2e-5) and result.metrics["m"] == pytest.approx(sign * 2.0**20)


def encoded(change, scale=None, examples=1, metrics=None, **kwargs):
    arrays, base = {"w": np.asarray(change)}, {"w": np.zeros(4)}
    return encode(arrays, base, examples, metrics or {}, scale or Scale(1.0, 3, 0), np.random.default_rng(0), **kwargs)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("range", lambda: encoded([0, 0, 0, 1.01])),
        ("not-finite", lambda: encoded([0, 0, 0, np.nan])),
        ("not-finite", lambda: encoded([0, 0, 0, -np.inf])),
        ("layout", lambda: encoded([0, 0, 0])),
        ("weight", lambda: encoded([0, 0, 0, 0], Scale(1.0, 3, 100), 101)),
        ("weight", lambda: encoded([0, 0, 0, 0], examples=0)),
        ("metric", lambda: encoded([0, 0, 0, 0], metrics={"loss": 2e6})),
        ("metric", lambda: encoded([0, 0, 0, 0], Scale(1.0, 3, 100), 1, metrics={"loss": 2e6})),
    ],
)
def test_what_cannot_be_encoded_truly_is_refused_and_never_bent(kind, call):
    with pytest.raises(Refused) as refused:
        call()
    assert refused.value.kind == kind


def test_clipped_values_are_counted_up_to_the_limit_that_was_set():
    words = encoded([0, 0.5, 3, -9], max_clipped=0.5)
    result = decode(words, {"w": np.zeros(4)}, [], Scale(1.0, 3, 0))
    assert result.clipped == 2 and result.arrays["w"] == pytest.approx([0, 0.5, 1, -1])
    with pytest.raises(Refused, match="2 of 4 values"):
        encoded([0, 0.5, 3, -9], max_clipped=0.49)


def test_a_metric_that_a_client_has_not_counts_for_nothing():
    scale, base = Scale(1.0, 3, 100), {"w": np.zeros(1)}
    clients = [(10, {"loss": 1.0, "auc": 0.5}), (30, {"loss": 3.0, "auc": np.nan})]
    total = sum((encode(base, base, n, m, scale, np.random.default_rng(0)) for n, m in clients), np.uint32(0))
    assert decode(total, base, ["auc", "loss"], scale).metrics == pytest.approx({"auc": 0.5, "loss": 2.5})
    alone = encode(base, base, 30, {"auc": np.nan}, scale, np.random.default_rng(0))
    assert decode(alone, base, ["auc"], scale).metrics == {}


def test_range_and_weight_limit_come_from_the_data():
    assert range_for({"a": np.array([0.1, -0.2])}) == 1 and range_for({"a": np.array([0.1, -5.0]), "b": np.zeros(0)}) == 8
    assert weight_limit([3, 100, 64]) == 128 and weight_limit([64]) == 64 and weight_limit([1]) == 1
    with pytest.raises(InputError, match="NaN"):
        range_for({"a": np.array([np.nan])})
    with pytest.raises(InputError, match="no client has an example"):
        weight_limit([0, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.5},
        {"threshold": 1.1},
        {"min_clients": 2},
        {"neighbours": 5},
        {"clip_range": 0.0},
        {"weights": "votes"},
        {"max_weight": None},
        {"max_clipped": 1.0},
        {"max_refused": -0.1},
        {"max_error": 0},
    ],
)
def test_settings_that_cannot_hold_are_refused_by_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"{name} is {value!r}"):
        SecureSettings(**{"max_weight": 256, **wrong})


def test_more_than_half_must_be_left_whatever_the_numbers():
    for clients in range(3, 60):
        for share in (0.5 + 1e-12, 0.5000001, 0.55, 2 / 3, 0.9, 1.0):
            settings = SecureSettings(max_weight=1, threshold=share)
            assert clients / 2 < settings.quorum(clients) <= clients and settings.quorum(clients) >= share * clients - 1e-6
    assert SecureSettings(max_weight=1, threshold=0.56).quorum(25) == 14  # 0.56 · 25 is 14.000000000000002 in floating point
    assert SecureSettings(max_weight=1).quorum(3) == 2 and SecureSettings(max_weight=1).quorum(6) == 4
