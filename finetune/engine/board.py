"""TensorBoard's event file, written at once and by the thread that has the numbers.

TensorBoard's own writer hands them to a thread of its own: that one dies of a full disk with a traceback of its own, tells the run of it at
some later number, and still holds up to two minutes of them when the process is killed. The
format of the records is left to its RecordWriter.
"""

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.engine.files import GrowingFile, explained

_NUMBERS = itertools.count()  # TensorBoard reads files in the order of their names, two of one second included


class Board:
    """One event file in `folder`, which is made if missing. Every record is with the system when the call returns.

    purge_step: TensorBoard hides what older files of this folder hold from this step on.
    Raises ImportError without the tensorboard package, InputError (full disk, no permission) on opening and writing.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):04d}"
        self._records = RecordWriter(GrowingFile(folder / name))
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
        self._records.close()

    def _write(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())
