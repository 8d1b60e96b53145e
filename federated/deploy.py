"""A real federation of processes, with TLS and keys. See examples/deploy/README.md for several hosts.

python federated/deploy.py up --nodes 3 --tls
python federated/deploy.py run
python federated/deploy.py status
python federated/deploy.py down
"""

from __future__ import annotations

from argparse import Namespace

from federated.certificates import make_node_key
from federated.control import bundle_hash
from federated.deploy_arguments import deploy_parser
from federated.deployment import Deployment, Plan, free_port
from finetune.engine.command import EXIT_FAULT, run_command


def main() -> int | None:
    """One subcommand."""
    options = deploy_parser().parse_args()
    return COMMANDS[options.command](options, Deployment(options.folder))


def _up(options: Namespace, deployment: Deployment) -> None:
    plan = Plan(options.nodes, options.tls, options.port or free_port(), options.listen, tuple(options.host), options.app_hash)
    deployment.up(plan)
    print(f"{plan.nodes} nodes online; the federation lives in {deployment.folder}", flush=True)
    if options.stay:
        deployment.stay()


def _join(options: Namespace, deployment: Deployment) -> None:
    app_hash = "" if options.app_hash == "any" else options.app_hash
    deployment.join(options.name, options.superlink, options.ca, options.key, options.node_config, app_hash)
    print(f"{options.name} has signed on at {options.superlink}", flush=True)
    if options.stay:
        deployment.stay()


def _run(options: Namespace, deployment: Deployment) -> int:
    ended = deployment.run(options.app, options.run_config, quiet=options.quiet, timeout_s=options.timeout_s)
    print(f"run {ended}" + ("" if ended == "completed" else f"; see {deployment.folder / 'logs'}"))
    return 0 if ended == "completed" else EXIT_FAULT


def _status(options: Namespace, deployment: Deployment) -> int:
    text, well = deployment.status()
    print(text)
    return 0 if well else EXIT_FAULT


COMMANDS = {
    "up": _up,
    "join": _join,
    "run": _run,
    "status": _status,
    "down": lambda options, deployment: deployment.down(keep=options.keep),
    "key": lambda options, deployment: print(f"private: {options.path}; for the SuperLink's host: {make_node_key(options.path)}"),
    "admit": lambda options, deployment: print(f"node {deployment.admit(options.public_key)} may join"),
    "dismiss": lambda options, deployment: deployment.dismiss(options.name),
    "hash": lambda options, deployment: print(bundle_hash(options.app)),
}

if __name__ == "__main__":
    run_command(main)
