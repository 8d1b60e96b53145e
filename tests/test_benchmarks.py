"""The benchmarks at tiny size, without a peer, in this process: their parts run and print. No time is asserted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    communication,
    cost_laws,
    coverage,
    forecast,
    loader,
    multi_model,
    networks,
    panel_memory,
    peer,
    ranks,
    ratios,
    resume,
    run_all,
    tft,
    tft_quality,
    tft_rows,
    tft_side,
    train_step,
)
from benchmarks.common import Report, make_panel
from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.timestamps import stamp_features
from kronos.errors import InputError
from tft.rows import save_with_manifest

TINY = ["--symbols", "2", "--bars", "700"]


def passed(report):
    return [row.passed for row in report.rows]


def test_the_loader_is_timed_at_both_batch_sizes(capsys):
    report = loader.main([*TINY, "--rounds", "1"])
    assert len(report.rows) == 4
    shown = capsys.readouterr().out
    assert "python -m benchmarks.loader --symbols 2 --bars 700 --rounds 1" in shown and "reach >= 250,000" in shown


def test_every_window_of_an_epoch_is_counted_once_at_any_world_size():
    assert passed(coverage.main([*TINY, "--per-epoch", "90"])) == [True] * 3


def test_a_window_taken_twice_would_be_noticed(monkeypatch):
    monkeypatch.setattr(coverage, "step_micros", lambda *a, real=coverage.step_micros: real(*a) + real(*a)[:1])
    assert passed(coverage.main([*TINY, "--per-epoch", "90"])) == [False] * 3


def test_the_training_step_is_timed_in_its_three_forms(capsys):
    report = train_step.main(["--batch", "2", "--rounds", "1", "--steps", "1", "--curve-steps", "1", "--encoded", "4"])
    assert [row.measure.split("tokens, ")[1] for row in report.rows] == ["fp32", "fp32, cached tokens", "bf16, cached tokens"]
    assert "a tenth of encoding" in capsys.readouterr().out


def test_forecasts_are_timed_scored_and_checked_token_by_token(capsys):
    report = forecast.main(["--cases", "mini", "--shrink", "20", "--rounds", "1", "--origins", "2", "--paths", "3", "--steps", "2"])
    shown = capsys.readouterr().out
    assert "0 different" in report.rows[-1].seen and "float64" in report.rows[-1].measure and "CRPS in int8" in shown


def test_a_token_drawn_otherwise_would_be_noticed(monkeypatch):
    real = forecast.quality.generate
    monkeypatch.setattr(forecast.quality, "generate", lambda *a: tuple(ids ^ 1 for ids in real(*a)))
    report = forecast.main(["--cases", "mini", "--shrink", "20", "--rounds", "1", "--origins", "2", "--paths", "3", "--steps", "2"])
    assert passed(report)[-2:] == [False, False]


@pytest.fixture
def ranks_here(monkeypatch):
    """Two ranks are played by one process with accumulation 2, whose weights both of them are said to have."""

    def run(module, arguments, size, *_):
        if size == 1:
            ranks._child(*arguments[1:])
        else:
            for rank in range(size):
                shutil.copy(f"{arguments[-1]}/{arguments[1]}-1-0.safetensors", f"{arguments[-1]}/{arguments[1]}-2-{rank}.safetensors")

    monkeypatch.setattr(ranks, "run_ranks", run)


def test_weights_of_ranks_are_compared(ranks_here):
    report = ranks.main(["--size", "small32", "--batch", "1", "--steps", "2"])
    assert [row.seen for row in report.rows] == ["0.0e+00", "0.0e+00"]
    assert all(float(told) > 0 for fact, told in report.details.items() if "change in training" in fact), "something was trained"


def test_what_two_ranks_send_is_counted_traced_and_told_of_many_gpus(capsys):
    report = communication.main(
        ["--sizes", "small32", "--accumulation", "2", "--batch", "1", "--rounds", "1", "--traces", "1", "--amp", "off"]
    )
    sent, hidden, speed = report.rows
    assert sent.passed and "226," in sent.seen, "the bytes of the hook, of the trace and of the parameters are the same"
    assert "%" in hidden.seen and "x one process" in speed.seen
    told = report.details["small32: on many GPUs"]
    assert "8 GPUs (NVLink)" in told and "2 x 8 GPUs (400 Gb/s" in told and "Assumed" in told
    assert "--sizes small32 --accumulation 2 --batch 1" in capsys.readouterr().out


def test_a_bucket_waits_for_the_one_before_it_and_only_what_is_left_after_the_backward_pass_shows():
    wire = networks.Network("wire", 2, bandwidth_gbs=1.0, latency_us=0.0)  # two ranks send each byte once: 1 MB takes 1 ms
    early, late = networks.Bucket(0.5, 3e6), networks.Bucket(1.0, 1e6)
    assert networks.exposed_s([early, late], 0.010, wire) == pytest.approx(0.001), "the first is done before the second is ready"
    assert networks.exposed_s([early, late], 0.002, wire) == pytest.approx(0.003), "begun after 1 ms, 4 ms in all, 2 of them hidden"
    batch = networks.smallest_batch([early, late], 1e-3, wire, share=0.1)
    shares = [networks.share_exposed([early, late], n * 1e-3, wire) for n in (batch - 1, batch)]
    assert shares[0] > 0.1 >= shares[1]


def test_intervals_that_overlap_count_once():
    assert networks.length([(0, 2), (1, 3), (5, 6)]) == 4
    assert networks.common_length([(0, 2), (1, 3)], [(2, 10)]) == 1


def test_costs_are_measured_at_every_size_in_processes_of_their_own_and_told_as_laws(capsys):
    report = cost_laws.main(["--laws", "split-bars", "gather-context", "--shrink", "20", "--rounds", "1", "--clock", "cpu"])
    assert ["time" in row.measure for row in report.rows] == [True, False, True]
    assert "grows as n^" in capsys.readouterr().out and "too little to fit" in report.rows[1].seen


def test_a_power_law_is_found_with_its_uncertainty_and_a_worse_one_fails():
    n = [100, 200, 400, 800, 1600]
    exact = cost_laws.power_law(n, [3.0 * k**1.5 for k in n])
    assert exact.exponent == pytest.approx(1.5) and exact.half == pytest.approx(0, abs=1e-9)
    noisy = cost_laws.power_law(n, [k * f for k, f in zip(n, (1.1, 0.9, 1.05, 0.95, 1.0), strict=True)])
    assert abs(noisy.exponent - 1) < noisy.half < 0.3
    assert not cost_laws._row("squares", n, 1.1, cost_laws.power_law(n, [k**2 for k in n])).passed
    assert not cost_laws._row("noise", n, 1.1, cost_laws.Fit(1.5, 9.0)).passed, "noise passes nothing"


def test_memory_is_fitted_where_it_is_large_enough_even_if_the_smallest_size_takes_little():
    n = [100, 200, 400, 800, 1600]

    def row(*megabytes):
        return cost_laws._memory_row("memory", n, 1.1, [mb * 1e6 for mb in megabytes])

    assert row(1, 1, 2, 3, 7.9).passed and "too little to fit" in row(1, 1, 2, 3, 7.9).seen
    assert not row(1, 10, 40, 160, 640).passed and row(1, 10, 20, 40, 80).passed
    assert "too few to fit" in row(1, 2, 4, 7, 15).seen and row(1, 2, 4, 7, 15).passed and not row(1, 2, 4, 7, 40).passed
    assert row(9, 3, 3, 3, 3).passed, "it does not grow"


def test_what_a_killed_run_left_is_read_and_compared(monkeypatch):
    """The kill is played: the process ends by itself, is said to have been killed, and is resumed."""

    def attempt(folder, args, kill_after_s, tally):
        resume._child(str(folder), "1", "60", "1")
        tally.start_s.append(0.1)
        return kill_after_s is None

    monkeypatch.setattr(resume, "_attempt", attempt)
    report = resume.main(["--rounds", "1"])
    assert passed(report) == [True, True]
    assert report.details["killed in stage"] == {"predictor": 0, "tokenizer": 1}


def test_a_damaged_checkpoint_is_counted(tmp_path):
    resume._child(str(tmp_path), "1", "60", "1")
    state = next((tmp_path / "tokenizer" / "checkpoints").glob("last-*")) / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    tally = resume._Tally()
    resume._examine(tmp_path, tally)
    assert len(tally.unreadable) == 1


def test_memory_is_told_at_every_stage_up_to_the_first_batch(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(panel_memory, "_tell", lambda **facts: told.append(facts))

    def in_this_process(what, folder, args, count):
        panel_memory._child(what, str(folder), str(args.series), str(args.bars), str(args.steps), str(args.batch))
        return told[-1:] * count

    monkeypatch.setattr(panel_memory, "_in_child", in_this_process)
    given = ["--series", "3", "--bars", "900", "--steps", "1", "--batch", "4", "--folder", str(tmp_path)]
    report = panel_memory.main(given)
    assert {"Panel.open", "make_splits", "before the first batch", "after 1 steps"} <= report.details["one process"].keys()
    assert "built" in report.details and "built" not in panel_memory.main(given).details, "the second time it is reused"


@pytest.fixture
def played_jobs(monkeypatch):
    """The jobs of the scheduler are played: side by side they take half of the time. Little is summed up to see what the machine allows."""

    def run(runner):
        for job in runner.jobs:
            runner.state.set(job, "done", reason="", code=0, seconds=1.0)
        multi_model.time.sleep(0.4 / len(runner.free))
        return 0

    monkeypatch.setattr(multi_model.Runner, "run", run)
    monkeypatch.setattr(multi_model, "_SUMS", multi_model._SUMS.replace("300", "3"))


def test_models_side_by_side_are_compared_with_one_after_the_other_and_a_plan_is_a_whole_process(played_jobs):
    report = multi_model.main(["--rounds", "1"])
    assert 0.2 < float(report.details["share that the machine allows"]) < 50
    assert passed(report)[0] and "s against" in report.rows[0].seen and "of CPU" in report.rows[1].seen
    assert set(report.details["seconds of the jobs, parallel"]) == {f"m0{n}-{stage}" for n in "01" for stage in ("tokenizer", "predictor")}


def test_a_job_that_fails_gives_no_figure(monkeypatch):
    monkeypatch.setattr(multi_model.Runner, "run", lambda self: 1)
    with pytest.raises(InputError, match="a job failed"):
        multi_model.main(["--rounds", "1"])


def test_every_benchmark_of_the_list_is_there_and_takes_the_flags_that_it_is_run_with():
    folder = Path(run_all.__file__).parent
    for name in run_all.NAMES:
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert "parser_for(NAME" in text and ("clock_argument(parser)" in text or name not in run_all.TIMED), name


def test_the_page_holds_every_row_and_the_command_of_each_benchmark(tmp_path):
    report = coverage.main([*TINY, "--per-epoch", "90", "--out", str(tmp_path / "coverage.json")])
    saved = json.loads((tmp_path / "coverage.json").read_text())
    text = run_all.page([saved], "python -m benchmarks.run_all")
    assert all(row.measure in text for row in report.rows) and report.command in text and report.machine["cpu"] in text


def test_a_benchmark_that_breaks_down_is_a_failed_row_and_the_page_is_still_written(tmp_path):
    """It breaks down because the peer is not a checkout."""
    assert run_all.main(["--only", "coverage", "--peer", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 1
    assert "broke down with exit code 2" in (tmp_path / "page.md").read_text()


@pytest.fixture
def saved(tmp_path):
    """Reports of two dates, and a page to write into."""

    def report(date, name, command="", **row):
        given = {"measure": "speed", "reach": ">= 2.5x", "seen": "3x", "passed": True, "peer": "29 windows/s", "ratio": 3.0} | row
        told = {"name": name, "command": command or f"python -m benchmarks.{name}", "rows": [given], "details": {}}
        told["machine"] = {"date": date, "cores": 2, "threads": 1, "torch": "2"}
        return json.dumps(told)

    (tmp_path / "2026-01-01-loader-wall.json").write_text(report("2026-01-01", "loader", seen="old"))
    (tmp_path / "2026-01-02-loader.json").write_text(
        report("2026-01-02", "loader", reach=">= 250,000", peer="2,500", ratio=90.0, passed=False)
    )
    (tmp_path / "2026-01-01-tft.json").write_text(report("2026-01-01", "tft"))
    (tmp_path / "2026-01-01-tft-quality.json").write_text(report("2026-01-01", "tft", measure="final validation loss"))
    (tmp_path / "page.md").write_text(f"before\n{ratios.BEGIN}\nold\n{ratios.END}\nafter\n")
    return tmp_path


def test_the_newest_report_of_each_benchmark_is_in_the_table_and_in_the_picture(saved):
    arguments = ["--results", str(saved), "--page", str(saved / "page.md"), "--picture", str(saved / "ratios.png")]
    ratios.main(arguments)
    page = (saved / "page.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page, "the table is replaced, the rest is kept"
    assert "2026-01-02-loader.json" in page and "**missed**" in page and "2026-01-01-tft-quality.json" in page
    assert "[coverage](coverage.py)" in page and "no saved report" in page
    assert (saved / "ratios.png").read_bytes()[:4] == b"\x89PNG"
    ratios.main(arguments)
    assert (saved / "page.md").read_text() == page, "written twice it is the same"


def test_a_goal_is_a_ratio_where_the_peer_has_a_figure_of_the_same_kind(saved):
    loader, tft = ratios.bars(ratios.newest(saved))  # the loss is no speed
    assert loader == ("loader: speed", 90.0, 100.0, False) and tft.goal == 2.5
    seconds = {"reach": "<= 0.5 s", "peer": "1.43 s"}
    assert ratios.goal_of(seconds) == pytest.approx(2.86)
    assert np.isnan(ratios.goal_of({"reach": "-", "peer": "29 windows/s"}))


class _HalfHere:
    """Our half of the transformer's table, in this process."""

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def __call__(self, do, **arguments):
        return getattr(tft_side, do)(**arguments)


def test_the_transformers_table_is_built_and_its_windows_are_gathered(monkeypatch):
    monkeypatch.setattr(tft_rows, "_Ours", _HalfHere)
    monkeypatch.setattr(tft_rows, "_BATCHES", 2)
    report = tft.main(["--hidden", "--rows", "4000", "--row-features", "12", "--rounds", "1"])
    measures = [row.measure.split(",")[0] for row in report.rows]
    assert measures == ["loader", "build", "peak beside the frame"] and "inf" not in report.rows[0].seen
    assert tft_side.batches(1, 64, "wall", shared=True) > 0 and len(tft_side._state["windows"].train) > 2000


def _real_bars(folder):
    """Two series of 300 hours with labels of what the first column will be; the last five have none."""
    draw, rows = np.random.default_rng(0), 300
    times = np.tile(np.arange(rows) * 3_600 * 10**9, 2)
    values = draw.normal(size=(2 * rows, 5))
    labels = np.stack([values[:, 0] > 0, values[:, 1] > 0, values[:, 0], values[:, 1]], 1).astype(np.float32)
    labels.reshape(2, rows, 4)[:, -5:] = np.nan
    columns = [Column(f"x{k}", "past" if k < 4 else "known") for k in range(5)]
    series = [SeriesInfo(symbol, "1h") for symbol in ("BTC", "ETH")]
    layout = dict(offsets=np.array([0, rows, 2 * rows]), series=series, columns=columns, stamps=stamp_features(times), times=times)
    panel = Panel.build(features=values.astype(np.float32), targets=labels, target_names=tuple(tft_quality.TARGETS), **layout)
    save_with_manifest(panel, folder, {"targets": {name: {"horizon": {"1h": 5}} for name in tft_quality.TARGETS}})
    return ["--real", str(folder), "--seeds", "2", "--windows", "32", "--batch", "16", "--val-windows", "20", "--features", "3"]


class _Cuts:
    """Where the peer stands: it reads the table that it is given, and always says that nothing will happen."""

    def __init__(self, off_by=0):
        self.off_by, self.asked = off_by, []

    __enter__, __exit__ = _HalfHere.__enter__, _HalfHere.__exit__

    def __call__(self, do, **told):
        if do == "open_real":
            self.table, self.encoder = dict(np.load(told["path"])), told["encoder"]
            return 1
        self.asked.append(told)
        at, past, known = np.array(told["val"]) + self.off_by, self.table["past"], self.table["known"]
        sums = [past[r - self.encoder + 1 : r + 1].sum() + known[r - self.encoder + 1 : r + 2].sum() for r in at]
        np.savez(told["answers"], outputs=np.zeros((len(at), 4), np.float32), labels=self.table["labels"][at + 1], sums=sums)
        return [1e-3, 1]


def test_final_losses_are_compared_on_the_same_windows_of_real_bars(tmp_path, monkeypatch, capsys):
    arguments, peer = _real_bars(tmp_path / "bars"), _Cuts()
    monkeypatch.setattr(tft, "PeerPython", lambda *a: peer)
    report = tft.main([*arguments, "--peer", "python"])
    assert [row.measure.split(", ")[1] for row in report.rows] == ["equal windows", "equal CPU seconds"]
    told = peer.asked[-1]
    assert len(told["train"]) == 32 and len(told["val"]) == 20 and len(told["rates"]) == 2 and told["sizes"]["encoder"] == 96
    assert max(told["train"]) < min(told["val"]) + 300 and peer.asked[-2]["train"] != told["train"], "each seed has an order of its own"
    flat = tft_quality.score(torch.zeros(20, 4), peer.table["labels"][np.array(told["val"]) + 1])
    assert report.rows[0].peer == f"{flat:.4f} ± 0.0000" and "seed 2: ours" in capsys.readouterr().out


def test_a_peer_that_was_given_other_windows_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(tft, "PeerPython", lambda *a: _Cuts(off_by=-1))
    with pytest.raises(InputError, match="other validation windows"):
        tft.main([*_real_bars(tmp_path / "bars"), "--peer", "python"])


def test_a_loss_is_worse_only_beyond_the_spread_of_the_seeds():
    assert tft_quality.compared("loss", [1.04, 1.06], [1.00, 1.08]).passed
    assert not tft_quality.compared("loss", [1.09, 1.11], [1.02, 1.04]).passed
    assert tft_quality.compared("loss", [1.0], []).peer == ""


def test_bars_are_valid_and_stamped_by_the_calendar():
    panel = make_panel(2, 12 * 24 * 40)
    open_, high, low, close = panel.features[:, :4].T
    assert (low <= open_).all() and (close <= high).all() and (low > 0).all()
    assert panel.stamps[12 * 24 * 31 + 13].tolist() == [5, 1, 5, 1, 2], "Saturday 1 February 2020, 01:05"


def test_a_peer_that_is_not_a_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model/kronos\.py"):
        peer.Peer(tmp_path, "peer_step")


def test_a_report_without_rows_still_shows(capsys):
    Report("empty", "python -m benchmarks.empty", {"cpu": "none"}, details={"nested": {"a": {"b": 1}}}).show()
    assert "nested: a (b 1)" in capsys.readouterr().out
