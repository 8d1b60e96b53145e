"""`python -m finetune.evaluation`: the same file as training, a report with every number, and one message for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from bars import make_frame
from PIL import Image
from ranks import environment
from test_pipeline import write_config

from finetune.data.config import PipelineConfig
from finetune.engine.config import load_config
from finetune.evaluation.__main__ import main
from finetune.evaluation.trained import evaluate_trained
from finetune_csv.config import CsvConfig
from kronos import save_module
from kronos.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SPLIT = dict(data__train_ratio=0.5, data__val_ratio=0.25, data__test_ratio=0.25)
FAST = dict(evaluation__samples=20, evaluation__max_origins=12)


def prepare(folder: Path, **changes) -> Path:
    """A configuration over two series of 160 bars whose models are there already."""
    data = [str(folder / f"S{i}.csv") for i in range(2)]
    for number, path in enumerate(data):
        make_frame(160, seed=number, freq="D").to_csv(path, index=False)
    config = write_config(folder, data, **{**SPLIT, **FAST, **changes})
    save_module(tiny.tokenizer(), folder / "out" / "small" / "tokenizer" / "best_model")
    save_module(tiny.predictor(), folder / "out" / "small" / "basemodel" / "best_model")
    return config


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    main()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    config = load_config(PipelineConfig, prepare(folder, evaluation__samples=100))
    said = []
    found = evaluate_trained(config, config.data.load(lambda _: None), say=said.append)
    return folder / "out" / "small" / "evaluation", found, said


def test_the_report_is_whole(evaluated):
    folder, _, said = evaluated
    assert {path.name for path in folder.iterdir()} == {
        *("evaluation.json", "report.md"),
        *("forecasts.png", "skill.png", "calibration.png", "pit.png"),
    }
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert image.size[0] >= 1600 and len(image.convert("L").getcolors(256)) > 20, picture
    report = (folder / "report.md").read_text()
    sentence = next(line for line in said if "CRPS skill" in line)
    assert any(words in sentence for words in ("better than", "worse than", "indistinguishable from"))
    assert report.index(f"**{sentence}**") < 100
    assert all(f"]({name.name})" in report for name in folder.glob("*.png"))
    assert str(folder / "report.md") in said[-1]


def test_the_numbers_hold_every_score_of_every_method_by_step_and_overall(evaluated):
    numbers = json.loads((evaluated[0] / "evaluation.json").read_text())
    assert list(numbers["methods"]) == ["model", "persistence", "drift", "seasonal_naive", "volatility_20", "volatility_60", "ar"]
    common = {"mae", "rmse", "mape", "r2", "correlation", "crps", "pinball"}
    for table in numbers["methods"].values():
        assert set(table["returns"]) == common | {"directional_accuracy", "brier"} and set(table["prices"]) == common
        assert set(table["bands"]) == {"50%", "80%", "90%"} and len(table["pit_histogram"]) == 20
        assert {"mae", "rmse", "bias", "correlation"} <= set(table["volatility"]) and table["ic"] is None
        for score in (*table["returns"].values(), *table["prices"].values(), table["bands"]["90%"]["coverage"]):
            assert len(score["by_step"]) == 4
    for name, one in numbers["skill"].items():
        crps = [numbers["methods"][method]["returns"]["crps"]["overall"] for method in ("model", name)]
        assert one["overall"] == pytest.approx(1 - crps[0] / crps[1]) and one["low"] <= one["overall"] <= one["high"]
    assert numbers["verdict"]["best_baseline"] == min(
        (name for name in numbers["crps_before"] if name != "model"), key=numbers["crps_before"].get
    )
    calibration = numbers["calibration"]
    assert {"before", "after", "shift"} <= set(calibration) and np.array(calibration["shift"]).shape == (4, 7)
    assert 0 <= numbers["coverage_90"]["low"] <= numbers["coverage_90"]["before"] <= numbers["coverage_90"]["high"] <= 1
    assert numbers["origins"]["scored"] == 24 and numbers["origins"]["series"] == ["S0", "S1"]


def test_prices_and_returns_agree_on_what_persistence_gets_wrong(evaluated):
    found = evaluated[1]
    origins = found.origins.chosen(found.keep)
    wrong = np.abs(origins.closes[:, 1:] - origins.closes[:, :1])
    table = found.tables["persistence"]
    assert table["prices"]["mae"]["overall"] == pytest.approx(wrong.mean()) == pytest.approx(table["prices"]["crps"]["overall"])
    assert table["prices"]["mape"]["overall"] == pytest.approx((wrong / origins.closes[:, 1:]).mean())


def test_the_same_again_gives_the_same_numbers(evaluated, tmp_path):
    config = load_config(PipelineConfig, prepare(tmp_path, evaluation__samples=100))
    evaluate_trained(config, config.data.load(lambda _: None), out=tmp_path / "again", say=lambda _: None)
    first, second = (json.loads((folder / "evaluation.json").read_text()) for folder in (evaluated[0], tmp_path / "again"))
    assert first == second


def test_ten_symbols_have_an_information_coefficient(tmp_path, monkeypatch, capsys):
    for number in range(10):
        make_frame(120, seed=number, freq="D").to_csv(tmp_path / f"N{number}.csv", index=False)
    config = prepare(tmp_path, evaluation__max_origins=10)
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--config", config, "--data", *(f"N{i}.csv" for i in range(10)), "--out", "wide")
    table = json.loads((tmp_path / "wide" / "evaluation.json").read_text())["methods"]["model"]["ic"]
    assert table["moments"] == 10 and -1 < table["rank_ic"]["overall"] < 1 and len(table["icir"]["by_step"]) == 4
    assert "RankICIR" in (tmp_path / "wide" / "report.md").read_text()
    assert "only 20 sample paths" in capsys.readouterr().out


def test_the_flags_choose_model_split_and_place(tmp_path, monkeypatch, capsys):
    config = prepare(tmp_path)
    elsewhere = tmp_path / "out" / "small"
    for stage in ("tokenizer", "basemodel"):
        (elsewhere / stage).rename(tmp_path / stage)
    pair = ["--model", tmp_path / "basemodel" / "best_model", "--tokenizer", tmp_path / "tokenizer" / "best_model"]
    with pytest.raises(InputError, match=r"no trained predictor.*train_sequential.py.*--model"):
        run(monkeypatch, "--config", config)
    with pytest.raises(InputError, match=r"no fine-tuned tokenizer.*--tokenizer"):
        run(monkeypatch, "--config", config, *pair[:2])
    (tmp_path / "basemodel" / "summary.json").write_text('{"data": {"data": "another"}}')
    run(monkeypatch, "--config", config, *pair, "--split", "val", "--out", tmp_path / "report", "--set", "evaluation.baselines=[drift]")
    numbers = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert numbers["origins"]["split"] == "val" and list(numbers["methods"]) == ["model", "drift"]
    assert any("not the bars that the model was trained on" in note for note in numbers["notes"])
    assert "is " in capsys.readouterr().out and not (elsewhere / "evaluation").exists()


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["data.test_ratio=0", "evaluation.split=test"], "test split has no window; set data.test_ratio"),
        (["evaluation.stride=50"], "too few forecast origins"),
        (["evaluation.sample=10"], "did you mean evaluation.samples"),
        (["evaluation.baselines=[persistance]"], "evaluation.baselines"),
        (["evaluation.baselines=[]"], "evaluation.baselines"),
        (["data.lookback_window=170"], "no series has the"),
    ],
)
def test_a_mistake_is_one_message_that_names_the_key(tmp_path, monkeypatch, overrides, told):
    config = prepare(tmp_path)
    with pytest.raises(InputError) as error:
        run(monkeypatch, "--config", config, "--set", *overrides)
    assert told in str(error.value)


def test_the_command_ends_with_2_for_a_mistake_and_leaves_nothing(tmp_path):
    config = prepare(tmp_path)
    command = [sys.executable, "-m", "finetune.evaluation", "--config", str(config), "--out", "/proc/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "/proc/nowhere" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("qlib_*.yaml"))), ids=lambda path: path.name)
def test_every_file_that_training_takes_is_taken_here_too(path):
    assert load_config(PipelineConfig, path, environment={}).model_dump() == CsvConfig.load(path, (), {}).model_dump()
    assert CsvConfig.model_fields.keys() == PipelineConfig.model_fields.keys()


def test_an_unknown_key_in_the_file_is_refused_with_its_line(tmp_path):
    path = prepare(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["evaluation"]["strid"] = 3
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"line \d+: unknown key evaluation.strid; did you mean evaluation.stride"):
        load_config(PipelineConfig, path)
