"""Ctrl-C, `kill` and a closing terminal become a request that the loop honours at its next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None]


class StopRequest:
    """`with StopRequest() as stop:` — inside, the first signal only sets `stop.requested`; a third one ends the process.

    Patience on the second is on purpose: people press Ctrl-C twice, and launchers repeat SIGTERM, while `last` is being saved.
    """

    def __init__(self) -> None:
        self.requested, self.name, self._count, self._former = False, "", 0, {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            for number in _SIGNALS:
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self.requested, self.name = True, signal.Signals(number).name
        if self._count >= 3:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
