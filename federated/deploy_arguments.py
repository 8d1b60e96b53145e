"""The arguments of `federated/deploy.py`."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from finetune.engine.command import command_parser

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "federated"


def deploy_parser() -> ArgumentParser:
    """A subcommand each for `options.command`."""
    parser = command_parser(
        "A federation of real processes: SuperLink, SuperNodes, TLS, node keys.", ["python federated/deploy.py up --nodes 3 --tls"]
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "federation", help="where it lives (default: outputs/federation)")
    commands = parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="start a SuperLink and nodes on this machine")
    up.add_argument("--nodes", type=int, default=3, help="SuperNodes on this machine (default: 3)")
    up.add_argument("--tls", action="store_true", help="encrypt, and let in only nodes whose key is registered")
    up.add_argument("--port", type=int, default=0, help="of the SuperLink, on this machine only (default: a free one)")
    up.add_argument("--listen", default="", metavar="HOST:PORT", help="let nodes of other hosts in here; needs --tls")
    up.add_argument("--host", action="append", default=[], metavar="NAME", help="name or address by which they reach it; may be repeated")
    up.add_argument("--app-hash", default="", help="the only app that nodes run (deploy.py hash)")
    up.add_argument("--stay", action="store_true", help="do not return; SIGTERM ends everything and leaves keys and logs (containers)")

    run = commands.add_parser("run", help="run an app to its end; exit code 0 only if it completed")
    run.add_argument("--app", type=Path, default=APP, help="folder of the app (default: federated/)")
    run.add_argument("--run-config", action="append", default=[], metavar="'KEY=VALUE ...'", help="as in flwr run; may be repeated")
    run.add_argument("--timeout-s", type=float, default=None, help="stop the run after this long")
    run.add_argument("--quiet", action="store_true", help="do not show the run's log")

    commands.add_parser("status", help="processes, nodes and runs; exit code 0 only if all is well")
    commands.add_parser("down", help="end it and remove its files").add_argument("--keep", action="store_true", help="keep keys and logs")
    commands.add_parser("key", help="make a key pair for a node").add_argument(
        "path", type=Path, help="of the private key; .pub is put beside it"
    )
    commands.add_parser("admit", help="let in a node of another host").add_argument("public_key", type=Path, help="its NAME.pub")
    commands.add_parser("dismiss", help="shut a node out").add_argument("name")
    commands.add_parser("hash", help="print the hash of an app, for --app-hash").add_argument("--app", type=Path, default=APP)

    join = commands.add_parser("join", help="run one node here, for a SuperLink elsewhere")
    join.add_argument("--name", default="node", help="of the process (default: node)")
    join.add_argument("--superlink", required=True, metavar="HOST:PORT", help="what the other host gave to --listen")
    join.add_argument("--ca", type=Path, required=True, help="the other host's keys/ca.crt")
    join.add_argument("--key", type=Path, required=True, help="this node's private key")
    join.add_argument("--node-config", default="partition-id=0", help="as in flower-supernode, such as 'partition-id=3 num-partitions=4'")
    join.add_argument(
        "--app-hash", required=True, help="the only app this node runs; any: trust the SuperLink with all that this user may read"
    )
    join.add_argument("--stay", action="store_true", help="do not return; SIGTERM ends the node (containers)")
    return parser
