"""A panel larger than memory, written series by series: the same folder, checks and fingerprint as `Panel.build` and `save`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.data.panel import KRONOS_COLUMNS, Column, Panel, SeriesInfo, check_rows, check_shapes, fingerprint_of, meta_of
from finetune.data.panel_store import FolderWriter


class PanelWriter:
    """Writes a panel whose series and lengths are known and whose rows come in pieces; every row may be an origin, there are no targets.

        with PanelWriter(folder, series=series, offsets=offsets, breaks=breaks, stamp="open", timezone="UTC") as writer:
            writer.append(features, stamps, times)  # the next rows, as often as needed
            panel = writer.finish()

    Nothing is seen in `folder` before `finish`, and nothing is left behind without it. Raises what `Panel.build` and `Panel.save` raise.
    """

    def __init__(
        self,
        folder: Path,
        *,
        series: Sequence[SeriesInfo],
        offsets: np.ndarray,
        breaks: np.ndarray,
        columns: Sequence[Column] = KRONOS_COLUMNS,
        stamp: str = "open",
        timezone: str = "UTC",
    ) -> None:
        self._folder, self._series, self._columns = FolderWriter(folder), series, columns
        self._meta = meta_of(columns, series, (), stamp, timezone)
        self._offsets, self._breaks = np.asarray(offsets, "<i8"), np.asarray(breaks, "<i8")

    def __enter__(self) -> PanelWriter:
        self._folder.__enter__()
        rows = int(self._offsets[-1])
        shapes = {"features": (rows, len(self._columns)), "stamps": (rows, 5), "times": (rows,), "origin": (rows,)}
        for name, shape in {**shapes, "offsets": self._offsets.shape, "breaks": self._breaks.shape}.items():
            self._folder.begin(name, shape)
        self._folder.append("offsets", self._offsets)
        self._folder.append("breaks", self._breaks)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.__exit__(*error)

    def append(self, features: np.ndarray, stamps: np.ndarray, times: np.ndarray) -> None:
        """The next n rows: features [n, F] float32, stamps [n, 5] uint8, times [n] int64 ns UTC."""
        for name, array in {"features": features, "stamps": stamps, "times": times, "origin": np.ones(len(times), bool)}.items():
            self._folder.append(name, array)

    def finish(self) -> Panel:
        """Check every row, put the panel in its place and open it memory-mapped."""
        arrays = self._folder.stored()
        small = {"offsets": self._offsets, "breaks": self._breaks}
        check_shapes({**arrays, **small}, self._meta)
        check_rows({**arrays, **small}, self._series, self._columns)
        fingerprint = fingerprint_of({**arrays, **small}, self._meta)
        return Panel.open(self._folder.finish({**self._meta, "fingerprint": fingerprint}))
