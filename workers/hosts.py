"""The machines of a cluster that a run has joined, as far as Ray knows them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine of a cluster.

    Attributes:
        node: as Ray calls it.
        address: its IP address.
        name: its host name.
        cores, gpus: that Ray gives to work.
        memory_gib: as Ray gives it to work, in GiB.
    """

    node: str
    address: str
    name: str
    cores: int
    gpus: int
    memory_gib: float


def hosts() -> list[Host]:
    """Those that are there, by their addresses. Ray must be initialised."""
    import ray  # noqa: PLC0415 (it is being started while this module is imported)

    found = [
        Host(
            node=node["NodeID"],
            address=node["NodeManagerAddress"],
            name=node["NodeManagerHostname"],
            cores=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory_gib=round(node["Resources"].get("memory", 0) / 2**30, 1),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda host: (ip_address(host.address).version, ip_address(host.address).packed))
