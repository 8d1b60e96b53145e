"""Optional augmentation of training windows, after normalisation and before the final clip; validation and test never see it.

Each kind is drawn per window from (seed, epoch, window index), so a resumed run or one on other ranks draws the same.
The time axis is resampled for all columns alike; afterwards high and low are set so that they contain open and close.
Kinds follow Um et al. 2017 (jitter, scaling, time warping) and Le Guennec et al. 2016 (window slicing).
"""

from __future__ import annotations

import numpy as np
import torch

from .randomness import mix
from .settings import Augmentation

_KNOTS = 4  # random speeds along the window; in between they are interpolated
_HIGH, _LOW, _VOLUME = 1, 2, 4  # columns of a Kronos panel: open high low close volume amount


class Augmenter:
    """Callable that changes a batch of normalised windows in place; `epoch` makes each epoch draw anew."""

    def __init__(self, settings: Augmentation, seed: int):
        self.settings, self.seed, self.epoch = settings, seed, 0

    def __call__(self, batch: dict[str, torch.Tensor], index: np.ndarray) -> None:
        """batch["x"] [B, T, 6] in units of the lookback's standard deviation, with its "loc" and "scale"; index int64 [B]."""
        x, s = batch["x"], self.settings
        draws = self._normals(index, _KNOTS + 4)
        if s.time_warp or s.slice:
            x.copy_(_resample(x, self._positions(draws, x.shape[1]).to(x.device)))
        if s.scale:
            x.mul_(torch.exp(s.scale * draws[:, :1, None]).to(x.device))
        if s.noise:
            x.add_(s.noise * self._normals(index, x[0].numel(), stream=1).view_as(x).to(x.device))
        _make_consistent(x, batch["loc"], batch["scale"])

    def _normals(self, index: np.ndarray, count: int, stream: int = 0) -> torch.Tensor:
        """Standard normals [B, count], a function of (seed, epoch, window index, stream) alone."""
        rows = [np.random.default_rng(mix(self.seed, self.epoch, int(i), stream)).standard_normal(count, dtype=np.float32) for i in index]
        return torch.from_numpy(np.stack(rows))

    def _positions(self, draws: torch.Tensor, length: int) -> torch.Tensor:
        """Where each output bar is read from: increasing positions [B, T] in 0..T-1."""
        s, n = self.settings, length - 1
        uniform = torch.special.ndtr(draws)  # normals to uniforms in 0..1
        speeds = 1 + s.time_warp * (2 * uniform[:, 1 : 1 + _KNOTS] - 1)  # [B, knots]
        speed = torch.nn.functional.interpolate(speeds[:, None], n, mode="linear", align_corners=True)[:, 0]
        path = torch.cat([torch.zeros(len(draws), 1), speed.cumsum(1)], 1)
        path = path / path[:, -1:]  # 0..1
        kept = 1 - s.slice * uniform[:, -1:]
        begin = (1 - kept) * uniform[:, -2:-1]
        return (begin + kept * path) * n


def _make_consistent(x: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> None:
    """Bars that could exist: high and low contain open and close, volume and amount are not negative. In place, x [B, T, 6]."""
    raw = torch.addcmul(loc, x, scale)
    high, low = raw[..., :_VOLUME].amax(-1), raw[..., :_VOLUME].amin(-1)
    x[..., _HIGH] = (high - loc[..., _HIGH]) / scale[..., _HIGH]
    x[..., _LOW] = (low - loc[..., _LOW]) / scale[..., _LOW]
    x[..., _VOLUME:] = torch.maximum(x[..., _VOLUME:], -loc[..., _VOLUME:] / scale[..., _VOLUME:])


def _resample(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of x [B, T, F] at fractional positions [B, T]."""
    left = positions.floor().clamp(0, x.shape[1] - 2).long()
    part = (positions - left)[..., None].to(x.dtype)
    take = lambda at: x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))  # noqa: E731
    return torch.lerp(take(left), take(left + 1), part)
