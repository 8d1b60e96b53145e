"""Drawing tokens: limits combine, inputs stay, distributions are right, random numbers belong to their place."""

import numpy as np
import pytest
import torch

from kronos import InputError, Sampling
from kronos.sampling import _draw_in_torch, draw, filter_logits, uniforms

LOGITS = torch.tensor([[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]]).log()


def kept(top_k: int, top_p: float, logits: torch.Tensor = LOGITS) -> list[int]:
    return filter_logits(logits, top_k, top_p)[0].isfinite().nonzero().flatten().tolist()


def test_top_k_and_top_p_both_apply():
    """Fault 10: in the public code top_k > 0 silently disables top_p."""
    assert kept(0, 1.0) == [0, 1, 2, 3, 4, 5]
    assert kept(4, 1.0) == [0, 1, 2, 3]
    assert kept(0, 0.7) == [0, 1, 2]
    assert kept(4, 0.7) == [0, 1]  # of the four that top_k leaves, .44 and .28 exceed .7
    assert kept(2, 0.99) == [0, 1]
    assert kept(100, 1e-9) == [0]


def test_logits_are_never_modified():
    """Fault 10, second half."""
    logits = LOGITS.clone()
    filter_logits(logits, 2, 0.5)
    draw(logits, torch.tensor([0.5]), Sampling(0.5, 2, 0.5))
    assert torch.equal(logits, LOGITS)


def test_the_likeliest_token_always_stays_and_ties_at_the_edge_stay_together():
    assert kept(1, 0.01) == [0]
    assert kept(2, 1.0, torch.tensor([[1.0, 0.0, 0.0, -1.0]])) == [0, 1, 2]


def test_draws_follow_temperature_and_limits():
    u = torch.from_numpy(uniforms(0, np.arange(60_000, dtype=np.uint64), np.array([0]), 1)[:, 0, 0, 0])
    tokens = draw(LOGITS.expand(60_000, -1), u, Sampling(temperature=0.5, top_k=5, top_p=0.9))
    share = torch.bincount(tokens, minlength=6) / 60_000
    p = (LOGITS / 0.5).softmax(-1)[0]
    p[3:] = 0  # squared, the first three of five hold .95
    torch.testing.assert_close(share, (p / p.sum()).float(), atol=0.01, rtol=0)


@pytest.mark.parametrize("how", [Sampling(5e-324), Sampling(1e-40, 3, 1.0), Sampling(0.7, 4, 0.8), Sampling(2.0, 0, 1.0)])
def test_a_gpus_way_of_drawing_gives_the_tokens_of_the_cpus(how):
    logits = 8 * torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    u = torch.from_numpy(uniforms(0, np.arange(500, dtype=np.uint64), np.array([0]), 1)[:, 0, 0, 0])
    assert torch.equal(_draw_in_torch(logits, u, how), draw(logits, u, how))
    if how.temperature < 1e-30:
        assert torch.equal(draw(logits, u, how), logits.argmax(-1))


def test_extreme_uniforms_never_reach_a_filtered_token():
    u = torch.tensor([0.0, 1 - 2.0**-52, 1.0], dtype=torch.float64)  # 1.0: what a float32 device may round up to
    first = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]]).expand(3, -1)
    assert draw(first, u, Sampling(top_p=1.0)).tolist() == [1, 2, 2]


def test_random_numbers_are_a_function_of_seed_series_sample_and_step():
    series, samples = np.array([7, 2**63, 12], dtype=np.uint64), np.arange(5)
    together = uniforms(1, series, samples, 6)
    assert together.shape == (3, 5, 6, 2)
    assert np.array_equal(uniforms(1, series[[2, 0]], samples[3:], 4), together[[2, 0]][:, 3:, :4])
    assert not np.any(uniforms(2, series, samples, 6) == together)
    assert len(np.unique(together)) == together.size


def test_random_numbers_are_uniform_and_independent_along_every_axis():
    numbers = uniforms(0, np.arange(40, dtype=np.uint64), np.arange(40), 40)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.histogram(numbers, 16, (0, 1))[0] / numbers.size - 1 / 16).max() < 0.003
    for axis in range(4):
        neighbours = np.moveaxis(numbers, axis, 0)
        assert abs(np.corrcoef(neighbours[1:].ravel(), neighbours[:-1].ravel())[0, 1]) < 0.02


WRONG = [({"temperature": 0}, "T is 0"), ({"top_k": -1}, "top_k is -1"), ({"top_p": 1.5}, "top_p is 1.5")]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_impossible_settings_are_named(wrong, words):
    with pytest.raises(InputError, match=words):
        Sampling(**wrong)
