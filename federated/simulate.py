"""Simulate a federation on this machine. Every run-config key is a flag.

python federated/simulate.py --clients 4 --rounds 3
python federated/simulate.py --clients 10 --rounds 5 --model tft --partition symbol --secure --dp-sigma 1.0 --p-drop 0.1 --resume
python federated/simulate.py --clients 4 --rounds 2 --engine ray          # real Flower: SuperLink, Ray, one process per client
"""

from __future__ import annotations

import argparse
from typing import Any

from finetune.engine.command import command_parser, run_command

ALIASES = {"num_clients": "--clients", "num_server_rounds": "--rounds", "partitions": "--partition"}
EXAMPLES = [
    "python federated/simulate.py --clients 4 --rounds 3",
    "python federated/simulate.py --clients 10 --rounds 5 --model kronos --partition symbol-period --secure --dp-sigma 1.0 "
    "--p-drop 0.1 --max-latency 200ms --bandwidth-limit 50mbps --resume",
    "python federated/simulate.py --clients 4 --engine ray",
]


def main() -> int | None:
    """Parse, check, choose the engine, run."""
    from federated.settings import Settings, outside, read_settings  # needed for the flags themselves
    from finetune.engine.config import describe_keys

    parser = command_parser("Simulate a federation on this machine.", EXAMPLES)
    parser.add_argument(
        "--engine",
        choices=("process-local", "ray"),
        default="process-local",
        help="process-local (default): all clients in this process, one after the other, several times faster and the same arithmetic; "
        "ray: real Flower, a SuperLink and a process per client",
    )
    for row in describe_keys(Settings):
        _add(parser, row.key, f"{row.description} [{row.type}] (default: {row.default})", Settings.model_fields[row.key].annotation is bool)
    given = {outside(name): value for name, value in vars(parser.parse_args()).items() if value is not None and name != "engine"}
    _from_here(given)
    settings = read_settings(given)

    from federated.engines import in_process, with_ray  # after the flags: --help need not wait for torch

    return with_ray(settings) if parser.parse_args().engine == "ray" else in_process(settings)


def _add(parser: argparse.ArgumentParser, name: str, text: str, switch: bool) -> None:
    """A flag of the key's name, and the shorter one that people type."""
    from federated.settings import outside

    flags = [f"--{outside(name)}", *([ALIASES[name]] if name in ALIASES else [])]
    how: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if switch else {"metavar": "VALUE"}
    parser.add_argument(*flags, dest=name, default=None, help=text.replace("%", "%%"), **how)


def _from_here(given: dict[str, Any]) -> None:
    """Paths on a command line start at the current folder; those of a run-config at the folder that holds federated/."""
    from pathlib import Path

    for name in ("data-path", "model-config", "run-folder"):
        if name in given:
            paths = [path.strip() for path in str(given[name]).split(",")]
            given[name] = ",".join(path if path.startswith("arch:") else str(Path(path).expanduser().absolute()) for path in paths)


if __name__ == "__main__":
    run_command(main)
