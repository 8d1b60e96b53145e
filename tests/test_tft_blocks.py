"""Every block of the Temporal Fusion Transformer: gradients against finite differences, and the fast arithmetic against the plain one."""

import pytest
import torch
from torch.autograd import gradcheck

from tft import ops
from tft.blocks import Embeddings, GatedLinear, GatedResidual, GatedSkip, InterpretableAttention, RealBank, VariableSelection

torch.manual_seed(0)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def check(module, *inputs):
    """The gradients of inputs and of all parameters, in float64."""
    module = module.double()
    names = [name for name, _ in module.named_parameters()]

    def call(*tensors):
        out = torch.func.functional_call(module, dict(zip(names, tensors[len(inputs) :], strict=True)), tensors[: len(inputs)])
        return out if isinstance(out, torch.Tensor) else tuple(out)

    return gradcheck(call, (*inputs, *module.parameters()), fast_mode=True)


def test_gradients_of_the_gated_linear_unit():
    assert check(GatedLinear(3, 4, 0.0), doubles(2, 3))


def test_gradients_of_the_gated_skip():
    assert check(GatedSkip(4, 0.0), doubles(2, 4), doubles(2, 4))


@pytest.mark.parametrize("width_out, context", [(4, 0), (3, 0), (4, 2)])
def test_gradients_of_the_gated_residual_network(width_out, context):
    inputs = [doubles(2, 4)] + [doubles(2, context)] * bool(context)
    assert check(GatedResidual(4, 5, width_out, 0.0, context), *inputs)


def test_gradients_of_interpretable_attention():
    class Asked(InterpretableAttention):
        def forward(self, source):
            return super().forward(source, 2)

    assert check(Asked(4, 2), doubles(2, 5, 4))


@pytest.mark.parametrize("width_in", [4, 3, 5])
def test_gradients_of_the_bank_of_real_variables(width_in):
    assert check(RealBank(3, width_in, 4, 0.0), doubles(7, 3), doubles(7, 3), doubles(3, width_in), doubles(3, width_in))


def test_gradients_of_variable_selection():
    class Selection(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = Embeddings(3, 2, (4, 3), 4)
            self.selection = VariableSelection(3, 2, 2, 4, 0.0, context=True)
            self.codes = torch.tensor([[0, 1], [3, 2], [1, 0], [2, 2], [1, 1]])

        def forward(self, x, context):
            e = self.embeddings
            return self.selection(x, self.codes, e.scale, e.shift, e.tables, context)

    assert check(Selection(), doubles(5, 3), doubles(5, 4))


def bank(f, d, deep, inner=3):
    second = (doubles(f, inner, inner), doubles(f, inner)) if deep else (None, None)
    value, gate = ((doubles(f, inner, d), doubles(f, d)) for _ in range(2))
    skip = doubles(f, d), doubles(f, d)
    return ops.BankWeights(doubles(f, inner), doubles(f, inner), *skip, *second, *value, *gate, doubles(f, d), doubles(f, d))


@pytest.mark.parametrize("deep", [True, False])
def test_the_bank_in_chunks_equals_the_plain_bank_with_gradients(deep, monkeypatch):
    monkeypatch.setattr(ops, "_CHUNK_VALUES", 1)  # the least: 64 rows at a time
    weights, x, mix = bank(3, 4, deep), doubles(150, 3), doubles(150, 3)
    leaves = [x, mix, *(t for t in weights if t is not None)]
    ours, plain = ops.bank_sum(x, mix, weights), ops._plain(x, mix, weights, 0.0)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-13)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(plain, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_the_banks_gradient_is_of_the_mask_that_was_drawn():
    """Dropout's mask is kept from forward to backward: a step along the gradient changes the same masked sum as predicted."""
    weights, x, mix = bank(3, 4, True), doubles(80, 3), doubles(80, 3)
    leaves = [x, mix, *weights]

    def masked(*tensors):
        torch.manual_seed(3)
        return ops.bank_sum(tensors[0], tensors[1], ops.BankWeights(*tensors[2:]), dropout=0.4)

    assert gradcheck(masked, leaves, fast_mode=True)
    assert not torch.equal(masked(*leaves), ops.bank_sum(x, mix, weights))


def test_the_banks_dropout_keeps_the_mean():
    """With gate and norm out of the way the result is linear in what is dropped."""
    f, d = 2, 8
    zeros, eye = torch.zeros(f, d), torch.eye(d).expand(f, d, d)
    kept = torch.empty(400_000, dtype=torch.int8)
    ops._draw(kept, 0.1)
    assert abs(kept.float().mean() - 0.9) < 0.003
    masked = ops._masked(torch.ones(400_000), kept, 0.1)
    assert abs(masked.mean() - 1) < 0.003
    assert torch.equal(masked == 0, kept == 0)
    weights = ops.BankWeights(zeros + 1, zeros, zeros, zeros, eye, zeros, eye, zeros, eye, zeros, zeros + 1, zeros)
    assert ops.bank_sum(torch.randn(5, f), torch.ones(5, f), weights, 0.1).shape == (5, d)


def test_the_heads_share_their_values_and_what_they_look_at_is_their_mean():
    attention, source = InterpretableAttention(4, 2).double(), doubles(1, 6, 4)
    out, weights = attention(source, 3)
    assert attention.value.weight.shape == (2, 4)
    torch.testing.assert_close(out, attention.out(weights @ attention.value(source)))
    assert torch.equal(weights[0, 0, 4:], torch.zeros(2, dtype=torch.float64))  # the first query is row 3


def test_a_network_may_run_in_bfloat16_around_the_bank():
    selection, e = VariableSelection(3, 4, 0, 4, 0.1, context=False).train(), Embeddings(3, 4, (), 4)
    x = torch.randn(70, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = selection(x, torch.zeros(70, 0, dtype=torch.long), e.scale, e.shift, e.tables)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in selection.parameters())
