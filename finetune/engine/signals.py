"""Ctrl-C, `kill` and a closing terminal become a request that the loop honours at its next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None]
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopRequest:
    """`with StopRequest() as stop:` — inside, the first signal only sets `stop.requested`; a third one ends the process.

    Patience on the second is on purpose: people press Ctrl-C twice, and launchers repeat SIGTERM, while `last` is being saved.
    Under nohup SIGHUP stays ignored. When it comes because the terminal was closed, what is said from then on goes nowhere: every write
    there would fail, and the first one comes before `last` is saved.
    """

    def __init__(self) -> None:
        self.requested, self.name, self._count, self._former = False, "", 0, {}
        self._screens: list[int] = []

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._screens = [stream for stream in (1, 2) if os.isatty(stream)]
            for number in _SIGNALS:
                if number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self.requested, self.name = True, signal.Signals(number).name
        if number == _HANGUP:
            for stream in self._screens:
                if not os.isatty(stream):  # no longer
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if self._count >= 3:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
