"""The Kronos predictor: from token pairs and time stamps to the next coarse token, and given that, the next fine token."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos.arguments import check_arguments
from kronos.layers import Attention, Block, Dropout, RMSNorm, run_blocks
from kronos.published import PublishedModule

STAMP_SIZES = {"minute": 60, "hour": 24, "weekday": 7, "day": 32, "month": 13}  # columns of `stamps`, in order
CROSS_HEADS = 4  # the published cross-attention has four heads at every size


class _Table(nn.Embedding):
    """nn.Embedding; on "meta", where only sizes are checked, it draws no numbers: torch would import its compiler for that, in seconds."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class TokenEmbedding(nn.Module):
    """Coarse and fine token embeddings, fused into one vector."""

    def __init__(self, s1_bits: int, s2_bits: int, d_model: int) -> None:
        super().__init__()
        self.emb_s1 = _Table(2**s1_bits, d_model)
        self.emb_s2 = _Table(2**s2_bits, d_model)
        self.fusion_proj = nn.Linear(2 * d_model, d_model)

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Two [...] int64 -> [..., d]."""
        # training alone: quantised layers have no such weight, and exported programs take any number of tokens
        if self.training and s1.numel() > self.emb_s1.num_embeddings + self.emb_s2.num_embeddings:
            return self._from_tables(s1, s2)
        pair = torch.cat((self.emb_s1(s1), self.emb_s2(s2)), dim=-1)  # [..., 2d]
        return self.fusion_proj(pair * math.sqrt(self.emb_s1.embedding_dim))

    def _from_tables(self, s1: Tensor, s2: Tensor) -> Tensor:
        """The same: each table goes through its half of the projection once, which is less work where tokens outnumber its rows.

        What is looked up has the parameters' type: in bf16 the gradients of a frequent token would not add up.
        """
        halves = (self.fusion_proj.weight * math.sqrt(self.emb_s1.embedding_dim)).chunk(2, 1)
        first = F.linear(self.emb_s1.weight, halves[0], self.fusion_proj.bias).to(self.emb_s1.weight.dtype)  # [rows, d]
        second = F.linear(self.emb_s2.weight, halves[1]).to(self.emb_s2.weight.dtype)
        return F.embedding(s1, first) + F.embedding(s2, second)


class _SineTable(nn.Module):
    """A fixed table of sines and cosines [rows, d] that sits in the state dict where the published code keeps it (`emb.weight`)."""

    def __init__(self, rows: int, d_model: int) -> None:
        super().__init__()
        cpu = torch.device("cpu")  # as in `Rotary`
        falling = torch.exp(torch.arange(0, d_model, 2, device=cpu).float() * (-math.log(10000.0) / d_model))
        angles = torch.outer(torch.arange(rows, device=cpu).float(), falling)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # sine and cosine columns alternate
        self.emb = _Table(rows, d_model)
        self.emb.weight = nn.Parameter(table.to(torch.get_default_device()), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        return self.emb.weight


class StampEmbedding(nn.Module):
    """Sum of five embeddings of the wall clock: minute, hour, weekday (Monday 0), day, month."""

    def __init__(self, d_model: int, learned: bool) -> None:
        super().__init__()
        for name, rows in STAMP_SIZES.items():
            self.add_module(f"{name}_embed", _Table(rows, d_model) if learned else _SineTable(rows, d_model))

    def forward(self, stamps: Tensor) -> Tensor:
        """[B, T, 5] of any number type -> [B, T, d]."""
        columns = stamps.long().unbind(-1)
        total = 0
        for name, column in zip(STAMP_SIZES, columns, strict=True):
            total = total + F.embedding(column, getattr(self, f"{name}_embed").weight)
        return total


class DependencyLayer(nn.Module):
    """Lets the chosen coarse token look at the hidden states, so that the fine token depends on it."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.cross_attn = Attention(d_model, CROSS_HEADS, 0.0, 0.0)
        self.norm = RMSNorm(d_model)

    def forward(self, hidden: Tensor, sibling: Tensor) -> Tensor:
        """Hidden states [B, T, d] and coarse embeddings [B, T, d] of the same steps, or [B, 1, d] of the last step -> [B, T, d].

        With a query per step the attention is causal, in training and in evaluation alike. With a single query (generation) it sees
        every hidden state and no rotation is applied: released weights were evaluated that way.
        """
        return self._joined(hidden, self.cross_attn.q_proj(sibling))

    def from_table(self, hidden: Tensor, s1: Tensor, table: Tensor) -> Tensor:
        """The same for the rows `s1` [B, T] of `table` [rows, d]: each row is projected once, in the parameters' type (as in
        `TokenEmbedding`)."""
        return self._joined(hidden, F.embedding(s1, self.cross_attn.q_proj(table).to(table.dtype)).to(hidden.dtype))

    def _joined(self, hidden: Tensor, queries: Tensor) -> Tensor:
        length = hidden.shape[1]
        stepwise = queries.shape[1] == length
        rotation = self.cross_attn.rotary.table(length, hidden.dtype) if stepwise else None
        return self.norm(hidden + self.cross_attn.look(queries, hidden, rotation, causal=stepwise))


class DualHead(nn.Module):
    """Logits of the coarse and of the fine token."""

    def __init__(self, s1_bits: int, s2_bits: int, d_model: int) -> None:
        super().__init__()
        self.proj_s1 = nn.Linear(d_model, 2**s1_bits)
        self.proj_s2 = nn.Linear(d_model, 2**s2_bits)


class PredictorLoss(NamedTuple):
    """Cross-entropies in nats per token, means over all positions."""

    total: Tensor  # (s1 + s2) / 2
    s1: Tensor
    s2: Tensor


def next_token_loss(s1_logits: Tensor, s2_logits: Tensor, s1_targets: Tensor, s2_targets: Tensor) -> PredictorLoss:
    """Logits [B, T, V] against the tokens that came next, [B, T] int64 each."""
    s1 = F.cross_entropy(s1_logits.flatten(0, 1), s1_targets.flatten())
    s2 = F.cross_entropy(s2_logits.flatten(0, 1), s2_targets.flatten())
    return PredictorLoss((s1 + s2) / 2, s1, s2)


@torch.no_grad()
def sample_tokens(logits: Tensor) -> Tensor:
    """Draw one token per position from softmax(logits) [..., V] -> [...] int64, with torch's default generator.

    One uniform number per position against the cumulative distribution: a tenth of the random numbers' cost of the exponential trick
    (and of torch.multinomial, which does that inside).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cumulative = wide.softmax(-1).cumsum(-1)
    threshold = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


class Kronos(PublishedModule):
    """The decoder-only predictor. Arguments are the keys of a published config.json (sizes: `kronos.presets`).

    Raises InputError for impossible arguments.
    """

    def __init__(
        self,
        s1_bits: int,
        s2_bits: int,
        n_layers: int,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        ffn_dropout_p: float,
        attn_dropout_p: float,
        resid_dropout_p: float,
        token_dropout_p: float,
        learn_te: bool,
    ) -> None:
        super().__init__()
        self._arguments = check_arguments(self.argument_names(), locals())
        self.embedding = TokenEmbedding(s1_bits, s2_bits, d_model)
        self.time_emb = StampEmbedding(d_model, learn_te)
        self.token_drop = Dropout(token_dropout_p)
        sizes = (d_model, n_heads, ff_dim, ffn_dropout_p, attn_dropout_p, resid_dropout_p)
        self.transformer = nn.ModuleList(Block(*sizes) for _ in range(n_layers))
        self.norm = RMSNorm(d_model)
        self.dep_layer = DependencyLayer(d_model)
        self.head = DualHead(s1_bits, s2_bits, d_model)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_meta:
            return  # as in `_Table`
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding) and module.weight.requires_grad:  # fixed sine tables stay what they are
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def hidden_states(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        """Tokens [B, T] and stamps [B, T, 5] -> normed hidden states [B, T, d]."""
        x = self.token_drop(self.embedding(s1, s2) + self.time_emb(stamps))
        return self.norm(run_blocks(self.transformer, x, recompute=self.recompute))

    def forward(
        self, s1: Tensor, s2: Tensor, stamps: Tensor, s1_targets: Tensor | None = None, teacher_forcing: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logits of the next coarse token [B, T, 2^s1_bits] and of the next fine token [B, T, 2^s2_bits].

        s1, s2, s1_targets: [B, T] int64. stamps: [B, T, 5] of any number type. The coarse token that the fine logits depend on is
        - in training: drawn from the coarse logits (no gradient through it), or `s1_targets` with teacher_forcing;
        - in evaluation: `s1_targets` where given, else the likeliest; never random, so a validation loss repeats exactly.
        """
        assert s1_targets is not None or not teacher_forcing, "teacher forcing needs s1_targets"
        hidden = self.hidden_states(s1, s2, stamps)
        s1_logits = self.head.proj_s1(hidden)
        if s1_targets is not None and (teacher_forcing or not self.training):
            chosen = s1_targets
        else:
            chosen = sample_tokens(s1_logits) if self.training else s1_logits.argmax(-1)
        return s1_logits, self.decode_s2(hidden, chosen)

    def decode_s1(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse logits [B, T, V1] and the hidden states [B, T, d] that `decode_s2` takes as context."""
        hidden = self.hidden_states(s1, s2, stamps)
        return self.head.proj_s1(hidden), hidden

    def decode_s2(self, context: Tensor, s1: Tensor) -> Tensor:
        """Fine logits [B, T, V2], given coarse tokens of every step [B, T] or of the step being generated [B, 1]."""
        siblings = self.embedding.emb_s1
        if self.training and s1.numel() > siblings.num_embeddings:
            return self.head.proj_s2(self.dep_layer.from_table(context, s1, siblings.weight))
        return self.head.proj_s2(self.dep_layer(context, siblings(s1)))
