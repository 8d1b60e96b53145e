"""The packed form of a predictor and its tokenizer, kept up to date with their weights."""

from itertools import chain
from typing import Any

import torch
from torch import nn

from kronos.dense import Numbers, reorders
from kronos.errors import InputError
from kronos.network import Kronos
from kronos.packed import PackedPredictor, PackedTokenizer
from kronos.tokenizer import KronosTokenizer

PRECISIONS = (None, "bfloat16", "int8")


class Inference:
    """Packs a pair when it is first asked for, and again after its weights have changed.

    precision: None (the weights' own type), "bfloat16" or "int8" (of the predictor and the tokenizer's decoder; the encoder keeps its own).
    compile: run the predictor's blocks, attention apart, through torch.compile (True, or the name of a backend).
    Raises InputError for any other precision.
    """

    def __init__(self, model: Kronos, tokenizer: KronosTokenizer, precision: str | None = None, compile: bool | str = False) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}: it must be one of {', '.join(map(repr, PRECISIONS))}")
        self.modules, self.precision, self.compile = (model, tokenizer), precision, compile
        self._packed: tuple[Any, tuple[PackedPredictor, PackedTokenizer]] | None = None

    def packed(self) -> tuple[PackedPredictor, PackedTokenizer]:
        """Predictor and tokenizer as they are now."""
        state = [_state_of(module) for module in self.modules]
        found = self._packed  # read once: another thread may be packing
        if found is None or found[0] != state:
            found = self._packed = None  # two packed forms at once would be one too many
            found = self._packed = (state, self._pack())
        return found[1]

    def _pack(self) -> tuple[PackedPredictor, PackedTokenizer]:
        model, tokenizer = self.modules
        own, plain = model.norm.weight.dtype, bool(self.compile)
        numbers = Numbers(own, self.precision, plain)
        if self.precision == "bfloat16" and (plain or not reorders(model.norm.weight.device, torch.bfloat16)):
            numbers = Numbers(torch.bfloat16, None, plain)  # F.linear reads both sides in one type
        predictor = PackedPredictor(model, numbers)
        if self.compile:
            predictor.compile("inductor" if self.compile is True else self.compile)
        decoder = numbers if numbers.activations == tokenizer.head.weight.dtype else None
        return predictor, PackedTokenizer(tokenizer, decoder)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles pack for themselves: reordered weights can be neither copied nor pickled."""
        return {**vars(self), "_packed": None}


@torch.no_grad()
def _state_of(module: nn.Module) -> tuple[list[float], list[tuple[int, int, torch.dtype]]]:
    """Changes whenever a weight does: the first number of each, where it lies, and how often it was written in place.

    The numbers are there for torch's fused optimisers and for writes through `.data`: torch counts neither.
    """
    parts = chain.from_iterable((*part._parameters.values(), *part._buffers.values()) for part in module.modules())
    weights = [weight for weight in parts if weight is not None]
    numbers = torch.cat([weight.as_strided((1,), (1,)) for weight in weights]).tolist()
    return numbers, [(weight.data_ptr(), -1 if weight.is_inference() else weight._version, weight.dtype) for weight in weights]
