"""How far a training run is: a bar in a terminal, a plain line every few steps anywhere else (files, containers, batch systems).

Nothing here waits for the accelerator: a loss may be given as a function, which is called only when it is about to be shown.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

_REFRESH_S = 0.5  # the bar is redrawn, and a lazy loss is read, at most this often
_SMOOTHING_S = 20.0  # the rate shown forgets what is older than about this

Loss = float | Callable[[], float] | None


def progress(
    total_windows: int,
    initial: int,
    log_interval: int,
    is_main: bool,
    desc: str,
    *,
    epochs: int = 0,
    say: Callable[[str], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> "Progress":
    """The progress display that suits where stderr goes; a silent one on ranks other than 0.

    total_windows, initial: windows of the whole run, and of them already done before a resume. log_interval: optimiser steps between two
    plain lines. epochs: of the whole run, to show the epoch as a fraction. say: takes each plain line (a Run's `say` also logs it), stdout
    by default. note: takes the same lines where there is a bar instead (a Run's `note`: so that its log file has them either way).
    """
    if not is_main:
        return Progress(total_windows, initial, log_interval, desc, epochs, None)
    if sys.stderr is not None and sys.stderr.isatty():
        return _Bar(total_windows, initial, log_interval, desc, epochs, note)
    return Progress(total_windows, initial, log_interval, desc, epochs, say or _print_line)


class Progress:
    """Plain lines: step, epoch, loss, learning rate, windows/s, time left, peak memory."""

    def __init__(
        self, total_windows: int, initial: int, log_interval: int, desc: str, epochs: int, write: Callable[[str], None] | None
    ) -> None:
        self.total, self.done, self.desc = total_windows, initial, desc
        self._log_interval, self._epochs, self._write = max(1, log_interval), epochs, write
        self.speed = Speed(initial)

    def update(self, step: int, windows: int, loss: Loss, lr: float, extra: Mapping[str, Any] | None = None) -> None:
        """After an optimiser step: `windows` is how many it took (not the sum so far), `step` its number counted from 1.

        loss: a number, or a function that is called only if the loss is shown. extra: further names and values to show; "epoch" counts
        from 0 and is shown from 1.
        """
        self.done += windows
        self.speed.add(self.done)
        if self._write is not None and step % self._log_interval == 0:
            self._write(self.line(step, loss, lr, extra or {}))

    def close(self) -> None:
        """Ends the display; what was shown stays on the screen."""

    def line(self, step: int, loss: Loss, lr: float, extra: Mapping[str, Any]) -> str:
        """`predictor step 50, epoch 0.25/2, loss 2.4131, lr 4.0e-05, 812 windows/s, 12:33 left, peak 1.9 GiB`, for instance."""
        return ", ".join([f"{self.desc} step {step}", *self._facts(loss, lr, extra)])

    def _epoch(self, extra: Mapping[str, Any]) -> str:
        if self._epochs > 0 and self.total > 0:
            return f"epoch {self.done * self._epochs / self.total:.2f}/{self._epochs}"
        return f"epoch {extra['epoch'] + 1}" if "epoch" in extra else ""

    def _facts(self, loss: Loss, lr: float, extra: Mapping[str, Any]) -> list[str]:
        value = loss() if callable(loss) else loss
        per_s, left_s = self.speed.per_s, self.speed.left_s(self.total)
        facts = [self._epoch(extra), f"loss {value:.4f}" if value is not None else "", f"lr {lr:.1e}"]
        facts += [f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}" for key, item in extra.items() if key != "epoch"]
        facts.append(f"{per_s:,.0f} windows/s" if per_s >= 10 else f"{per_s:.2g} windows/s")
        facts.append(f"{tqdm.format_interval(left_s)} left" if left_s is not None else "")
        return [fact for fact in (*facts, gpu_use(), f"peak {peak_gib():.1f} GiB") if fact]


class _Bar(Progress):
    """A tqdm bar counted in windows; plain lines go to the log file, if there is one."""

    def __init__(
        self, total_windows: int, initial: int, log_interval: int, desc: str, epochs: int, write: Callable[[str], None] | None
    ) -> None:
        super().__init__(total_windows, initial, log_interval, desc, epochs, write)
        self._bar = tqdm(
            total=total_windows,
            initial=initial,
            desc=desc,
            unit=" windows",
            dynamic_ncols=True,
            mininterval=0,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self._shown_at = 0.0

    def update(self, step: int, windows: int, loss: Loss, lr: float, extra: Mapping[str, Any] | None = None) -> None:
        super().update(step, windows, loss, lr, extra)
        now = time.monotonic()
        if now - self._shown_at >= _REFRESH_S or self.done >= self.total:
            self._shown_at = now
            self._bar.set_postfix_str(", ".join(self._facts(loss, lr, extra or {})), refresh=False)
            self._bar.update(self.done - self._bar.n)

    def close(self) -> None:
        """Draws the bar a last time and leaves it on the screen."""
        self._bar.update(self.done - self._bar.n)
        self._bar.close()


class Speed:
    """Windows per second, and the time left.

    The rate is smoothed over the last _SMOOTHING_S seconds. The time left comes from the average since the start instead, so that
    validation and checkpoints, which lie between two steps, are counted in. The first step, which compiles and warms up, counts in neither.
    """

    def __init__(self, initial: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None  # (time, windows done) after the first step
        self._last = (clock(), initial)
        self._done = 0.0  # windows and seconds of the recent past, both fading at the same pace
        self._took_s = 0.0

    def add(self, done: int) -> None:
        """After every step: `done` windows are done in all."""
        now = self._clock()
        before_s, before = self._last
        self._last = (now, done)
        if self._start is None:
            self._start = self._last
            self._done, self._took_s = float(done - before), now - before_s  # shown until there is better
            return
        if self._start[0] == before_s:
            self._done = self._took_s = 0.0
        kept = 0.5 ** ((now - before_s) / _SMOOTHING_S)
        self._done = kept * self._done + (done - before)
        self._took_s = kept * self._took_s + (now - before_s)

    @property
    def per_s(self) -> float:
        """Windows per second of late; 0 before the first step."""
        return self._done / self._took_s if self._took_s > 0 else 0.0

    def left_s(self, total: int) -> float | None:
        """Seconds until `total` windows are done; None before there is anything to tell from."""
        if self._start is None:
            return None
        now, done = self._last
        took_s, windows = now - self._start[0], done - self._start[1]
        rate = windows / took_s if windows > 0 and took_s > 0 else self.per_s
        return max(0, total - done) / rate if rate > 0 else None


def gpu_use() -> str:
    """How busy the CUDA device in use is, e.g. "GPU 93 %"; empty without one, or without NVML (package nvidia-ml-py) or its permission."""
    if not (_has_nvml() and torch.cuda.is_available() and torch.cuda.is_initialized()):
        return ""
    try:
        return f"GPU {torch.cuda.utilization()} %"
    except Exception as error:  # a slice of a GPU has no figure; NVML's errors are known only where it is installed
        if type(error).__name__.startswith("NVMLError") or isinstance(error, RuntimeError):
            return ""
        raise


@lru_cache(maxsize=1)
def _has_nvml() -> bool:
    return find_spec("pynvml") is not None


def peak_gib() -> float:
    """Most memory held so far, in GiB: of the current CUDA device if one is in use, else resident memory of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return _resident_peak_bytes() / 2**30


def _resident_peak_bytes() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")  # Linux; getrusage would include the peak of whoever started us
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _print_line(text: str) -> None:
    print(text, flush=True)
