"""What `deploy.py` asks a SuperLink: which nodes there are, which runs, how a run ended. Flower's Control interface in a few words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StopRunRequest, UnregisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from kronos.errors import InputError, MissingFileError

CONNECTION = "deployment"  # its name in $FLWR_HOME/config.toml


@dataclass(frozen=True)
class Link:
    """How to reach a SuperLink. address: host:port. authority: CA certificate, None for plain text. home: $FLWR_HOME of its own."""

    address: str
    authority: Path | None
    home: Path

    def write_home(self) -> None:
        """Makes the home that `flwr` reads its connections from. Raises OSError."""
        self.home.mkdir(parents=True, exist_ok=True)
        trust = f'root-certificates = "{self.authority}"' if self.authority else "insecure = true"
        text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{self.address}"\n{trust}\n'
        (self.home / "config.toml").write_text(text)

    def environment(self) -> dict[str, str]:
        """Environment of every Flower process: own home, our interpreter's commands, nothing installed at run time, nobody phoned."""
        return {
            "FLWR_HOME": str(self.home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    @contextmanager
    def open(self) -> Iterator[ControlHttpClient]:
        """A client of the Control interface. Raises InputError if the SuperLink does not answer or refuses."""
        client = ControlHttpClient.from_server_address(
            self.address,
            insecure=self.authority is None,
            root_certificates=str(self.authority) if self.authority else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise InputError(f"the SuperLink at {self.address} refused: {error.response.text.strip()[:300]}") from error
        except httpx.TransportError as error:
            raise InputError(f"the SuperLink at {self.address} does not answer ({error}); see deploy.py status") from error
        finally:
            client.close()

    def answers(self) -> bool:
        """Whether a SuperLink is there and speaks to us."""
        try:
            self.nodes()
            return True
        except InputError:
            return False

    def admit(self, public_key: Path, name: str) -> int:
        """Registers a node's public key (OpenSSH, NIST curve); returns its node id. Raises MissingFileError, InputError."""
        key = read_public_key(public_key)
        with self.open() as client:
            return int(client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def dismiss(self, public_key: Path) -> None:
        """Unregisters the node with this public key: the SuperLink refuses it from now on. Raises MissingFileError, InputError."""
        key = read_public_key(public_key)
        with self.open() as client:
            for node in client.ListNodes(ListNodesRequest()).nodes_info:
                if node.public_key == key:
                    client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))

    def nodes(self) -> dict[int, str]:
        """State of each registered node by its id: registered, online, offline."""
        with self.open() as client:
            return {node.node_id: node.status for node in client.ListNodes(ListNodesRequest()).nodes_info}

    def runs(self, run_id: int | None = None) -> dict[int, str]:
        """State of each run by its id, such as "running" or "finished:completed"; of one run only, if given."""
        with self.open() as client:
            answer = client.ListRuns(ListRunsRequest(run_id=run_id) if run_id is not None else ListRunsRequest())
        return {number: ":".join(filter(None, [run.status.status, run.status.sub_status])) for number, run in answer.run_dict.items()}

    def stop(self, run_id: int) -> None:
        """Ends a run."""
        with self.open() as client:
            client.StopRun(StopRunRequest(run_id=run_id))

    def submit(self, app: Path, run_config: Sequence[str] = ()) -> int:
        """Bundles the app and starts a run by `flwr run`; returns its id. run_config: "key=value key=value" each. Raises InputError."""
        command = ["flwr", "run", str(app), CONNECTION, "--format", "json"]
        for part in run_config:
            command += ["--run-config", part]
        done = self.flwr(command)
        try:
            answer: Mapping[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            said = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
            raise InputError(f"the run was not accepted: {str(said).strip()[-600:]}")
        return int(str(answer["run-id"]))

    def flwr(self, command: Sequence[str], *, show: bool = False) -> subprocess.CompletedProcess[str]:
        """Runs a `flwr` command with this home, its output captured, or shown."""
        return subprocess.run(command, env={**os.environ, **self.environment()}, capture_output=not show, text=True, check=False)


def read_public_key(path: Path) -> bytes:
    """A node's public key (OpenSSH, NIST curve) as Flower sends it. Raises MissingFileError, InputError."""
    if not path.is_file():
        raise MissingFileError(f"public key {path} is not there; make a pair with deploy.py key")
    try:
        key = load_ssh_public_key(path.read_bytes())
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"{path} is not the public half of a node's key (it begins with ecdsa-sha2-nistp384); give the .pub file")
    return public_key_to_bytes(key)


def bundle_hash(app: Path) -> str:
    """SHA-256 of the bundle that `flwr run` would send for this app folder. Raises MissingFileError."""
    import hashlib

    from flwr.cli.build import build_fab_from_disk

    if not (app / "pyproject.toml").is_file():
        raise MissingFileError(f"{app} is no Flower app: it has no pyproject.toml")
    return hashlib.sha256(build_fab_from_disk(app)).hexdigest()
