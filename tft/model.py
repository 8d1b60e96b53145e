"""The Temporal Fusion Transformer (Lim et al. 2019, arXiv 1912.09363) over batches of overlapping windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kronos.errors import InputError

from .blocks import Embeddings, GatedResidual, GatedSkip, InterpretableAttention, VariableSelection

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class TftSizes:
    """Everything the network's shape depends on. Raises InputError for sizes that cannot be."""

    past: int  # real variables known up to the window's last encoder row only
    known: int  # real variables also known for the decoder's rows
    categories: tuple[int, ...] = ()  # codes of each categorical variable, 0 (unknown) included; known for the decoder's rows too
    statics: tuple[int, ...] = ()  # codes of each static variable (symbol, period), 0 included
    hidden: int = 16
    heads: int = 4
    lstm_layers: int = 1
    dropout: float = 0.1
    hidden_continuous: int = 0  # width of a real variable's vector; 0 = hidden
    outputs: dict[str, int] = field(default_factory=dict)  # numbers per target: 1, or its quantiles

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        object.__setattr__(self, "statics", tuple(self.statics))
        for name in ("hidden", "heads", "lstm_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not possible; give a whole number from 1")
        if self.hidden % self.heads:
            raise InputError(f"hidden_size {self.hidden} cannot be shared by {self.heads} attention heads; choose a multiple of it")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: {self.dropout} is not a probability below 1")
        if self.past + self.known + len(self.categories) < 1:
            raise InputError("the model has no input: name at least one real or categorical column")
        if not self.outputs:
            raise InputError("the model has no target: name at least one")

    @property
    def width_real(self) -> int:
        return self.hidden_continuous or self.hidden


class TemporalFusionTransformer(nn.Module):
    """Encoder rows, known future rows and statics in; numbers per target at the last decoder row out.

    A batch holds past [B, E, Fp], known [B, E+P, Fk], categorical int64 [B, E+P, Fc], static int64 [B, Ns]; what is left out counts
    as having no columns. `blocks` [k, n] (a tensor whose shape is what counts) says that the windows are k blocks of n, each a row
    later than the one before it: then past selection is computed once per distinct row, and the static part once per block. That is
    equal but for rounding; with dropout a mask is shared by what is shared.
    """

    def __init__(self, sizes: TftSizes):
        super().__init__()
        self.sizes = s = sizes
        drop, h, n_known = s.dropout, s.hidden, s.known + len(s.categories)
        self.embeddings = Embeddings(s.past + s.known, s.width_real, s.categories, h)
        self.static_tables = nn.ModuleList(nn.Embedding(n, h) for n in s.statics)
        self.static_selection = VariableSelection(0, 0, len(s.statics), h, drop, context=False) if s.statics else None
        self.contexts = nn.ModuleDict({name: GatedResidual(h, h, h, drop) for name in ("selection", "enrichment", "hidden", "cell")})
        self.past_selection = VariableSelection(s.past + s.known, s.width_real, len(s.categories), h, drop, context=True)
        self.known_selection = VariableSelection(s.known, s.width_real, len(s.categories), h, drop, context=True) if n_known else None
        between = drop if s.lstm_layers > 1 else 0.0
        self.encoder = nn.LSTM(h, h, s.lstm_layers, batch_first=True, dropout=between)
        self.decoder = nn.LSTM(h, h, s.lstm_layers, batch_first=True, dropout=between)
        self.after_lstm = GatedSkip(h, drop)
        self.enrichment = GatedResidual(h, h, h, drop, width_context=h)
        self.attention, self.after_attention = InterpretableAttention(h, s.heads), GatedSkip(h, drop)
        self.feed_forward, self.after_feed_forward = GatedResidual(h, h, h, drop), GatedSkip(h, drop)
        self.heads = nn.ModuleDict({name.replace(".", "_"): nn.Linear(h, n) for name, n in s.outputs.items()})

    @property
    def config(self) -> dict[str, Any]:
        """The sizes as plain values."""
        return {**asdict(self.sizes), "categories": list(self.sizes.categories), "statics": list(self.sizes.statics)}

    def forward(self, batch: Batch, interpret: bool = False) -> dict[str, Any]:
        """{"logits": {target: [B, n]}}, and with `interpret` also attention [B, P, E+P] (from a decoder row to all rows), past_weights
        [B, E, past + known + categories], known_weights [B, P, known + categories] and static_weights [B, statics]."""
        temporal, enrichment, seen = self.temporal(batch, interpret)
        decoded, attention = self.decode(temporal, enrichment, seen.pop("steps"))
        logits = {name: head(decoded[:, -1]) for name, head in zip(self.sizes.outputs, self.heads.values(), strict=True)}
        return {"logits": logits, **({"attention": attention, **seen} if interpret else {})}

    def temporal(self, batch: Batch, interpret: bool = False) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Up to the gated skip around the LSTM (17): features [B, E+P, hidden], enrichment context [B, hidden], weights."""
        parts = _Parts.of(batch, self.sizes)
        contexts, static_weights = self._static(parts)
        past, past_weights = self._select_past(parts, contexts["selection"], interpret)
        contexts = {name: parts.per_window(c) for name, c in contexts.items()}
        future, known_weights = self._select_known(parts, contexts["selection"])
        start = tuple(contexts[name].expand(self.sizes.lstm_layers, -1, -1).contiguous() for name in ("hidden", "cell"))
        encoded, state = self.encoder(past, start)
        decoded, _ = self.decoder(future, state)
        temporal = self.after_lstm(torch.cat((encoded, decoded), 1), torch.cat((past, future), 1))
        seen = {"past_weights": past_weights, "known_weights": known_weights, "static_weights": parts.per_window(static_weights)}
        return temporal, contexts["enrichment"], {"steps": future.shape[1], **seen}

    def decode(self, temporal: Tensor, context: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Static enrichment (18), attention (19)-(20), feed-forward (21)-(22) of the last `steps` rows: [B, P, hidden], attention."""
        enriched = self.enrichment(temporal, context.unsqueeze(1))
        attended, weights = self.attention(enriched, steps)
        attended = self.after_attention(attended, enriched[:, -steps:])
        return self.after_feed_forward(self.feed_forward(attended), temporal[:, -steps:]), weights

    def _static(self, parts: _Parts) -> tuple[dict[str, Tensor], Tensor]:
        """The four contexts [b, hidden] and the static weights [b, statics]; b is the number of blocks if there are any."""
        static = parts.static
        if self.static_selection is None:
            summary, weights = (
                self.contexts["cell"].first.weight.new_zeros(len(static), self.sizes.hidden),
                parts.past.new_zeros(len(static), 0),
            )
        else:
            nothing = self.embeddings.scale.new_zeros(len(static), 0)
            empty = self.embeddings.scale[:0, :0]
            summary, weights = self.static_selection(nothing, static, empty, empty, self.static_tables)
        return {name: network(summary) for name, network in self.contexts.items()}, weights

    def _select_past(self, parts: _Parts, context: Tensor, interpret: bool) -> tuple[Tensor, Tensor | None]:
        """Selected encoder rows [B, E, hidden] and, if asked for, their weights."""
        real = torch.cat((parts.rows(parts.past), parts.rows(parts.known[:, : parts.encoder])), -1)  # [b, rows, Fp + Fk]
        codes = parts.rows(parts.categorical[:, : parts.encoder])
        count, rows = real.shape[:2]
        scale, shift = self.embeddings.scale, self.embeddings.shift
        selected, weights = self.past_selection(
            real.flatten(0, 1), codes.flatten(0, 1), scale, shift, self.embeddings.tables, context.repeat_interleave(rows, 0)
        )
        selected = parts.windows(selected.unflatten(0, (count, rows)))
        return selected, parts.windows(weights.unflatten(0, (count, rows))) if interpret else None

    def _select_known(self, parts: _Parts, context: Tensor) -> tuple[Tensor, Tensor]:
        """Selected decoder rows [B, P, hidden] and their weights; zeros where nothing is known ahead."""
        known, codes = parts.known[:, parts.encoder :], parts.categorical[:, parts.encoder :]
        count, steps = known.shape[:2]
        if self.known_selection is None:
            return context.new_zeros(count, steps, self.sizes.hidden), context.new_zeros(count, steps, 0)
        scale, shift = self.embeddings.scale[self.sizes.past :], self.embeddings.shift[self.sizes.past :]
        selected, weights = self.known_selection(
            known.flatten(0, 1), codes.flatten(0, 1), scale, shift, self.embeddings.tables, context.repeat_interleave(steps, 0)
        )
        return selected.unflatten(0, (count, steps)), weights.unflatten(0, (count, steps))


class _Parts:
    """A batch's tensors, and how its windows overlap."""

    def __init__(self, past: Tensor, known: Tensor, categorical: Tensor, static: Tensor, blocks: tuple[int, int] | None):
        self.past, self.known, self.categorical, self.blocks = past, known, categorical, blocks
        self.encoder = past.shape[1]
        self.static = static[:: blocks[1]] if blocks else static

    @classmethod
    def of(cls, batch: Batch, sizes: TftSizes) -> _Parts:
        past, known = batch["past"], batch.get("known")
        count, encoder = past.shape[:2]
        steps = known.shape[1] - encoder if known is not None else 1
        known = known if known is not None else past.new_zeros(count, encoder + steps, 0)
        no_codes = torch.zeros(0, dtype=torch.long, device=past.device)
        categorical, static = batch.get("categorical"), batch.get("static")
        categorical = categorical if categorical is not None else no_codes.expand(count, encoder + steps, 0)
        static = static if static is not None else no_codes.expand(count, 0)
        widths = (past.shape[2], known.shape[2], categorical.shape[2], static.shape[1])
        assert widths == (sizes.past, sizes.known, len(sizes.categories), len(sizes.statics)), (
            f"the batch's columns {widths} are not {sizes}"
        )
        blocks = tuple(batch["blocks"].shape[:2]) if batch.get("blocks") is not None else None
        assert blocks is None or blocks[0] * blocks[1] == count, f"{blocks} blocks do not make {count} windows"
        return cls(past, known, categorical, static, blocks)

    def rows(self, x: Tensor) -> Tensor:
        """Distinct rows: [B, E, F] as it is, or [k, n + E - 1, F] of blocks: a first window, then the last row of each later one."""
        if not self.blocks:
            return x
        x = x.unflatten(0, self.blocks)
        return torch.cat((x[:, 0], x[:, 1:, -1]), 1)

    def windows(self, rows: Tensor) -> Tensor:
        """What `rows` took apart: [b, rows, d] -> [B, E, d]."""
        return _Unfold.apply(rows, self.encoder) if self.blocks else rows

    def per_window(self, of_block: Tensor) -> Tensor:
        """[b, d] -> [B, d]."""
        return of_block.repeat_interleave(self.blocks[1], 0) if self.blocks else of_block


class _Unfold(torch.autograd.Function):
    """[k, n + E - 1, d] -> [k · n, E, d], each window a row later; its gradient adds windows up, where indexing would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, length: int) -> Tensor:
        ctx.shape = rows.shape
        return rows.unfold(1, length, 1).mT.flatten(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        k, length = ctx.shape[0], grad.shape[1]
        out = grad.new_zeros(ctx.shape)
        for i, window in enumerate(grad.unflatten(0, (k, -1)).unbind(1)):
            out[:, i : i + length] += window
        return out, None
