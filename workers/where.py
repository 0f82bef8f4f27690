"""Where a run through Ray takes place: on a cluster that is there, or on one that is started for it on this machine."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ResourcesError

LOCAL = "local"
"""The address of a cluster that is started for the run."""

_ANSWER = 4.0  # seconds for a machine, and then for the Ray on it, to answer
_PORT, _CLIENT_PORT = 6379, 10001


@dataclass(frozen=True)
class Where:
    """A cluster's address, as Ray takes it, and why it is this one."""

    address: str
    why: str

    @property
    def joined(self) -> bool:
        """Whether it is there already; it may have other devices than this machine."""
        return self.address != LOCAL


def where(given: str | None) -> Where:
    """Which cluster a run is on: the one that is named, else that of this machine, else one of its own.

    Args:
        given: the setting `ray_address`.
    """
    if given is not None:
        return Where(given, "`ray_address`")
    if address := os.environ.get("RAY_ADDRESS"):
        return Where(address, "RAY_ADDRESS is set")
    if (node := _node_here()) is not None:  # by its address: of several, Ray's own "auto" is the latest one's
        return Where(node, "of the Ray node on this machine; `ray_address` local starts Ray for this run alone")
    return Where(LOCAL, "no address is given, and no Ray node runs on this machine")


def knock(address: str) -> None:
    """Whether a cluster can be joined from here, as far as can be said at once. Ray itself would try for a minute.

    Raises:
        ResourcesError: nobody answers, or this machine is no part of the cluster.
    """
    if address in ("auto", LOCAL):
        return
    try:
        host, port, is_client = _target(address)
        with socket.create_connection((host, port), timeout=_ANSWER) as connection:
            found = connection.getpeername()[0]
    except (OSError, ValueError) as error:
        raise ResourcesError(unreachable(address, str(error))) from error
    if not is_client and not _is_here(found, port):
        raise ResourcesError(
            f"{address} is the cluster of other machines, and Ray lets only those join it so. From here give "
            f"`ray_address` ray://{host}:{_CLIENT_PORT}, or type the command on a machine of the cluster."
        )


def _target(address: str) -> tuple[str, int, bool]:
    """Host and port, and whether they are those of Ray's client. Raises ValueError where it is no address."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    is_client = parts.scheme == "ray"
    return parts.hostname or "", parts.port or (_CLIENT_PORT if is_client else _PORT), is_client


def unreachable(address: str, reason: str) -> str:
    """A sentence about a cluster that cannot be joined."""
    return (
        f"The Ray cluster at {address} cannot be reached: {reason}. Start one with `ray start --head`, correct "
        "`ray_address` or RAY_ADDRESS, or leave both out to run on this machine alone."
    )


def _node_here() -> str | None:
    """The cluster of which `ray start` made this machine a node, and which still runs here: HOST:PORT."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 (as Ray's own)
    try:
        address = (folder / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if address in _clusters_here() else None


def _is_here(host: str, port: int) -> bool:
    """Whether a node of the cluster with this address, of numbers, runs on this machine."""
    for address in _clusters_here():
        name, _, its_port = address.rpartition(":")
        with suppress(OSError):
            if int(its_port) == port and (host in ("127.0.0.1", "::1") or socket.gethostbyname(name) == host):
                return True
    return False


def _clusters_here() -> set[str]:
    """The clusters of this machine's nodes, private ones too, each as HOST:PORT of its head.

    Those that this user or root has started: a cluster of somebody else's could send this process what it likes.
    """
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            ours = process.stat().st_uid in (os.getuid(), 0)
            if ours and (process / "comm").read_text().strip() == "raylet":
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found |= {word.removeprefix("--gcs-address=") for word in words if word.startswith("--gcs-address=")}
    return found
