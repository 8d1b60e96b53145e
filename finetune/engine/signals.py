"""Ctrl-C, `kill` and a closing terminal become a request that the loop honours at its next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted

_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None]
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class _Now(BaseException):
    """A signal where nothing waits for a step; no handler of failures is to take it for one."""


class StopRequest:
    """`with StopRequest() as stop:` — inside, the first signal only sets `stop.requested`; a third one ends the process.

    Patience on the second is on purpose: people press Ctrl-C twice, and launchers repeat SIGTERM, while `last` is being saved.
    Under nohup SIGHUP stays ignored. When it comes because the terminal was closed, what is said from then on goes nowhere: every write
    there would fail, and the first one comes before `last` is saved.
    """

    def __init__(self) -> None:
        self.requested, self.name, self._count, self._former = False, "", 0, {}
        self._screens: list[int] = []
        self._at_once = False

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

    @contextmanager
    def at_once(self, told: str) -> Iterator[None]:
        """Inside, a signal ends the block where it stands, by Interrupted("stopped by SIGTERM {told}"); so does one that came before.

        For what comes after training: there are no steps, nothing is lost, and it may take long.
        """
        try:
            self._at_once = True
            try:
                if self.requested:
                    raise _Now
                yield
            finally:
                self._at_once = False
        except _Now:
            raise Interrupted(f"stopped by {self.name} {told}") from None

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
        if self._at_once:
            self._at_once = False  # a second one lets the block clean up
            raise _Now
