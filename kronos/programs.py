"""Both models as four programs of torch.export, which run without this package's classes (and can be compiled ahead of time for C++).

    programs/encode.pt2     bars [B, T, 6] float32                               -> coarse, fine ids, [B, T] int64 each
    programs/decode_s1.pt2  coarse, fine ids [B, T], stamps [B, T, 5] int64      -> coarse logits [B, T, V1], hidden [B, T, d]
    programs/decode_s2.pt2  hidden [B, T, d], coarse ids of the next step [B, 1] -> fine logits [B, T, V2]
    programs/decode.pt2     coarse, fine ids [B, T]                              -> bars [B, T, 6] float32

Batch and length are free, the length up to max_context. Bars are z-scored over the lookback and clipped; bundle.json has context and clip.
TorchScript would be the other way, but torch.jit is deprecated in torch 2.13 in favour of this. There is no cache here: each step reads the
whole window again, so `load_bundle` is many times faster wherever Python can be had.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, load, save

from kronos.bars import COLUMNS, prepare
from kronos.bundle import Bundle, read_manifest
from kronos.errors import InputError, MissingFileError
from kronos.files import atomic_path
from kronos.network import Kronos
from kronos.sampling import Sampling, draw, uniforms
from kronos.tokenizer import KronosTokenizer

FOLDER = "programs"
NAMES = ("encode", "decode_s1", "decode_s2", "decode")
_TRACED = 7  # length of the example that is traced; any but 0 and 1, which torch.export would take for constants


def _without(module: nn.Module, *paths: str) -> Any:
    """A copy without some of its parts: a program carries every weight of what is traced, used or not."""
    module = copy.deepcopy(module)
    for path in paths:
        parent, _, name = path.rpartition(".")
        delattr(module.get_submodule(parent), name)
    return module


class _Encode(nn.Module):
    def __init__(self, tokenizer: KronosTokenizer) -> None:
        super().__init__()
        self.tokenizer = _without(tokenizer, "post_quant_embed_pre", "post_quant_embed", "decoder", "head")

    def forward(self, bars: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokenizer.encode(bars)


class _Decode(nn.Module):
    def __init__(self, tokenizer: KronosTokenizer) -> None:
        super().__init__()
        self.tokenizer = _without(tokenizer, "embed", "encoder", "quant_embed", "post_quant_embed_pre")

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        return self.tokenizer.decode((s1, s2))


class _CoarseLogits(nn.Module):
    def __init__(self, model: Kronos) -> None:
        super().__init__()
        self.model = _without(model, "dep_layer", "head.proj_s2")

    def forward(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.decode_s1(s1, s2, stamps)


class _FineLogits(nn.Module):
    """`Kronos.decode_s2` with a single query. Spelt out, because there it is told by comparing lengths, which a program would fix."""

    def __init__(self, model: Kronos) -> None:
        super().__init__()
        self.emb_s1, self.layer, self.head = model.embedding.emb_s1, model.dep_layer, model.head.proj_s2

    def forward(self, hidden: Tensor, s1: Tensor) -> Tensor:
        mixed = self.layer.cross_attn(self.emb_s1(s1), hidden, None, causal=False)
        return self.head(self.layer.norm(hidden + mixed))


def export_programs(bundle: Bundle) -> dict[str, ExportedProgram]:
    """The four programs of a float32 pair on the CPU, by name."""
    assert bundle.quantize is None, "programs are float32"
    batch, length = Dim("batch", min=1), Dim("length", min=1, max=bundle.max_context)
    config = bundle.model.config
    both, ids = {0: batch, 1: length}, torch.zeros(2, _TRACED, dtype=torch.int64)
    fine = ids.clone()  # a tensor given twice would be traced as one input, and the program would read coarse ids from the fine ones
    bars, hidden = torch.zeros(2, _TRACED, len(COLUMNS)), torch.zeros(2, _TRACED, config["d_model"])
    stamps = torch.zeros(2, _TRACED, 5, dtype=torch.int64)
    traced: dict[str, tuple[nn.Module, tuple[Tensor, ...], tuple[dict[int, Any], ...]]] = {
        "encode": (_Encode(bundle.tokenizer), (bars,), (both,)),
        "decode_s1": (_CoarseLogits(bundle.model), (ids, fine, stamps), (both, both, both)),
        "decode_s2": (_FineLogits(bundle.model), (hidden, ids[:, :1]), (both, {0: batch})),
        "decode": (_Decode(bundle.tokenizer), (ids, fine), (both, both)),
    }
    with torch.no_grad():
        return {name: export(module.eval(), example, dynamic_shapes=shapes) for name, (module, example, shapes) in traced.items()}


def write_programs(bundle: Bundle, folder: Path) -> None:
    """Export and save the four programs under folder/programs. Raises InputError where they cannot be written."""
    for name, program in export_programs(bundle).items():
        with atomic_path(folder / FOLDER / f"{name}.pt2") as temporary:
            save(program, temporary)


@dataclass(frozen=True)
class Programs:
    """The four programs, loaded, and the loop that makes a forecast of them."""

    encode: Callable[..., tuple[Tensor, Tensor]]
    decode_s1: Callable[..., tuple[Tensor, Tensor]]
    decode_s2: Callable[..., Tensor]
    decode: Callable[..., Tensor]
    max_context: int
    clip: float

    @torch.no_grad()
    def predict(
        self,
        df: pd.DataFrame,
        x_timestamp: Sequence,
        y_timestamp: Sequence,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        *,
        seed: int = 0,
    ) -> np.ndarray:
        """Paths [samples, pred_len, 6] of one series: those of `KronosPredictor.predict` with consistent=False under the same seed.

        Raises InputError naming what is wrong.
        """
        how = Sampling(T, top_k, top_p)
        if pred_len > self.max_context:
            raise InputError(f"pred_len {pred_len} exceeds max_context {self.max_context}: forecast fewer bars at once")
        series = prepare(df, x_timestamp, y_timestamp, pred_len, self.clip)
        draws = torch.from_numpy(uniforms(seed, np.array([series.key], dtype=np.uint64), np.arange(sample_count), pred_len)[0])
        bars = torch.from_numpy(series.values)[None]  # [1, P, 6]
        size = bars.shape[1]
        s1, s2 = (ids.repeat(sample_count, 1) for ids in self._encoded(bars))  # [S, P]
        stamps = torch.from_numpy(series.stamps)[None].repeat(sample_count, 1, 1)  # [S, P + horizon, 5]
        for step in range(pred_len):
            window = slice(max(0, size + step - self.max_context), size + step)
            coarse, hidden = self.decode_s1(s1[:, window], s2[:, window], stamps[:, window])
            chosen = draw(coarse[:, -1], draws[:, step, 0], how)[:, None]
            fine = self.decode_s2(hidden, chosen)
            s1 = torch.cat((s1, chosen), 1)
            s2 = torch.cat((s2, draw(fine[:, -1], draws[:, step, 1], how)[:, None]), 1)
        return series.restore(self.decode(s1[:, -self.max_context :], s2[:, -self.max_context :])[:, -pred_len:].numpy())

    def _encoded(self, bars: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the whole lookback. A program takes max_context bars at most, but the encoder of the forecaster reads all of them."""
        if bars.shape[1] > self.max_context:
            raise InputError(f"the lookback has {bars.shape[1]} bars, these programs take {self.max_context}: give the newest of them")
        return self.encode(bars)


def load_programs(folder: str | Path, *, trust: bool = False) -> Programs:
    """The programs of a folder that `python -m kronos.export --format pt2` wrote.

    A .pt2 file is a program: loading one may run whatever its maker put into it, so `trust=True` must say that you know where it is from.
    Raises InputError or MissingFileError naming what is wrong.
    """
    folder = Path(folder).expanduser()
    if not trust:
        raise InputError(f"{folder} holds programs, and loading a program may run anything: pass trust=True if you know who made it")
    manifest = read_manifest(folder)
    paths = {name: folder / FOLDER / f"{name}.pt2" for name in NAMES}
    for path in paths.values():
        if not path.is_file():
            raise MissingFileError(f"{path} is missing: export the pair again with python -m kronos.export --format pt2")
    return Programs(
        **{name: load(path).module() for name, path in paths.items()}, max_context=manifest["max_context"], clip=manifest["clip"]
    )
