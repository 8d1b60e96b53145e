"""Shared by all tests: one thread per process (2 cores are shared by ranks), no network, no tracking service."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COMET_API_KEY", None)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Benchmarks and configurations choose their own number of threads; the next test starts with one again, whose sums are one order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(1)


@pytest.fixture
def no_pictures(monkeypatch):
    """Federated runs without their pictures: drawing takes longer than training there."""
    monkeypatch.setattr("federated.pictures.draw_run", lambda *_: None)
    monkeypatch.setattr("finetune.engine.curves.draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def yaml(tmp_path_factory) -> Path:
    """Configuration of a small federation, with the bars it names; nobody writes there."""
    import federated_tiny

    return federated_tiny.write_yaml(tmp_path_factory.mktemp("bars"))
