"""The one set-up that `flwr run . local-simulation` needs, printed for the shell to take up:

    eval "$(python federated/home.py)"
    cd federated && flwr run . local-simulation --stream --run-config "num-server-rounds=3 local-epochs=1 batch-size=16"
    python federated/home.py --stop        # flwr leaves its SuperLink running; this ends it

It writes a Flower home of our own (outputs/flwr-home), with the connection `local-simulation`, one CPU per client and a port of its own, so
that no other project's settings or SuperLink are met, switches off what Flower would install, ask or send at run time, and starts the
SuperLink: flwr gives it 15 s, which a busy machine does not keep, and one that is ended while it makes its database never starts again
(so it has none: runs are forgotten with it).
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from finetune.engine.command import command_parser, run_command
from finetune.engine.files import ensure_writable_folder, read_json, write_json, write_text
from kronos.errors import InputError

CONNECTION = "local-simulation"
START_S = 180.0  # flwr waits 15 s
_BEGIN = """
from flwr.cli import local_superlink
from flwr.cli.typing import SuperLinkConnection
local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT = {patience}
local_superlink.ensure_local_superlink(SuperLinkConnection(name="{connection}", address=":local-in-memory:"))
"""
ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "outputs" / "flwr-home"
CONFIG = """[superlink]
default = "{connection}"

[superlink.{connection}]
address = ":local-in-memory:"
options.num-supernodes = {nodes}
options.backend.client-resources.num-cpus = {cpus}
options.backend.client-resources.num-gpus = {gpus}
"""


def make_home(folder: Path, nodes: int, cpus: float, gpus: float) -> dict[str, str]:
    """Write the home and return the environment that goes with it. Raises InputError where it cannot be written."""
    ensure_writable_folder(folder)
    write_text(folder / "config.toml", CONFIG.format(connection=CONNECTION, nodes=nodes, cpus=f"{cpus:g}", gpus=f"{gpus:.1f}"))
    ports = read_json(folder / "ports.json") or {"http": _free_port(), "control": _free_port()}
    write_json(folder / "ports.json", ports)
    return {
        "FLWR_HOME": str(folder),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports["http"]),
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports["control"]),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",  # as many clients as there are CPUs compute at once
    }


def begin(environment: dict[str, str], work: Path) -> None:
    """Start the SuperLink of a home as flwr does, but with patience, in the folder `work`. Raises InputError if it does not answer."""
    command = [sys.executable, "-c", _BEGIN.format(connection=CONNECTION, patience=START_S)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(command, env={**os.environ, **environment, "PATH": path}, cwd=work, check=False, capture_output=True, text=True)
    if done.returncode:
        log = Path(environment["FLWR_HOME"]) / "local-superlink" / "superlink.log"
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"Flower's SuperLink does not start: {said}; see {log}, or try again on a less busy machine")


def stop(folder: Path) -> list[int]:
    """End the SuperLink that `flwr run` started for this home, with what it started. Returns the ids of the processes."""
    ended: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder / "local-superlink" / "superlink.log") in (process.info["cmdline"] or []):
            ended += [process, *process.children(recursive=True)]
    for process in ended:
        process.terminate()
    for process in psutil.wait_procs(ended, timeout=10)[1]:
        process.kill()
    return [process.pid for process in ended]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = command_parser("Make the Flower home that `flwr run . local-simulation` needs.", ['eval "$(python federated/home.py)"'])
    parser.add_argument("--nodes", type=int, default=4, help="simulated nodes (default: 4)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs per client (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="share of a GPU per client (default: 0)")
    parser.add_argument("--stop", action="store_true", help="end the SuperLink that flwr run left running")
    args = parser.parse_args()
    if args.stop:
        print(f"ended {len(stop(HOME))} processes", file=sys.stderr)
        return
    environment = make_home(HOME, args.nodes, args.cpus, args.gpus)
    begin(environment, ensure_writable_folder(HOME / "work"))
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(os.fspath(value))}")


if __name__ == "__main__":
    try:
        run_command(main)
    except SystemExit as ended:
        if ended.code:
            print("false", flush=True)  # the shell's eval of nothing succeeds, of this it does not
        raise
