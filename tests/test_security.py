"""What docs/security.md promises of a run on one machine, tried by another user of that machine.

The other user is ``nobody``: a process that was started by root, which has what it needs loaded, and then is nobody's.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.spawn import Child, ChildFailedError
from pipeline.transport.base import Edge
from pipeline.transport.edges import EdgeGroups
from tests.support import FORKED, opened
from tests.support_cli import ROOT, Launched, launch
from tests.support_ray import ray_head
from workers.tokens import exposed_token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a busy machine takes minutes to start Ray

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

_LISTEN = "0A"  # a socket's state in the kernel's tables
_SMALL = ["--dim", "16", "--heads", "2", "--depth", "2", "--device", "cpu"]

_NOBODY = """
import json, os, socket, sys, time
import grpc
from pathlib import Path
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
os.setgroups([]); os.setgid(65534); os.setuid(65534)
given = json.loads(sys.argv[1])

def refused(work):
    try:
        return repr(work())
    except OSError as error:
        return type(error).__name__
"""


def by_nobody(program: str, given: Any) -> Any:
    """What a program of ``nobody`` says, in JSON."""
    command = [sys.executable, "-c", _NOBODY + program, json.dumps(given)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Run:
    """A run that goes on: its processes, what Ray's ask for, and where they write."""

    launched: Launched
    token: str
    folder: Path

    @property
    def processes(self) -> list[int]:
        return [self.launched.process.pid, *self.launched.descendants()]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """A run through Ray with all that it can have: a dashboard, metrics, feeders."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)  # as a home folder that others may look into
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(place))
        flags = [*_SMALL, "--stages", "2", "--epochs", "100000", "--dashboard", "--run-dir", str(place / "run")]
        launched = launch(place, "cff-vit", *flags, shared=True)
    try:
        launched.wait_for("epoch 2/")
        (folder,) = place.glob("lp-*")
        yield Run(launched, _token_of(launched), folder)
        launched.stop(signal.SIGINT)
        launched.finish()
        launched.assert_nothing_left()
        assert not folder.exists()
    finally:
        launched.end()
        shutil.rmtree(place, ignore_errors=True)


def _process(launched: Launched, name: str) -> int:
    """Of Ray's own processes the one whose program has this name."""
    (number,) = [number for number, command in launched.descendants().items() if f"/{name} " in command[:200]]
    return number


def _token_of(launched: Launched) -> str:
    """What its raylet has in its environment."""
    environment = Path(f"/proc/{_process(launched, 'raylet')}/environ").read_bytes().split(b"\0")
    assert b"RAY_AUTH_MODE=token" in environment
    (token,) = [one.partition(b"=")[2].decode() for one in environment if one.startswith(b"RAY_AUTH_TOKEN=")]
    return token


Listening = dict[int, ipaddress.IPv4Address | ipaddress.IPv6Address]
"""Ports, and the address at which each is listened to."""


def listening(processes: list[int]) -> Listening:
    """Where processes listen."""
    held = {link for number in processes for link in _open_files(number)}
    found: Listening = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTEN and f"socket:[{rest[5]}]" in held:
                address, port = local.split(":")
                words = [bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8)]
                found[int(port, 16)] = ipaddress.ip_address(b"".join(words))
    return found


def _open_files(process: int) -> Iterator[str]:
    with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
        for file in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed while we looked
                yield os.readlink(file)


def test_nothing_listens_beyond_the_loopback(run: Run) -> None:
    """Symptom: Ray's processes, the metrics' page and the store at which stages meet listened on all interfaces."""
    ports = listening(run.processes)
    assert len(ports) > 5
    assert all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in ports.values()), ports


@as_root
def test_nobody_else_reads_the_token_or_what_travels(run: Run) -> None:
    """Neither in a process's environment or arguments nor in a file; nor the memory through which activations go."""
    assert not [line for line in run.launched.descendants().values() if run.token in line]
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if run.token.encode() in _content(path)]
    looked_at = by_nobody(
        """
def tried(one):
    files = [Path(f"/proc/{one}/{name}") for name in ("environ", "mem")]
    return [refused(file.read_bytes) for file in files] + [refused(lambda: os.listdir(f"/proc/{one}/fd"))]

print(json.dumps([(one, tried(one)) for one in given]))
""",
        run.processes,
    )
    there = set(run.processes)  # now and then Ray ends a worker that has nothing to do
    told = [said for process, said in looked_at if process in there]
    assert len(told) > 5 and all(set(said) == {"PermissionError"} for said in told), looked_at
    shared = [path for path in Path("/dev/shm").iterdir() if _is_held(path, run.processes)]  # noqa: S108
    assert not [path for path in shared if path.stat().st_mode & 0o077]


def _content(path: Path) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):  # it went while we looked
        return path.read_bytes()
    return b""


def _is_held(path: Path, processes: list[int]) -> bool:
    return any(str(path).encode() in _content(Path(f"/proc/{number}/maps")) for number in processes)


@as_root
def test_nobody_else_reaches_what_ray_writes(run: Run) -> None:
    """Symptom: Ray's session folder, with its sockets, was open to everybody to write to."""
    (session,) = (run.folder / "ray").glob("session_2*")
    assert session.stat().st_mode & 0o002, "Ray itself still opens it to everybody"
    told = by_nobody(
        """
print(json.dumps([
    refused(lambda: os.listdir(given)),
    refused(lambda: os.listdir(given + "/ray")),
    refused(lambda: Path(given, "ray", "mine").write_text("mine")),
    refused(lambda: socket.socket(socket.AF_UNIX).connect(given + "/ray/session_latest/sockets/raylet")),
]))
""",
        str(run.folder),
    )
    assert set(told) == {"PermissionError"}


@as_root
def test_nobody_else_runs_anything_on_it(run: Run) -> None:
    """Symptom: nobody read Ray's token in a readable home folder, and ran a job as root."""
    (port,) = listening([_process(run.launched, "gcs_server")])
    asked = """
def ask(token):
    headers = [("authorization", f"Bearer {token}")] if token else []
    try:
        NodeInfoGcsServiceStub(grpc.insecure_channel(f"127.0.0.1:{given['port']}")).GetClusterId(
            GetClusterIdRequest(), metadata=headers, timeout=20)
    except grpc.RpcError as error:
        return error.code().name
    return "let in"

print(json.dumps([ask(token) for token in given["tokens"]]))
"""
    told = by_nobody(asked, {"port": port, "tokens": [None, "0" * 64, run.token]})
    assert told == ["UNAUTHENTICATED", "UNAUTHENTICATED", "let in"]


_STRANGER = """
def knock(port, said):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as line:
            line.sendall(said)
            line.settimeout(0.05)
            try:
                line.recv(64)
            except OSError:
                pass
    except OSError:
        return 0
    return 1

junk = [bytes(8) + b"x" * 4096, (1).to_bytes(8, "little") + bytes(64), b"\\xff" * 256, b"GET / HTTP/1.1\\r\\n\\r\\n",
        b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(32)]
print(json.dumps(sum(knock(port, said) for port in given for said in junk)))
"""


@pytest.mark.exhaustive
@as_root
@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_a_stranger_at_every_port_changes_no_bit(transport: str, tmp_path: Path) -> None:
    flags = [*_SMALL, "--epochs", "60", "--readout-epochs", "1"]
    through_ray = ["--stages", "2", "--transport", transport, "--run-dir", str(tmp_path / "run")]
    launched = launch(tmp_path, "cff-vit", *flags, *through_ray)
    launched.wait_for("epoch 2/")
    ports = sorted(listening([launched.process.pid, *launched.descendants()]))
    assert by_nobody(_STRANGER, ports) >= len(ports)
    assert launched.process.poll() is None, "the run was to go on meanwhile"
    assert launched.finish() == 0, launched.text()
    launched.assert_nothing_left()
    alone = launch(tmp_path, "cff-vit", *flags, "--executor", "serial", "--run-dir", str(tmp_path / "serial"))
    assert alone.finish() == 0, alone.text()
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "serial/model.safetensors").read_bytes()


@pytest.mark.parametrize("knows", [True, False])
def test_a_channel_takes_only_who_knows_the_run_s_secret(knows: bool, tmp_path: Path) -> None:
    groups = EdgeGroups((Edge("stage 1 → stage 2", 0, 1, 1 << 10, "gloo"),), 2, 60.0, 1)
    other = groups if knows else replace(groups, secret=bytes(32))
    ends: list[Child[None, bool]] = [
        Child(f"rank {rank}", opened, rank, secret, tmp_path / "store", context=FORKED)
        for rank, secret in enumerate((groups, other))
    ]
    try:
        for end in ends:
            end.send(None)
        for end in ends:
            if knows:
                assert end.receive()
            else:
                with pytest.raises(ChildFailedError, match="stage 1 → stage 2: what is at the other end is not of"):
                    end.receive()
    finally:
        for end in ends:
            end.close()


# ---------------------------------------------------------------------------------------------------------------------
# A cluster that is joined


@pytest.mark.exhaustive
def test_a_wrong_or_missing_token_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symptom: Ray tried for minutes."""
    with ray_head(monkeypatch) as address:
        monkeypatch.setenv("HOME", str(tmp_path))
        said = {}
        for given in ("none", "no file", "wrong"):
            monkeypatch.delenv("RAY_AUTH_MODE") if given == "none" else monkeypatch.setenv("RAY_AUTH_MODE", "token")
            monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64) if given == "wrong" else monkeypatch.delenv(
                "RAY_AUTH_TOKEN", raising=False
            )
            launched = launch(tmp_path, "cff-vit", "--dry-run", "--address", address)
            timer = threading.Timer(120, launched.process.kill)  # Ray itself tried for minutes
            timer.start()
            assert launched.finish() == 1, launched.text()
            timer.cancel()
            (said[given],) = [line for line in launched.text().splitlines() if "opening" not in line]
    assert f"error: The Ray cluster at {address} asks for its token, this process gives none. Set RAY_" in said["none"]
    assert "error: RAY_AUTH_MODE is token, and there is no token here. Set" in said["no file"]
    assert "asks for its token, not the one in RAY_AUTH_TOKEN. Set" in said["wrong"]


@pytest.mark.parametrize(
    ("mode", "home", "exposed"), [(0o644, 0o755, True), (0o600, 0o755, False), (0o644, 0o700, False)]
)
def test_a_token_that_others_can_read_is_told(
    mode: int, home: int, exposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        file = place / "auth_token"
        file.write_text("0" * 64)
        place.chmod(home)
        file.chmod(mode)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        told = exposed_token()
        assert (told is not None and f"`chmod 600 {file}`" in told) if exposed else told is None
    finally:
        shutil.rmtree(place)
