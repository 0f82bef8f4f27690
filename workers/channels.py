"""What the channels between a cluster's neighbours are like, measured by actors that use them as stages do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import ray
import torch
from ray.exceptions import RayError

from pipeline.errors import ResourcesError, RunError
from pipeline.kind import Kind
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.offset import Offset, OffsetEstimate
from pipeline.transport.base import DeviceKind, Edge, automatic
from pipeline.transport.edges import EdgeGroups
from pipeline.transport.edges import Ends as TransportEnds
from pipeline.transport.message import Message, message_bytes
from pipeline.transport.shared_memory import SharedSender
from workers.failures import failure_of
from workers.hosts import Host, living_hosts, on_node, this_node
from workers.placement import gpu_environment
from workers.rendezvous import Exchange, Said, meeting
from workers.stage import own_device
from workers.topology import Place, ask_nvidia_smi, links_in, stage_order

_PAYLOAD = 4 << 20  # bytes of a message, as of a stage's activations
_DEPTH = 8  # messages that may wait: enough that a long way does not hold them up
_SECONDS = 0.5  # that messages stream, and so many round trips where these take longer
_ROUND_TRIPS = 20
_BESIDE = 4  # calls that an actor answers at once: while a channel is opened, both ends ask the sending one
_TIMEOUT = 20.0  # seconds without a message after which a channel counts as broken
_START = 60.0  # seconds in which an actor starts, where there is a device for it
_PATIENCE = 90.0  # seconds in which a channel is measured, or never
_COUNTERS = Path("/proc/net/snmp")
CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
"""Names TCP's congestion control on this machine."""


@dataclass(frozen=True, kw_only=True)
class ChannelFigures:
    """What a channel does.

    Attributes:
        transport: kind of its carrier.
        bytes_per_second: of messages that stream.
        delay: seconds that a message without payload is under way.
        resent: share of TCP's segments that were lost and sent again meanwhile, all of the sender's machine together;
            None where they take another way than TCP, or the system does not say.
        control: TCP's congestion control on the sender's machine, such as "cubic"; None as above.
    """

    transport: str
    bytes_per_second: float
    delay: float
    resent: float | None
    control: str | None = None


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A channel that was tried: its figures, or in words why it has none."""

    sender: Host
    receiver: Host
    figures: ChannelFigures | None
    failure: str = ""


class ChannelEnd:
    """An end of channels, in an actor where a stage could be."""

    def __init__(self, kind: DeviceKind) -> None:
        torch.set_num_threads(1)
        self._device = own_device(kind)
        self._exchange: Exchange | None = None

    def where(self) -> tuple[str, str]:
        """Its GPU as the node calls it, "0" for none; and the node's table of links between GPUs."""
        gpus = ray.get_gpu_ids()
        return (str(gpus[0]), ask_nvidia_smi()) if gpus else ("0", "")

    def now(self) -> float:
        """Seconds since 1970, by this machine."""
        return time.time()

    def open_exchange(self, secret: bytes) -> None:
        """Has both ends of a channel meet here (``workers.rendezvous``). Asked of the sending one."""
        self._exchange = Exchange(secret)

    def exchange(self, secret: bytes, said: Said, heard: int) -> Said:
        """As ``Exchange.exchange``. Asked of the sending end."""
        assert self._exchange is not None, "open_exchange() comes first"
        return self._exchange.exchange(secret, said, heard)

    def _join(self, rank: int, groups: EdgeGroups, first: Any) -> TransportEnds:
        with meeting(first, groups) as store:
            return groups.join(rank, self._device, Clock(), store, address=ray.util.get_node_ip_address())

    def send(self, groups: EdgeGroups, first: Any) -> tuple[str, float, float | None, str | None]:
        """Measures as rank 0: the carrier's kind, a message's delay in seconds, the share of segments sent again, TCP's
        congestion control.

        Args:
            first: the sending end's actor, where both meet. Also of ``receive``.
        """
        ends = self._join(0, groups, first)
        try:
            (out,), (back,) = ends.outboxes, ends.inboxes
            trips = []
            for _ in range(_ROUND_TRIPS):
                begun = time.perf_counter()
                out.send(Message(Kind.CHECKPOINT))
                back.receive()
                trips.append(time.perf_counter() - begun)
            trip = statistics.median(trips)
            shared = isinstance(out, SharedSender)
            message = _message(self._device)
            before = None if shared else _segments()
            end = time.perf_counter() + max(_SECONDS, _ROUND_TRIPS * trip)
            while time.perf_counter() < end:
                out.send(message)
            out.send(Message(Kind.STOP))
            back.receive()  # all of them are there
            after = None if shared else _segments()
        finally:
            ends.break_off()
        resent = None
        if before is not None and after is not None:
            resent = (after[1] - before[1]) / max(1, after[0] - before[0])
        kind = "shm" if shared else groups.edges[0].transport
        return "gloo" if kind == "auto" else kind, trip / 2, resent, None if shared else _congestion_control()

    def receive(self, groups: EdgeGroups, first: Any) -> float:
        """Measures as rank 1: bytes per second of the messages that stream."""
        ends = self._join(1, groups, first)
        try:
            (back,), (inbox,) = ends.outboxes, ends.inboxes
            for _ in range(_ROUND_TRIPS):
                inbox.receive()
                back.send(Message(Kind.CHECKPOINT))
            inbox.receive()  # from its arrival on
            begun, count, ended = time.perf_counter(), 0, 0.0
            while inbox.receive().kind is not Kind.STOP:
                count, ended = count + 1, time.perf_counter()
            back.send(Message(Kind.STOP))
            back.close()
        finally:
            ends.break_off()
        return count * _PAYLOAD / (ended - begun) if count else 0.0


def _message(device: torch.device) -> Message:
    return Message(Kind.TRAIN, tensors={"x": torch.ones(_PAYLOAD // 4, device=device)})


def _congestion_control() -> str | None:
    try:
        return CONTROL.read_text().strip()
    except OSError:
        return None


def _segments() -> tuple[int, int] | None:
    """TCP's segments that this machine has sent, and those of them that it has sent again; None without Linux."""
    try:
        names, values = (line.split() for line in _COUNTERS.read_text().splitlines() if line.startswith("Tcp:"))
    except OSError:
        return None
    known = dict(zip(names[1:], map(int, values[1:]), strict=True))
    return known["OutSegs"], known["RetransSegs"]


# ---------------------------------------------------------------------------------------------------------------------
# The launching process's part


@dataclass(frozen=True)
class _Stand:
    """Where a stage could be, and the actor there."""

    host: Host
    worker: Any


class Ends:
    """Actors on the hosts of a cluster, in the order in which stages would be there. A context manager.

    Args:
        kind: of the devices.
        within: whether channels within a host are measured as well: two actors on each that has two cores, or one for
            each GPU. Otherwise one a host.

    Attributes:
        absent: hosts on which none could be started, and why.
    """

    def __init__(self, hosts: Sequence[Host], kind: DeviceKind, *, within: bool = True) -> None:
        self._kind, self._within = kind, within
        self.absent: dict[Host, str] = {}
        self._stands = self._order(self._started(hosts))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stand in self._stands:
            ray.kill(stand.worker)

    def clocks(self, rounds: int = 10) -> dict[Host, Offset]:
        """By how much each other host's clock is ahead of this one's."""
        found: dict[Host, Offset] = {}
        here = this_node()
        for stand in self._stands:
            if stand.host.node == here or stand.host in found:
                continue
            estimate = OffsetEstimate()
            try:
                for _ in range(rounds):
                    asked = time.time()
                    told = ray.get(stand.worker.now.remote(), timeout=_TIMEOUT)
                    estimate.heard(asked, told, time.time())
            except RayError:  # it is gone, which the channel to it says
                continue
            found[stand.host] = estimate.best
        return found

    def measured(self) -> Iterator[Channel]:
        """The channel between every two neighbours, one after the other."""
        for first, second in pairwise(self._stands):
            try:
                figures, failure = self._measure(first, second), ""
            except RunError as error:
                figures, failure = None, error.fact
            yield Channel(sender=first.host, receiver=second.host, figures=figures, failure=failure)

    def _measure(self, first: _Stand, second: _Stand) -> ChannelFigures:
        name = f"{first.host.name} → {second.host.name}"
        transport = automatic(self._kind)[0].kind if self._kind == "cuda" else "auto"
        size = message_bytes(_message(torch.device("meta")))
        edges = Edge(name, 0, 1, size, transport), Edge(f"{name} (back)", 1, 0, 0, transport)
        groups = EdgeGroups(edges, 2, _TIMEOUT, _DEPTH)
        self._get(name, [first.worker.open_exchange.remote(groups.secret)])
        (kind, delay, resent, control), speed = self._get(
            name, [first.worker.send.remote(groups, first.worker), second.worker.receive.remote(groups, first.worker)]
        )
        return ChannelFigures(transport=kind, bytes_per_second=speed, delay=delay, resent=resent, control=control)

    def _get(self, name: str, asked: list[Any]) -> list[Any]:
        """Raises RunError where one of them fails, as soon as it does."""
        end, waiting = time.monotonic() + _PATIENCE, asked
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, end - time.monotonic()))
            if not done:
                raise RunError(f"{name}: no answer within {_PATIENCE:g} s")
            try:
                ray.get(done)
            except RayError as error:
                raise failure_of(name, error) from error
        return list(ray.get(asked))

    def _started(self, hosts: Sequence[Host]) -> list[_Stand]:
        on_gpus = self._kind == "cuda"
        places = [host for host in hosts for _ in range(host.gpus if on_gpus else min(2, max(1, host.cores)))]
        made: Any = ray.remote(ChannelEnd)
        environment = gpu_environment(automatic("cuda")[0].kind) if on_gpus else None
        stands = [
            _Stand(
                host,
                made.options(
                    max_concurrency=_BESIDE,
                    num_cpus=0,
                    num_gpus=int(on_gpus),
                    runtime_env=environment,
                    scheduling_strategy=on_node(host.node),
                ).remote(self._kind),
            )
            for host in places
        ]
        ready = {stand.worker.now.remote(): stand for stand in stands}
        ray.wait(list(ready), num_returns=len(ready), timeout=_START)
        well = []
        for ref, stand in ready.items():
            try:
                ray.get(ref, timeout=0)
                well.append(stand)
            except RayError as error:
                ray.kill(stand.worker)
                self.absent[stand.host] = failure_of("its end of the channel", error).fact
        return well

    def _number(self, host: Host) -> int:
        """Of actors on a host."""
        most = host.gpus if self._kind == "cuda" else min(2, max(1, host.cores))
        return most if self._within else min(1, most)

    def _order(self, stands: list[_Stand]) -> list[_Stand]:
        if self._kind == "cpu":
            return stands
        seen = ray.get([stand.worker.where.remote() for stand in stands])
        places = [Place(stand.host.node, gpu) for stand, (gpu, _) in zip(stands, seen, strict=True)]
        links = {place.node: links_in(told) for place, (_, told) in zip(places, seen, strict=True)}
        return [stands[index] for index in stage_order(places, this_node(), links)]


def link_between_hosts(kind: DeviceKind) -> ChannelFigures | None:
    """The least bandwidth and the longest delay between neighbours of the cluster, which hold a pipeline over them
    back. None where all devices are on one machine.

    Raises:
        ResourcesError: a channel does not work, or cannot be tried.
    """
    hosts = [host for host in living_hosts() if (host.gpus if kind == "cuda" else host.cores)]
    if len(hosts) < 2:
        return None
    with Ends(hosts, kind, within=False) as ends:
        channels = list(ends.measured())
    failures = [f"{host}: {why}" for host, why in ends.absent.items()]
    failures += [f"{one.sender} → {one.receiver}: {one.failure}" for one in channels if one.figures is None]
    if failures:
        raise ResourcesError(f"{'; '.join(failures)}. `launch doctor` looks at the hosts and what is between them.")
    figures = [one.figures for one in channels if one.figures is not None]
    return ChannelFigures(
        transport=figures[0].transport,
        bytes_per_second=min(one.bytes_per_second for one in figures),
        delay=max(one.delay for one in figures),
        resent=max((one.resent for one in figures if one.resent is not None), default=None),
        control=max(figures, key=lambda one: one.delay).control,
    )
