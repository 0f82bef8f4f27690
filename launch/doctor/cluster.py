"""`launch doctor` on a cluster: what every host lacks, what differs between hosts, and the channels between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ray.exceptions import GetTimeoutError, RayError

from launch.doctor.checks import Finding, Status, check
from launch.doctor.machine import Machine, look
from launch.output.console import counted
from pipeline.telemetry.offset import Offset
from pipeline.transport.base import DeviceKind
from workers.channels import Channel, Ends
from workers.failures import failure_of
from workers.hosts import Host, ask_hosts, living_hosts
from workers.software import Software, described, differences, installed, remedy, software_of

_ANSWER = 60.0  # seconds for a host to start a process, import torch and look at itself
_SKEW = 0.1  # seconds between two clocks that show where logs are compared
_SLOW = 100e6  # bytes per second, of a network of 1 Gbit/s: below it activations hold most pipelines up
_FAR = 2e-3  # seconds one way; above it two messages in a queue may not do
_LOSSY = 1e-3  # share of segments that are sent again
_HERE_ALONE = ("environment", "this folder")  # findings that are of the launching process


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What was found of a cluster.

    Attributes:
        machines, software: of the hosts that could be asked.
        silent: why others could not.
        clocks: by how much a host's clock is ahead of this one's.
        absent: hosts on which no end of a channel could be started, and why.
    """

    hosts: list[Host]
    machines: dict[Host, Machine]
    software: dict[Host, Software]
    silent: dict[Host, str]
    clocks: dict[Host, Offset]
    channels: list[Channel]
    absent: dict[Host, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "hosts": [
                {
                    **asdict(host),
                    "software": self.software.get(host),
                    "machine": asdict(self.machines[host]) if host in self.machines else None,
                    "silent": self.silent.get(host),
                    "clock_ahead": self.clocks[host].seconds if host in self.clocks else None,
                }
                for host in self.hosts
            ],
            "channels": [
                {
                    "from": one.sender.name,
                    "to": one.receiver.name,
                    "figures": None if one.figures is None else asdict(one.figures),
                    "failure": one.failure,
                }
                for one in self.channels
            ],
        }


def look_at_cluster(tell: Callable[[str], None]) -> Cluster:
    """Looks at the cluster that Ray has joined, through a task on each host and actors on neighbours.

    Args:
        tell: says what is being done.
    """
    hosts = living_hosts()
    software, silent = _sorted(software_of(hosts))
    # What differs may not even understand the question for the rest.
    asked = [host for host in software if not differences({"here": installed(), "there": software[host]})]
    machines, deaf = _sorted(ask_hosts(look, asked, _ANSWER))
    with Ends([host for host in asked if host not in deaf], _kind(hosts)) as ends:
        clocks = ends.clocks()
        tell(f"measuring the channels between {counted(len(hosts), 'host')} …")
        channels = list(ends.measured())
    return Cluster(
        hosts=hosts,
        machines=machines,
        software=software,
        silent=silent | deaf,
        clocks=clocks,
        channels=channels,
        absent=ends.absent,
    )


def _kind(hosts: Sequence[Host]) -> DeviceKind:
    """As runs with `device` auto take them."""
    return "cuda" if any(host.gpus for host in hosts) else "cpu"


def _sorted(answers: Mapping[Host, Any]) -> tuple[dict[Host, Any], dict[Host, str]]:
    """The answers, and why others are missing."""
    failed = {host: error for host, error in answers.items() if isinstance(error, RayError)}
    said = {
        host: "it did not answer in time" if isinstance(error, GetTimeoutError) else failure_of("it", error).fact
        for host, error in failed.items()
    }
    return {host: answer for host, answer in answers.items() if host not in failed}, said


# ---------------------------------------------------------------------------------------------------------------------
# Judged


def check_cluster(cluster: Cluster) -> list[Finding]:
    """A finding for each thing: of all hosts together where they are alike, else one for each kind."""
    return [
        *_of_hosts(cluster),
        *_software(cluster),
        *_together(cluster),
        *_clocks(cluster),
        *_channels(cluster),
        *_data(cluster),
    ]


def _of_hosts(cluster: Cluster) -> Iterator[Finding]:
    named = ", ".join(map(str, cluster.hosts))
    text = f"{counted(len(cluster.hosts), 'host')}: {named}; launched on {cluster.hosts[0].name}"
    yield Finding(name="cluster", status="ok", text=text)
    for host, why in cluster.silent.items():
        advice = "See that Ray works there (`ray status`) and that localpipe is installed for its Python."
        yield Finding(name=f"host {host.name}", status="problem", text=why, advice=advice)


def _software(cluster: Cluster) -> Iterator[Finding]:
    known = {str(host): software for host, software in cluster.software.items()}
    found = differences(known)
    if found:
        yield Finding(
            name="same software", status="problem", text="; ".join(map(str, found)), advice=f"{remedy(found)}"
        )
    elif known:
        text = described(cluster.software[cluster.hosts[0]]) if cluster.hosts[0] in cluster.software else "alike"
        yield Finding(name="localpipe", status="ok", text=f"{text} on every host")
    drivers = {
        host.name: machine.driver_gpus[0].driver for host, machine in cluster.machines.items() if machine.driver_gpus
    }
    if len(set(drivers.values())) > 1:
        said = ", ".join(f"{driver} on {name}" for name, driver in drivers.items())
        yield Finding(
            name="drivers", status="warning", text=said, advice="Bits may differ between them: install one version."
        )


def _together(cluster: Cluster) -> Iterator[Finding]:
    """Each host's own findings; those that hosts share are said once."""
    by_host: dict[str, list[Finding]] = {}
    for host, machine in cluster.machines.items():
        # RAY_ADDRESS is how this came here.
        variables = {name: value for name, value in machine.variables.items() if name != "RAY_ADDRESS"}
        mine = check(replace(machine, variables=variables))
        is_here = host == cluster.hosts[0]
        by_host[host.name] = [one for one in mine if is_here or one.name not in _HERE_ALONE]
    names = dict.fromkeys(finding.name for findings in by_host.values() for finding in findings)
    for name in names:
        if name == "data sets":
            continue
        alike: dict[tuple[Status, str, str], list[str]] = {}
        for host_name, findings in by_host.items():
            for one in findings:
                if one.name == name:
                    alike.setdefault((one.status, one.text, one.advice), []).append(host_name)
        everywhere = len(alike) == 1 and len(next(iter(alike.values()))) == len(by_host)
        for (status, text, advice), where in alike.items():
            shown = name if everywhere else f"{name} on {', '.join(where)}"
            yield Finding(name=shown, status=status, text=text, advice=advice)


def _clocks(cluster: Cluster) -> Iterator[Finding]:
    for host, offset in cluster.clocks.items():
        off = abs(offset.seconds) - offset.uncertainty > _SKEW
        way = "ahead of" if offset.seconds > 0 else "behind"
        yield Finding(
            name=f"clock on {host.name}",
            status="warning" if off else "ok",
            text=f"{_shown(abs(offset.seconds))} {way} this host's, give or take {_shown(offset.uncertainty)}",
            advice="Logs of several hosts do not fit together: run chrony or systemd-timesyncd there." if off else "",
        )


def _channels(cluster: Cluster) -> Iterator[Finding]:
    for host, why in cluster.absent.items():
        advice = "Its channels are not measured. Another run may hold its devices: `ray status`."
        yield Finding(name=f"channel on {host.name}", status="warning", text=why, advice=advice)
    for one in cluster.channels:
        where = (
            f"within {one.sender.name}" if one.sender == one.receiver else f"{one.sender.name} → {one.receiver.name}"
        )
        if one.figures is None:
            advice = (
                f"Let {one.sender.address} and {one.receiver.address} reach each other on every TCP port: channels "
                "take those that the system gives them. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network."
            )
            yield Finding(name=f"channel {where}", status="problem", text=one.failure, advice=advice)
            continue
        figures = one.figures
        resent = "" if figures.resent is None else f", {figures.resent:.2%} lost and sent again"
        text = f"{figures.transport}, {figures.bytes_per_second / 1e6:,.0f} MB/s, {figures.delay * 1e6:,.0f} µs{resent}"
        troubles = [
            (figures.bytes_per_second < _SLOW, "Large messages hold stages up: --transfer-dtype bf16 halves them."),
            (figures.delay > _FAR, "It is far: give --queue-depth auto."),
            ((figures.resent or 0.0) > _LOSSY, "The network loses packets: look at cables, duplex and MTU."),
        ]
        advice = " ".join(what for so, what in troubles if so)
        yield Finding(name=f"channel {where}", status="warning" if advice else "ok", text=text, advice=advice)


def _data(cluster: Cluster) -> Iterator[Finding]:
    """Feeders read on the launching host; without them the first stage does, which is there where it has a device."""
    here = cluster.hosts[0]
    if here not in cluster.machines:
        return
    sets = cluster.machines[here].prepared
    yield Finding(name="data sets", status="ok", text=f"{', '.join(sets)} on {here.name}, where feeders read")
    on_gpus = _kind(cluster.hosts) == "cuda"
    first = next((host for host in cluster.hosts if (host.gpus if on_gpus else host.cores)), here)
    lacking = [name for name in sets if first in cluster.machines and name not in cluster.machines[first].prepared]
    if first != here and lacking:
        yield Finding(
            name=f"data sets on {first.name}",
            status="warning",
            text=f"{', '.join(lacking)} not prepared, and with --feeders 0 stage 1 reads there",
            advice="Prepare them there as well, or keep a feeder.",
        )


def _shown(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"
