"""Two gloo ranks against one process: the same gradients, the same weights, the same decisions."""

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from ranks import TESTS, run_ranks
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.ranks import make_task
from finetune.engine.batches import Micro
from finetune.engine.distributed import World
from finetune.engine.optimisation import Stepper


def results(what, out, size):
    for done in run_ranks([str(TESTS / "rank_worker.py"), what, str(out)], size):
        assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{what}-{size}-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize("what, tolerance", [("predictor", 1e-6), ("tokenizer", 1e-9), ("remainder", 1e-6)])
def test_two_ranks_equal_one_process_with_accumulation_two(tmp_path, what, tolerance):
    """Fault 3 of the public code: it calls model.module under DDP, so gradients are never averaged and ranks drift apart."""
    one = results(what, tmp_path, 1)[0]
    first, second = results(what, tmp_path, 2)
    for name in one:
        assert torch.equal(first[name], second[name]), f"the ranks differ in {name}"
        torch.testing.assert_close(first[name], one[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_a_run_begun_on_one_rank_continues_on_two_to_the_same_weights(tmp_path):
    one, two = results("moved", tmp_path, 1)[0], results("moved", tmp_path, 2)[0]
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_saves(tmp_path):
    first, second = results("stopped", tmp_path, 2)
    assert first["kind"] == second["kind"] == "Interrupted"
    assert first["error"].split("at step")[1].split(",")[0] == second["error"].split("at step")[1].split(",")[0]
    assert list((tmp_path / "run" / "checkpoints").glob("last-*"))


def test_two_ranks_fill_one_token_cache_and_train_from_it_as_without(tmp_path):
    for rank in results("cached", tmp_path, 2):
        for name in [n for n in rank if n.startswith("on.")]:
            assert torch.equal(rank[name], rank["off" + name[2:]])


def test_gradients_of_a_small_model_set_out_in_pieces_before_the_backward_pass_ends(tmp_path):
    """torch's own pieces of 25 MiB would hold all of them, so that nothing could be sent meanwhile."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        task = make_task("predictor", "mini").train()
        stepper, sizes = Stepper(task, tiny.settings(batch_size=1), World(size=2)), []
        stepper.model.register_comm_hook(None, lambda _, bucket: sizes.append(bucket.buffer().nbytes) or allreduce_hook(None, bucket))
        batch = {name: torch.zeros(1, 9, dtype=torch.int64) for name in ("s1", "s2")} | {"stamps": torch.zeros(1, 9, 5, dtype=torch.uint8)}
        for step in (1, 2):  # torch puts the pieces in the order of the backward pass after the first
            sizes.clear()
            stepper.step([(Micro(np.arange(1), 0, True), batch)], step, 1e-3, stop=False)
        gradients = sum(4 * p.numel() for p in task.predictor.parameters())
        assert sum(sizes) == gradients and sizes[-1] < gradients / 4
    finally:
        dist.destroy_process_group()
