"""Tokens of every window, encoded once: while the predictor trains the tokenizer is frozen, so each epoch would repeat the same work.

Encoded in the tokenizer's own float32, in fixed chunks by window index, so that a resumed run or one on other ranks
reads the same bits. Kept in a memory-mapped file whose name says what it depends on: panel, windows, tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tokenize
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kronos import KronosTokenizer, fingerprint
from kronos.errors import InputError

from .balance import Balanced
from .distributed import World
from .errors import Interrupted
from .files import explained, read_json, write_json
from .kronos_tasks import encode_windows
from .places import MARKER, is_complete
from .settings import FitSettings
from .signals import StopRequest
from .windows import Source, Splits, as_tensor, fits, sample_subset

CHUNK = 256  # windows encoded together, whatever the batch size: the same chunk gives the same bits
_FEWEST_PASSES = 1.5  # below this many passes over the windows the filling costs more than it saves
_IDS, _SUM = "ids.npy", "crc32"


class TokenWindows:
    """A source whose batches are `s1`, `s2` [B, T] ids and `stamps` [B, T, 5] uint8. ids: the cache, [n, T, 2]."""

    def __init__(self, source: Source, ids: torch.Tensor):
        self.source, self.ids, self.facts = source, ids, source.facts

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> None:
        self.source.to(device)
        if fits(device, self.ids):
            self.ids = self.ids.to(device)

    def gather(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        both = self.ids.index_select(0, torch.from_numpy(np.asarray(index)).to(self.ids.device))  # [B, T, 2]
        return {"s1": both[..., 0], "s2": both[..., 1], "stamps": self.source.stamps(index)}

    def stamps(self, index: np.ndarray) -> torch.Tensor:
        return self.source.stamps(index)

    def describe(self, index: np.ndarray) -> list[str]:
        return self.source.describe(index)


def with_cached_tokens(
    windows: Splits,
    tokenizer: KronosTokenizer,
    folder: Path,
    settings: FitSettings,
    world: World,
    stop: StopRequest,
    *,
    mode: str = "auto",
    limit_gib: float = 8.0,
    say: Callable[[str], None] = print,
) -> Splits:
    """`windows` with the training and validation bars replaced by their tokens, encoded now if `folder` has none yet.

    mode: off; auto leaves windows as they are where caching does not fit (and `say`s why); on raises InputError there.
    limit_gib: largest size of the cache on disk. Raises Interrupted if asked to stop while encoding.
    """
    if mode == "off":
        return windows
    val = sample_subset(windows.val, settings.n_val_iter, settings.seed)
    train = windows.train.source if isinstance(windows.train, Balanced) else windows.train  # each window once, however often it is drawn
    reason = _unfit(train, val, tokenizer, settings, limit_gib)
    if reason:
        if mode == "on":
            raise InputError(f"training.cache_tokens is on, but {reason}; set it to auto or off")
        say(f"tokens are not cached: {reason}")
        return windows
    sources = (train, val)
    folders = [folder / f"tokens-{_key(source, tokenizer)}" for source in sources]
    cached = [_filled(source, tokenizer, place, world, stop, say) for source, place in zip(sources, folders, strict=True)]
    if world.is_main:
        for old in set(folder.glob("tokens-*")) - set(folders):
            shutil.rmtree(old)
    if isinstance(windows.train, Balanced):
        cached[0] = windows.train.over(cached[0])
    return Splits(*cached, windows.test)


def _id_type(tokenizer: KronosTokenizer) -> np.dtype:
    return np.dtype(np.int16 if max(tokenizer.config["s1_bits"], tokenizer.config["s2_bits"]) <= 15 else np.int32)


def _unfit(train: Source, val: Source, tokenizer: KronosTokenizer, settings: FitSettings, limit_gib: float) -> str:
    """Why these windows should not be cached, or an empty string."""
    if settings.augmentation.active:
        return "augmentation changes the bars of each window every time"
    passes = settings.epochs * (settings.n_train_iter or len(train)) / len(train)
    if passes < _FEWEST_PASSES:
        return f"windows do not repeat ({passes:.2g} passes over {len(train)} windows)"
    rows = train.facts["rows per window"]
    size_gib = (len(train) + len(val)) * rows * 2 * _id_type(tokenizer).itemsize / 2**30
    if size_gib > limit_gib:
        return f"they would take {size_gib:.1f} GiB, more than cache_limit_gib {limit_gib:g}"
    return ""


def _key(source: Source, tokenizer: KronosTokenizer) -> str:
    facts = json.dumps([source.facts, CHUNK], sort_keys=True, default=str)
    return hashlib.blake2b(f"{facts}|{fingerprint(tokenizer)}".encode(), digest_size=10).hexdigest()


def _filled(
    source: Source, tokenizer: KronosTokenizer, folder: Path, world: World, stop: StopRequest, say: Callable[[str], None]
) -> TokenWindows:
    """The source's tokens; encoded now, each rank its chunks, unless a complete cache is there."""
    shape, dtype = (len(source), source.facts["rows per window"], 2), _id_type(tokenizer)
    if not world.on_main(lambda: _is_whole(folder, shape, dtype, say)):
        with explained(folder):
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / MARKER).unlink(missing_ok=True)
                np.lib.format.open_memmap(folder / _IDS, "w+", dtype, shape).flush()
                _take_room(folder / _IDS)
            world.barrier()
            ids = np.lib.format.open_memmap(folder / _IDS, "r+")
            _encode(source, tokenizer, ids, world, stop)
            ids.flush()
        world.barrier()
        if world.is_main:
            write_json(folder / MARKER, {"windows": len(source), _SUM: _checksum(ids)})
            say(f"cached the tokens of {len(source)} windows in {folder}")
    return TokenWindows(source, as_tensor(np.load(folder / _IDS, mmap_mode="r")))


def _is_whole(folder: Path, shape: tuple[int, ...], dtype: np.dtype, say: Callable[[str], None]) -> bool:
    """Whether a complete cache is there, byte for byte as it was written. One that is damaged can be made again, so this raises nothing."""
    if not is_complete(folder):
        return False
    try:
        ids, facts = np.load(folder / _IDS, mmap_mode="r"), read_json(folder / MARKER) or {}
        alike = ids.shape == shape and ids.dtype == dtype and ids.flags.c_contiguous  # the checksum is of the data, not of what they are
        whole = alike and _checksum(ids) == facts.get(_SUM)
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError):  # InputError is a ValueError
        whole = False
    if not whole:
        say(f"the cached tokens in {folder} are damaged, or of an older version: they are encoded again")
    return whole


def _checksum(ids: np.ndarray) -> int:
    crc = 0
    for start in range(0, len(ids), CHUNK):
        crc = zlib.crc32(np.ascontiguousarray(ids[start : start + CHUNK]), crc)
    return crc


def _take_room(path: Path) -> None:
    """Have the system set a file's room aside: a disk that fills up under a memory-mapped file ends the process without a word (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):  # neither macOS nor Windows
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@torch.no_grad()
def _encode(source: Source, tokenizer: KronosTokenizer, ids: np.ndarray, world: World, stop: StopRequest) -> None:
    """Write the tokens of this rank's chunks into ids [n, T, 2]."""
    tokenizer = tokenizer.to(world.device).eval()
    starts = range(world.rank * CHUNK, len(source), world.size * CHUNK)
    for start in tqdm(starts, desc="encoding tokens", disable=None if world.is_main else True, unit="chunk"):
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} while encoding tokens; the same command with --resume goes on")
        index = np.arange(start, min(start + CHUNK, len(source)))
        x = source.gather(index)["x"].to(world.device)
        if not x.isfinite().all():  # it would have tokens like any other
            told = "; ".join(source.describe(index[~x.flatten(1).isfinite().all(1).cpu().numpy()][:8]))
            raise InputError(
                "before any step: bars are not finite, or too large to normalise, in these windows (at most 8 are named): "
                f"{told}. Mend the bars"
            )
        s1, s2 = encode_windows(tokenizer, x)
        ids[index] = torch.stack([s1, s2], -1).cpu().numpy().astype(ids.dtype)
