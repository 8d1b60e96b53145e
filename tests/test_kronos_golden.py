"""The recorded reference of the published code (tests/golden): outputs, losses and gradients to 1e-5 in float32, token ids exactly."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from kronos import KronosPredictor, KronosTokenizer, load_predictor, load_tokenizer, next_token_loss, presets
from kronos.network import Kronos

GOLDEN = Path(__file__).parent / "golden"
RECORDED = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "golden.npz").items()}


def tokenizer_training() -> dict[str, torch.Tensor]:
    tokenizer, x = load_tokenizer(GOLDEN / "tokenizer").train(), RECORDED["x"]
    out = tokenizer(x)
    loss = (F.mse_loss(out.coarse, x) + F.mse_loss(out.full, x) + out.quantiser_loss) / 2
    loss.backward()
    found = {"tok_z_pre": out.coarse, "tok_z": out.full, "tok_bsq_loss": out.quantiser_loss, "tok_quantized": out.codes}
    found |= {"tok_train_loss": loss, "tok_indices": tokenizer.tokenizer.ids(out.codes, half=False)}
    return found | {f"tok_grad/{name}": weight.grad for name, weight in tokenizer.named_parameters()}


def tokens() -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(GOLDEN / "tokenizer")
    s1, s2 = tokenizer.encode(RECORDED["x"])
    full = tokenizer.encode(RECORDED["x"], half=False)
    found = {"s1_ids": s1, "s2_ids": s2, "full_ids": full}
    return found | {"decoded": tokenizer.decode((s1, s2)), "decoded_full": tokenizer.decode(full, half=False)}


def predictor_training() -> dict[str, torch.Tensor]:
    model, stamps = load_predictor(GOLDEN / "predictor").train(), RECORDED["stamp"]
    s1, s2 = RECORDED["s1_ids"], RECORDED["s2_ids"]
    s1_logits, s2_logits = model(s1[:, :-1], s2[:, :-1], stamps[:, :-1], s1[:, 1:], teacher_forcing=True)
    loss = next_token_loss(s1_logits, s2_logits, s1[:, 1:], s2[:, 1:])
    loss.total.backward()
    found = {"tf_s1_logits": s1_logits, "tf_s2_logits": s2_logits, "tf_loss": loss.total, "tf_s1_loss": loss.s1, "tf_s2_loss": loss.s2}
    return found | {f"net_grad/{name}": weight.grad for name, weight in model.named_parameters()}


def one_step() -> dict[str, torch.Tensor]:
    model = load_predictor(GOLDEN / "predictor")
    s1_logits, context = model.decode_s1(RECORDED["s1_ids"], RECORDED["s2_ids"], RECORDED["stamp"])
    pick = s1_logits[:, -1:].argmax(-1)
    return {"step_s1_logits": s1_logits, "step_context": context, "step_s1_pick": pick, "step_s2_logits": model.decode_s2(context, pick)}


def forecasts() -> dict[str, torch.Tensor]:
    bars = pd.read_csv(GOLDEN / "bars.csv", parse_dates=["timestamps"])
    found = {}
    for name in ("predict_short", "predict_sliding"):
        lookback, horizon, max_context = RECORDED[f"{name}_args"].tolist()
        forecaster = KronosPredictor(
            load_predictor(GOLDEN / "predictor"), load_tokenizer(GOLDEN / "tokenizer"), device="cpu", max_context=max_context
        )
        past, times = bars[:lookback], bars["timestamps"]
        future = times[lookback : lookback + horizon]
        forecast = forecaster.predict(past, times[:lookback], future, horizon, top_k=1, top_p=1.0, verbose=False, consistent=False)
        found[name] = torch.tensor(forecast.to_numpy())
    return found


GROUPS = {
    "tokenizer training": (tokenizer_training, ("tok_",)),
    "tokens": (tokens, ("s1_ids", "s2_ids", "full_ids", "decoded")),
    "predictor training": (predictor_training, ("tf_", "net_grad/")),
    "one step": (one_step, ("step_",)),
    "forecasts": (forecasts, ("predict_",)),
}
INPUTS = {"x", "stamp", "predict_short_args", "predict_sliding_args"}


def recorded_keys(prefixes: tuple[str, ...]) -> set[str]:
    return {key for key in RECORDED if key.startswith(prefixes)} - INPUTS


def test_every_recorded_array_belongs_to_a_group():
    assert len(RECORDED) == 137
    assert set().union(*(recorded_keys(prefixes) for _, prefixes in GROUPS.values())) | INPUTS == set(RECORDED)


@pytest.mark.parametrize("group", GROUPS)
def test_numbers_match_the_recorded_reference(group):
    compute, prefixes = GROUPS[group]
    found = compute()
    assert set(found) == recorded_keys(prefixes)
    for key, value in found.items():
        recorded = RECORDED[key]
        if recorded.dtype == torch.int64:
            assert torch.equal(value, recorded), key
        else:
            torch.testing.assert_close(value.detach().double(), recorded.double(), rtol=1e-5, atol=1e-5, msg=key)


SIZES = [("tokenizer", "base", 3_958_042), ("tokenizer", "2k", 3_958_042), ("predictor", "mini", 4_108_032)]
SIZES += [("predictor", "small", 24_741_376), ("predictor", "base", 102_310_592), ("predictor", "large", 499_246_976)]


@pytest.mark.parametrize(("kind", "size", "count"), SIZES)
def test_presets_have_the_published_parameter_counts(kind, size, count):
    arguments = presets.tokenizer_arguments(size) if kind == "tokenizer" else presets.predictor_arguments(size)
    with torch.device("meta"):
        model = (KronosTokenizer if kind == "tokenizer" else Kronos)(**arguments)
    assert sum(weight.numel() for weight in model.parameters()) == count
    assert model.config == arguments
