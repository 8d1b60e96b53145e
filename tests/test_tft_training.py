"""Training of the Temporal Fusion Transformer through the project's loop: run folders, resume, warm start, stages, bad input."""

import json
import re

import numpy as np
import pytest
import tft_data
import tiny
import torch
from safetensors.torch import load_file
from tft_runs import begin, load, refused

from finetune.data.panel import Column, Panel
from finetune.engine.errors import Interrupted
from finetune.engine.trainer import fit
from finetune.engine.yaml_text import to_yaml
from kronos.errors import InputError, MissingFileError
from tft.rows import save_with_manifest
from tft.run_folder import find_run, find_weights
from tft.task import load_task, warm_start
from tft.training import load_run, prepare


def lines(run, split="val"):
    return [line for text in (run / "metrics.jsonl").read_text().splitlines() if (line := json.loads(text))["split"] == split]


def last_weights(run):
    return load_file(find_weights(str(run / "checkpoints" / "last"), "") / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 3 epochs that nothing disturbed."""
    return begin(tmp_path_factory.mktemp("whole"), "max_epochs=3", "top_k=2")


# ---- the run folder


def test_a_run_folder_is_named_after_script_and_minute_and_holds_checkpoints_logs_and_configs(whole):
    assert re.fullmatch(r"train_multi_tft-\d{8}_\d{4}(-\d+)?", whole.name)
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    ranked = sorted((line["loss_for_ckpt"], line["epoch"] + 1) for line in lines(whole))
    assert names == {"best", "last-00000003", *(f"best-epoch={epoch:02d}" for _, epoch in ranked[:2])}
    assert (whole / "logs" / "tft.log").is_file() and (whole / "summary.json").is_file() and (whole / "curves.png").is_file()
    assert load(whole / "configs" / "model_config.yaml").hidden_size == 8
    assert json.loads((whole / "configs" / "data_manifest.json").read_text())["targets"]["target_up"]["horizon"] == {"1h": 3, "4h": 3}


def test_two_runs_of_one_minute_have_folders_of_their_own(tmp_path):
    runs = [begin(tmp_path, "max_epochs=1", "n_train_iter=16", "n_val_iter=16") for _ in range(2)]
    assert runs[0] != runs[1]


def test_training_learns_and_metrics_are_told_by_target_and_period(whole):
    first, *_, last = lines(whole)
    assert last["loss"] < first["loss"]
    assert {"target_up_f1@1h", "target_up_auc@4h", "target_return_rmse", "target_return_mae@1h", "loss_for_ckpt"} <= last.keys()


def test_confusion_matrices_go_to_tensorboard_each_epoch(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert [event.step for event in board.Images("val/confusion")] == [line["step"] for line in lines(whole)]


def test_a_run_opens_again_and_its_best_weights_score_what_was_told(whole):
    opened = load_run(whole)
    outcome = fit_metrics(opened)
    told = min(line["loss_for_ckpt"] for line in lines(whole))
    assert outcome["loss_for_ckpt"] == pytest.approx(told, rel=1e-6)
    assert opened.vocabulary.symbols == ("AAA", "BBB") and "target_return" in opened.scales.names


def fit_metrics(prepared):
    from finetune.engine.distributed import World

    source, metrics = prepared.windows["val"], prepared.task.metrics()
    with torch.no_grad():
        batch = source.gather(np.arange(len(source)))
        metrics.update(prepared.task.eval()(batch), batch)
    return metrics.compute(World())


def test_a_run_opened_over_other_data_keeps_its_codes_and_scales(whole, tmp_path):
    other = tft_data.write_config(tmp_path, series=(("BBB", "1h"), ("CCC", "1h")))
    opened = load_run(whole, load(other).data_path)
    codes = opened.windows["val"].gather(np.arange(len(opened.windows["val"])))["static"]
    assert sorted(set(codes[:, 0].tolist())) == [0, 2], "BBB has the run's code, CCC was never seen"
    assert opened.scales.as_dict() == load_run(whole).scales.as_dict()


def test_no_row_of_other_data_that_the_run_may_have_learned_from_counts_as_validation(whole, tmp_path):
    """By its share of rows alone, validation of longer data would begin in the run's training time, or late in its own."""
    until = load_run(whole).data.cuts
    for rows in (60, 300):
        (tmp_path / str(rows)).mkdir()
        opened = load_run(whole, load(tft_data.write_config(tmp_path / str(rows), rows=rows)).data_path)
        assert opened.data.cuts == until
        assert opened.panel.times[opened.windows["val"].rows()].min() >= until[0]


def test_a_column_of_another_kind_is_told_by_name_and_more_columns_are_no_harm(whole, tmp_path):
    panel, manifest = tft_data.make_panel()
    kinds = {column.name: column.kind for column in panel.columns}

    def opened(name, **changes):
        columns = [Column(*pair) for pair in {**kinds, **changes}.items()]
        features = np.concatenate((panel.features, panel.features[:, : len(columns) - len(kinds)]), 1)
        shared = {key: getattr(panel, key) for key in ("stamps", "times", "offsets", "series", "targets", "target_names")}
        save_with_manifest(Panel.build(features=features, columns=columns, **shared), tmp_path / name, manifest)
        return load_run(whole, str(tmp_path / name))

    assert opened("more", another="past").data.columns == load_run(whole).data.columns
    with pytest.raises(InputError, match="'rsi_14' is known, not past"):
        opened("moved", rsi_14="known")


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(MissingFileError, match=r"is no run of train_multi_tft\.py"):
        load_run(tmp_path)


def test_a_checkpoint_that_a_run_does_not_have_is_refused_with_those_it_has(whole):
    with pytest.raises(MissingFileError, match=r"has no checkpoint 'best-epoch=09'; it has best, best-epoch=0\d, best-epoch=0\d$"):
        load_run(whole, checkpoint="best-epoch=09")
    worse = max(
        (whole / "checkpoints").glob("best-epoch=*"), key=lambda path: json.loads((path / "complete.json").read_text())["val_loss_for_ckpt"]
    )
    for opened in (load_run(worse), load_run(whole, checkpoint=worse.name)):
        assert tiny.same(tiny.weights(opened.task), load_file(worse / "model.safetensors"))
    assert not tiny.same(tiny.weights(load_run(whole).task), load_file(worse / "model.safetensors"))


# ---- going on


@pytest.mark.parametrize("looks", [pytest.param(3, marks=pytest.mark.slow), 9, pytest.param(20, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_bits_as_one_that_nothing_disturbed(tmp_path, whole, looks):
    with pytest.raises(Interrupted, match=r"train_resume\.py --ckpt .*checkpoints/last"):
        begin(tmp_path, "max_epochs=3", "top_k=2", stop=tiny.StopAfter(looks))
    run = begin(tmp_path, "max_epochs=3", "top_k=2", resume=str(next((tmp_path / "runs").iterdir()) / "checkpoints" / "last"))
    assert tiny.same(last_weights(run), last_weights(whole))
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(whole)]
    assert json.loads((run / "summary.json").read_text())["resumed_from"].startswith("last-")


def test_workers_that_torchrun_restarts_go_on_in_the_folder_that_their_own_launch_began(tmp_path, whole, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    how = ("max_epochs=3", "top_k=2")
    with pytest.raises(Interrupted):
        begin(tmp_path, *how, stop=tiny.StopAfter(9))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run = begin(tmp_path, *how)
    assert [run] == list((tmp_path / "runs").iterdir()) and tiny.same(last_weights(run), last_weights(whole))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert begin(tmp_path, "max_epochs=1") != run, "another launch's run is not gone on with"


def test_shared_rows_dropout_and_learned_balance_resume_to_the_same_bits_too(tmp_path):
    how = ["shared_rows=true", "block_length=4", "uncertainty_weights=true", "dropout=0.3", "schedule=cosine"]
    undisturbed = begin(tmp_path / "a", *how) if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    with pytest.raises(Interrupted):
        begin(tmp_path / "b", *how, stop=tiny.StopAfter(9))
    assert tiny.same(last_weights(begin(tmp_path / "b", *how, resume="last")), last_weights(undisturbed))
    summary, log = json.loads((undisturbed / "summary.json").read_text()), (undisturbed / "logs" / "tft.log").read_text()
    assert summary["effective_batch"] == 16 and summary["windows"]["train"] == len(load_run(undisturbed).windows["train"])
    assert "blocks of 4 that follow each other\n" in log, "and none is alone"


def test_windows_that_no_block_can_hold_are_told_at_the_start_and_progress_counts_windows(tmp_path):
    series = (("AAA", "1h"), ("BBB", "1h"))
    panels = [tft_data.make_panel(rows, (one,), seed=k)[0] for k, (rows, one) in enumerate(zip((90, 24), series, strict=True))]
    joined = {key: np.concatenate([getattr(panel, key) for panel in panels]) for key in ("features", "stamps", "times", "targets")}
    shared = {"columns": panels[0].columns, "target_names": panels[0].target_names, "series": [panel.series[0] for panel in panels]}
    save_with_manifest(Panel.build(**joined, **shared, offsets=np.array([0, 90, 114])), tmp_path / "fused", tft_data.make_panel()[1])
    run = begin(tmp_path, "shared_rows=true", "block_length=12", "max_epochs=1", "log_interval=1", "val_ratio=0.12")
    log, trained = (run / "logs" / "tft.log").read_text(), json.loads((run / "summary.json").read_text())["windows"]["train"]
    alone = len(load_run(run).windows["train"]) - trained
    assert 0 < alone < 12 and f"; {alone} training windows never come up, since fewer than 12 follow each other there" in log
    assert f"{trained} training and" in log


def test_last_last_ckpt_the_checkpoint_and_the_run_all_name_the_same_run(whole):
    checkpoints = whole / "checkpoints"
    for text in (
        "last",
        "last.ckpt",
        str(checkpoints / "last"),
        str(checkpoints / "last.ckpt"),
        str(checkpoints / "last-00000003"),
        str(whole),
    ):
        assert find_run(text, str(whole.parent)) == whole


@pytest.mark.parametrize(
    "ckpt, told", [("best", "holds weights only"), ("nowhere", "there is no such checkpoint"), ("best-epoch=99", "no such checkpoint")]
)
def test_going_on_from_what_cannot_be_gone_on_from_is_refused(whole, ckpt, told):
    with pytest.raises(InputError, match=told):
        find_run(str(whole / "checkpoints" / ckpt), "")


def test_the_last_checkpoint_of_a_run_that_is_not_there_is_named_as_it_was_given():
    with pytest.raises(MissingFileError, match="--ckpt nowhere/checkpoints/last: there is no such checkpoint"):
        find_run("nowhere/checkpoints/last", "")


def test_last_without_any_run_says_where_it_looked(tmp_path):
    with pytest.raises(MissingFileError, match=r"no run below .*runs has a checkpoint"):
        find_run("last", str(tmp_path / "runs"))


def test_a_checkpoint_of_another_shape_is_refused_with_what_differs(tmp_path):
    begin(tmp_path, "max_epochs=1", "n_train_iter=16", "n_val_iter=16")
    for change, told in (("hidden_size=16", "sizes"), ("targets.target_return=MSE", "targets"), ("max_encoder_length=9", "lookback")):
        message = refused(tmp_path, "max_epochs=1", change, resume="last", match="is of another run")
        assert told in message and "--resume" not in message, "train_resume.py has no such flag"


# ---- weights of another run


def test_warm_start_takes_weights_by_name_and_tells_what_it_took_and_left(tmp_path, whole, capsys):
    targets = {"target_up": "WeightedBCE", "target_return": "quantile"}
    run = begin(tmp_path, "max_epochs=1", warm=str(whole / "checkpoints" / "best"), targets=targets, script="warm_start_train")
    told = json.loads((run / "summary.json").read_text())["warm_start"]
    assert run.name.startswith("warm_start_train-")
    assert "model.heads.target_up.weight" in told["loaded"] and "model.encoder.weight_ih_l0" in told["loaded"]
    assert told["skipped"]["model.heads.target_return.weight"] == "(1, 8) in the checkpoint, (3, 8) here"
    assert told["skipped"]["model.heads.target_rare.weight"] == "not part of this model"
    log = (run / "logs" / "tft.log").read_text()
    assert "skipped model.heads.target_return.weight" in log and "model.encoder.weight_ih_l0" in capsys.readouterr().out


def test_warm_start_begins_with_the_very_weights_of_the_checkpoint(whole):
    config = load(whole / "configs" / "model_config.yaml", "seed=5")
    task = prepare(config, say=lambda _: None).task
    warm_start(task, whole / "checkpoints" / "best")
    assert tiny.same(tiny.weights(task), tiny.weights(load_task(whole / "checkpoints" / "best")))


def test_warm_start_from_nothing_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="there are no weights"):
        begin(tmp_path, warm=str(tmp_path / "none"))


# ---- weights by stage, scores, precision


def test_weights_config_changes_the_losses_weights_when_its_epoch_comes(tmp_path):
    stages = {
        "stage_1": {"start_epoch": 0, "weights": {"target_up": 0.0}},
        "stage_2": {"start_epoch": 1, "weights": {"target_return": 0.0}},
    }
    (tmp_path / "weights.yaml").write_text(to_yaml(stages))
    prepared = prepare(load(tft_data.write_config(tmp_path, weights_config="weights.yaml")), say=lambda _: None)
    seen = []
    begins = prepared.task.on_epoch
    prepared.task.on_epoch = lambda epoch: (begins(epoch), seen.append(list(prepared.task.losses.weights)))
    fit(prepared.task, prepared.splits, prepared.settings())
    assert seen == [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]


def test_the_composite_score_chooses_the_best_epoch_and_tells_once_what_it_lacks(tmp_path, capsys):
    score = {"composite_score": {"val_target_up_auc": 1.0, "val_target_return_rmse": -0.5, "val_target_up_f1@1d": 1.0}}
    (tmp_path / "score.yaml").write_text(to_yaml(score))
    run = begin(tmp_path, "max_epochs=3", composite_score="score.yaml", monitor="val_composite_score", monitor_mode="max")
    assert capsys.readouterr().out.count("composite_score: left out, because not measured: val_target_up_f1@1d") == 1
    scores = [line["composite_score"] for line in lines(run)]
    expected = [(line["target_up_auc"] - 0.5 * line["target_return_rmse"]) / 1.5 for line in lines(run)]
    assert scores == pytest.approx(expected)
    marker = json.loads((run / "checkpoints" / "best" / "complete.json").read_text())
    assert marker["val_composite_score"] == max(scores)
    assert (run / "configs" / "composite_score.yaml").is_file() and load_run(run).task.composite.weights


def test_a_composite_score_of_which_nothing_is_measured_is_an_error(tmp_path):
    (tmp_path / "score.yaml").write_text(to_yaml({"val_target_up_f1@1d": 1.0}))
    refused(tmp_path, composite_score="score.yaml", monitor="val_composite_score", match="none of its metrics")


def test_bf16_trains_to_finite_numbers_and_keeps_its_weights_in_float32(tmp_path):
    run = begin(tmp_path, "precision=bf16-mixed", "max_epochs=1")
    assert all(np.isfinite(line["loss"]) for line in lines(run))
    assert all(value.dtype == torch.float32 for value in last_weights(run).values())


def test_fp16_where_the_processor_has_no_lstm_for_it_is_refused_with_the_fix(tmp_path, monkeypatch):
    def none(*_, **__):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch.nn.LSTM, "forward", none)
    refused(tmp_path, "precision=16-mixed", match="precision: 16-mixed .* use bf16-mixed or 32")


def test_focus_period_trains_and_judges_on_rows_of_that_period_alone(tmp_path):
    prepared = prepare(load(tft_data.write_config(tmp_path), "focus_period=1h"), say=lambda _: None)
    for name in ("train", "val"):
        source = prepared.windows[name]
        series = np.searchsorted(prepared.panel.offsets, source.rows(), side="right") - 1
        assert {prepared.panel.series[s].period for s in series} == {"1h"}


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path):
    run = begin(tmp_path, "max_epochs=30", "early_stop_patience=1", "early_stop_min_delta=10")
    assert len(lines(run)) == 2


def test_given_codes_and_positive_weights_are_used_as_they_are(tmp_path):
    """A federated client whose own rows hold one class only, of one symbol, still has everybody's shapes and losses."""
    everybody = prepare(load(tft_data.write_config(tmp_path)), say=lambda _: None)

    def one_class(features, targets):
        targets[:, 0] = np.where(np.isnan(targets[:, 0]), np.nan, 1)

    panel, manifest = tft_data.make_panel(series=(("BBB", "1h"),), change=one_class)
    positive = {"target_up": 2.5}
    client = prepare(everybody.config, panel, manifest=manifest, vocabulary=everybody.vocabulary, positive=positive, say=lambda _: None)
    assert client.task.losses.losses["target_up"].pos_weight == 2.5
    assert {k: v.shape for k, v in client.task.state_dict().items()} == {k: v.shape for k, v in everybody.task.state_dict().items()}
    assert set(client.windows["train"].gather(np.arange(4))["static"][:, 0].tolist()) == {2}


# ---- tables


def test_a_plain_table_trains_with_a_horizon_and_its_calendar_is_found(tmp_path):
    from tft.long_tables import open_dataset, panel_to_table

    table = panel_to_table(tft_data.make_panel()[0]).to_pandas()
    table.assign(month_sin=table.rsi_14, weekday_category=table.datetime.dt.dayofweek + 1).to_pickle(tmp_path / "table.pkl")
    run = begin(tmp_path, f"data_path={tmp_path / 'table.pkl'}", "horizon=3", "max_epochs=1", "categoricals=[symbol, hour_category]")
    columns = load_run(run).data.columns
    assert columns.known == ("weekday_sin", "weekday_cos") and "month_sin" in columns.past, "called so, but it holds another column"
    assert columns.categorical == ("hour_category",) and not columns.ahead, "these are no hours"
    opened = open_dataset(tmp_path / "table.pkl")[1]
    assert opened == {"calendar": {name: [*name.split("_")] for name in columns.known} | {"weekday_category": ["weekday_category", ""]}}


def test_a_parquet_table_trains_as_the_panel_that_it_was_written_from(tmp_path):
    from tft.long_tables import write_parquet

    panel, manifest = tft_data.make_panel()
    write_parquet(panel, tmp_path / "table.parquet", manifest)
    for name, data in (("a", []), ("b", [f"data_path={tmp_path / 'table.parquet'}"])):
        (tmp_path / name).mkdir()
        begin(tmp_path / name, "max_epochs=1", "n_train_iter=32", *data)
    a, b = (next((tmp_path / name / "runs").iterdir()) for name in "ab")
    assert tiny.same(last_weights(a), last_weights(b)) and load_run(b).manifest["targets"] == manifest["targets"]
