"""The faster arithmetic equals its plain PyTorch counterpart, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from kronos import ops
from kronos.dropping import add_dropped, dropout
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


def by_head(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_equals_scaled_dot_product_attention(dtype, causal, turned):
    """As many queries as keys where they are turned or the past alone is seen."""
    queries = 9 if turned or causal else 4
    q, k, v = (torch.randn(5, length, 24).to(dtype) for length in (queries, 9, 9))
    rotation = Rotary(8).double().table(9, torch.float64) if turned else None

    def ours(q, k, v):
        table = rotation and tuple(part.to(dtype) for part in rotation)
        return ops.attention(q, k, v, table, heads=3, causal=causal)

    def plain(q, k, v):
        q, k, v = (by_head(x, 3) for x in (q, k, v))
        q, k = (ops.rotate(x, *rotation) for x in (q, k)) if turned else (q, k)
        return plain_attention(q, k, v, causal).transpose(1, 2).flatten(2)

    seen = values_and_gradients(ours, q, k, v)
    exact = values_and_gradients(plain, q.double(), k.double(), v.double())
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    assert_same([tensor.double() for tensor in seen], exact, atol=tolerance, rtol=tolerance)


def test_attention_with_dropout_keeps_its_mean():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 8) for _ in range(3))
    many = torch.stack([ops.attention(q, k, v, None, heads=1, causal=True, dropout_p=0.3) for _ in range(3000)])
    torch.testing.assert_close(many.mean(0), plain_attention(q, k, v, True), atol=0.1, rtol=0)


def test_attention_with_dropout_has_the_gradients_of_its_own_mask():
    q, k, v = (torch.randn(5, 9, 24, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def seeded(q, k, v):
        torch.manual_seed(1)
        return ops.attention(q, k, v, Rotary(8).double().table(9, torch.float64), heads=3, causal=True, dropout_p=0.4)

    assert torch.autograd.gradcheck(seeded, (q, k, v))


def test_attention_with_less_dropout_than_a_mask_can_have_drops_nothing():
    q, k, v = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(3))
    rare, none = (ops.attention(q, k, v, None, heads=2, causal=True, dropout_p=p) for p in (7e-6, 0.0))
    torch.testing.assert_close(rare, none)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.95])
def test_dropout_drops_the_stated_share_scales_the_rest_and_passes_the_same_mask_back(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 301, requires_grad=True)
    out = dropout(x, p, training=True)
    out.sum().backward()
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - p) < 0.004
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert torch.equal(x.grad, out.detach())
    assert dropout(x, p, training=False) is x


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_dropped_is_zero_even_where_it_is_not_finite_and_what_is_kept_shows_it(bad):
    x, zero = torch.full((1000,), bad, requires_grad=True), torch.zeros(1000)
    torch.manual_seed(0)
    out = dropout(x, 0.5, training=True)
    out.backward(torch.full_like(out, bad))
    dropped = out == 0
    assert 400 < dropped.sum() < 600 and not out[~dropped].isfinite().any()
    assert torch.equal(x.grad == 0, dropped) and not x.grad[~dropped].isfinite().any()
    torch.manual_seed(0)
    assert torch.equal(add_dropped(zero, x, 0.5, training=True) == 0, dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_dropped_sum_is_the_sum_and_its_gradients_are_those_of_the_same_mask(dtype):
    x, y = torch.randn(40, 25, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_(), torch.randn(40, 25).to(dtype)
    y.requires_grad_()
    torch.manual_seed(0)
    summed = add_dropped(x, y, 0.25, training=True)
    torch.manual_seed(0)
    dropped = dropout(y, 0.25, training=True)
    near = dict(rtol=1e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(summed, x + dropped, **near)
    weights = torch.linspace(-1, 1, summed.numel(), dtype=summed.dtype).view_as(summed)
    (summed * weights).sum().backward()
    kept = dropped != 0
    torch.testing.assert_close(x.grad, weights)
    torch.testing.assert_close(y.grad, torch.where(kept, weights / 0.75, 0).to(dtype), **near)
    assert torch.equal(add_dropped(x, y, 0.25, training=False), x + y) and dropout(y, 1e-9, training=True) is y


def test_dropout_decisions_are_independent_between_neighbours():
    """Four decisions come out of one 64-bit draw."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5, training=True) > 0).double()
    for lag in (1, 2, 3, 4):
        assert abs((kept[lag:] * kept[:-lag]).mean().item() - 0.25) < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_cross_entropy_equals_pytorchs_for_logits_of_any_size(dtype):
    logits = (torch.randn(3, 7, 20, dtype=torch.float64) * torch.tensor([1.0, 30.0, 300.0]).view(3, 1, 1)).to(dtype)
    targets = torch.randint(0, 20, (3, 7))

    def plain(logits):
        return F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), reduction="none").view(3, 7)

    ours, exact = (values_and_gradients(f, x) for f, x in ((lambda x: ops.cross_entropy(x, targets), logits), (plain, logits.double())))
    assert ours[0].dtype == torch.promote_types(dtype, torch.float32)
    near = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    assert_same([tensor.double() for tensor in ours], [exact[0], exact[1]], **near)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-5)  # the loss of bf16 logits is exact


def test_compiled_dropout_drops_other_places_in_every_call_and_as_often():
    def twice(x):
        return dropout(x, 0.25, True), dropout(x + 1, 0.25, True), dropout(x * 2, 0.25, True)

    torch.manual_seed(0)
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager_decomp_partition")  # all but the C++ of it
    x = torch.ones(100, 101, requires_grad=True)  # equal calls are made one in what is differentiated
    dropped = [part == 0 for _ in range(2) for part in compiled(x)]
    for i, one in enumerate(dropped):
        assert abs(one.double().mean() - 0.25) < 0.02
        for other in dropped[:i]:
            assert abs((one & other).double().mean() - 0.0625) < 0.01, "independent of the other calls"
