"""The head of a cluster, over SSH: commands, files, and a port of its own that is reached from here."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.cluster.cluster_file import ClusterFile
from pipeline.errors import RunError

_CONNECT = 10  # seconds
_SILENCE, _SILENCES = 5, 3  # seconds between two questions whether the other side is there, and unanswered ones
_LOOK = 0.1  # seconds between two looks at a tunnel
_UNREACHED = 255  # ssh's exit status where it is not the command's


class Head:
    """Where `ray up` has put localpipe, and where its runs are: in ~/runs.

    ssh asks for no password and trusts a machine that it meets for the first time, and no other in its place.
    """

    def __init__(self, cluster: ClusterFile) -> None:
        self._cluster = cluster
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": _CONNECT,
            "ServerAliveInterval": _SILENCE,
            "ServerAliveCountMax": _SILENCES,
            "StrictHostKeyChecking": "accept-new",
            "LogLevel": "ERROR",
        }
        self._ssh = ["ssh", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
        if cluster.key is not None:
            self._ssh += ["-i", str(cluster.key)]
        if cluster.proxy is not None:
            self._ssh += ["-o", f"ProxyCommand={cluster.proxy}"]
        self._at = f"{cluster.user}@{cluster.head}"

    def run(self, command: str, *, seconds: float) -> str:
        """What a shell command prints there, in the home folder.

        Raises:
            RunError: the head is not reached, or the command fails or takes longer.
        """
        done = self._finish([*self._ssh, self._at, command], seconds)
        if done.returncode == _UNREACHED:
            raise RunError(self._unreached(done.stderr))
        if done.returncode:
            raise RunError(f"{self._at}: `{command}` failed: {_last_line(done.stderr or done.stdout)}")
        return done.stdout

    def has(self, folder: str) -> bool:
        """Whether there is such a folder below its home folder. Raises RunError as ``run``."""
        return bool(self.run(f"test -d {shlex.quote(folder)} && echo yes || true", seconds=2 * _CONNECT).strip())

    def fetch(self, name: str, into: Path) -> bool:
        """Copies ~/runs/NAME into a folder here, whose own folder NAME it becomes; whether there is any.

        Raises:
            RunError: it cannot be copied.
        """
        into.mkdir(parents=True, exist_ok=True)
        self._rsync("--ignore-missing-args", f"{self._at}:runs/{name}", str(into))
        return (into / name).is_dir()

    def send(self, folder: Path, name: str) -> None:
        """Copies a folder from here to ~/runs/NAME. Raises RunError as ``fetch``."""
        self.run("mkdir -p runs", seconds=_CONNECT)
        self._rsync(f"{folder}/", f"{self._at}:runs/{name}")

    def _rsync(self, *arguments: str) -> None:
        """As long as bytes come: a run may weigh gigabytes."""
        try:
            done = self._finish(
                ["rsync", "-az", f"--timeout={_SILENCE * _SILENCES}", "-e", shlex.join(self._ssh), *arguments], None
            )
        except FileNotFoundError as error:
            raise RunError("rsync is not installed here (Debian: apt install rsync).") from error
        if done.returncode == _UNREACHED:
            raise RunError(self._unreached(done.stderr))
        if done.returncode:
            raise RunError(f"{self._at}: rsync failed: {_last_line(done.stderr)}")

    @contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """A port of this machine that leads to one of the head's own. It ends with the block.

        Raises:
            RunError: the head is not reached.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            here: int = free.getsockname()[1]
        asked = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{here}:127.0.0.1:{port}"]
        # In a group of its own: a terminal sends Ctrl-C to all of its own group, and the run is still to be heard then.
        ssh = subprocess.Popen(  # noqa: S603 (a person's own cluster, by the file that says so)
            [*self._ssh, *asked, self._at],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            end = time.monotonic() + 2 * _CONNECT
            while not _answers(here):
                if ssh.poll() is not None or time.monotonic() > end:
                    ssh.kill()
                    raise RunError(self._unreached(ssh.communicate()[1]))
                time.sleep(_LOOK)
            yield here
        finally:
            ssh.kill()
            ssh.communicate()

    def _finish(self, command: list[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 (as above)
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                process_group=0,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{self._at}: no end after {seconds:g} s of: {command[-1]}") from error

    def _unreached(self, said: str) -> str:
        return (
            f"{self._cluster.path}: its head, {self._at}, cannot be reached: {_last_line(said)}. Correct head_ip, "
            f"ssh_user or ssh_private_key, or start the machine; `ssh {self._at}` must need no password."
        )


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=_CONNECT).close()
    except OSError:
        return False
    return True


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "no reason is given"
