"""A short round of the disk drill, and what it taught: a status that is true on a full disk, too."""

import os
import resource
import threading

import numpy as np
import pytest
import tiny
import torch
from test_drills_kill import drill

from finetune.engine import tokens, tracking
from finetune.engine.distributed import World
from finetune.engine.files import read_json
from finetune.engine.signals import StopRequest
from finetune.engine.tokens import with_cached_tokens
from finetune.engine.tracking import Run
from kronos.errors import InputError


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only_costs_one_message_and_nothing_that_was_saved():
    drill("disk", "--rounds", "6", "--seed", "6")


@pytest.mark.parametrize("error, state", [(InputError("the disk is full"), "failed"), (ZeroDivisionError("x" * 9000), "failed")])
def test_where_no_new_file_can_be_made_the_status_is_written_over_the_former_one(tmp_path, monkeypatch, error, state):
    def full(*_):
        raise InputError("cannot write: the disk is full")

    with pytest.raises(type(error)), Run.create(tmp_path, config={}, is_main=True, resume=False, name="test") as run:
        monkeypatch.setattr(tracking, "write_json", full)
        run.note = full  # nor does the log take another line
        raise error
    status = read_json(tmp_path / "status.json")
    assert status["state"] == state and len((tmp_path / "status.json").read_bytes()) < 2048


def test_a_run_whose_last_status_cannot_be_written_is_not_done(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="full"), Run.create(tmp_path, config={}, is_main=True, resume=False, name="test") as run:

        def full(*_):
            raise InputError("the disk is full")

        monkeypatch.setattr(tracking, "write_json", full)
        run.status("done")
    assert read_json(tmp_path / "status.json")["state"] == "failed"


def test_what_a_killed_writer_left_anywhere_in_a_run_folder_is_swept_by_the_next_start(tmp_path):
    for place in ("configs", "checkpoints/best-epoch=01", "cache/tokens-1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / ".complete.4711.tmp.json").touch()
        (tmp_path / place / "complete.json").write_text("{}")
    Run.create(tmp_path, config={}, is_main=True, resume=True, name="test").close()
    assert len(list(tmp_path.rglob("complete.json"))) == 3 and not list(tmp_path.rglob("*.tmp*"))


def test_the_very_number_that_a_full_disk_does_not_take_is_refused_and_no_thread_writes_events(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = pytest.raises(InputError, match="larger than allowed")
    with told, Run.create(tmp_path, config={}, is_main=True, resume=False, name="test") as run:
        threads = set(threading.enumerate())
        run.log(1, 0, "train", {"loss": 1.0})
        [events] = (tmp_path / "tensorboard").iterdir()
        before = events.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
        try:
            run._board.numbers({"train/loss": 2.0}, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert events.read_bytes().startswith(before) and not set(threading.enumerate()) - threads


def test_a_damaged_token_cache_is_encoded_again_to_the_same_tokens(tmp_path):
    told: list[str] = []

    def encode():
        told.clear()
        cached = with_cached_tokens(
            tiny.windows(), tiny.tokenizer(), tmp_path, tiny.settings(), World(), StopRequest(), mode="on", say=told.append
        )
        return cached.train.ids.clone(), sorted(tmp_path.glob("tokens-*/ids.npy"))

    def other_bits(path):
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)

    def without_sum(path):
        (path.parent / "complete.json").write_text('{"windows": 1}')

    whole, files = encode()
    assert torch.equal(encode()[0], whole) and told == [], "the second start takes what is there"
    for damage in (lambda p: os.truncate(p, p.stat().st_size - 8), lambda p: os.truncate(p, 0), os.remove, other_bits, without_sum):
        for file in files:
            damage(file)
        assert torch.equal(encode()[0], whole)
        assert sum("are encoded again" in line for line in told) == len(files)


def test_no_flipped_bit_in_the_head_of_a_token_cache_is_read_as_tokens_or_ends_the_start(tmp_path):
    """numpy's own reader raises SyntaxError or TokenError at some, and takes '>i2' for '<i2': the same bytes as other numbers."""
    ids = np.arange(-8, 8, dtype=np.int16).reshape(4, 2, 2)
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "complete.json").write_text(f'{{"windows": 4, "crc32": {tokens._checksum(ids)}}}')
    written = (tmp_path / "ids.npy").read_bytes()
    for bit in range((len(written) - ids.nbytes) * 8):
        data = bytearray(written)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "ids.npy").write_bytes(data)
        if tokens._is_whole(tmp_path, ids.shape, ids.dtype, lambda _: None):  # a blank at the head's end, perhaps
            assert np.array_equal(np.load(tmp_path / "ids.npy"), ids), data[:128]
    other = np.asfortranarray(ids)
    np.save(tmp_path / "ids.npy", other)
    assert not tokens._is_whole(tmp_path, ids.shape, ids.dtype, lambda _: None)
    (tmp_path / "ids.npy").write_bytes(written)
    assert tokens._is_whole(tmp_path, ids.shape, ids.dtype, lambda _: None)
