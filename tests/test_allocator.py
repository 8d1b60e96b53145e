"""Training keeps the memory that it frees, and gives it back at the end."""

import platform
import resource
from statistics import median

import psutil
import pytest
import tiny
import torch

from finetune.engine.allocator import freed_memory_kept
from finetune.engine.trainer import fit

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
_BIG = 16 << 20  # numbers of four bytes: 64 MiB, beyond every threshold that glibc chooses by itself


def faults_of(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def touch(times=1):
    for _ in range(times):
        torch.ones(_BIG)


def usual_faults(work):
    """Those of most calls: an aligned block does not always fit where the one before lay, until the heap has a place for it."""
    return median(faults_of(work) for _ in range(7))


@glibc_only
def test_a_block_freed_and_taken_again_costs_no_page_faults_inside_and_does_outside():
    touch()
    assert usual_faults(touch) > 5_000
    with freed_memory_kept():
        with freed_memory_kept():
            touch()
        assert usual_faults(touch) < 500, "the inner block's end is not the outer one's"
    assert usual_faults(touch) > 5_000


@glibc_only
def test_at_the_end_freed_memory_goes_back_to_the_system():
    process = psutil.Process()
    with freed_memory_kept():
        touch()
        held = process.memory_info().rss
    assert held - process.memory_info().rss > 48 << 20


@glibc_only
def test_training_keeps_freed_memory(monkeypatch):
    task = tiny.predictor_task()
    faults, forward = [], task.forward

    def with_a_big_block(batch):
        faults.append(usual_faults(touch))
        return forward(batch)

    monkeypatch.setattr(task, "forward", with_a_big_block)
    fit(task, tiny.windows(), tiny.settings(epochs=1), max_steps=2)
    assert median(faults) < 500
