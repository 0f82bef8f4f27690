"""The machines of a Ray cluster: which there are, and what a task on each of them says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine of the cluster.

    Attributes:
        node: Ray's id of it.
        name: its host name.
        address: its IP address.
        port: of Ray's raylet there.
        cores, gpus: that Ray counts there, free or not.
        memory_gib: as Ray gives it to work, in GiB.
    """

    node: str
    name: str
    address: str
    port: int
    cores: int
    gpus: int
    memory_gib: float

    def __str__(self) -> str:
        return f"{self.name} ({self.address})" if self.name else self.address


def this_node() -> str:
    """The launching process's node, by Ray's id."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def living_hosts() -> list[Host]:
    """The machines that Ray counts as alive, in the order in which stages go over them: the launching one first, as
    feeders are there, then by address, as neighbours tend to be near."""
    found = [
        Host(
            node=node["NodeID"],
            name=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            port=node["NodeManagerPort"],
            cores=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory_gib=round(node["Resources"].get("memory", 0) / 2**30, 1),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    here = this_node()

    def place(host: Host) -> tuple[bool, int, bytes]:
        address = ip_address(host.address)
        return host.node != here, address.version, address.packed

    return sorted(found, key=place)


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """Where a task or an actor is to be: on this node, or nowhere."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def ask_hosts(question: Callable[[], _T], asked_of: Sequence[Host], seconds: float) -> dict[Host, _T | RayError]:
    """What a function returns on each machine, in a task that takes no core; its error where it fails, or has not
    answered within so many seconds."""
    task: Any = ray.remote(question)
    asked = {host: task.options(num_cpus=0, scheduling_strategy=on_node(host.node)).remote() for host in asked_of}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    answers: dict[Host, _T | RayError] = {}
    for host, ref in asked.items():
        try:
            answers[host] = ray.get(ref, timeout=0)
        except RayError as error:
            ray.cancel(ref)
            answers[host] = error
    return answers
