"""Cached generation equals full recomputation: the published procedure written out plainly, in float64, token for token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kronos import KronosTokenizer, Sampling, load_predictor, load_tokenizer
from kronos.checking import Agreement, compare
from kronos.generation import decode_paths, encode_bars, generate
from kronos.sampling import draw, filter_logits, uniforms

GOLDEN = Path(__file__).parent / "golden"
HOW = Sampling(temperature=1.2, top_k=40, top_p=0.95)
SERIES, SAMPLES, HORIZON = 3, 4, 9


def inputs(length: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    tokens = tuple(torch.randint(64, (SERIES, length), generator=generator) for _ in range(2))
    stamps = torch.stack([torch.randint(n, (SERIES, length + HORIZON), generator=generator) for n in (60, 24, 7, 32, 13)], -1)
    return tokens, stamps, torch.from_numpy(uniforms(5, np.arange(SERIES, dtype=np.uint64), np.arange(SAMPLES), HORIZON))


@torch.no_grad()
def recomputed(model, prefix, stamps, numbers, max_context):
    """Every step from the last max_context tokens, positions from 0, as the public code does it."""
    s1, s2 = (ids.repeat_interleave(SAMPLES, 0) for ids in prefix)
    clock, numbers = stamps.repeat_interleave(SAMPLES, 0), numbers.flatten(0, 1)
    for step in range(HORIZON):
        end = s1.shape[1]
        start = max(0, end - max_context)
        s1_logits, context = model.decode_s1(s1[:, start:], s2[:, start:], clock[:, start:end])
        coarse = draw(s1_logits[:, -1], numbers[:, step, 0], HOW)
        fine = draw(model.decode_s2(context, coarse[:, None])[:, -1], numbers[:, step, 1], HOW)
        s1, s2 = torch.cat((s1, coarse[:, None]), 1), torch.cat((s2, fine[:, None]), 1)
    return tuple(ids[:, -HORIZON:].unflatten(0, (SERIES, SAMPLES)) for ids in (s1, s2))


def assert_same_tokens(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def model():
    return load_predictor(GOLDEN / "predictor").double()


LENGTHS = [(12, 64), (12, 21), (12, 20), (12, 15), (30, 16), (20, 20), (6, 4), (1, 64)]


@pytest.mark.parametrize(("length", "max_context"), LENGTHS)
def test_cached_tokens_equal_full_recomputation_before_and_after_the_window_slides(model, length, max_context):
    prefix, stamps, numbers = inputs(length)
    found = generate(model, [prefix], [stamps], numbers, HOW, max_context)
    assert_same_tokens(found, recomputed(model, prefix, stamps, numbers, max_context))


def test_one_sample_at_a_time_gives_the_tokens_of_all_together(model):
    prefix, stamps, numbers = inputs(12)
    for max_context in (64, 14):
        together = generate(model, [prefix], [stamps], numbers, HOW, max_context)
        alone = [generate(model, [prefix], [stamps], numbers[:, i : i + 1], HOW, max_context) for i in range(SAMPLES)]
        assert_same_tokens(together, [torch.cat(ids, 1) for ids in zip(*alone, strict=True)])


@pytest.mark.parametrize("samples", [1, SAMPLES])
@pytest.mark.parametrize("rolling", [False, True])
def test_groups_of_different_lengths_together_get_the_tokens_they_get_alone(model, samples, rolling):
    lengths, max_context = (12, 5, 9), 14 if rolling else 64
    groups = [inputs(length) for length in lengths]
    numbers = torch.cat([part[2] + 0.01 * i for i, part in enumerate(groups)])[:, :samples] % 1
    together = generate(model, [g[0] for g in groups], [g[1] for g in groups], numbers, HOW, max_context, rolling=rolling)
    for i, (prefix, stamps, _) in enumerate(groups):
        mine = slice(i * SERIES, (i + 1) * SERIES)
        alone = generate(model, [prefix], [stamps], numbers[mine], HOW, max_context, rolling=rolling)
        assert_same_tokens([ids[mine] for ids in together], alone)


@pytest.mark.parametrize("samples", [1, SAMPLES])
def test_a_rolling_cache_is_exact_until_the_context_is_full_and_then_differs_only_through_kept_states(model, samples):
    prefix, stamps, numbers = inputs(12)
    numbers = numbers[:, :samples]
    exact, rolled = (generate(model, [prefix], [stamps], numbers, HOW, 15, rolling=rolling) for rolling in (False, True))
    assert_same_tokens([ids[:, :, :4] for ids in rolled], [ids[:, :, :4] for ids in exact])
    assert not torch.equal(rolled[1][:, :, 4:], exact[1][:, :, 4:])
    no_layers = load_predictor(GOLDEN / "predictor").double()
    no_layers.transformer = no_layers.transformer[:0]
    exact, rolled = (generate(no_layers, [prefix], [stamps], numbers, HOW, 4, rolling=rolling) for rolling in (False, True))
    assert_same_tokens(rolled, exact)  # with no self-attention the kept states are those of any window


def test_a_rolling_cache_begins_with_the_last_max_context_tokens_of_a_longer_prefix(model):
    prefix, stamps, numbers = inputs(30)
    changed = tuple(ids.clone() for ids in prefix)
    for ids in changed:
        ids[:, :26] = (ids[:, :26] + 1) % 64
    first, second = (generate(model, [ids], [stamps], numbers, HOW, 4, rolling=True) for ids in (prefix, changed))
    assert_same_tokens(first, second)


def test_in_float32_cached_tokens_equal_full_recomputation_except_ties():
    model = load_predictor(GOLDEN / "predictor")
    prefix, stamps, numbers = inputs(12)
    for max_context in (64, 15):
        made = generate(model, [prefix], [stamps], numbers, HOW, max_context)
        found = compare(model, prefix, stamps, numbers, HOW, max_context, made)
        assert (found.tokens, found.different) == (2 * SERIES * SAMPLES * HORIZON, 0)
        assert found.ties <= 1


def test_a_wrong_token_counts_as_different_and_one_within_rounding_as_a_tie(model):
    prefix, stamps, numbers = inputs(12)
    made = generate(model, [prefix], [stamps], numbers, HOW, 64)
    assert compare(model, prefix, stamps, numbers, HOW, 64, made) == Agreement(2 * SERIES * SAMPLES * HORIZON, 0, 0)
    wrong = (made[0].clone(), made[1])
    wrong[0][1, 2, 3] = (wrong[0][1, 2, 3] + 1) % 64
    found = compare(model, prefix, stamps, numbers, HOW, 64, wrong)
    assert found.different >= 1 and found.ties == 0
    nudged = numbers.clone()
    nudged[1, 2, 3, 0] = boundary_below(model, prefix, stamps, made)
    assert compare(model, prefix, stamps, nudged, HOW, 64, made).ties == 1


@torch.no_grad()
def boundary_below(model, prefix, stamps, made) -> float:
    """The number, a little too small, at which the coarse token of series 1, sample 2, step 3 gives way to the one before it."""
    s1, s2 = (torch.cat((old[1:2], new[1:2, 2, :3]), 1) for old, new in zip(prefix, made, strict=True))
    logits = model.decode_s1(s1, s2, stamps[1:2, : s1.shape[1]])[0][:, -1]
    p = filter_logits(logits / HOW.temperature, HOW.top_k, HOW.top_p).softmax(-1)[0]
    return float(p.cumsum(0)[made[0][1, 2, 3]] - p[made[0][1, 2, 3]]) - 1e-7


@pytest.mark.parametrize("samples", [1, SAMPLES])
@pytest.mark.parametrize(("length", "max_context"), [(12, 64), (12, 15), (12, 9)])
def test_paths_decode_as_the_whole_sequence_does(length, max_context, samples):
    tokenizer = load_tokenizer(GOLDEN / "tokenizer").double()
    prefix, _, _ = inputs(length)
    made = tuple(torch.randint(64, (SERIES, samples, HORIZON)) for _ in range(2))
    pairs = zip(prefix, made, strict=True)
    whole = tuple(torch.cat((old.repeat_interleave(samples, 0), new.flatten(0, 1)), 1)[:, -max_context:] for old, new in pairs)
    with torch.no_grad():
        expected = tokenizer.decode(whole)[:, -HORIZON:].unflatten(0, (SERIES, samples))
    torch.testing.assert_close(decode_paths(tokenizer, prefix, made, max_context), expected)


def test_a_tokenizer_without_decoder_blocks_decodes_paths():
    config = load_tokenizer(GOLDEN / "tokenizer").config | {"n_dec_layers": 1}
    tokenizer, (prefix, _, _) = KronosTokenizer(**config).eval(), inputs(5)
    made = tuple(ids[:, None, :3] for ids in prefix)
    expected = tokenizer.decode(tuple(ids[:, :3] for ids in prefix))[:, None]
    torch.testing.assert_close(decode_paths(tokenizer, prefix, made, 64), expected)


def test_bars_are_encoded_as_the_tokenizer_does_it():
    tokenizer = load_tokenizer(GOLDEN / "tokenizer").double()
    bars = torch.randn(3, 150, 6, dtype=torch.float64)  # longer than the queries that attention takes at once
    with torch.no_grad():
        assert_same_tokens(encode_bars(tokenizer, bars), tokenizer.encode(bars))
