"""The event file: read back by TensorBoard itself, everything there at once."""

import struct

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event

from finetune.engine.board import Board
from finetune.engine.curves import new_figure


def read(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def test_numbers_and_pictures_are_read_back_by_tensorboard_while_the_file_is_still_open(tmp_path):
    board = Board(tmp_path / "events")
    board.numbers({"train/loss": 0.5, "train/lr": 1e-3}, 7)
    board.numbers({"train/loss": float("nan"), "val/loss": float("inf")}, 2**40)
    board.picture("val/confusion", new_figure(120, 70), 7)
    found = read(tmp_path / "events")
    assert [(one.step, one.value) for one in found.Scalars("train/lr")] == [(7, pytest.approx(1e-3))]
    assert [one.step for one in found.Scalars("train/loss")] == [7, 2**40] and np.isnan(found.Scalars("train/loss")[1].value)
    [image] = found.Images("val/confusion")
    assert (image.step, image.width, image.height) == (7, 120, 70) and image.encoded_image_string[16:24] == struct.pack(">II", 120, 70)
    board.close()
    board.close()


def test_after_a_resume_tensorboard_hides_what_came_after_the_checkpoint(tmp_path):
    first = Board(tmp_path)
    for step in range(1, 6):
        first.numbers({"loss": float(step)}, step)
    first.close()
    second = Board(tmp_path, purge_step=4)
    second.numbers({"loss": 40.0}, 4)
    second.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert [(one.step, one.value) for one in read(tmp_path).Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_record_torn_by_a_kill_costs_itself_only(tmp_path):
    board = Board(tmp_path)
    board.numbers({"loss": 1.0}, 1)
    board.numbers({"loss": 2.0}, 2)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert [one.step for one in read(tmp_path).Scalars("loss")] == [1]


def test_the_first_record_tells_the_version_of_the_format(tmp_path):
    Board(tmp_path).close()
    [file] = tmp_path.iterdir()
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert Event.FromString(data[12 : 12 + length]).file_version == "brain.Event:2"
