"""Probability of a rise: from paths to numbers, rules chosen on earlier bars, rows without history, the report and the submission."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from bars import make_frame, make_panel

from finetune.data import build_panel
from finetune.data.kaggle_test_rows import TestRows
from finetune.data.panel import Panel
from finetune.engine.files import write_json
from finetune.engine.splits import make_splits
from finetune.evaluation import rise
from finetune.evaluation.rise_origins import held_out, market_calendar, only_from, rows_to_forecast
from finetune.evaluation.rise_report import write_reports
from finetune.evaluation.rise_run import Draws, RiseForecaster, evaluate_rise, predict_rise
from finetune.evaluation.rise_scores import Called, baselines, differences, rise_scores
from finetune_csv.config import CsvConfig
from finetune_csv.rise_command import infer
from finetune_csv.submission import make_submission
from kronos import KronosPredictor, save_module
from kronos.errors import InputError, MissingFileError

LOOKBACK = 12


def daily_panel(lengths, seed=0):
    frames = {}
    for number, length in enumerate(lengths):
        frame = make_frame(length, seed=seed * 100 + number)
        frame["timestamps"] = pd.bdate_range(end="2021-03-31", periods=length)
        frames[f"T{number}"] = frame
    return build_panel(frames, timezone="America/New_York")


def splits_of(panel, horizon=1, ratios=(0.5, 0.5, 0.0)):
    return make_splits(panel, LOOKBACK, horizon, ratios, say=lambda _: None)


def forecaster(panel, folder: Path, horizon=1, say=lambda _: None, **draws):
    pair = KronosPredictor(tiny.predictor(), tiny.tokenizer(), device="cpu", max_context=64)
    return RiseForecaster(pair, panel, LOOKBACK, horizon, Draws(**{"sample_count": 6, **draws}), folder, say)


# ---- from paths to a probability


def test_ties_count_half_and_no_number_of_paths_makes_certain():
    closes = np.array([[11, 12, 13, 14], [9, 9, 9, 9], [10, 10, 10, 10], [11, 11, 9, 9]], np.float32)
    assert rise.by_share(closes, np.full(4, 10.0)) == pytest.approx([4.5 / 5, 0.5 / 5, 0.5, 0.5])


def test_the_spread_estimate_is_the_chance_of_a_further_path_from_the_same_distribution():
    rng = np.random.default_rng(0)
    closes = 100 * np.exp(0.003 + 0.01 * rng.normal(size=(20_000, 8)))
    found = rise.by_spread(closes.astype(np.float32), np.full(20_000, 100.0))
    assert found.mean() == pytest.approx(0.6179, abs=0.02)  # Φ(0.3), shrunk towards ½ by what 8 paths leave open
    assert found.std() < rise.by_share(closes, np.full(20_000, 100.0)).std()
    two = rise.by_spread(100 * np.exp([[0.01, 0.03]]), np.array([100.0]))  # Cauchy's at mean / (deviation · √1.5)
    assert two == pytest.approx(0.5 + np.arctan(0.02 / (np.sqrt(2e-4) * np.sqrt(1.5))) / np.pi, abs=1e-6)
    same = rise.by_spread(np.full((1, 8), 101.0, np.float32), np.array([100.0]))
    assert same == pytest.approx(8.5 / 9)  # no spread: the share holds


def test_calibration_takes_back_what_is_too_sure_and_never_turns_a_model_round():
    rng = np.random.default_rng(1)
    true = rng.uniform(0.35, 0.65, 20_000)
    rose = rng.random(20_000) < true
    odds = np.log(true / (1 - true))
    too_sure = 1 / (1 + np.exp(-5 * odds))
    slope, intercept = rise.fit_calibration(too_sure, rose)
    assert slope == pytest.approx(0.2, abs=0.03) and intercept == pytest.approx(0, abs=0.05)
    assert rise.mean_log_loss(rise.calibrated(too_sure, slope, intercept), rose) < rise.mean_log_loss(too_sure, rose)
    slope, intercept = rise.fit_calibration(1 - too_sure, rose)
    assert slope == 0 and rise.calibrated(np.array([0.9]), slope, intercept) == pytest.approx(rose.mean(), abs=1e-3)


def test_the_threshold_leaves_one_half_only_for_a_gain_that_is_not_noise():
    rng = np.random.default_rng(2)
    moment = np.arange(400) // 4
    kept = [rise.choose_threshold(rng.random(400), rng.random(400) < 0.5, moment) == 0.5 for _ in range(100)]
    assert np.mean(kept) > 0.75
    clear = rng.random(400)
    assert rise.choose_threshold(clear, clear > 0.7, moment) == pytest.approx(0.7, abs=0.02)


def test_the_prior_is_the_share_of_training_windows_that_rose():
    panel = daily_panel([300, 200])
    splits = splits_of(panel, horizon=3)
    rows = splits.train.start_rows(np.arange(len(splits.train))) + LOOKBACK - 1
    close = panel.features[:, 3]
    assert rise.class_prior(splits.train, 3) == pytest.approx((close[rows + 3] > close[rows]).mean())
    by_symbol = make_splits(panel, LOOKBACK, 3, (0.5, 0.5, 0.0), sampling="symbols", say=lambda _: None)
    assert rise.class_prior(by_symbol.train, 3) == pytest.approx(rise.class_prior(splits.train, 3))


# ---- origins


def test_the_rule_is_chosen_on_outcomes_known_before_the_first_scored_moment():
    splits = splits_of(daily_panel([200, 200, 200]), horizon=5)
    origins = held_out(splits, moments=20, per_moment=2, seed=0)
    first = origins.now[origins.scored].min()
    assert (origins.realised[~origins.scored] <= first).all() and (~origins.scored).sum() >= 10
    assert np.bincount(origins.moment).max() <= 2 and len(np.unique(origins.series)) == 3
    assert held_out(splits_of(daily_panel([60, 60]), ratios=(0.8, 0.2, 0.0)), moments=20, per_moment=2, seed=0) is None
    test = held_out(splits_of(daily_panel([300, 300]), ratios=(0.5, 0.25, 0.25)), moments=20, per_moment=0, seed=0)
    assert test.unit == "test"


def test_a_row_is_forecast_from_the_last_bar_on_or_before_its_date():
    panel = daily_panel([300, 300, LOOKBACK - 1])
    days = pd.bdate_range(end="2021-03-31", periods=300)
    symbols = np.array(["T0", "T1", "T1", "T0", "T2", "gone", "T0", "T1"], object)
    dates = np.array(
        ["2021-03-31", "2021-03-28", "2099-01-01", "2000-01-01", "2021-03-31", "2021-03-31", "NaT", days[100]], "datetime64[ns]"
    )
    rows, reasons = rows_to_forecast(panel, symbols, dates, LOOKBACK)
    sunday = 300 + int(np.searchsorted(days, pd.Timestamp("2021-03-26")))
    assert rows.tolist() == [299, sunday, 599, -1, -1, -1, 299, 400]
    assert reasons[3] == "no bar on or before the date" and "fewer than 12" in reasons[4] and reasons[5] == "not in the panel"
    assert (reasons[[0, 1, 2, 6, 7]] == "").all()


def test_the_calendar_is_every_day_that_any_series_has():
    panel = daily_panel([40, 300])
    assert (market_calendar(panel) == pd.bdate_range(end="2021-03-31", periods=300).to_numpy("datetime64[ns]")).all()
    part = only_from(panel, np.array([3]))
    assert part.origin.sum() == 1 and part.fingerprint != panel.fingerprint != only_from(panel, np.array([4])).fingerprint


# ---- scores


def test_scores_are_those_of_scikit_learn_and_a_knowing_model_beats_every_baseline():
    splits = splits_of(daily_panel([400] * 3))
    origins = held_out(splits, moments=60, per_moment=0, seed=0)
    rose = rise.rose_after(origins.panel, origins.rows, 1)
    knowing = Called("knowing", np.where(rose, 0.9, 0.1), rose.astype(int), rose.astype(float))
    others = baselines(origins, rose, 0.5)
    assert rise_scores(knowing, rose)["accuracy"] == rise_scores(knowing, rose)["f1"] == rise_scores(knowing, rose)["auc"] == 1.0
    assert rise_scores(others["always_up"], rose)["accuracy"] == pytest.approx(rose.mean())
    close = origins.panel.features[:, 3]
    assert (others["persistence"].decision == (close[origins.rows] > close[origins.rows - 1])).all()
    found = differences(knowing, others, rose, origins, 0)
    assert all(one.verdict == "better than" and one.low > 0.3 for one in found.values())
    same = differences(others["always_up"], {"b": others["always_up"]}, rose, origins, 0)["b"]
    assert (same.value, same.verdict) == (0.0, "indistinguishable from") and "+0.0 points" in same.sentence("x")


# ---- predictions


def test_short_and_unknown_tickers_get_the_prior_and_are_counted(tmp_path):
    panel = daily_panel([200, 200, LOOKBACK - 1])
    one = forecaster(panel, tmp_path)
    held = evaluate_rise(one, splits_of(panel), title="t", moments=20, per_moment=2, seed=0, notes=[])
    symbols = ["T0", "T2", "gone", "T1"]
    frame, counts = predict_rise(one, ["a", "b", "c", "d"], symbols, np.full(4, np.datetime64("2021-03-31")), held)
    assert frame["reason"].tolist() == ["model", "prior", "prior", "model"] and frame["ID"].tolist() == ["a", "b", "c", "d"]
    assert (frame["prob_up"].iloc[[1, 2]] == held.prior).all() and (frame["Pred"].iloc[[1, 2]] == (held.prior >= 0.5)).all()
    assert counts["not in the panel"] == 1 and counts["fewer than 12 unbroken bars"] == 1


def test_forecasts_that_are_finished_are_not_made_again_and_other_rows_are(tmp_path):
    panel, said = daily_panel([100, 100]), []
    one = forecaster(panel, tmp_path, say=said.append)
    first, _ = one.closes(np.array([50, 60]), "test")
    again, _ = forecaster(panel, tmp_path, say=said.append).closes(np.array([60, 50, 60]), "test")
    assert (again == first[[1, 0, 1]]).all() and any("2 of 2 forecasts were there" in line for line in said)
    other, _ = one.closes(np.array([50, 61]), "test")
    assert (other[0] == first[0]).all() and any("the bars are others" in line for line in said)


def test_it_is_the_close_at_the_horizons_end_that_counts(tmp_path):
    panel = daily_panel([100])
    closes, last = forecaster(panel, tmp_path, horizon=3).closes(np.array([50]), "test")
    (part,) = (tmp_path / "test").glob("part-*.npy")
    assert (closes == np.load(part)[:, :, 2]).all() and last == panel.features[50, 3]


def test_with_too_few_held_out_bars_the_plain_rule_holds_and_it_is_said(tmp_path):
    panel, notes = daily_panel([60, 60]), []
    held = evaluate_rise(
        forecaster(panel, tmp_path), splits_of(panel, ratios=(0.8, 0.2, 0.0)), title="t", moments=20, per_moment=2, seed=0, notes=notes
    )
    assert held.rule.threshold == 0.5 and not held.report and "too few" in notes[0]


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """A folder as preprocessing makes it, a pair of models, a configuration, and test.csv."""
    folder = tmp_path_factory.mktemp("kaggle")
    panel = daily_panel([200, 200, 200, LOOKBACK - 2])
    panel.save(folder / "kaggle_data" / "panel")
    symbols = ["T0", "T1", "T2", "T3"]
    TestRows(symbols, symbols, np.full(4, np.datetime64("2021-04-01").astype(int), np.int32)).save(folder / "kaggle_data" / "test.parquet")
    pd.DataFrame({"ID": symbols[::-1], "Date": "2021-04-01"}).to_csv(folder / "test.csv", index=False)
    save_module(tiny.predictor(), folder / "predictor")
    save_module(tiny.tokenizer(), folder / "tokenizer")
    return folder


def configured(folder: Path, *overrides: str) -> CsvConfig:
    keys = ["data.lookback_window=12", "data.predict_window=1", "data.train_ratio=0.5", "data.val_ratio=0.5", "device.device=cpu"]
    keys += ["evaluation.samples=5", "evaluation.max_origins=20", "evaluation.max_series=2", "experiment.name=tiny"]
    return CsvConfig.load(None, [f"data.data_path={folder / 'kaggle_data' / 'panel'}", *keys, *overrides], {})


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_command_writes_predictions_report_and_submission(kaggle, tmp_path, horizon):
    out, said = tmp_path / "predictions.csv", []
    pair = dict(model=str(kaggle / "predictor"), tokenizer=str(kaggle / "tokenizer"))
    config = configured(kaggle, f"data.predict_window={horizon}")
    infer(config, kaggle / "kaggle_data", out, **pair, say=said.append)
    frame = pd.read_csv(out)
    assert list(frame) == ["ID", "prob_up", "Pred", "reason"] and frame["prob_up"].between(0, 1).all()
    assert frame["reason"].tolist() == ["model"] * 3 + ["prior"]
    report = json.loads((tmp_path / "predictions_report.json").read_text())
    assert set(report["scores"]) == {"model", "always_up", "persistence", "momentum"} and report["horizon"] == horizon
    assert report["rule"]["chosen_on"] == report["held_out"]["chosen_on"] > 0
    assert {"accuracy", "f1", "auc", "log_loss"} <= set(report["scores"]["model"]) and len(report["verdicts"]) == 3
    text = (tmp_path / "predictions_report.md").read_text()
    assert "always up" in text and "by the class prior" in text and "tiny is" in said[-3]
    submission = make_submission(out, kaggle / "test.csv", tmp_path / "submission.csv", say=lambda _: None)
    assert pd.read_csv(tmp_path / "submission.csv").equals(submission.reset_index(drop=True)) and submission["ID"].tolist() == [
        "T3",
        "T2",
        "T1",
        "T0",
    ]
    assert submission.set_index("ID")["Pred"].to_dict() == frame.set_index("ID")["Pred"].to_dict()


def trained(kaggle: Path, folder: Path, *, state: str = "done", **changed) -> dict[str, str]:
    """A pair as a training with the configuration of `configured` leaves it. changed: arguments of the split it was trained with."""
    panel = Panel.open(kaggle / "kaggle_data" / "panel")
    how = {"lookback": LOOKBACK, "horizon": 1, "ratios": (0.5, 0.5, 0.0), **changed}
    windows = make_splits(panel, how["lookback"], how["horizon"], how["ratios"], say=lambda _: None).train
    save_module(tiny.predictor(), folder / "run" / "best_model")
    write_json(folder / "run" / "status.json", {"state": state, "name": "predictor"})
    (folder / "run" / "config.yaml").write_text(f"data: {{lookback_window: {how['lookback']}}}\ntraining: {{basemodel_epochs: 5}}\n")
    (folder / "run" / "metrics.jsonl").write_text('{"step": 9, "epoch": 1}\n')
    if state == "done":
        write_json(folder / "run" / "summary.json", {"data": dict(windows.facts)})
    return dict(model=str(folder / "run" / "best_model"), tokenizer=str(kaggle / "tokenizer"))


def notes_of(kaggle: Path, folder: Path, pair: dict[str, str], *overrides: str) -> list[str]:
    said: list[str] = []
    infer(configured(kaggle, *overrides), kaggle / "kaggle_data", folder / "p.csv", **pair, say=said.append)
    notes = json.loads((folder / "p_report.json").read_text())["notes"]
    assert "no test split" in notes.pop()  # the scores' own
    assert set(notes) <= set(said)
    return notes


def test_another_split_than_the_models_is_a_loud_note_and_another_horizon_is_none(kaggle, tmp_path):
    pair = trained(kaggle, tmp_path)
    assert notes_of(kaggle, tmp_path, pair) == notes_of(kaggle, tmp_path, pair, "data.predict_window=3") == []
    (told,) = notes_of(kaggle, tmp_path, pair, "data.train_ratio=0.4", "data.val_ratio=0.6")
    assert told.startswith("WARNING: the model was trained with another split") and "may overlap" in told
    assert "overlap" in notes_of(kaggle, tmp_path, pair, "data.split=per_symbol")[0]


@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_another_lookback_than_the_models_is_refused_with_the_key_that_mends_it(kaggle, tmp_path, state):
    with pytest.raises(InputError, match=r"lookback of 16 bars.*lookback_window is 12.*--set data\.lookback_window=16"):
        notes_of(kaggle, tmp_path, trained(kaggle, tmp_path, state=state, lookback=16))
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("state", ["interrupted", "running"])
def test_a_model_whose_training_was_stopped_is_used_with_a_note(kaggle, tmp_path, state):
    told = notes_of(kaggle, tmp_path, trained(kaggle, tmp_path, state=state))[0]
    assert told.startswith("training of this model stopped early, in epoch 2 of 5") and told.endswith("--resume goes on")


def test_the_reports_of_two_predictions_in_one_folder_are_two(tmp_path):
    report = {"title": "t", "verdicts": [], "counts_in_words": [], "notes": []}
    written = {path.name for name in ("predictions", "p30") for path in write_reports(report, tmp_path / f"{name}.csv")}
    assert written == {path.name for path in tmp_path.iterdir()}
    assert written == {"predictions_report.json", "predictions_report.md", "p30_report.json", "p30_report.md"}


def test_a_folder_that_is_not_preprocessed_says_which_command_to_run(kaggle, tmp_path):
    with pytest.raises(MissingFileError, match=r"kaggle_data_preprocess.py --train train.csv --test test.csv --out .*nothing"):
        infer(configured(kaggle, f"data.data_path={tmp_path}/nothing/panel"), tmp_path / "nothing", tmp_path / "p.csv", say=lambda _: None)
    with pytest.raises(InputError, match=r"p\.txt"):
        pair = dict(model=str(kaggle / "predictor"), tokenizer=str(kaggle / "tokenizer"))
        infer(configured(kaggle), kaggle / "kaggle_data", tmp_path / "p.txt", **pair, say=lambda _: None)


# ---- the file to hand in


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "predictions, told",
    [
        ("ID,Pred\nA,1\n", "1 IDs of the test are missing (NA)"),
        ("ID,Pred\nA,1\nNA,0\nC,0\n", "1 IDs are not in the test (C)"),
        ("ID,Pred\nA,1\nNA,0\nA,0\n", "1 IDs come again in"),
        ("ID,Pred\nA,1\nNA,0.5\n", "Pred of ID 'NA' (row 2) is '0.5'"),
        ("ID,prob\nA,1\nNA,0\n", "has no column Pred; found: ID, prob"),
        ("", "cannot be read"),
        ("ID,Pred\n", "has no rows"),
    ],
)
def test_predictions_that_do_not_fit_the_test_are_refused(tmp_path, predictions, told):
    test = write(tmp_path / "test.csv", "ID,Date\nNA,2024-05-31\nA,2024-05-31\n")
    with pytest.raises(InputError) as error:
        make_submission(write(tmp_path / "p.csv", predictions), test, tmp_path / "s.csv", say=lambda _: None)
    assert told in str(error.value) and not (tmp_path / "s.csv").exists()


def test_a_ticker_called_na_and_a_ticker_on_two_dates_keep_their_rows(tmp_path):
    test = write(tmp_path / "test.csv", "ID,Date\nNA,2024-05-31\nA,2024-05-31\nA,2024-06-30\n")
    made = write(tmp_path / "p.csv", "ID,prob_up,Pred,reason\nNA,0.6,1,model\nA,0.6,1,model\nA,0.4,0,model\n")
    make_submission(made, test, tmp_path / "s.csv", say=lambda _: None)
    assert (tmp_path / "s.csv").read_text() == "ID,Pred\nNA,1\nA,1\nA,0\n"


def test_a_panel_of_hours_has_a_calendar_too():
    panel = make_panel(2, 50)
    assert len(market_calendar(panel)) == 50
