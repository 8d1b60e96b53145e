"""A SuperNode that runs only the code its owner has read, and comes back at once when it was killed.

    python -m federated.node --app-hash HASH --memory FILE -- --superlink HOST:PORT --root-certificates ca.crt ...

What follows `--` are flower-supernode's own arguments. Without this a SuperNode runs whatever app the SuperLink sends, so that who holds
the SuperLink could send one that uploads the bars; secure aggregation and noise would protect from nobody. With --app-hash (the SHA-256 of
the app bundle; `deploy.py hash` prints it of a checkout) any other app is answered with Flower's "could not be verified".
A node that dies without a word stays online for the SuperLink until its heartbeat expires (a minute), and cannot come back before. It
remembers its number in --memory, and signs its former self off, with the same key, before it signs on. In between it stays away for a
few seconds: the server must look while it is off, or it would wait on for the answer that died with the former self.
Flower 1.41 has no official place for either: this file replaces three names inside it, and a test notices should they go.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest
from flwr.supercore.fab import Fab
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient

_PINNED = "pinned"
_AWAY_S = 8.0  # a server app looks every three seconds
flower_supernode = importlib.import_module("flwr.supernode.cli.flower_supernode")  # the package has a function of this name


def main(arguments: list[str]) -> None:
    """Runs flower-supernode until it ends."""
    ours, theirs = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--app-hash", default="")
    parser.add_argument("--memory", type=Path, required=True)
    options = parser.parse_args(ours)
    fleet_http_connection.FleetHttpClient = returning_client(options.memory)
    if options.app_hash:
        pin(options.app_hash)
    sys.argv = ["flower-supernode", *theirs]
    flower_supernode.flower_supernode()


def returning_client(memory: Path) -> type[FleetHttpClient]:
    """A client of the Fleet API that signs its former self off before it signs on. memory: file with the node's number."""

    class ReturningClient(FleetHttpClient):
        def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:
            if memory.is_file():
                with suppress(httpx.HTTPStatusError):  # it was off already, or the SuperLink is a new one that never knew it
                    self.DeactivateNode(DeactivateNodeRequest(node_id=int(memory.read_text())))
                    time.sleep(_AWAY_S)
            response = super().ActivateNode(request)
            memory.write_text(str(response.node_id))
            return response

        def GetFab(self, request: GetFabRequest) -> GetFabResponse:
            response = super().GetFab(request)
            response.fab.verifications["valid_license"] = _PINNED  # Flower asks for this entry before it asks `_verify_fab`
            return response

    return ReturningClient


def pin(app_hash: str) -> None:
    """From now on this process's SuperNode takes an app bundle with this SHA-256 and no other."""
    original = flower_supernode.start_client_internal

    def start_pinned(**settings: Any) -> None:
        original(**{**settings, "trusted_entities": {_PINNED: app_hash}})

    def is_pinned(fab: Fab, trusted: dict[str, str]) -> bool:
        return hashlib.sha256(fab.content).hexdigest() == trusted[_PINNED]  # of the content: the hash beside it is the sender's word

    flower_supernode.start_client_internal = start_pinned
    start_client_internal._verify_fab = is_pinned


if __name__ == "__main__":
    main(sys.argv[1:])
