"""The faster arithmetic equals its plain PyTorch counterpart, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from kronos import ops
from kronos.layers import RMSNorm, Rotary


def values_and_gradients(function, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(ours, plain, **tolerance):
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def plain_attention(q, k, v, causal, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def test_rms_norm_equals_its_definition():
    x, weight = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def plain(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    assert_same(values_and_gradients(lambda x, w: ops.rms_norm(x, w, 1e-5), x, weight), values_and_gradients(plain, x, weight))


def test_rms_norm_takes_statistics_of_half_precision_in_float32():
    x = torch.full((1, 4096), 200.0, dtype=torch.float16)  # its sum of squares overflows float16
    torch.testing.assert_close(RMSNorm(4096).half()(x), torch.ones_like(x))


def test_rotation_equals_complex_multiplication_and_turns_back_in_the_gradient():
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    rotary = Rotary(8).double()
    turn = torch.polar(torch.ones(7, 4, dtype=torch.float64), torch.outer(torch.arange(7), rotary.inv_freq))

    def plain(x):
        turned = torch.complex(x[..., :4], x[..., 4:]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    assert_same(values_and_gradients(lambda x: ops.rotate(x, *rotary.table(7, x.dtype)), x), values_and_gradients(plain, x))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_equals_scaled_dot_product_attention(dtype, causal):
    q, k, v = (torch.randn(2, 3, 9, 8).to(dtype) for _ in range(3))
    ours = values_and_gradients(lambda q, k, v: ops.attention(q, k, v, causal=causal), q, k, v)
    exact = values_and_gradients(lambda q, k, v: plain_attention(q, k, v, causal), q.double(), k.double(), v.double())
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    assert_same([tensor.double() for tensor in ours], exact, atol=tolerance, rtol=tolerance)


def test_attention_with_dropout_keeps_its_mean():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    many = torch.stack([ops.attention(q, k, v, causal=True, dropout_p=0.3) for _ in range(3000)])
    torch.testing.assert_close(many.mean(0), plain_attention(q, k, v, True), atol=0.1, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.95])
def test_dropout_drops_the_stated_share_scales_the_rest_and_passes_the_same_mask_back(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 301, requires_grad=True)
    out = ops.dropout(x, p, training=True)
    out.sum().backward()
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - p) < 0.004
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert torch.equal(x.grad, out.detach())
    assert ops.dropout(x, p, training=False) is x


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_dropped_is_zero_even_where_it_is_not_finite_and_what_is_kept_shows_it(bad):
    x, zero = torch.full((1000,), bad, requires_grad=True), torch.zeros(1000)
    torch.manual_seed(0)
    out = ops.dropout(x, 0.5, training=True)
    out.backward(torch.full_like(out, bad))
    dropped = out == 0
    assert 400 < dropped.sum() < 600 and not out[~dropped].isfinite().any()
    assert torch.equal(x.grad == 0, dropped) and not x.grad[~dropped].isfinite().any()
    torch.manual_seed(0)
    assert torch.equal(ops.add_dropped(zero, x, 0.5, training=True) == 0, dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_dropped_sum_is_the_sum_and_its_gradients_are_those_of_the_same_mask(dtype):
    x, y = torch.randn(40, 25, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_(), torch.randn(40, 25).to(dtype)
    y.requires_grad_()
    torch.manual_seed(0)
    summed = ops.add_dropped(x, y, 0.25, training=True)
    torch.manual_seed(0)
    dropped = ops.dropout(y, 0.25, training=True)
    near = dict(rtol=1e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(summed, x + dropped, **near)
    weights = torch.linspace(-1, 1, summed.numel(), dtype=summed.dtype).view_as(summed)
    (summed * weights).sum().backward()
    kept = dropped != 0
    torch.testing.assert_close(x.grad, weights)
    torch.testing.assert_close(y.grad, torch.where(kept, weights / 0.75, 0).to(dtype), **near)
    assert torch.equal(ops.add_dropped(x, y, 0.25, training=False), x + y) and ops.dropout(y, 1e-9, training=True) is y


def test_dropout_decisions_are_independent_between_neighbours():
    """Four decisions come out of one 64-bit draw."""
    torch.manual_seed(0)
    kept = (ops.dropout(torch.ones(400_000), 0.5, training=True) > 0).double()
    for lag in (1, 2, 3, 4):
        assert abs((kept[lag:] * kept[:-lag]).mean().item() - 0.25) < 0.005
