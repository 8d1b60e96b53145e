"""The model card: says what is known from the files beside the pair, says so where nothing is, and gives nothing else away."""

import json

import pytest
import tiny
import yaml
from huggingface_hub import ModelCard

from kronos import InputError, MissingFileError
from kronos.card import model_card
from kronos.exporting import CARD_MARK
from kronos.loading import save_module

SUMMARY = {
    "task": "predictor",
    "parameters": 1234567,
    "monitor": "val_loss",
    "best_score": 2.0677,
    "best_epoch": 2,
    "steps": 248,
    "effective_batch": 64,
    "world_size": 2,
    "device": "cpu",
    "wall_time_s": 90.0,
    "windows": {"train": 7910, "val": 986, "test": 985},
    "data": {"data": "5186f7487dd1", "lookback": 60, "horizon": 10, "stride": 1, "normalisation": "lookback", "clip": 5.0},
    "history": [{"epoch": 0, "train_loss": 2.55, "val_loss": 2.102}, {"epoch": 1, "train_loss": 2.07, "val_loss": 2.0677}],
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "git": {"commit": "e52aef4", "dirty": True},
}
SETTINGS = {
    "data": {"data_path": ["/home/somebody/secret/600977.csv", "arch:sp500"], "timezone": "Asia/Shanghai"},
    "training": {"predictor_learning_rate": 1e-5, "schedule": "onecycle", "seed": 42},
    "model_paths": {"pretrained_predictor": "NeoQuasar/Kronos-small", "base_path": "/home/somebody/out"},
    "experiment": {"name": "my bars", "description": "five-minute bars", "pre_trained_predictor": True},
}
EVALUATION = {
    "verdict": {"sentences": ["my bars is worse than persistence: CRPS skill -3.1 % (95 % interval -4.0 to -2.2 %)."]},
    "skill": {"persistence": {"overall": -0.031}},
    "methods": {
        "model": {"label": "my bars", "returns": {"crps": {"overall": 0.0103}}, "bands": {"90%": {"coverage": {"overall": 0.715}}}},
        "persistence": {"label": "tomorrow = today", "returns": {"crps": {"overall": 0.01}}},
    },
    "notes": ["only 20 sample paths"],
}


@pytest.fixture
def run(tmp_path):
    """A run as training leaves it: run/tokenizer/best_model and run/basemodel/best_model."""
    save_module(tiny.tokenizer(), tmp_path / "run" / "tokenizer" / "best_model")
    save_module(tiny.predictor(), tmp_path / "run" / "basemodel" / "best_model")
    stage = tmp_path / "run" / "basemodel"
    (stage / "summary.json").write_text(json.dumps(SUMMARY))
    (stage / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path / "run"


def card(run, **how) -> str:
    return model_card(run / "tokenizer" / "best_model", run / "basemodel" / "best_model", **how)


def test_the_card_tells_data_windows_rates_versions_and_results(run):
    text = card(run)
    for fact in (
        "# my bars",
        "five-minute bars",
        "| bars | 600977.csv, arch:sp500 |",
        "| time zone | Asia/Shanghai |",
        "| fingerprint of the bars | 5186f7487dd1 |",
        "| lookback, bars | 60 |",
        "| windows, training / validation / test | 7,910 / 986 / 985 |",
        "| started from |  | NeoQuasar/Kronos-small |",
        "| learning rate, highest |  | 1e-05 |",
        "| parameters |  | 1,234,567 |",
        "| device |  | cpu × 2 |",
        "| best epoch |  | 2, val_loss 2.068 |",
        "| 2 | 2.07 | 2.068 |",
        "| torch | 2.13.0 |",
        "| git commit | e52aef4 with changes |",
        "load_bundle",
        "## Limits",
        "## Licence",
    ):
        assert fact in text, fact
    assert CARD_MARK in text


def test_an_evaluation_beside_the_pair_is_told_in_its_own_words(run):
    assert "was not evaluated" in card(run)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(EVALUATION))
    text = card(run)
    assert "- my bars is worse than persistence: CRPS skill -3.1 %" in text
    assert "| tomorrow = today | -3.1 % | 1 % |" in text
    assert "| my bars |  | 1.03 % |  |  | 71.5 % |" in text
    assert "- Note: only 20 sample paths" in text
    assert "was not evaluated" not in text


@pytest.mark.parametrize("odd", [{"verdict": "bad"}, {"methods": []}, {"methods": {"a": 1}, "skill": 3, "notes": "x", "origins": [1]}])
def test_an_evaluation_of_another_shape_does_no_harm(run, odd):
    (run / "evaluation.json").write_text(json.dumps(odd))
    assert "## Results" in card(run)


def test_the_hub_can_read_the_front_matter(run):
    data = ModelCard(card(run)).data
    assert data.license == "mit" and "kronos" in data.tags
    assert data.base_model == "NeoQuasar/Kronos-small"


def test_folders_of_this_machine_stay_out(run, tmp_path):
    text = card(run)
    assert "somebody" not in text and str(tmp_path) not in text


def test_without_files_beside_it_the_card_says_what_is_not_known(run):
    for name in ("summary.json", "config.yaml"):
        (run / "basemodel" / name).unlink()
    text = card(run)
    assert text.count("Not known") == 3
    assert "base_model" not in text and "## How to load it" in text


def test_the_highest_logged_rate_is_told_where_no_setting_names_one(run):
    (run / "basemodel" / "config.yaml").unlink()
    lines = [{"split": "train", "lr": 1e-4}, {"split": "train", "lr": 3e-4}, {"split": "val", "loss": 1}]
    (run / "basemodel" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    assert "| learning rate, highest |  | 0.0003 |" in card(run)


def test_the_summary_of_the_other_stage_is_passed_over(run):
    (run / "basemodel" / "summary.json").write_text(json.dumps(SUMMARY | {"task": "tokenizer"}))
    assert "1,234,567" not in card(run)


def test_each_format_tells_its_own_way_of_loading(run):
    assert "weights_only" in card(run, format="pth")
    assert "trust=True" in card(run, format="pt2")
    assert "int8" in card(run, quantize="int8") and "int8" not in card(run)


def test_a_damaged_file_beside_the_pair_is_one_message(run):
    (run / "basemodel" / "config.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"config\.yaml for the model card"):
        card(run)
    (run / "basemodel" / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json for the model card"):
        card(run)
    (run / "basemodel" / "summary.json").write_text("[]")
    with pytest.raises(InputError, match="holds a list"):
        card(run)
    with pytest.raises(MissingFileError):
        model_card(run / "nothing", run / "basemodel" / "best_model")


def test_saving_with_the_hub_library_keeps_a_card_that_is_there(run):
    model = tiny.predictor()
    place = run / "basemodel" / "best_model"
    (place / "README.md").write_text(card(run))
    model.save_pretrained(place)
    assert (place / "README.md").read_text() == card(run)
