"""Cached generation equals full recomputation: the published procedure written out plainly, in float64, token for token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kronos import KronosTokenizer, Sampling, load_predictor, load_tokenizer
from kronos.generation import decode_paths, generate
from kronos.sampling import draw, uniforms

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
    found = generate(model, prefix, stamps, numbers, HOW, max_context)
    assert_same_tokens(found, recomputed(model, prefix, stamps, numbers, max_context))


def test_one_sample_at_a_time_gives_the_tokens_of_all_together(model):
    prefix, stamps, numbers = inputs(12)
    for max_context in (64, 14):
        together = generate(model, prefix, stamps, numbers, HOW, max_context)
        alone = [generate(model, prefix, stamps, numbers[:, i : i + 1], HOW, max_context) for i in range(SAMPLES)]
        assert_same_tokens(together, [torch.cat(ids, 1) for ids in zip(*alone, strict=True)])


def test_series_of_different_lengths_together_get_the_tokens_they_get_alone(model):
    """Padded on the right; each series has its own positions."""
    lengths = [12, 5, 9]
    prefix, stamps, numbers = inputs(12)
    for row, length in enumerate(lengths):
        for ids in prefix:
            ids[row, length:] = 63  # what padding holds must not matter
    together = generate(model, prefix, stamps, numbers, HOW, 64, lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        mine = slice(row, row + 1)
        clock = torch.cat((stamps[mine, :length], stamps[mine, 12:]), 1)
        alone = generate(model, tuple(ids[mine, :length] for ids in prefix), clock, numbers[mine], HOW, 64)
        assert_same_tokens([ids[mine] for ids in together], alone)


def test_in_float32_cached_tokens_equal_full_recomputation_here():
    model = load_predictor(GOLDEN / "predictor")
    prefix, stamps, numbers = inputs(12)
    assert_same_tokens(generate(model, prefix, stamps, numbers, HOW, 64), recomputed(model, prefix, stamps, numbers, 64))


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
