"""Training keeps the memory that it frees, and gives it back at the end.

Each measurement has a process of its own: what earlier tests left in a heap decides where a block comes from. A hole of 64 MiB between two
small blocks serves every later one without a page fault, whatever the thresholds say.
"""

import platform
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import psutil
import pytest
import tiny
import torch

from finetune.engine.allocator import freed_memory_kept
from finetune.engine.trainer import fit

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
_BIG = 16 << 20  # numbers of four bytes: 64 MiB, beyond every threshold that glibc chooses by itself


def in_a_new_process(measure):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure).result(timeout=120)


def touch(numbers=_BIG):
    torch.ones(numbers)


def usual_faults(work):
    """Those of most calls: an aligned block does not always fit where the one before lay, until the heap has a place for it."""

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return median(faults() for _ in range(7))


def faults_before_inside_and_after():
    """With a block afterwards that no hole left by the others can serve."""
    before = usual_faults(touch)
    with freed_memory_kept():
        with freed_memory_kept():
            touch()
        inside = usual_faults(touch)
    return before, inside, usual_faults(lambda: touch(8 * _BIG))


def memory_given_back_at_the_end():
    process = psutil.Process()
    with freed_memory_kept():
        touch()
        held = process.memory_info().rss
    return held - process.memory_info().rss


def faults_of_a_step_of_training():
    task = tiny.predictor_task()
    faults, forward = [], task.forward

    def with_a_big_block(batch):
        faults.append(usual_faults(touch))
        return forward(batch)

    task.forward = with_a_big_block
    fit(task, tiny.windows(), tiny.settings(epochs=1), max_steps=2)
    return median(faults)


def test_a_block_freed_and_taken_again_costs_no_page_faults_inside_and_does_outside():
    before, inside, after = in_a_new_process(faults_before_inside_and_after)
    assert before > 5_000
    assert inside < 500, "the inner block's end is not the outer one's"
    assert after > 5_000


def test_at_the_end_freed_memory_goes_back_to_the_system():
    assert in_a_new_process(memory_given_back_at_the_end) > 48 << 20


def test_training_keeps_freed_memory():
    assert in_a_new_process(faults_of_a_step_of_training) < 500
