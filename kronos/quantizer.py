"""Binary spherical quantisation (arXiv 2406.07548): a vector becomes the signs of its components, on the unit sphere.

The loss is the published one, including its codebook entropy over single bits (see kronos_spec, "Quantiser").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos.arguments import check_groups


class _SphericalCode(nn.Module):
    """The two tables of powers of two that published checkpoints carry (`bsq.basis`, `bsq.group_basis`); ours never reads them."""

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        for name, size in (("basis", bits), ("group_basis", group_size)):
            powers = 2 ** torch.arange(size - 1, -1, -1, device="cpu")  # on the CPU for the reason that `layers.Rotary` gives
            self.register_buffer(name, powers.to(torch.get_default_device()))


def _pack(bits: Tensor) -> Tensor:
    """[..., n] booleans -> [...] int64, least significant bit first."""
    weights = 2 ** torch.arange(bits.shape[-1], device=bits.device)
    return (bits * weights).sum(-1)


def _unpack(ids: Tensor, n: int) -> Tensor:
    """[...] int64 -> [..., n] int64 of 0 and 1, least significant bit first."""
    return (ids.unsqueeze(-1) >> torch.arange(n, device=ids.device)) & 1


def _bit_entropy(p: Tensor) -> Tensor:
    q = 1 - p
    return -(p * (p + 1e-8).log() + q * (q + 1e-8).log())


class Quantizer(nn.Module):
    """Vectors of s1_bits + s2_bits components to binary codes, their ids, and the loss that trains them.

    Raises InputError where group_size does not divide the number of bits (the published code refuses such a checkpoint).
    """

    def __init__(self, s1_bits: int, s2_bits: int, beta: float, gamma0: float, gamma: float, zeta: float, group_size: int) -> None:
        super().__init__()
        self.s1_bits, self.s2_bits, self.bits = s1_bits, s2_bits, s1_bits + s2_bits
        self.beta, self.gamma0, self.gamma, self.zeta = beta, gamma0, gamma, zeta
        check_groups(self.bits, group_size)
        self.bsq = _SphericalCode(self.bits, group_size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, bits] -> codes [B, T, bits] (each ±1/sqrt(bits), gradient straight through) and the scalar quantiser loss."""
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)
        signs = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        codes = (z + (signs - z).detach()) * self.bits**-0.5
        commitment = (codes.detach() - z).square().sum(-1).mean()
        p = torch.sigmoid(z * (-4 * self.bits**-0.5))
        sample_entropy = _bit_entropy(p).sum(-1).mean()
        codebook_entropy = _bit_entropy(p.flatten(0, -2).mean(0)).sum()
        return codes, self.beta * commitment + self.zeta * (self.gamma0 * sample_entropy - self.gamma * codebook_entropy)

    def ids(self, z: Tensor, half: bool) -> Tensor | tuple[Tensor, Tensor]:
        """[B, T, bits] vectors or codes -> ids [B, T] int64 over all bits, or with `half` the pair (coarse, fine)."""
        bits = z > 0
        return (_pack(bits[..., : self.s1_bits]), _pack(bits[..., self.s1_bits :])) if half else _pack(bits)

    def codes(self, ids: Tensor | tuple[Tensor, Tensor], half: bool, dtype: torch.dtype) -> Tensor:
        """The inverse of `ids`: codes [B, T, bits], each ±1/sqrt(bits)."""
        bits = torch.cat((_unpack(ids[0], self.s1_bits), _unpack(ids[1], self.s2_bits)), -1) if half else _unpack(ids, self.bits)
        return (bits * 2 - 1).to(dtype) * self.bits**-0.5
