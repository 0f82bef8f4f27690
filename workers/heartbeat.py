"""Whether the machines of a run still answer: noticed within seconds, where Ray itself waits for more than a minute.

It is the system of a machine that answers, however busy its programs are: a connection to the port where Ray's own
process listens is opened and closed. Where that is refused, the process is gone; where nothing comes back at all, the
machine is, or the cable to it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from workers.failures import ClusterLostError, HostLostError
from workers.hosts import Host

SILENT_AFTER = 3.0
"""Seconds without an answer after which a person is told."""
LOST_AFTER = 7.0
"""Seconds without an answer after which a machine counts as lost."""

_EVERY = 0.5  # seconds between two knocks
_PATIENCE = 2.5  # seconds for an answer: a lost packet is sent again after one
_LEAST = 2  # knocks without an answer: this process may have been suspended during one


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where a machine is knocked at.

    Attributes:
        name: the machine's.
        process: of Ray's that listens there.
        node: Ray's id of the machine; None where nothing goes on without it.
    """

    name: str
    address: str
    port: int
    process: str
    node: str | None


@dataclass(frozen=True, kw_only=True)
class Silence:
    """How a machine has not answered.

    Attributes:
        since: when the first knock began that nothing came back from, by the monotonic clock.
        knocks: how many those were.
        refused: whether it said that nobody listens.
    """

    since: float
    knocks: int
    refused: bool

    def lost(self, now: float) -> bool:
        return self.refused or (self.knocks >= _LEAST and now - self.since >= LOST_AFTER)


class Heartbeat:
    """Knocks at machines, in a thread of its own, until ``close``. Those that never answered are not judged.

    Args:
        tell: hears of a machine that is silent, in a sentence, from the thread that asks.
    """

    def __init__(self, doors: Collection[Door], tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._heard: set[Door] = set()
        self._silences: dict[Door, Silence] = {}
        self._told: set[Door] = set()
        self._doors = list(doors)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._knock_at_all, name="heartbeat", daemon=True)
        self._thread.start()

    def check(self, used: Collection[str] | None = None) -> None:
        """Looks at who has answered.

        Args:
            used: nodes by Ray's ids that matter; None: all of them.

        Raises:
            HostLostError: machines are lost; the message names them.
            ClusterLostError: among them one without which nothing goes on.
        """
        now = time.monotonic()
        silences = {
            door: silence
            for door, silence in self._silences.copy().items()
            if door.node is None or used is None or door.node in used
        }
        self._tell_of({door: one for door, one in silences.items() if not one.refused}, now)
        lost = {door: silence for door, silence in silences.items() if silence.lost(now)}
        if lost:
            said = "; ".join(dict.fromkeys(_lost(door, silence, now) for door, silence in lost.items()))
            nodes = frozenset(door.node for door in lost if door.node is not None)
            raise ClusterLostError(said) if any(door.node is None for door in lost) else HostLostError(said, nodes)

    def _tell_of(self, silences: Mapping[Door, Silence], now: float) -> None:
        """Once of each; before it counts as lost, however late somebody looks."""
        silent = {door for door, one in silences.items() if one.knocks >= _LEAST and now - one.since >= SILENT_AFTER}
        for door in silent - self._told:
            seconds = now - silences[door].since
            self._tell(
                f"host {door.name} has not answered for {seconds:.0f} s; after {LOST_AFTER:g} s it counts as lost."
            )
        self._told = silent

    def close(self) -> None:
        """Knocks no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _knock_at_all(self) -> None:
        tasks = [self._loop.create_task(self._knock_at(door)) for door in self._doors]
        try:
            self._loop.run_forever()
        finally:
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _knock_at(self, door: Door) -> None:
        while True:
            begun, refused = time.monotonic(), False
            try:
                await _knock(door.address, door.port)
            except OSError as error:
                refused = isinstance(error, ConnectionRefusedError)
                if door in self._heard:
                    before = self._silences.get(door)
                    since, knocks = (begun, 0) if before is None else (before.since, before.knocks)
                    self._silences[door] = Silence(since=since, knocks=knocks + 1, refused=refused)
            else:
                self._heard.add(door)
                self._silences.pop(door, None)
            await asyncio.sleep(_EVERY)


def silent(hosts: Sequence[Host]) -> list[Host]:
    """Those of some machines that do not answer, twice: Ray itself counts a lost one as there for a minute."""

    async def ask() -> list[list[bool]]:
        knocks = (asyncio.gather(*(_answers(host.address, host.port) for host in hosts)) for _ in range(_LEAST))
        return [await knock for knock in knocks]

    return [host for host, *answers in zip(hosts, *asyncio.run(ask()), strict=True) if not any(answers)]


async def _answers(address: str, port: int) -> bool:
    """Whether anybody opens."""
    try:
        await _knock(address, port)
    except OSError:
        return False
    return True


async def _knock(address: str, port: int) -> None:
    """Has a connection opened, and closes it. Raises OSError: nobody opens, or not in time."""
    async with asyncio.timeout(_PATIENCE):  # TimeoutError is an OSError
        _, writer = await asyncio.open_connection(address, port)
    writer.close()


def _lost(door: Door, silence: Silence, now: float) -> str:
    if silence.refused:
        return f"host {door.name} lost: Ray's {door.process} there has died"
    return f"host {door.name} lost: it has not answered for {now - silence.since:.0f} s"
