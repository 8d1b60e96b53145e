"""The Temporal Fusion Transformer against the paper's equations, and what a user must be able to rely on."""

import pytest
import tft_tiny as tiny
import torch
from tft_paper import Paper

from kronos.errors import InputError
from tft.model import TftSizes
from tft.task import TftTask, load_task, warm_start

VARIANTS = {
    "everything": {},
    "one layer, widths equal": dict(lstm_layers=1, hidden_continuous=0),
    "no statics, no categories": dict(statics=(), categories=()),
    "one variable of each kind": dict(past=1, known=0, categories=(5,), statics=(3,), heads=4),
    "width of one": dict(hidden_continuous=1, categories=()),
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_model_equals_the_papers_equations(changes):
    model = tiny.model(**changes)
    batch = tiny.batch(1, 3, steps=2, of=model.sizes)
    ours = model(batch, interpret=True)
    paper = Paper(model)
    for i in range(3):
        theirs = paper.window(*(batch[key][i] for key in ("past", "known", "categorical", "static")))
        for name, value in theirs.pop("logits").items():
            torch.testing.assert_close(ours["logits"][name][i], value, rtol=0, atol=1e-10)
        for name, value in theirs.items():
            if value is not None:
                torch.testing.assert_close(ours[name][i], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_shared_rows_change_nothing(changes):
    model = tiny.model(**changes)
    batch = tiny.batch(3, 5, steps=2, of=model.sizes)
    found = []
    for given in (batch, tiny.plain(batch)):
        model.zero_grad()
        out = model(given, interpret=True)
        sum(value.square().sum() for value in out["logits"].values()).backward()
        logits = torch.cat(list(out.pop("logits").values()), 1)
        found.append(([logits, *out.values()], [p.grad.clone() for p in model.parameters()]))
    (shared, shared_grads), (each, each_grads) = found
    for a, b in zip(shared, each, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-15)
    for a, b in zip(shared_grads, each_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_shared_rows_train_with_dropout():
    model = tiny.model(dropout=0.3).train()
    model(tiny.batch())["logits"]["up"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in model.named_parameters() if "heads.band" not in name)


def test_a_later_encoder_row_changes_no_earlier_one():
    model, batch = tiny.model(), tiny.plain(tiny.batch())
    before = model.temporal(batch)[0]
    for key in ("past", "known"):
        batch[key][:, 4] += 1.0
    batch["categorical"][:, 4] = (batch["categorical"][:, 4] + 1) % 3
    after = model.temporal(batch)[0]
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_a_decoder_row_sees_no_later_one():
    model, batch = tiny.model(), tiny.plain(tiny.batch(steps=3))

    def decoded():
        temporal, context, _ = model.temporal(batch)
        return model.decode(temporal, context, 3)

    before, _ = decoded()
    batch["known"][:, -1] += 1.0
    after, weights = decoded()
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=1e-14)
    assert not torch.allclose(after[:, 2], before[:, 2])
    assert (weights[:, 0, -2:] == 0).all() and (weights[:, 1, -1:] == 0).all()


def test_the_decoder_is_given_known_columns_only():
    model, batch = tiny.model(), tiny.plain(tiny.batch())
    batch["past"].requires_grad_()
    assert batch["past"].shape[1] == batch["known"].shape[1] - 1  # there are no past columns at the decoder's row at all
    assert model.known_selection.count == model.sizes.known + len(model.sizes.categories)
    before = model(batch)["logits"]["up"]
    batch["known"][:, -1] += 1.0
    assert not torch.allclose(model(batch)["logits"]["up"], before)


def test_what_is_looked_at_adds_up_to_one():
    out = tiny.model()(tiny.batch(steps=2), interpret=True)
    for name in ("attention", "past_weights", "known_weights", "static_weights"):
        torch.testing.assert_close(out[name].sum(-1), torch.ones_like(out[name].sum(-1)))


def train(task: TftTask, batch: dict, steps: int, rate: float) -> float:
    optimiser = torch.optim.Adam(task.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        outcome = task(batch)
        outcome.loss.backward()
        optimiser.step()
    return outcome.loss.item()


def test_it_overfits_64_samples_to_nearly_nothing():
    task = tiny.task(targets={"target_up": "WeightedBCE", "target_return": "MSE"}, hidden=16)
    batch = tiny.plain(tiny.batch(64, 1, of=task.sizes, dtype=torch.float32))
    batch["targets"] = torch.stack((torch.arange(64) % 2, torch.randn(64)), 1).float()
    assert train(task, batch, 200, 1e-2) < 0.01


def test_it_finds_the_two_of_twenty_features_that_matter():
    task = tiny.task(past=20, known=0, categories=(), statics=(), lstm_layers=1, targets={"target_return": "MSE"})
    batch = tiny.plain(tiny.batch(512, 1, encoder=4, of=task.sizes, dtype=torch.float32))
    past = batch["past"]
    batch["targets"] = (past[:, -1, 7] + past[:, -2, 13] ** 2)[:, None]
    train(task, batch, 150, 1e-2)
    importance = task.model.eval()(batch, interpret=True)["past_weights"].mean((0, 1))
    assert set(importance.topk(2).indices.tolist()) == {7, 13}, importance


def test_a_saved_task_comes_back_as_it_was(tmp_path):
    task = tiny.task(
        periods=["1h", "4h"],
        uncertainty=True,
        stages={"stage_1": {"start_epoch": 0, "target_up": 2.0}},
        composite={"val_target_up_f1": 1.0},
        facts={"past": ["rsi", "atr", "obv"]},
    ).eval()
    task.save(tmp_path)
    again = load_task(tmp_path)
    batch = tiny.batch(of=task.sizes, dtype=torch.float32)
    for name, value in task.model(batch)["logits"].items():
        assert torch.equal(again.model(batch)["logits"][name], value)
    assert again.config == task.config and again.identity() == task.identity()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"d_model": 8}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"config.json lacks sizes, .* has unknown d_model"):
        load_task(tmp_path)


def test_a_warm_start_tells_what_it_took_and_what_not(tmp_path):
    tiny.task(seed=1).save(tmp_path)
    task = tiny.task(
        seed=2, targets={"target_up": "WeightedBCE", "target_other": "MSE", "target_band": {"name": "quantile", "quantiles": [0.5]}}
    )
    fresh = {name: value.clone() for name, value in task.state_dict().items()}
    told = warm_start(task, tmp_path)
    saved = tiny.task(seed=1).state_dict()
    assert torch.equal(task.state_dict()["model.heads.target_up.weight"], saved["model.heads.target_up.weight"])
    assert "model.encoder.weight_ih_l0" in told.loaded
    assert told.skipped["model.heads.target_band.weight"] == "(3, 8) in the checkpoint, (1, 8) here"
    assert told.skipped["model.heads.target_return.bias"] == "not part of this model"
    assert told.skipped["model.heads.target_other.bias"] == "not in the checkpoint, starts fresh"
    assert torch.equal(task.state_dict()["model.heads.target_other.weight"], fresh["model.heads.target_other.weight"])
    assert "skipped model.heads.target_band.weight" in str(told)


def test_a_warm_start_from_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        warm_start(tiny.task(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(InputError, match="damaged"):
        warm_start(tiny.task(), tmp_path)


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(hidden=10, heads=4), "10 cannot be shared by 4"),
        (dict(dropout=1.0), "dropout: 1.0"),
        (dict(past=0, known=0, categories=()), "no input"),
        (dict(outputs={}), "no target"),
        (dict(lstm_layers=0), "lstm_layers: 0"),
    ],
)
def test_impossible_sizes_are_refused(changes, told):
    with pytest.raises(InputError, match=told):
        TftSizes(**{**tiny.SIZES, "outputs": {"a": 1}, **changes})
