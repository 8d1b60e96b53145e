"""Runs of the smallest Temporal Fusion Transformer, begun as its command does."""

import pytest
import tft_data

from finetune.engine.config import load_config
from kronos.errors import InputError
from tft.config import TftConfig
from tft.train_run import train


def load(path, *overrides):
    return load_config(TftConfig, path, overrides, {})


def begin(folder, *overrides, stop=None, resume="", warm="", script="train_multi_tft", **changes):
    """Train by a configuration in `folder`, as the command does; returns the run folder."""
    return train(load(tft_data.write_config(folder, **changes), *overrides), script, resume=resume, warm=warm, stop=stop)


def refused(folder, *overrides, match, **changes):
    with pytest.raises(InputError, match=match) as error:
        begin(folder, *overrides, **changes)
    return str(error.value)
