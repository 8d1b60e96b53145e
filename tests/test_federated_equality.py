"""A federation against the trainer that has all the bars: equal where it must be."""

from dataclasses import replace
from pathlib import Path

import federated_tiny as tiny
import numpy as np
import pytest
import tft_data
import torch
from safetensors.numpy import load_file
from tiny import tokenizer

from federated import local_kronos
from federated.settings import Settings
from federated.task import Node, Proximal, Weights
from finetune.data.config import PipelineConfig
from finetune.engine.config import load_config
from finetune.engine.kronos_tasks import PredictorTask, TokenizerTask
from finetune.engine.settings import FitSettings
from finetune.engine.splits import make_splits
from finetune.engine.task import Task
from finetune.engine.trainer import fit
from finetune.pipeline import make_model
from kronos import save_module
from kronos.errors import InputError
from tft.config import TftConfig
from tft.training import prepare

pytestmark = pytest.mark.usefixtures("no_pictures")

ONE_STEP = dict(num_server_rounds=1, batch_size=10_000, optimiser="sgd", learning_rate=0.5, fraction_evaluate=0.0)


def final(folder: Path) -> dict[str, np.ndarray]:
    return load_file(next((folder / "checkpoints").glob("last-*")) / "model.safetensors")


def furthest(folder: Path, central: dict[str, torch.nn.Module]) -> float:
    """The largest difference of any weight."""
    weights = final(folder)
    own = {f"{name}.{key}": p.detach().numpy() for name, module in central.items() for key, p in module.named_parameters()}
    assert own.keys() == weights.keys()
    return max(float(np.abs(own[name] - weights[name]).max()) for name in own)


def moved(folder: Path, run: Settings) -> float:
    start = local_kronos.weights(run, {}).arrays()
    return max(float(np.abs(start[name] - value).max()) for name, value in final(folder).items())


def centralised(yaml: Path, run: Settings, split: str = "date"):
    """The plain trainer's configuration, windows and settings, made without federated/."""
    config = PipelineConfig.load(yaml, [f"training.seed={run.seed}"])
    data = config.data
    windows = make_splits(
        data.load(lambda _: None), data.lookback_window, data.predict_window, data.ratios, split=split, say=lambda _: None
    )

    def settings(stage) -> FitSettings:
        same = dict(
            epochs=run.local_epochs, batch_size=run.batch_size, schedule=run.schedule, seed=run.seed, score_start=False, num_workers=0
        )
        rate = {"learning_rate": run.learning_rate} if run.learning_rate else {}
        return replace(config.training.fit_settings(stage, "cpu"), optimiser=run.optimiser, **same, **rate)

    return config, windows, settings


def test_one_client_with_all_bars_equals_the_trainer(tmp_path):
    yaml = tiny.write_yaml(tmp_path)
    changes = dict(num_server_rounds=1, local_epochs=2, fraction_evaluate=0.0)
    folder, run = tiny.simulate(yaml, tmp_path / "run", clients=1, **changes), tiny.settings(yaml, tmp_path / "run", **changes)
    config, windows, settings = centralised(yaml, run)
    models = {stage: make_model(config, stage) for stage in ("tokenizer", "predictor")}
    fit(TokenizerTask(models["tokenizer"], 12), windows, settings("tokenizer"))
    fit(PredictorTask(models["predictor"], models["tokenizer"], 12), windows, settings("predictor"))
    assert moved(folder, run) > 1e-3
    assert furthest(folder, models) <= 1e-6


def test_one_step_of_many_clients_equals_one_step_over_all_their_windows(tmp_path):
    save_module(tokenizer(), tmp_path / "tokenizer")
    yaml = tiny.write_yaml(tmp_path, rows=[60, 80, 50], dropout=0.0, tokenizer=tmp_path / "tokenizer", forced="true", clip=0.0, decay=0.0)
    changes = dict(ONE_STEP, kronos_part="predictor")
    folder, run = tiny.simulate(yaml, tmp_path / "run", clients=3, **changes), tiny.settings(yaml, tmp_path / "run", **changes)
    config, windows, settings = centralised(yaml, run, "per_symbol")  # each client splits its own bars in time
    predictor = make_model(config, "predictor")
    fit(PredictorTask(predictor, tokenizer(), 12, teacher_forcing=True), windows, settings("predictor"))
    assert moved(folder, run) > 1e-3
    assert furthest(folder, {"predictor": predictor}) <= 1e-5


def test_one_step_of_the_transformer_on_many_clients_equals_one_step_over_all_their_windows(tmp_path):
    small = dict(targets={"target_up": "BCE", "target_return": "SmoothL1"}, dropout=0.0, gradient_clip_val=0.0, weight_decay=0.0)
    series = (("AAA", "1h"), ("BBB", "1h"), ("CCC", "1h"))  # of the same times, so that one date cuts all as each cuts its own
    yaml = tft_data.write_config(tmp_path, series=series, **small, standardise=False)
    changes = dict(ONE_STEP, model="tft", learning_rate=0.1)
    folder, run = tiny.simulate(yaml, tmp_path / "run", clients=3, **changes), tiny.settings(yaml, tmp_path / "run", **changes)
    made = prepare(load_config(TftConfig, yaml, [f"seed={run.seed}", "batch_size=10000"]), say=lambda _: None)
    how = replace(made.settings(), epochs=1, learning_rate=0.1, optimiser="sgd", schedule="constant", seed=run.seed)
    fit(made.task, made.splits, how)
    assert furthest(folder, {"tft": made.task}) <= 1e-5


def test_a_proximal_task_is_its_task_with_the_pull_of_where_it_began():
    class Square(Task):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Linear(1, 1, bias=False)

        def trained(self):
            return self.w

        def forward(self, batch):
            from finetune.engine.task import Outcome

            return Outcome((self.w.weight**2).sum(), 1, {})

    inner = Square()
    task = Proximal(inner, mu=3.0)
    begin = inner.w.weight.item()
    with torch.no_grad():
        inner.w.weight += 0.5
    assert task({}).loss.item() == pytest.approx((begin + 0.5) ** 2 + 3 / 2 * 0.25)
    assert task.eval()({}).loss.item() == pytest.approx((begin + 0.5) ** 2), "validation is without the pull"
    assert task.identity()["proximal mu"] == 3.0 and task.trained() is inner.w


def test_weights_of_another_model_are_refused():
    weights = Weights({"a": torch.nn.Linear(2, 3)}, lambda folder: None)
    arrays = weights.arrays()
    with pytest.raises(InputError, match=r"1 names are on one side only, such as 'a.bias' \(here\)"):
        weights.load({"a.weight": arrays["a.weight"]})
    with pytest.raises(InputError, match=r"'a.bias' is \(4,\) in what was sent and \(3,\) here"):
        weights.load({**arrays, "a.bias": np.zeros(4, np.float32)})


def test_clients_and_rounds_draw_other_random_numbers_and_the_first_the_runs_own():
    from federated.task import local_seed

    seeds = {(r, p): local_seed(42, r, p) for r in range(1, 50) for p in range(50)}
    assert seeds[1, 0] == 42 and len(set(seeds.values())) == len(seeds)


def test_a_client_needs_nothing_of_the_other_clients_bars(tmp_path):
    yaml = tiny.write_yaml(tmp_path, rows=[60, 80, 50])
    run = tiny.settings(yaml, tmp_path / "run")
    start = local_kronos.weights(run, {}).arrays()
    among_all = local_kronos.local(run, Node(1, 3), {}).train(start, 1)
    alone = tmp_path / "alone"
    alone.mkdir()
    from bars import make_panel

    from federated.partitions import cut, partition

    cut(make_panel(3, [60, 80, 50]), partition(make_panel(3, [60, 80, 50]), "symbol-period", 3)[1]).save(alone / "panel")
    own = tiny.settings(yaml, tmp_path / "run", partitions="node")
    by_itself = local_kronos.local(own, Node(1, 3, str(alone / "panel")), {}).train(start, 1)
    assert all(np.array_equal(among_all.arrays[name], by_itself.arrays[name]) for name in start)
