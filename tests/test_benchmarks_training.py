"""The benchmarks of training, end to end on a CPU and on a GPU, at tiny size, without a peer. No time is asserted."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, run_all, train_end_to_end
from benchmarks.model_flops import flops_per_token, peak_tflops, weights_in_products
from benchmarks.our_training import Seen
from benchmarks.step_profile import profiler, shares
from kronos import Kronos
from kronos.errors import InputError

TINY = ["--device", "cpu", "--sizes", "tiny", "--batch", "4", "--steps", "1", "--rounds", "1", "--no-compile"]


def test_training_is_timed_from_inside_a_real_run_and_its_time_is_divided(monkeypatch, capsys):
    monkeypatch.setattr(train_end_to_end, "predictor_arguments", lambda size: gpu._sizes("tiny")[1])
    monkeypatch.setattr(train_end_to_end, "tokenizer_arguments", lambda size: gpu._sizes("tiny")[0])
    report = train_end_to_end.main(["--sizes", "mini", "--batch", "2", "--rounds", "1", "--steps", "1"])
    assert [row.measure.split(":")[0] for row in report.rows] == ["predictor, mini", "tokenizer, base"]
    parts = report.details["predictor, mini, ours, share of the step's time (torch.profiler)"]
    assert {"matrix products", "norm", "dropout", "optimiser", "attention", "loss and drawn token"} <= parts.keys()
    assert sum(float(share.rstrip("%")) for share in parts.values()) == pytest.approx(100, abs=1)
    assert "encoding counted per step" in capsys.readouterr().out


def test_the_goal_is_judged_by_the_median_and_for_the_predictor_in_bf16(capsys):
    class Args:
        batch = 32

    report = train_end_to_end.Report("x", "x", {})
    seen = {"ours, bf16": [Seen(0.01, 0.001), Seen(0.02, 0.002), Seen(0.9, 0.1)], "peer": [Seen(0.05, 0), Seen(0.06, 0), Seen(0.07, 0)]}
    train_end_to_end._report(Args, report, "predictor, mini", seen)
    assert report.rows[0].ratio == pytest.approx(0.06 / 0.022) and report.rows[0].passed
    seen["peer"] = [Seen(0.05, 0)] * 3
    train_end_to_end._report(Args, report, "predictor, mini", seen)
    train_end_to_end._report(Args, report, "tokenizer, base", seen)
    assert [row.passed for row in report.rows] == [True, False, True]


def test_the_gpu_benchmark_runs_whole_on_a_cpu(tmp_path):
    report = gpu.main([*TINY, "--cuts", "90+10", "--peak-tflops", "1", "--out", str(tmp_path / "gpu.json")])
    assert [row.measure.split(": ")[1].split(",")[0] for row in report.rows] == [
        "ours",
        "model-FLOPs utilisation",
        "loader's share of the step",
        "forecasts per second",
    ]
    assert report.command.endswith("--rounds 1 --steps 1 --no-compile --peak-tflops 1.0")
    assert "% of 1 TFLOP/s (ours)" in report.rows[1].seen and "panel on cpu" in report.rows[2].seen
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"][0]["measure"] in (tmp_path / "gpu.md").read_text()


def test_a_case_that_breaks_down_is_a_failed_row_and_the_rest_is_measured(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(gpu, "_measure", full)
    report = gpu.main([*TINY, "--cuts", "90+10"])
    assert [row.passed for row in report.rows] == [False, True] and "out of memory" in report.rows[0].seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so():
    with pytest.raises(InputError, match="sees no GPU here, so nothing is measured") as told:
        gpu.main([])
    assert "\n" not in str(told.value)
    assert "gpu" not in run_all.names()


def test_goals_of_a_gpu_are_judged_against_both_of_the_peers_figures():
    class Work:
        length = 101

    report = gpu.Report("x", "x", {})
    seen = {"ours": [Seen(0.001, 0.0)], "peer": [Seen(0.0099, 0.0)], "peer's model, batch ready": [Seen(0.0031, 0.0)]}
    gpu._rows(report, "base", "ours", seen, Work)
    assert [row.passed for row in report.rows] == [False, True] and report.rows[0].ratio == pytest.approx(9.9)


def test_flops_are_those_that_torch_counts():
    sizes = {**gpu._sizes("tiny")[1], "n_layers": 2}
    model, length = Kronos(**sizes).eval(), 10
    tokens = torch.zeros(3, length, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens, torch.zeros(3, length, 5, dtype=torch.long))
    attention = 3 * 4 * sizes["d_model"] * length  # per token, every key: torch does not know that half of them are hidden
    assert counter.get_total_flops() == 3 * length * (2 * weights_in_products(sizes) + attention)
    assert flops_per_token(sizes, length) == 3 * (2 * weights_in_products(sizes) + attention * (length + 1) / (2 * length))


def test_a_devices_peak_is_found_by_its_name():
    known = {"NVIDIA H200": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835, "NVIDIA H100 80GB HBM3": 989, "NVIDIA L40S": 362}
    known |= {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100 80GB PCIe": 312, "NVIDIA A10": 125, "NVIDIA L4": 121}
    assert {name: peak_tflops(name) for name in known} == known


def test_the_peak_of_a_device_whose_name_only_resembles_a_known_one_is_unknown():
    alike = ("A10G", "RTX A1000", "H200 NVL", "L40", "GH200 480GB", "H100 80GB HBM3 MIG 1g.10gb")
    assert [peak_tflops(f"NVIDIA {name}") for name in alike] == [None] * len(alike) and peak_tflops("cpu") is None


def test_events_inside_a_part_of_the_model_are_counted_there():
    norm, layer = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW([*norm.parameters(), *layer.parameters()])
    with profiler() as watched:
        layer(norm(torch.randn(8, 4))).sum().backward()
        optimiser.step()
    assert {"matrix products", "optimiser"} <= shares(watched).keys()
