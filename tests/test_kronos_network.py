"""Predictor and tokenizer networks: causality, determinism, precisions, devices, checkpointing."""

import random

import pytest
import torch
from torch import nn

from kronos import InputError, Kronos, KronosTokenizer, next_token_loss
from kronos.arguments import NAMES, check_arguments
from kronos.network import sample_tokens

SMALL = {
    "s1_bits": 4,
    "s2_bits": 5,
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 2,
    "ff_dim": 48,
    "ffn_dropout_p": 0.1,
    "attn_dropout_p": 0.1,
    "resid_dropout_p": 0.1,
    "token_dropout_p": 0.1,
    "learn_te": True,
}
TOKENIZER = {
    "d_in": 6,
    "d_model": 32,
    "n_heads": 2,
    "ff_dim": 48,
    "n_enc_layers": 2,
    "n_dec_layers": 2,
    "ffn_dropout_p": 0.1,
    "attn_dropout_p": 0.1,
    "resid_dropout_p": 0.1,
    "s1_bits": 3,
    "s2_bits": 5,
    "beta": 0.05,
    "gamma0": 1.0,
    "gamma": 1.1,
    "zeta": 0.05,
    "group_size": 4,
}
SIZES = (60, 24, 7, 32, 13)


def predictor(**changes) -> Kronos:
    torch.manual_seed(0)
    return Kronos(**{**SMALL, **changes})


def tokenizer(**changes) -> KronosTokenizer:
    torch.manual_seed(0)
    return KronosTokenizer(**{**TOKENIZER, **changes})


def batch(b: int = 2, t: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    s1, s2 = (torch.randint(2**bits, (b, t), generator=generator) for bits in (4, 5))
    return s1, s2, torch.stack([torch.randint(n, (b, t), generator=generator) for n in SIZES], -1)


@pytest.mark.parametrize("training", [False, True])
def test_no_logit_sees_a_later_token_stamp_or_target_in_evaluation_or_training(training):
    """Fault 1: the public code's cross-attention is not causal in evaluation."""
    model = predictor(ffn_dropout_p=0.0, attn_dropout_p=0.0, resid_dropout_p=0.0, token_dropout_p=0.0).train(training)
    s1, s2, stamps = batch()
    before = model(s1, s2, stamps, s1_targets=s1, teacher_forcing=True)
    changed = [tensor.clone() for tensor in (s1, s2, stamps, s1)]
    for tensor in changed:
        tensor[:, 15:] = (tensor[:, 15:] + 1) % 7
    after = model(*changed[:3], s1_targets=changed[3], teacher_forcing=True)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[:, :15], old[:, :15], rtol=0, atol=1e-6)
        assert (new[:, 15:] - old[:, 15:]).abs().max() > 1e-3


def test_many_tokens_go_through_tables_that_the_projection_has_passed_and_come_out_the_same():
    embedding = predictor().double().train().embedding
    s1, s2, _ = batch(5)
    assert s1.numel() > 2**4 + 2**5 > s1[:2].numel()
    found = []
    for parts in ([(s1, s2)], [(s1[:2], s2[:2]), (s1[2:4], s2[2:4]), (s1[4:], s2[4:])]):  # by tables; token by token
        embedding.zero_grad()
        out = torch.cat([embedding(*part) for part in parts])
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in embedding.parameters())])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_the_fine_token_sees_the_coarse_one_through_the_same_table_however_many_there_are():
    model = predictor().double().train()
    coarse = batch(5)[0][:, :12]
    assert coarse.numel() > 2**4 > coarse[:1].numel()
    context, found = torch.randn(*coarse.shape, 32, dtype=torch.float64), []
    for parts in (slice(0, 5),), [slice(i, i + 1) for i in range(5)]:  # by the table; token by token
        model.zero_grad()
        out = torch.cat([model.decode_s2(context[part], coarse[part]) for part in parts])
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out.detach(), model.embedding.emb_s1.weight.grad.clone(), model.dep_layer.cross_attn.q_proj.weight.grad.clone()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_a_token_seen_a_thousand_times_keeps_its_gradient_in_bf16():
    embedding = predictor(s1_bits=2, s2_bits=2).embedding
    tokens = torch.zeros(1, 1000, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding(tokens, tokens).float().sum().backward()
    torch.testing.assert_close(embedding.fusion_proj.bias.grad, torch.full((32,), 1000.0), rtol=1e-2, atol=0)


def test_evaluation_repeats_exactly_and_takes_the_targets_given():
    """Fault 2: the public code's validation samples the coarse token, so its loss is random."""
    model, (s1, s2, stamps) = predictor().eval(), batch()
    runs = [model(s1, s2, stamps, s1_targets=s1)[1] for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(runs[0], model(s1, s2, stamps, s1_targets=s1, teacher_forcing=True)[1])
    unaided = [model(s1, s2, stamps)[1] for _ in range(2)]
    assert torch.equal(*unaided)
    assert not torch.equal(runs[0], unaided[0])


def test_training_draws_the_coarse_token_afresh_and_repeats_under_a_seed():
    model, (s1, s2, stamps) = predictor(ffn_dropout_p=0.0, attn_dropout_p=0.0, resid_dropout_p=0.0, token_dropout_p=0.0).train(), batch()
    fine = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        fine.append(model(s1, s2, stamps, s1_targets=s1)[1])
    assert torch.equal(fine[0], fine[1])
    assert not torch.equal(fine[0], fine[2])


def test_no_gradient_reaches_the_coarse_logits_through_the_drawn_token():
    model, (s1, s2, stamps) = predictor().train(), batch()
    model(s1, s2, stamps)[1].sum().backward()
    assert model.head.proj_s1.weight.grad is None


def test_drawn_tokens_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, -float("inf"), 2.0, 1.0, -1.0]).expand(40_000, -1)
    counts = torch.bincount(sample_tokens(logits), minlength=5) / 40_000
    torch.testing.assert_close(counts, logits[0].softmax(-1), atol=0.01, rtol=0)
    assert counts[1] == 0


def test_stamps_give_the_same_logits_as_bytes_integers_and_floats():
    model, (s1, s2, stamps) = predictor().eval(), batch()
    as_int = model(s1, s2, stamps)
    for kind in (torch.uint8, torch.float32, torch.int32):
        assert torch.equal(model(s1, s2, stamps.to(kind))[0], as_int[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_float32_and_trains(dtype):
    model, (s1, s2, stamps) = predictor(ffn_dropout_p=0.0, attn_dropout_p=0.0, resid_dropout_p=0.0, token_dropout_p=0.0).train(), batch()
    exact = model(s1, s2, stamps, s1, teacher_forcing=True)
    with torch.autocast("cpu", dtype):
        rough = model(s1, s2, stamps, s1, teacher_forcing=True)
        loss = next_token_loss(*rough, s1, s2).total
    loss.backward()
    for a, b in zip(exact, rough, strict=True):
        torch.testing.assert_close(b.float(), a, rtol=0, atol=0.15)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_float64_stays_float64_throughout():
    model, (s1, s2, stamps) = predictor().double().train(), batch()
    logits = model(s1, s2, stamps)
    assert {tensor.dtype for tensor in logits} == {torch.float64}
    quantised = tokenizer().double()(torch.randn(2, 9, 6, dtype=torch.float64))
    assert {tensor.dtype for tensor in quantised} == {torch.float64}


def test_a_model_turned_to_bfloat16_still_knows_far_positions_apart():
    model, inputs = predictor().eval(), batch(2, 600)
    exact = model(*inputs)[0]
    rough = model.bfloat16()(*inputs)[0].float()
    assert ((rough - exact).square().mean() / exact.var()).sqrt() < 0.014


@pytest.mark.parametrize("kind", ["predictor", "tokenizer"])
def test_activation_checkpointing_changes_no_gradient(kind):
    x = torch.randn(2, 9, 6)
    gradients = []
    for recompute in (False, True):
        model = predictor() if kind == "predictor" else tokenizer()
        model.train().activation_checkpointing = recompute
        torch.manual_seed(5)
        outputs = model(*batch()) if kind == "predictor" else model(x)
        sum(tensor.square().mean() for tensor in outputs).backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert len(gradients[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_model_that_has_run_moves_to_another_device_with_everything_it_keeps():
    """Fault 11: rotary tables cached per length stay behind when the model moves. The meta device refuses tensors of any other."""
    model, inputs = predictor().eval(), batch()
    model(*inputs)
    assert model.to("meta")(*(tensor.to("meta") for tensor in inputs))[0].device.type == "meta"


def test_fixed_time_tables_are_sines_and_do_not_train():
    model = predictor(learn_te=False)
    table = model.state_dict()["time_emb.hour_embed.emb.weight"]
    torch.testing.assert_close(table[5, 0], torch.tensor(5.0).sin())
    torch.testing.assert_close(table[5, 1], torch.tensor(5.0).cos())
    model.train()(*batch())[1].sum().backward()
    assert not any(weight.requires_grad for weight in model.time_emb.parameters())


@pytest.mark.parametrize(("s1_bits", "s2_bits"), [(3, 5), (5, 3), (4, 4)])
def test_tokens_decode_to_the_full_reconstruction_for_any_split_of_bits(s1_bits, s2_bits):
    """The published half-decode cuts both ids to the same number of bits."""
    model = tokenizer(s1_bits=s1_bits, s2_bits=s2_bits).eval()
    x = torch.randn(2, 12, 6)
    s1, s2 = model.encode(x)
    assert s1.max() < 2**s1_bits and s2.max() < 2**s2_bits
    full = model(x).full
    torch.testing.assert_close(model.decode((s1, s2)), full)
    ids = model.encode(x, half=False)
    assert torch.equal(ids, s1 + (s2 << s1_bits))
    torch.testing.assert_close(model.decode(ids, half=False), full)


def test_coarse_reconstruction_depends_on_coarse_bits_alone():
    model, x = tokenizer().eval(), torch.randn(1, 12, 6)
    before = model(x).coarse
    with torch.no_grad():
        model.quant_embed.bias[3:] += 5.0  # flips fine bits only
        model.quant_embed.weight[3:] = 0.0
    torch.testing.assert_close(model(x).coarse.sign(), before.sign())
    assert torch.equal(model.encode(x)[1], torch.full((1, 12), 31))


WRONG = [
    ({"n_heads": 3}, "n_heads 3"),
    ({"d_model": 20, "n_heads": 2}, "d_model is 20"),
    ({"attn_dropout_p": 1.0}, "attn_dropout_p is 1.0"),
    ({"s1_bits": 99}, "s1_bits is 99"),
    ({"n_layers": 2.5}, "n_layers is 2.5"),
    ({"learn_te": "yes"}, "learn_te is 'yes'"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_impossible_arguments_are_named(change, words):
    with pytest.raises(InputError, match=words):
        predictor(**change)


@pytest.mark.parametrize(("kind", "build"), [("tokenizer", KronosTokenizer), ("predictor", Kronos)])
def test_whatever_passes_the_checks_that_need_no_torch_can_be_built_and_nothing_else(kind, build):
    assert sorted(NAMES[kind]) == sorted(build.argument_names())
    chance = random.Random(3)
    sizes = {
        "d_model": (8, 12, 16, 24, 40),
        "n_heads": (1, 2, 3, 4, 5),
        "s1_bits": (0, 1, 3, 4),
        "s2_bits": (2, 5),
        "group_size": (1, 2, 3, 4),
    }
    sizes |= {"n_enc_layers": (0, 1, 3), "n_dec_layers": (1, 2), "n_layers": (0, 1, 2), "ff_dim": (1, 7), "d_in": (6,)}
    wanted = {True: 0, False: 0}
    for _ in range(150):
        arguments = {name: chance.choice(sizes[name]) if name in sizes else 0.1 for name in NAMES[kind]}
        arguments |= {"learn_te": chance.choice((True, False))} if kind == "predictor" else {}
        outcomes = []
        for attempt in (lambda given: check_arguments(NAMES[kind], given), lambda given: build(**given)):
            try:
                with torch.device("meta"):
                    attempt(arguments)
                outcomes.append("fine")
            except InputError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], arguments
        wanted[outcomes[0] == "fine"] += 1
    assert min(wanted.values()) > 10, wanted


def test_a_group_size_that_does_not_divide_the_bits_is_named():
    with pytest.raises(InputError, match="group_size 3 does not divide"):
        tokenizer(group_size=3)


def test_modules_hold_no_tensor_outside_parameters_and_buffers():
    model = predictor().train()
    model(*batch())
    stray = [
        (name, key)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)
    ]
    assert stray == []
