"""The picture of a validation's confusion matrices: one small square per class target, all periods together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_SIDE_PX = 240


def draw_confusion(matrices: Mapping[str, np.ndarray]) -> Figure:
    """matrices: {target: [[TN, FP], [FN, TP]]}, at least one. Shades are shares of a row, so a rare class is seen as well."""
    from finetune.engine.curves import INK, new_figure  # matplotlib, only where something is drawn

    rows = -(-len(matrices) // _COLUMNS)
    figure = new_figure(_SIDE_PX * min(len(matrices), _COLUMNS), _SIDE_PX * rows)
    for number, (name, counts) in enumerate(matrices.items(), 1):
        axes = figure.add_subplot(rows, min(len(matrices), _COLUMNS), number)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # [2, 2]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (true, said), count in np.ndenumerate(counts):
            shade = "white" if shares[true, said] > 0.6 else INK
            axes.text(said, true, f"{count:,.0f}\n{shares[true, said]:.0%}", ha="center", va="center", color=shade, fontsize=9)
        axes.set_title(name.removeprefix("target_"), fontsize=9, color=INK)
        axes.set_xticks([0, 1], ["said 0", "said 1"], fontsize=8)
        axes.set_yticks([0, 1], ["is 0", "is 1"], fontsize=8)
    figure.tight_layout()
    return figure
