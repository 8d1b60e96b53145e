"""The deployment: its keys, its gate, and drills with real SuperLinks and SuperNodes (slow)."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography import x509

from federated import node, supervisor
from federated.certificates import check_private, days_left, make_node_key, make_server_files, write_private
from federated.control import Link, bundle_hash
from federated.deployment import Deployment, Plan, free_port
from kronos.errors import InputError, MissingFileError

APP = Path(__file__).parent / "flower_app"


def _deploy(folder: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "federated.deploy", "--folder", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def _greets(server: Path, trusted: Path, host: str) -> str:
    """TLS handshake with a server that has the files of folder `server`, by a client that trusts `trusted`: the certificate's subject."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(server / "superlink.crt", server / "superlink.key")
    left, right = socket.socketpair()
    threading.Thread(target=lambda: _quietly(accepting.wrap_socket, left, server_side=True), daemon=True).start()
    with ssl.create_default_context(cafile=str(trusted)).wrap_socket(right, server_hostname=host) as connection:
        return str(connection.getpeercert()["subject"])


def _quietly(call, *arguments, **named):
    try:
        return call(*arguments, **named)
    except (ssl.SSLError, OSError):
        return None


def test_private_files_are_for_their_owner_only_and_the_authority_keeps_no_key(tmp_path):
    old = os.umask(0)
    try:
        files = make_server_files(tmp_path / "keys", ["desk.example", "10.0.0.7"])
        make_node_key(tmp_path / "keys" / "node-0")
    finally:
        os.umask(old)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    private = [path for path in (tmp_path / "keys").iterdir() if b"PRIVATE" in path.read_bytes()]
    assert sorted(path.name for path in private) == ["node-0", "superlink.key"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in private)
    names = (
        x509.load_pem_x509_certificate(files.certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )
    assert {"localhost", "desk.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert 360 < days_left(files.certificate) < 366


def test_a_client_believes_the_right_authority_under_the_right_name_only(tmp_path):
    ours, other = make_server_files(tmp_path / "ours", ["desk.example"]), make_server_files(tmp_path / "other")
    assert "Kronos SuperLink" in _greets(tmp_path / "ours", ours.authority, "desk.example")
    for trusted, host in ((other.authority, "desk.example"), (ours.authority, "evil.example")):
        with pytest.raises(ssl.SSLCertVerificationError):
            _greets(tmp_path / "ours", trusted, host)


def test_keys_that_others_can_read_or_that_are_not_there_are_refused(tmp_path):
    make_node_key(tmp_path / "node")
    check_private(tmp_path / "node").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        check_private(tmp_path / "node")
    with pytest.raises(MissingFileError, match="make one with"):
        check_private(tmp_path / "none")
    with pytest.raises(InputError, match="already"):
        make_node_key(tmp_path / "node")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "node", b"")
    with pytest.raises(InputError, match="neither an address nor a host name"):
        make_server_files(tmp_path / "keys", ["no such host"])


def test_mistakes_end_in_one_message_and_exit_code_2(tmp_path):
    for arguments, said in [
        (("status",), "no federation is up"),
        (("down",), "no federation is up"),
        (("up", "--listen", "0.0.0.0:9092"), "not without --tls"),
        (("hash", "--app", str(tmp_path)), "no Flower app"),
    ]:
        done = _deploy(tmp_path / "none", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr


def test_a_bundle_of_the_same_files_has_the_same_hash_and_of_others_another(tmp_path):
    shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    assert bundle_hash(tmp_path / "app") == bundle_hash(APP)
    with open(tmp_path / "app" / "tiny_app.py", "a") as file:
        file.write("# one more line\n")
    assert bundle_hash(tmp_path / "app") != bundle_hash(APP)


def test_flower_still_has_the_places_where_a_node_is_taught_to_pin_and_to_return():
    assert callable(node.flower_supernode.start_client_internal)
    assert callable(node.start_client_internal._verify_fab)
    assert node.fleet_http_connection.FleetHttpClient is node.FleetHttpClient


@pytest.mark.parametrize(
    "config, told",
    [
        ("min-secure-clients=1", "min-secure-clients is 1; expected"),
        ("min-secure-clients=five", "cannot be read; expected such as"),
        ("require-secure = true", "cannot be read; expected such as"),
        ("require-secure", "cannot be read; expected such as"),
    ],
)
def test_a_node_whose_owners_wishes_cannot_be_read_is_not_started(tmp_path, config, told):
    with pytest.raises(InputError, match=told):
        Deployment(tmp_path / "desk").join("desk", "127.0.0.1:1", tmp_path / "ca.crt", tmp_path / "key", f"partition-id=1 {config}", "")
    assert not (tmp_path / "desk").exists()


class Federation:
    """One node here, one that joined through the gate from a folder of its own, as on another host; both run the tiny app alone."""

    def __init__(self, root: Path) -> None:
        self.here, self.there = Deployment(root / "here"), Deployment(root / "there")
        self.gate = f"127.0.0.1:{free_port()}"
        self.plan = Plan(nodes=1, tls=True, port=free_port(), listen=self.gate, app_hash=bundle_hash(APP))
        self.key = root / "desk"

    def begin(self) -> None:
        self.here.up(self.plan, say=lambda text: None)
        self.here.admit(make_node_key(self.key))
        self.there.join("desk", self.gate, self.here.files.authority, self.key, "partition-id=1", self.plan.app_hash)

    def end(self) -> None:
        for deployment in (self.here, self.there):
            supervisor.stop(deployment.folder)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("federation"))
    try:
        federation.begin()
        yield federation
    finally:
        federation.end()


SIGN_ON = """
import json, pathlib, sys
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supernode import fleet_http_connection as flower

def refused(code, message):
    raise PermissionError(message)

flower.flwr_exit = refused  # which would end the process: here, the attempt
for name, address, authority, key in json.load(sys.stdin):
    private = load_ssh_private_key(pathlib.Path(key).read_bytes(), None) if key else None
    keys = private and (private, private.public_key())
    trusted = pathlib.Path(authority).read_bytes() if authority else None
    try:
        with flower.http_request_response(address, authority is None, trusted, keys, max_retries=0, max_wait_time=1.0) as connection:
            print(json.dumps([name, True, str(connection[0])]))
    except PermissionError as error:
        print(json.dumps([name, False, str(error)]))
"""


@pytest.mark.slow
def test_wrong_key_no_key_wrong_authority_and_plain_text_are_refused(federation, tmp_path):
    right, wrong = str(federation.here.files.authority), str(make_server_files(tmp_path / "other").authority)
    make_node_key(tmp_path / "stranger")
    make_node_key(tmp_path / "guest")
    federation.here.admit(tmp_path / "guest.pub")
    attempts = {
        "wrong key": (right, str(tmp_path / "stranger")),
        "no key": (right, None),
        "wrong authority": (wrong, str(tmp_path / "guest")),
        "plain text": (None, None),
        "all right": (right, str(tmp_path / "guest")),
    }
    places = {"superlink": federation.here.link.address, "gate": federation.gate}
    cases = [(f"{name} at {place}", address, *attempts[name]) for name in attempts for place, address in places.items()]
    done = subprocess.run([sys.executable, "-c", SIGN_ON], input=json.dumps(cases), capture_output=True, text=True, timeout=90, check=True)
    told = {name: (came_in, said) for name, came_in, said in map(json.loads, done.stdout.splitlines())}
    assert {name for name, (came_in, _) in told.items() if came_in} == {"all right at superlink", "all right at gate"}
    assert len(told) == len(cases)
    assert "CERTIFICATE_VERIFY_FAILED" in told["wrong authority at gate"][1]


@pytest.mark.slow
def test_the_gate_lets_nodes_in_and_hides_what_starts_runs(federation):
    verify = ssl.create_default_context(cafile=str(federation.here.files.authority))
    closed = [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/docs",
        "/health",
    ]
    for path in closed:
        assert httpx.post(f"https://{federation.gate}{path}", verify=verify).status_code == 404, path
    assert httpx.post(f"https://{federation.gate}/v1/fleet/../control/list-runs", verify=verify).status_code == 404
    assert not Link(federation.gate, federation.here.files.authority, federation.here.folder).answers()
    assert federation.here.link.answers()


@pytest.mark.slow
def test_a_node_killed_mid_round_is_left_out_comes_back_and_takes_part_again(federation, tmp_path):
    out = tmp_path / "rounds.json"
    config = f'rounds=2 wait-for=2 slow-partition=1 slow-s=50 out="{out}"'
    ended: list[str] = []
    run = threading.Thread(target=lambda: ended.append(federation.here.run(APP, [config], quiet=True, timeout_s=100)))
    run.start()
    _soon(out.with_suffix(".slow").exists)
    before = supervisor.state(federation.there.folder)[0]["pid"]
    killed = time.monotonic()
    os.kill(before, signal.SIGKILL)
    rounds = _soon(lambda: out.exists() and json.loads(out.read_text()))
    assert rounds[0]["survivors"] == [0]
    assert rounds[0]["asked"] == 2
    assert time.monotonic() - killed < 40  # neither the 50 s of its work nor the 60 s of its heartbeat were waited for
    run.join()
    assert ended == ["completed"]
    assert json.loads(out.read_text())[1]["survivors"] == [0, 1]
    after = supervisor.state(federation.there.folder)[0]
    assert after["pid"] != before
    assert after["restarts"] >= 1
    assert _deploy(federation.here.folder, "status").returncode == 0


@pytest.mark.slow
def test_nodes_refuse_code_that_their_owners_have_not_read_and_a_failed_run_is_no_success(federation, tmp_path):
    shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "app" / "tiny_app.py", "a") as file:
        file.write("# uploads the bars\n")
    done = _deploy(federation.here.folder, "run", "--app", str(tmp_path / "app"), "--quiet", "--timeout-s", "60")
    assert done.returncode == 1, done.stderr
    assert "run failed" in done.stdout
    for log in (federation.here.folder / "logs" / "node-0.log", federation.there.folder / "logs" / "desk.log"):
        assert "could not verify the FAB" in log.read_text()


@pytest.mark.slow
def test_a_dismissed_node_is_out_at_once(federation):
    assert _deploy(federation.here.folder, "dismiss", "desk").returncode == 0
    assert list(federation.here.link.nodes().values()).count("online") == 1
    assert _deploy(federation.here.folder, "dismiss", "desk").returncode == 2


@pytest.mark.slow
def test_no_private_key_is_in_any_log_or_readable_by_others(federation):
    secrets = []
    for path in [*federation.here.folder.rglob("*"), *federation.there.folder.rglob("*"), federation.key]:
        if path.is_file() and path.parent.name != "apps" and b"PRIVATE KEY-----" in path.read_bytes()[:64]:
            secrets.append(path)
            assert path.stat().st_mode & 0o077 == 0
    assert len(secrets) == 3
    lines = {line for path in secrets for line in path.read_text().splitlines()[1:-1]}
    for log in [*federation.here.folder.glob("logs/*"), *federation.there.folder.glob("logs/*")]:
        assert not [line for line in lines if line in log.read_text()]


@pytest.mark.slow
def test_down_leaves_no_process_no_port_and_no_file(federation):
    assert len(supervisor.members(federation.here.folder)) >= 5
    for deployment in (federation.there, federation.here):
        assert _deploy(deployment.folder, "down").returncode == 0
        assert not supervisor.members(deployment.folder)
        assert not deployment.folder.exists()
    for address in (federation.plan.port, federation.gate):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(str(address).rsplit(":")[-1]))) != 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(federation.here.folder) in " ".join(p.info["cmdline"] or [])]


def _soon(condition, timeout_s: float = 60.0):
    end = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return result
