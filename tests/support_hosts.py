"""Several machines on this one: network, process and mount namespaces with a home folder and an sshd each.

Host 0 is a person's own machine, whose SSH key opens all others; the switch between them reaches nothing else.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

_NET = "10.78.0"
_TOOLS = ("ip", "nsenter", "unshare", "setpriv", "ssh", "ssh-keygen", "rsync", "flock", "make")
_SSHD = "/usr/sbin/sshd"
_HOME = Path.home()
_PATH = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT = 120.0  # seconds

_FIRST_PROCESS = """
set -e
state=$1 home=$2; shift 2
hostname "$NAME"
mount --make-rprivate /
mount -t tmpfs keep /mnt
mkdir /mnt/state; mount --bind "$state" /mnt/state
n=0; for path in "$@"; do n=$((n + 1)); mkdir /mnt/$n; mount --bind "$path" /mnt/$n; done
for path in /tmp /dev/shm /run; do mount -t tmpfs -o mode=1777 own "$path"; done
chmod 755 /run; mkdir -p /run/sshd "$state"
mount --bind /mnt/state "$state"
mount --bind "$home" "$HOME"
n=0; for path in "$@"; do n=$((n + 1)); mkdir -p "$path"; mount --bind /mnt/$n "$path"; done
umount -l /mnt
cd; ulimit -c 0
/usr/sbin/sshd -D -e -f "$state/sshd_config" &
touch "$HOME/.up"
while :; do wait -n || sleep 1; done # and takes leave of orphans
"""
"""What a host does first: hides this machine's temporary folders and home behind its own, then starts sshd."""


def missing() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid():
        return "hosts are namespaces, which root alone makes"
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    lacking += [] if Path(_SSHD).exists() else ["sshd"]
    if lacking:
        return f"hosts need {', '.join(lacking)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False, capture_output=True)
    return "this machine makes no namespaces" if tried.returncode else None


class Hosts:
    """A context manager; with it end all hosts and what runs on them, also where this process is killed.

    Args:
        count: hosts beside host 0.
    """

    def __init__(self, count: int) -> None:
        self._count, self._stack = count, ExitStack()
        self._prefix = f"lp{os.getpid()}"
        self._first: dict[int, int] = {}  # a host's first process, seen from here

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._state = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)))
            for name in ("key", "host_key"):
                _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(self._state / name))
            (self._state / "sshd_config").write_text(
                f"HostKey {self._state}/host_key\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
                "PidFile none\nAuthorizedKeysFile %h/.ssh/authorized_keys\nMaxStartups 100\n"
            )
            self._namespace(stack, f"{self._prefix}-switch")
            self._switch("link", "add", "br0", "type", "bridge")
            self._switch("link", "set", "br0", "up")
            for host in range(self._count + 1):
                self._plug(stack, host)
                self._boot(stack, host)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def name(self, host: int) -> str:
        """The host's name."""
        return f"{self._prefix}-{host}"

    def address(self, host: int) -> str:
        """The host's address."""
        return f"{_NET}.{10 + host}"

    def home(self, host: int) -> Path:
        """The host's home folder, as it is seen from here."""
        return self._state / f"home-{host}"

    def start(self, host: int, *command: str, cwd: str = "", **environment: str) -> subprocess.Popen[str]:
        """Starts a command on a host, in a session of its own; output and errors come together.

        Args:
            cwd: below its home folder.
            environment: beside the usual one.
        """
        there = {
            "HOME": str(_HOME),
            "USER": "root",
            "SHELL": "/bin/bash",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "PATH": _PATH,
            "PYTHONPATH": f"{_HOME}/localpipe",
        }
        given = [f"{name}={value}" for name, value in {**there, **environment}.items()]
        # As in a terminal: a shell that starts the tests in the background lets them, and theirs, ignore these.
        signals = ["--default-signal=INT", "--default-signal=HUP"]
        space = ["nsenter", "--target", str(self._first[host]), "--mount", "--pid", "--net", "--uts", "--ipc"]
        return subprocess.Popen(
            [*space, "env", "-i", *signals, f"--chdir={_HOME / cwd}", *given, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(
        self, host: int, *command: str, cwd: str = "", seconds: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host to its end; arguments as of ``start``."""
        process = self.start(host, *command, cwd=cwd, **environment)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            raise AssertionError(f"{command} on host {host} did not end in {seconds} s:\n{said}") from None
        return subprocess.CompletedProcess(command, process.returncode, said)

    def processes(self, host: int) -> list[str]:
        """Command lines of what runs on a host, but for what makes it one."""
        listed = self.run(host, "ps", "-eo", "args=").stdout.splitlines()
        return [line for line in listed if not line.startswith(("bash -c", "sshd:", "sleep 1", "ps -eo"))]

    def cut(self, host: int) -> None:
        """Pulls its cable."""
        self._switch("link", "set", f"port{host}", "down")

    def join(self, host: int) -> None:
        """Plugs its cable in again."""
        self._switch("link", "set", f"port{host}", "up")

    def power_off(self, host: int) -> None:
        """Ends it with everything on it, and says nothing to anybody."""
        self.cut(host)
        os.kill(self._first[host], signal.SIGKILL)

    def lend(self, host: int, sources: Path) -> None:
        """Copies Python sources to ``localpipe`` in its home folder: this project's rooms and tests."""
        for room in ("pipeline", "workers", "launch", "tests"):
            ignored = shutil.ignore_patterns("__pycache__", "fixtures")
            shutil.copytree(sources / room, self.home(host) / "localpipe" / room, ignore=ignored)

    def check_out(self, host: int, sources: Path) -> Path:
        """Copies what git knows of a checkout to ``localpipe`` in its home folder. Returns that, as seen from here."""
        folder = self.home(host) / "localpipe"
        listed = subprocess.run(["git", "ls-files"], cwd=sources, check=True, capture_output=True, text=True).stdout
        for name in [one for one in listed.split() if (sources / one).is_file()]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sources / name, folder / name)
        return folder

    def name_also(self, host: int, own: str, known: str) -> None:
        """Gives it two more addresses, as a cloud does: one that its programs take for their own, and one by which it
        is known outside. All hosts reach both.
        """
        here = f"ip -n {self.name(host)}"
        for address in (own, known):
            _do(*f"{here} address add {address}/32 dev eth0".split())
            for other in set(range(self._count + 1)) - {host}:
                _do(*f"ip -n {self.name(other)} route add {address}/32 dev eth0".split())
        _do(*f"{here} route replace default via {_NET}.254 src {own}".split())

    def far(self, milliseconds: float) -> None:
        """From now on everything arrives so much later, one way."""
        ports = [f"port{host}" for host in range(self._count + 1)]
        for port in ports:
            self._switch("link", "set", port, "nomaster")
        program = [sys.executable, str(Path(__file__).with_name("support_far.py")), str(milliseconds), *ports]
        switch = subprocess.Popen(["ip", "netns", "exec", f"{self._prefix}-switch", *program])
        self._stack.callback(switch.wait)
        self._stack.callback(switch.kill)

    def _switch(self, *words: str) -> None:
        _do("ip", "-n", f"{self._prefix}-switch", *words)

    def _namespace(self, stack: ExitStack, name: str) -> None:
        _do("ip", "netns", "add", name)
        stack.callback(_do, "ip", "netns", "delete", name)

    def _plug(self, stack: ExitStack, host: int) -> None:
        """A network with one cable, whose other end is in the switch, and names for all hosts."""
        name = self.name(host)
        self._namespace(stack, name)
        port = f"port{host}"
        _do(*f"ip -n {name} link add eth0 type veth peer name {port} netns {self._prefix}-switch".split())
        self._switch("link", "set", port, "master", "br0", "up")
        for words in ("lo up", "eth0 up"):
            _do(*f"ip -n {name} link set {words}".split())
        _do(*f"ip -n {name} address add {self.address(host)}/24 dev eth0".split())
        _do(*f"ip -n {name} route add default via {_NET}.254".split())  # programs ask it for their own address
        etc = Path("/etc/netns") / name
        etc.mkdir(parents=True)
        stack.callback(shutil.rmtree, etc)
        known = [f"{self.address(other)} {self.name(other)}" for other in range(self._count + 1)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
        (etc / "resolv.conf").write_text("")

    def _boot(self, stack: ExitStack, host: int) -> None:
        home = self.home(host)
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        shutil.copy(self._state / "key.pub", home / ".ssh" / "authorized_keys")
        (home / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")  # as Debian's: for interactive shells
        if host == 0:
            shutil.copy(self._state / "key", home / ".ssh" / "id_ed25519")
        hidden = [path for path in _pythons() if path.is_relative_to(_HOME) or path.is_relative_to("/tmp")]  # noqa: S108 (hidden there)
        spaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "--kill-child"]
        with (self._state / f"log-{host}").open("w") as log:
            outside = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.name(host), "setpriv", "--pdeathsig", "KILL", *spaces),
                    *("env", "-i", f"NAME={self.name(host)}", f"HOME={_HOME}", f"PATH={os.defpath}:/usr/sbin:/sbin"),
                    *("bash", "-c", _FIRST_PROCESS, "bash", str(self._state), str(home), *map(str, hidden)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        stack.callback(outside.wait)
        stack.callback(outside.kill)
        end = time.monotonic() + _BOOT
        while not (home / ".up").exists():
            assert outside.poll() is None and time.monotonic() < end, (self._state / f"log-{host}").read_text()
            time.sleep(0.05)
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        self._first[host] = int(children[0])


def filled_in(text: str, changes: Mapping[str, str]) -> str:
    """A shipped cluster file with what a person fills in, by what stands there, and with this Python's packages in
    place of a download.
    """
    ours = {
        "flock .installing make install": f"flock .installing ln -sfn {shlex.quote(sys.prefix)} .venv",
        "RAY_AUTH_MODE=token' >>": "RAY_AUTH_MODE=token PYTHONPATH=$HOME/localpipe' >>",
    }
    for shipped, here in {**ours, **changes}.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    return text


def _pythons() -> Sequence[Path]:
    """Where this Python, and what is installed for it, lie."""
    return [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()]


def _do(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
