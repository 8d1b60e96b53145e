"""The Kronos tokenizer: normalised bars to pairs of discrete tokens (coarse, fine) and back."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kronos.arguments import check_arguments
from kronos.layers import Block, run_blocks
from kronos.published import PublishedModule
from kronos.quantizer import Quantizer


class TokenizerOutput(NamedTuple):
    """What a training pass of the tokenizer gives."""

    coarse: Tensor  # [B, T, d_in], rebuilt from the coarse bits alone
    full: Tensor  # [B, T, d_in], rebuilt from all bits
    quantiser_loss: Tensor  # scalar, may be negative
    codes: Tensor  # [B, T, bits], ±1/sqrt(bits)


class KronosTokenizer(PublishedModule):
    """Encoder, binary spherical quantiser, decoder. Arguments are the keys of a published config.json (sizes: `kronos.presets`).

    Inputs are [B, T, d_in] bars (open, high, low, close, volume, amount), z-scored over the lookback and clipped.
    `n_enc_layers` and `n_dec_layers` each build one block fewer, as published. Raises InputError for impossible arguments.
    """

    def __init__(
        self,
        d_in: int,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        n_enc_layers: int,
        n_dec_layers: int,
        ffn_dropout_p: float,
        attn_dropout_p: float,
        resid_dropout_p: float,
        s1_bits: int,
        s2_bits: int,
        beta: float,
        gamma0: float,
        gamma: float,
        zeta: float,
        group_size: int,
    ) -> None:
        super().__init__()
        self._arguments = check_arguments(self.argument_names(), locals())
        sizes = (d_model, n_heads, ff_dim, ffn_dropout_p, attn_dropout_p, resid_dropout_p)
        self.embed = nn.Linear(d_in, d_model)
        self.encoder = nn.ModuleList(Block(*sizes) for _ in range(n_enc_layers - 1))
        self.quant_embed = nn.Linear(d_model, s1_bits + s2_bits)
        self.tokenizer = Quantizer(s1_bits, s2_bits, beta, gamma0, gamma, zeta, group_size)
        self.post_quant_embed_pre = nn.Linear(s1_bits, d_model)
        self.post_quant_embed = nn.Linear(s1_bits + s2_bits, d_model)
        self.decoder = nn.ModuleList(Block(*sizes) for _ in range(n_dec_layers - 1))
        self.head = nn.Linear(d_model, d_in)

    def _vectors(self, x: Tensor) -> Tensor:
        hidden = run_blocks(self.encoder, self.embed(x), recompute=self.recompute)
        return self.quant_embed(hidden)  # [B, T, d_in] -> [B, T, bits]

    def _rebuild(self, hidden: Tensor) -> Tensor:
        return self.head(run_blocks(self.decoder, hidden, recompute=self.recompute))  # [B, T, d_model] -> [B, T, d_in]

    def forward(self, x: Tensor) -> TokenizerOutput:
        """Encode, quantise and rebuild [B, T, d_in] twice: from the coarse bits and from all bits."""
        codes, loss = self.tokenizer(self._vectors(x))
        coarse = self.post_quant_embed_pre(codes[..., : self.tokenizer.s1_bits])
        # Both go through the same decoder: one pass over a batch twice as long.
        coarse, full = self._rebuild(torch.cat((coarse, self.post_quant_embed(codes)))).chunk(2)
        return TokenizerOutput(coarse, full, loss, codes)

    def encode(self, x: Tensor, half: bool = True) -> Tensor | tuple[Tensor, Tensor]:
        """[B, T, d_in] -> (coarse, fine) ids, each [B, T] int64, or with half=False one id over all bits."""
        return self.tokenizer.ids(self._vectors(x), half)

    def decode(self, ids: Tensor | tuple[Tensor, Tensor], half: bool = True) -> Tensor:
        """Ids as `encode` gives them -> rebuilt bars [B, T, d_in]."""
        return self._rebuild(self.vectors_of(ids, half))

    def vectors_of(self, ids: Tensor | tuple[Tensor, Tensor], half: bool = True) -> Tensor:
        """Ids [...] -> what the decoder reads, [..., d_model]."""
        return self.post_quant_embed(self.tokenizer.codes(ids, half, self.head.weight.dtype))
