"""Bars on their way through the disk: interleaved tickers go into buckets, so that each bucket fits in memory and holds whole tickers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.data.kaggle_reading import BAR, take
from kronos.files import explained

_BUCKET_BYTES = 32 << 20  # of the CSV, about 400,000 rows: what is cleaned at once
_MOST_BUCKETS = 128  # open files; macOS allows 256


def buckets_for(size: int) -> int:
    """How many buckets a CSV of `size` bytes is spread over."""
    return int(np.clip(-(-size // _BUCKET_BYTES), 1, _MOST_BUCKETS))


class Spill:
    """Buckets of BAR in a folder: a ticker's bars are all in one bucket, in the order they came. Raises InputError if the disk is full."""

    def __init__(self, folder: Path, buckets: int) -> None:
        self.buckets, self._folder = buckets, folder
        with explained(folder, "cannot spill bars to"):
            folder.mkdir(parents=True, exist_ok=True)
            self._files = [open(folder / f"bucket-{number}", "wb") for number in range(buckets)]  # noqa: SIM115  closed by close

    def add(self, bars: np.ndarray) -> None:
        """Spread an array of BAR over the buckets."""
        bucket = (bars["code"] % self.buckets).astype(np.uint8)
        bars = take(bars, np.argsort(bucket, kind="stable"))  # a radix sort, as the keys are bytes
        ends = np.cumsum(np.bincount(bucket, minlength=self.buckets))
        with explained(self._folder, "cannot spill bars to"):
            for number, file in enumerate(self._files):
                first = int(ends[number - 1]) if number else 0
                if first < ends[number]:
                    file.write(bars[first : int(ends[number])].view(np.uint8).data)

    def close(self) -> None:
        """May be called twice. Raises InputError if the last bars cannot be written."""
        with explained(self._folder, "cannot spill bars to"):
            for file in self._files:
                file.close()

    def take(self, number: int) -> np.ndarray:
        """All bars of one bucket, whose file is removed."""
        path = self._folder / f"bucket-{number}"
        bars = np.fromfile(path, BAR)
        path.unlink()
        return bars


class RowFile:
    """Arrays of one dtype and row shape, appended on the disk and read back by row. Raises InputError if the disk is full."""

    def __init__(self, path: Path, dtype: str, width: Sequence[int] = ()) -> None:
        self._path, self._dtype, self._width = path, np.dtype(dtype), tuple(width)
        self._row_bytes = self._dtype.itemsize * int(np.prod(self._width, dtype=np.int64))
        with explained(path, "cannot spill bars to"):
            self._file = open(path, "w+b")  # noqa: SIM115  closed by close

    def append(self, rows: np.ndarray) -> None:
        """The next rows."""
        assert rows.shape[1:] == self._width
        with explained(self._path, "cannot spill bars to"):
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def read(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Rows first[i] .. first[i] + count[i] - 1 of every i, one after the other."""
        with explained(self._path, "cannot spill bars to"):
            self._file.flush()
        rows = np.empty((int(count.sum()), *self._width), self._dtype)
        buffer, at = memoryview(rows.view(np.uint8).reshape(-1)), 0
        for begin, size in zip((first * self._row_bytes).tolist(), (count * self._row_bytes).tolist(), strict=True):
            self._file.seek(begin)
            done = self._file.readinto(buffer[at : at + size])
            assert done == size, f"{self._path}: {done} of {size} bytes"
            at += size
        return rows

    def close(self) -> None:
        """May be called twice."""
        self._file.close()
