"""Two ranks train and judge the Temporal Fusion Transformer as one does."""

import json

import pytest
import tft_data
import torch
from ranks import TESTS, run_ranks
from safetensors.torch import load_file


def trained(folder, size, *overrides):
    """Run folder of `size` ranks: 16 windows per step, 8 per micro-batch, whatever the size."""
    config = tft_data.write_config(folder, batch_size=8, max_epochs=2, dropout=0.2)
    done = run_ranks([str(TESTS / "tft_rank_worker.py"), str(config), f"accumulation_steps={2 // size}", *overrides], size)
    assert all(process.returncode == 0 for process in done), done[0].stderr + done[-1].stderr
    return next((folder / "runs").iterdir()), done


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time_s", "split")} for line in lines if line["split"] == "val"]


@pytest.mark.parametrize(
    "overrides", [("shared_rows=true", "block_length=4", "uncertainty_weights=true"), pytest.param((), marks=pytest.mark.slow)]
)
def test_two_ranks_train_judge_and_write_what_one_does(tmp_path, overrides):
    runs = {}
    for size in (1, 2):
        (tmp_path / str(size)).mkdir()
        runs[size], done = trained(tmp_path / str(size), size, *overrides)
    one, two = (metrics(runs[size]) for size in (1, 2))
    assert len(one) == len(two) == 2 and "target_up_auc@4h" in one[0]
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-5), "F1, AUC, errors and losses over all ranks' windows"
    assert "epoch 1/2" in done[0].stdout and "epoch" not in done[1].stdout, "only rank 0 tells"
    weights = [load_file(runs[size] / "checkpoints" / "best" / "model.safetensors") for size in (1, 2)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_what_is_wrong_is_told_by_one_rank_and_none_waits(tmp_path):
    config = tft_data.write_config(tmp_path, monitor="val_nothing")
    command = "import sys; sys.argv = ['train', '--config', sys.argv[1]]\nimport runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run_ranks(["-c", command.replace("sys.argv[0]", repr(str(TESTS.parent / "tft" / "train_multi_tft.py"))), str(config)], 2)
    assert [process.returncode for process in done] == [2, 2]
    assert "monitor: 'val_nothing'" in done[0].stderr and "monitor" not in done[1].stderr
