"""Training over several machines: two torchrun agents, here both on this one, that meet at an endpoint and train as one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from bars import make_panel
from ranks import environment, free_port
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"d_model": 16, "n_heads": 2, "ff_dim": 32, "s1_bits": 4, "s2_bits": 4}


def write_model(folder: Path, name: str) -> Path:
    """A tiny model with its bars prepared; returns its file."""
    config = {
        "timeframe": {"period": "1h", "source": ["unused.csv"]},
        "data": {"lookback_window": 12, "predict_window": 4, "train_ratio": 0.7, "val_ratio": 0.3},
        "training": {"epochs": 2, "batch_size": 8, "num_workers": 0, "seed": 1, "tokenizer_learning_rate": 1e-3},
        "model_paths": {"base_path": str(folder / "out")},
        "model": {"tokenizer": {**SIZES, "n_enc_layers": 2, "n_dec_layers": 2}, "predictor": {"preset": "mini", **SIZES, "n_layers": 1}},
        "experiment": {"pre_trained": False},
        "device": {"device": "cpu", "cpu_threads": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    make_panel(2, 80, freq="1h").save(folder / "out" / name / "data" / "panel")
    return path


def start(config: Path, flags: Sequence[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "finetune" / "train_tokenizer_multi.py"), "--config"]
    here = {**environment(), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen([*command, str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=here)


def end(agents: Sequence[subprocess.Popen], timeout_s: float = 150) -> list[str]:
    """Waits for all; what each said."""
    try:
        said = [agent.communicate(timeout=timeout_s)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * len(agents), "\n".join(said)
    return said


@pytest.mark.slow
def test_two_agents_that_meet_at_an_endpoint_train_the_weights_of_one_agent_with_two_processes(tmp_path):
    together, apart = (write_model(tmp_path, name) for name in ("together", "apart"))
    end([start(together, ["--standalone", "--nproc_per_node=2"])])
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_id=100", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}"]
    said = "".join(end([start(apart, [*meeting, "--local_addr=127.0.0.1"]) for _ in range(2)]))
    assert said.count("on cpu × 2") == 1, said  # one world of two, and one of them speaks
    one, two = (load_file(tmp_path / "out" / name / "tokenizer" / "best_model" / "model.safetensors") for name in ("together", "apart"))
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)


def test_the_batch_script_starts_one_agent_a_node_and_resumes(tmp_path):
    for name, body in {"srun": 'echo "srun $*"', "scontrol": "echo node1; echo node2"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "JOB_ID": "7",
        "NNODES": "2",
        "GPUS_PER_NODE": "4",
        "CPUS_PER_TASK": "16",
        "JOB_NODELIST": "node[1-2]",
        "SUBMIT_DIR": str(tmp_path),
    }
    script = ROOT / "examples" / "slurm" / "train_multi.sbatch"
    done = subprocess.run(
        ["bash", str(script), "model_a_4h", "training.seed=3"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **{f"SLURM_{name}": value for name, value in slurm.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line.split("finetune/")[1].split(".py")[0] for line in said] == [
        "prepare_kronos_data", "train_tokenizer_multi", "train_predictor_multi", "evaluate_multi"
    ]  # fmt: skip
    meeting = "--nnodes=2 --nproc_per_node=4 --rdzv_id=7 --rdzv_backend=c10d --rdzv_endpoint=node1:20007"
    assert meeting in said[1] and said[1].endswith("--config model_a_4h --set training.seed=3 --resume")
