"""A federation of real processes on this machine: one SuperLink, its SuperNodes, keys between them, and a supervisor over all.

Everything lies in one folder, for its owner only:

    keys/             ca.crt, superlink.crt, superlink.key, node-0, node-0.pub ...
    home/             $FLWR_HOME of each process: Flower's own files, and never another federation's
    work/             where processes start: empty, so that nothing lying about is imported
    memory/           the number that each node had, see federated/node.py
    logs/             one file per process
    state.db          the SuperLink's: registered nodes and runs outlive its restart
    federation.json   what `up` was told
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from federated import supervisor
from federated.certificates import ServerFiles, check_private, days_left, make_node_key, make_server_files, private_folder
from federated.consent import Consent
from federated.control import Link
from federated.supervisor import Spec
from kronos.errors import InputError, MissingFileError

LOCAL = "127.0.0.1"
_START_S = 90.0  # a SuperLink on a busy machine takes 10 s
_SUBFOLDERS = ("keys", "home", "work", "memory", "logs")


@dataclass(frozen=True)
class Plan:
    """What `up` was told. nodes: SuperNodes on this machine. tls: encryption and node keys. port: the SuperLink's, on this machine only.

    listen: host:port for nodes of other hosts, "" for none. hosts: the names under which they reach it.
    app_hash: the only app nodes run, "" for any.
    """

    nodes: int
    tls: bool
    port: int
    listen: str = ""
    hosts: tuple[str, ...] = ()
    app_hash: str = ""


class Deployment:
    """The federation of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @property
    def plan(self) -> Plan:
        """Raises MissingFileError if nothing was started here."""
        path = self.folder / "federation.json"
        if not path.is_file():
            raise MissingFileError(f"no federation is up in {self.folder}; start one with: python federated/deploy.py up --nodes 3 --tls")
        saved = json.loads(path.read_text())
        return Plan(**{**saved, "hosts": tuple(saved["hosts"])})

    @property
    def link(self) -> Link:
        plan = self.plan
        return Link(f"{LOCAL}:{plan.port}", self.files.authority if plan.tls else None, self.folder / "home" / "control")

    @property
    def files(self) -> ServerFiles:
        return ServerFiles.of(self.folder / "keys")

    def up(self, plan: Plan, say: Callable[[str], None] = print) -> None:
        """Starts it and returns when every node is online. Raises InputError for a folder in use, and with the log's end for what fails."""
        if supervisor.members(self.folder):
            raise InputError(f"a federation is up in {self.folder}; end it with deploy.py down, or choose another --folder")
        if plan.listen and not plan.tls:
            raise InputError("--listen opens the federation to other hosts: not without --tls")
        for name in ("", *_SUBFOLDERS):
            private_folder(self.folder / name)
        for stale in ("state.db", "state.db-wal", "state.db-shm", supervisor.SPECS, supervisor.STATE):
            (self.folder / stale).unlink(missing_ok=True)
        if plan.tls:
            self._make_keys(plan, say)
        supervisor.write_json(self.folder / "federation.json", asdict(plan))
        self.link.write_home()
        supervisor.start(self.folder, self._server_specs(plan))
        self._wait(self.link.answers, "the SuperLink answers", "superlink")
        if plan.tls:
            for public in sorted((self.folder / "keys").glob("*.pub")):
                self.link.admit(public, public.stem)
        supervisor.add(self.folder, [self._node_spec(index, plan) for index in range(plan.nodes)])
        names = [f"node-{index}" for index in range(plan.nodes)]
        self._wait(lambda: self.online() >= plan.nodes, f"{plan.nodes} nodes are online", *names, "superlink")

    def admit(self, public_key: Path) -> int:
        """Lets in the node of another host with this public key, now and after every later `up`; returns its node id.

        Raises InputError for a name that is taken, and for what is no public key.
        """
        kept = self.folder / "keys" / f"{public_key.stem}.pub"
        if kept.exists():
            raise InputError(
                f"a node called {public_key.stem} was admitted before: rename {public_key}, or deploy.py dismiss {public_key.stem}"
            )
        node_id = self.link.admit(public_key, public_key.stem)
        shutil.copyfile(public_key, kept)
        return node_id

    def dismiss(self, name: str) -> None:
        """Shuts out the node that was admitted under this name. Raises MissingFileError if there is none."""
        kept = self.folder / "keys" / f"{name}.pub"
        self.link.dismiss(kept)
        kept.unlink()

    def stay(self) -> None:
        """Until SIGTERM or Ctrl-C, then ends everything but keys and logs: what a container runs. RuntimeError if it ends by itself."""
        asked: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: asked.append(received))
        while not asked:
            if not supervisor.alive(self.folder):
                raise RuntimeError(f"the supervisor has ended; see {self.folder / 'logs'}")
            time.sleep(0.5)
        self.down(keep=True)

    def _make_keys(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Keeps the keys of an earlier `up`, which other hosts may hold the other half of; makes those that are missing or out of date."""
        keys = self.folder / "keys"
        if not self.files.key.is_file() or days_left(self.files.certificate) < 7:
            self.files.key.unlink(missing_ok=True)
            make_server_files(keys, plan.hosts)
            say(f"new certificate: other hosts need {self.files.authority}")
        for index in range(plan.nodes):
            if not (keys / f"node-{index}").is_file():
                make_node_key(keys / f"node-{index}")

    def _server_specs(self, plan: Plan) -> list[Spec]:
        files = self.files
        command = ["flower-superlink", "--host", LOCAL, "--port", str(plan.port), "--database", str(self.folder / "state.db")]
        if plan.tls:
            command += ["--ssl-certfile", str(files.certificate), "--ssl-keyfile", str(check_private(files.key))]
            command += ["--ssl-ca-certfile", str(files.authority), "--enable-supernode-auth"]
        else:
            command += ["--insecure"]
        specs = [self.spec("superlink", command)]
        if plan.listen:
            gate = ["--listen", plan.listen, "--superlink", f"{LOCAL}:{plan.port}", "--certificates", str(self.folder / "keys")]
            specs.append(self.spec("gate", [sys.executable, "-m", "federated.gate", *gate]))
        return specs

    def _node_spec(self, index: int, plan: Plan) -> Spec:
        config = f"partition-id={index} num-partitions={plan.nodes}"
        key = self.folder / "keys" / f"node-{index}" if plan.tls else None
        return self.node_spec(
            f"node-{index}", f"{LOCAL}:{plan.port}", self.files.authority if plan.tls else None, key, config, plan.app_hash
        )

    def node_spec(self, name: str, superlink: str, authority: Path | None, key: Path | None, config: str, app_hash: str) -> Spec:
        """How a SuperNode is started. authority and key None: plain text, this machine only. config: its node-config."""
        command = [sys.executable, "-m", "federated.node", "--memory", str(self.folder / "memory" / name)]
        command += ["--app-hash", app_hash] if app_hash else []
        command += ["--", "--superlink", superlink, "--host", LOCAL, "--port", str(free_port()), "--node-config", config]
        if authority is None or key is None:
            return self.spec(name, [*command, "--insecure"])
        trust = ["--root-certificates", str(authority), "--auth-supernode-private-key", str(check_private(key))]
        return self.spec(name, [*command, *trust])

    def spec(self, name: str, command: list[str]) -> Spec:
        """A process of this federation, with a home of its own."""
        environment = Link("", None, self.folder / "home" / name).environment()
        if command[0] != sys.executable:
            command = [str(Path(sys.executable).parent / command[0]), *command[1:]]
        return Spec(name, command, environment, str(self.folder / "logs" / f"{name}.log"), str(self.folder / "work"))

    def join(self, name: str, superlink: str, authority: Path, key: Path, config: str, app_hash: str) -> None:
        """Starts one node of a federation whose SuperLink is elsewhere, under a supervisor of this folder. Raises InputError."""
        Consent.parse(config)
        days_left(authority)
        for part in ("", *_SUBFOLDERS):
            private_folder(self.folder / part)
        spec = self.node_spec(name, superlink, authority.resolve(), key.resolve(), config, app_hash)
        if supervisor.alive(self.folder):
            supervisor.add(self.folder, [spec])
        else:
            supervisor.start(self.folder, [spec])
        self._wait((self.folder / "memory" / name).is_file, f"{name} signed on at {superlink}", name)

    def run(self, app: Path, run_config: Sequence[str], *, quiet: bool = False, timeout_s: float | None = None) -> str:
        """Runs the app to its end; returns the run's last state. Ctrl-C and the timeout stop the run, not the federation."""
        link = self.link
        run_id = link.submit(app, run_config)
        began, last = time.monotonic(), ""
        try:
            if not quiet:
                link.flwr(["flwr", "log", str(run_id), "deployment", "--stream"], show=True)
            while not (last := link.runs(run_id)[run_id]).startswith("finished"):
                if timeout_s is not None and time.monotonic() - began > timeout_s:
                    raise InputError(f"run {run_id} was still {last} after {timeout_s:g} s and has been stopped; raise --timeout-s")
                time.sleep(0.5)
        finally:
            if not last.startswith("finished"):
                link.stop(run_id)
        return last.removeprefix("finished:")

    def online(self) -> int:
        """How many nodes are online."""
        return list(self.link.nodes().values()).count("online")

    def status(self) -> tuple[str, bool]:
        """A table of processes, nodes and runs, and whether all is well."""
        rows, well = [f"{'process':<12} {'pid':>8} restarts  last exits"], supervisor.alive(self.folder)
        for row in supervisor.state(self.folder):
            rows.append(f"{row['name']:<12} {row['pid'] or 'down':>8} {row['restarts']:>8}  {', '.join(map(str, row['exit_codes']))}")
            well = well and row["pid"] is not None
        if len(rows) > 1 and not (self.folder / "federation.json").is_file():  # nodes only, their SuperLink is elsewhere
            return "\n".join(rows), well
        link, online = self.link, self.online()
        rows += [f"SuperLink {link.address}, {'TLS and node keys' if self.plan.tls else 'plain text'}; {online} nodes online"]
        rows += [f"run {number}: {state}" for number, state in link.runs().items()]
        return "\n".join(rows), well and online >= self.plan.nodes

    def down(self, *, keep: bool = False) -> None:
        """Ends every process and removes the folder; keep: all but keys and logs. Raises MissingFileError if it is no federation's."""
        if not any((self.folder / name).exists() for name in (supervisor.SPECS, supervisor.PID, "federation.json")):
            raise MissingFileError(f"no federation is up in {self.folder}")
        supervisor.stop(self.folder)
        kept = {"keys", "logs"} if keep else set()
        ours = {*_SUBFOLDERS, "federation.json", "state.db", "state.db-wal", "state.db-shm", *supervisor.FILES}
        for name in ours - kept:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _wait(self, ready: Callable[[], bool], what: str, *names: str) -> None:
        """Until `ready`. A process that died is not waited for any longer."""
        end = time.monotonic() + _START_S
        while not ready():
            dead = next((row for row in supervisor.state(self.folder) if row["name"] in names and row["exit_codes"]), None)
            if dead is not None or time.monotonic() > end or not supervisor.alive(self.folder):
                name = str(dead["name"]) if dead else names[0]
                log = self.folder / "logs" / f"{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.is_file() else ""
                supervisor.stop(self.folder)
                raise InputError(f"waited in vain until {what}; {log} ends with:\n{tail}")
            time.sleep(0.3)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])
