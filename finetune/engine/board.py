"""TensorBoard's event file, written at once and by the thread that has the numbers.

TensorBoard's own writer hands them to a thread of its own: that one dies of a full disk with a traceback of its own, tells the run of it at
some later number, and still holds up to two minutes of them when the process is killed. Its format is small: records of length, checksum,
message, checksum (`tensorflow/core/lib/io/record_writer.h`), the checksum being CRC-32C (RFC 3720, appendix B.4), turned and shifted.
"""

import io
import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.engine.files import GrowingFile, explained

_POLYNOMIAL = 0x82F63B78  # CRC-32C, bits reversed
_NUMBERS = itertools.count()  # TensorBoard reads files in the order of their names, two of one second included


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_remainder, range(256)))


def masked_crc32c(data: bytes) -> int:
    """The checksum of a record's part, 32 bits."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Board:
    """One event file in `folder`, which is made if missing. Every record is with the system when the call returns.

    purge_step: TensorBoard hides what older files of this folder hold from this step on.
    Raises ImportError without the tensorboard package, InputError (full disk, no permission) on opening and writing.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._event = Event
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):04d}"
        self._file = GrowingFile(folder / name)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Scalars of one step, by their tags."""
        self._write(step=step, summary={"value": [{"tag": tag, "simple_value": value} for tag, value in values.items()]})

    def picture(self, tag: str, figure: Any, step: int) -> None:
        """A matplotlib figure."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = figure.canvas.get_width_height()
        image = {"height": height, "width": width, "colorspace": 4, "encoded_image_string": png.getvalue()}
        self._write(step=step, summary={"value": [{"tag": tag, "image": image}]})

    def close(self) -> None:
        """May be called twice."""
        self._file.close()

    def _write(self, **event: Any) -> None:
        data = self._event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.append(length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data)))
