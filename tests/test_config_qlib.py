"""The Qlib pipeline's schema: shipped files, documented names and defaults, derived values, mistakes."""

from pathlib import Path

import pytest

from finetune.config import QlibConfig
from finetune.engine.config import resolved, template
from kronos.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

AGAIN = "from finetune.config import *; from finetune.engine.config import *; print(template(QlibConfig), end='')"
PLAIN = "instrument: csi300\n"
DOCUMENTED = """\
qlib_data_path: STORE
instrument: csi800
dataset_begin_time: 2011-01-01
dataset_end_time: '2025-06-05'
lookback_window: 90
predict_window: 10
max_context: 512
feature_list: [open, high, low, close, vol, amt]
time_feature_list: [minute, hour, weekday, day, month]
train_time_range: ["2011-01-01", "2022-12-31"]
val_time_range: ["2022-09-01", "2024-06-30"]
test_time_range: ["2024-04-01", "2025-06-05"]
backtest_time_range: ["2024-07-01", "2025-06-05"]
dataset_path: ./data/processed_datasets
clip: 5.0
epochs: 3
log_interval: 100
batch_size: 20
tokenizer_learning_rate: 2e-4
predictor_learning_rate: 4e-5
accumulation_steps: 1
adam_beta1: 0.9
adam_beta2: 0.95
adam_weight_decay: 0.1
seed: 100
use_comet: false
comet_config: {project_name: mine, workspace: desk}
comet_tag: finetune_demo
comet_name: finetune_demo
save_path: ./outputs/models
tokenizer_save_folder_name: finetune_tokenizer_demo
predictor_save_folder_name: finetune_predictor_demo
backtest_save_folder_name: finetune_backtest_demo
backtest_result_path: ./outputs/backtest_results
pretrained_tokenizer_path: NeoQuasar/Kronos-Tokenizer-base
pretrained_predictor_path: NeoQuasar/Kronos-small
backtest_n_symbol_hold: 50
backtest_n_symbol_drop: 5
backtest_hold_thresh: 5
inference_T: 0.6
inference_top_p: 0.9
inference_top_k: 0
inference_sample_count: 5
backtest_batch_size: 1000
"""


@pytest.fixture
def load(tmp_path):
    def load(text=PLAIN, *overrides):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return QlibConfig.load(path, overrides, {})

    return load


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("qlib_*.yaml")))
def test_every_shipped_file_loads(name):
    assert QlibConfig.load(CONFIGS / name, (), {}).model_paths.finetuned_tokenizer.endswith("best_model")


def test_the_shipped_a_share_file_holds_the_documented_defaults():
    shipped = QlibConfig.load(CONFIGS / "qlib_csi300.yaml", (), {})
    plain = QlibConfig(data={"qlib_data_path": shipped.data.qlib_data_path})  # with the home folder filled in
    assert resolved(shipped) == resolved(plain)


def test_the_template_is_up_to_date():
    told = f'the schema changed; write the file again: python -c "{AGAIN}" > configs/qlib_template.yaml'
    assert (CONFIGS / "qlib_template.yaml").read_text() == template(QlibConfig), told


def test_a_file_in_upstreams_flat_names_is_understood(load):
    config = load(DOCUMENTED)
    assert (config.data.instrument, config.benchmark) == ("csi800", "SH000906")
    assert config.training.tokenizer_epochs == config.training.basemodel_epochs == 3
    assert (config.training.n_train_iter, config.training.n_val_iter) == (40_000, 8_000), "2000 and 400 batches of 20"
    assert config.inference.series_at_once == 1000 and config.backtest.n_symbol_hold == 50
    assert config.comet_config.project_name == "mine" and config.experiment.comet_tags == ["finetune_demo"]


def test_paths_of_finetuned_weights_follow_the_save_path_unless_they_are_given(load):
    place = load(PLAIN, "save_path=other").model_paths
    assert place.finetuned_predictor == "other/finetune_predictor_demo/checkpoints/best_model"
    assert load("finetuned_tokenizer_path: mine/tok\n").model_paths.finetuned_tokenizer == "mine/tok"


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("val_time_range=['2024-01-01']", "holds 1 dates; give the first and the last day"),
        ("val_time_range=['2024-01-01', '2023-01-01']", "the first date must be the earlier one"),
        ("train_time_range=['2011-01-01', 'soon']", "is 'soon', not a date; write it as 2024-06-30"),
        ("feature_list=[close, open]", "Kronos reads exactly"),
        ("n_symbol_drop=60", "is 60, more than the 50 held; lower it"),
        ("predictor_save_folder_name=finetune_tokenizer_demo", "the tokenizer's folder too; each needs its own"),
        ("backtest_save_folder_name=../x", "names a folder"),
        ("comet_config.api_key=abc", "set COMET_API_KEY in the environment"),
        ("timezone=Asia/Shanghay", "did you mean Asia/Shanghai"),
        ("qlib_data_pth=x", "did you mean data.qlib_data_path"),
    ],
)
def test_mistakes_are_told_by_key_value_and_fix(load, flag, told):
    with pytest.raises(InputError) as error:
        load(PLAIN, flag)
    assert told in str(error.value), error.value


def test_a_pool_without_a_known_index_needs_a_benchmark(load):
    with pytest.raises(InputError, match=r"for the pool 'mine' no index is known.*backtest\.benchmark=equal"):
        _ = load("instrument: mine\n").benchmark
    assert load("instrument: mine\nbenchmark: equal\n").benchmark == "equal"
