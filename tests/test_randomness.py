"""The order of windows and the seeds: bijective, keyed, and free of tables."""

import numpy as np
import pytest
import torch

from finetune.engine.randomness import mix, permute, reseed


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4097, 65_537])
def test_every_number_comes_exactly_once(n):
    assert sorted(permute(np.arange(n), n, key=7).tolist()) == list(range(n))


def test_another_key_gives_another_order_and_the_same_key_the_same():
    a, b = (permute(np.arange(500), 500, key) for key in (1, 2))
    assert (a == b).mean() < 0.05 and (permute(np.arange(500), 500, 1) == a).all()


def test_neighbours_are_sent_far_apart():
    order = permute(np.arange(100_000), 100_000, key=3)
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02
    assert np.median(np.abs(np.diff(order))) > 20_000


def test_the_seed_depends_on_every_part_and_on_their_order():
    assert len({mix(1, 2, 3), mix(1, 3, 2), mix(1, 2, 4), mix(0, 2, 3), mix(1, 2), mix(-1, 2, 3)}) == 6
    reseed(1, 2, 3)
    first = torch.rand(4)
    reseed(1, 2, 3)
    assert torch.equal(first, torch.rand(4))
