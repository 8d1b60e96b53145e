"""What a user did wrong is told in one message before a run folder is made."""

import subprocess
import sys

import numpy as np
import pytest
import tft_data
from ranks import TESTS, environment
from tft_runs import refused


def change_features(column, value):
    return lambda features, targets: features.__setitem__((slice(None), column), value)


BAD = {
    "unknown target": (["targets.target_upp=MSE"], {}, "target_upp.*did you mean target_up"),
    "unknown loss": (["targets.target_up=WeightedBSE"], {}, "unknown loss 'WeightedBSE'.*did you mean WeightedBCE"),
    "negative class weight": (["targets.target_up={name: WeightedBCE, pos_weight: -1}"], {}, "pos_weight -1 is not possible"),
    "negative weight": (["targets.target_up={name: WeightedBCE, weight: -1}"], {}, "weight -1 is not possible"),
    "missing column": (["reals=[log_return_1, rsi_15]"], {}, "no column 'rsi_15'"),
    "constant column": ([], {"change": change_features(1, 7.0)}, "rsi_14 = 7"),
    "one class": ([], {"change": lambda f, t: t.__setitem__((slice(None), 0), 1.0)}, r"target_up: all [\d,]+ training labels are 1"),
    "empty validation": (["val_ratio=0.001"], {}, "the val split has no window"),
    "no validation": (["val_ratio=0"], {}, "val_ratio.*validation period is empty"),
    "unknown monitor": (["monitor=val_target_up_f11"], {}, "did you mean val_target_up_f1"),
    "wrong way": (["monitor=val_target_up_f1", "monitor_mode=min"], {}, "would keep the worst weights"),
    "no score": (["monitor=val_composite_score"], {}, "composite_score names no file"),
    "unknown period": (["focus_period=1w"], {}, "'1w' is not among the periods"),
    "no data": (["data_path=/nowhere"], {}, "/nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_message_before_a_run_folder_is_made(tmp_path, name):
    overrides, changes, told = BAD[name]
    refused(tmp_path, *overrides, match=f"(?s){told}", **changes)
    assert not list((tmp_path / "runs").glob("*/"))


def test_nan_in_a_table_is_told_by_column_and_first_rows(tmp_path):
    from tft.long_tables import panel_to_table

    frame = panel_to_table(tft_data.make_panel()[0]).to_pandas()
    frame.loc[[4, 9], "rsi_14"] = np.nan
    frame.to_parquet(tmp_path / "table.parquet")
    refused(tmp_path, f"data_path={tmp_path / 'table.parquet'}", "horizon=3", match=r"(?s)rsi_14: 2 rows, first 5, 10")


def test_the_command_ends_with_exit_code_2_and_one_message(tmp_path):
    path = tft_data.write_config(tmp_path, monitor="val_losss")
    done = subprocess.run(
        [sys.executable, "tft/train_multi_tft.py", "--config", path], env=environment(), cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: monitor: 'val_losss'") and done.stderr.count("\n") == 1
