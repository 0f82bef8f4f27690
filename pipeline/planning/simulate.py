"""What a pipeline would do: its schedule, event by event, with made-up seconds instead of tensors.

Who waits for whom is what ``pipeline.runtime.stage``, ``pipeline.transport.channel`` and
``pipeline.layers.shared_state`` make of it:

  stage     receive → first layers → the last layer's forward pass → send → its loss, backward pass and update
  edge      a message leaves the sender's hand once it has heard of a free buffer at the receiver's: ``queue_depth``
            wait there, beside the one that is worked on; the sender waits while the message before is still in its
            hand. Over a long way both the message and the word that a buffer is free come later
  feeder    as a stage that only sends; several take turns
  layer     reads its version of the shared state, such as label embeddings, behind the send; a version exists when
            every contribution that makes it has come
  cores     who computes at the same time shares them evenly

Pure arithmetic: nothing is measured here, and the same seed gives the same result.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

import numpy as np

from pipeline.telemetry.clock import TimeCategory
from pipeline.versions import Versions

_GAIN = 0.01  # what must be gained by removing something for it to count as the limit


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """Seconds of one layer's training step, on a device that it has for itself while all others work as well."""

    before: float
    """Until its activations can be sent. The first layer's holds the augmentation."""
    after: float = 0.0
    """Loss, backward pass, update."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Seconds that a message costs between two neighbours."""

    send: float = 0.0
    """Of the sender's device: the copy out."""
    transfer: float = 0.0
    """Until the sender's hand is empty: bytes over bandwidth. Nobody's device is busy."""
    delay: float = 0.0
    """Of a long way, in either direction: so much later is there what has left the sender's hand, and so much later
    does the sender hear of a free buffer. Several messages may be under way."""
    spread: float = 0.0
    """Of a long way, by how much later the last byte of a message is there where one is sent in a round trip: a TCP
    that paces spreads all that leaves in a round trip over a part of it. Of several each takes its share."""
    receive: float = 0.0
    """Of the receiver's device: the copy in."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Where batches come from."""

    seconds: float = 0.0
    """One feeder's, to read and batch."""
    feeders: int = 1
    """0: the first stage reads by itself, before its step."""
    edge: Edge = Edge()
    on_cores: bool = True
    """Whether feeders work on the cores that the stages share. False where the stages are on GPUs."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """What stages run on, and how fast each gets on while some of them compute.

    With more running than cores, each gets its share. With fewer than were busy when the costs were taken, each is
    faster: cores share memory and clock.
    """

    count: float = math.inf
    """Devices. inf: every stage has its own."""
    profiled: int = 1
    """Devices that were busy when the costs were taken."""
    alone: float = 1.0
    """How much faster a device is while no other one works."""
    others: float = 0.0
    """Devices' worth of work that others do meanwhile, such as Ray's own processes."""
    crowded: float = 1.0
    """How fast stages that take turns on a core are beside those that keep theirs, to the power of how many a core has:
    caches fill anew at every turn."""

    def speed(self, running: int) -> float:
        """Of each, relative to the costs, while so many compute."""
        free = max(0, self.profiled - running) / (self.profiled - 1) if self.profiled > 1 else 0.0
        turns = self.crowded ** (running / self.count) if running > self.count else 1.0
        return min(1.0, (self.count - self.others) / running) * turns * (1.0 + (self.alone - 1.0) * free)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A state that the layers share and change, such as label embeddings."""

    versions: Versions
    seconds: float = 0.0
    """From the last contribution to a version to its being with the stages."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """All that the schedule depends on.

    Attributes:
        stages: for each stage its layers' work.
        edges: between neighbours, one fewer than stages.
        queue_depth: messages that may wait before a stage, beside the one it works on.
        jitter: standard deviation over mean of a step's seconds (log-normal), drawn for each stage and step.
    """

    stages: tuple[tuple[LayerWork, ...], ...]
    edges: tuple[Edge, ...]
    queue_depth: int = 2
    feed: Feed = field(default_factory=Feed)
    cores: Cores = field(default_factory=Cores)
    shared: Shared | None = None
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.stages and all(self.stages), "every stage has a layer"
        assert len(self.edges) == len(self.stages) - 1, "an edge between every two stages"

    @property
    def num_layers(self) -> int:
        return sum(len(layers) for layers in self.stages)

    @property
    def stage_seconds(self) -> list[float]:
        """Work of each stage in a step, copies included."""
        work = [sum(layer.before + layer.after for layer in layers) for layers in self.stages]
        for stage, edge in enumerate(self.edges):
            work[stage] += edge.send
            work[stage + 1] += edge.receive
        return work


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulated pipeline did once it was full.

    Attributes:
        steps_per_second: of the last stage.
        fill_seconds: what the first step takes beyond a step of the full pipeline: T steps take that and T of them.
        shares: for each stage how its time was spent, as ``pipeline.telemetry.clock.TimeBreakdown`` has it;
            they add up to 1.
        ended: for each stage when its steps ended, in seconds from the start.
    """

    steps_per_second: float
    fill_seconds: float
    shares: tuple[dict[TimeCategory, float], ...]
    ended: tuple[tuple[float, ...], ...]

    @property
    def utilisation(self) -> tuple[float, ...]:
        """Share of time in which each stage computes."""
        return tuple(share[TimeCategory.BUSY] for share in self.shares)

    def fill(self, num_steps: int) -> float:
        """Share of the time of so many steps in which the pipeline is full."""
        full = num_steps / self.steps_per_second
        return full / (full + self.fill_seconds) if num_steps else 0.0


def simulate(pipeline: Pipeline, *, num_steps: int | None = None) -> Outcome:
    """Runs the schedule until the last stage has done ``num_steps`` steps of the full pipeline.

    Default: so many that their mean is good to 0.3 %, 100 to 2,000.
    """
    if num_steps is None:
        num_steps = round(min(2000.0, max(100.0, (pipeline.jitter / 0.003) ** 2)))
    machine = _Machine(pipeline.cores)
    num_stages = len(pipeline.stages)
    warm = max(20, 4 * num_stages)
    stages = _build(pipeline, machine)
    machine.run(lambda: len(stages[-1].ended) >= warm + num_steps)
    ended = stages[-1].ended
    rate = num_steps / (ended[warm + num_steps - 1] - ended[warm - 1])
    return Outcome(
        steps_per_second=rate,
        fill_seconds=max(0.0, ended[0] - 1 / rate),
        shares=tuple(stage.shares() for stage in stages),
        ended=tuple(tuple(stage.ended) for stage in stages),
    )


@dataclass(frozen=True)
class Limit:
    """What holds a pipeline back. ``stage`` is 0-based; that of a link is the one that sends."""

    kind: Literal["stage", "cores", "feeder", "link", "shared"]
    stage: int | None = None

    def __str__(self) -> str:
        match self.kind:
            case "stage":
                assert self.stage is not None
                return f"stage {self.stage + 1}"
            case "link":
                assert self.stage is not None
                return f"the link from stage {self.stage + 1}"
            case "shared":
                return "the state that the layers share"
            case _:
                return f"the {self.kind}"


def limit(pipeline: Pipeline) -> Limit:
    """What holds the pipeline back: that without which it would be fastest, else its busiest stage.

    Found by simulating the pipeline with a feeder, links, a shared state that cost nothing, one after the other.
    """
    steady = replace(pipeline, jitter=0.0)
    rate = simulate(steady, num_steps=60).steps_per_second
    seconds_of = [edge.transfer + edge.delay for edge in pipeline.edges]
    slowest = max(range(len(seconds_of)), key=lambda stage: seconds_of[stage], default=None)
    without = {
        Limit("feeder"): replace(steady, feed=replace(steady.feed, seconds=0.0, edge=Edge())),
        Limit("link", slowest): replace(
            steady, edges=tuple(replace(edge, transfer=0.0, delay=0.0) for edge in steady.edges)
        ),
        Limit("shared"): replace(steady, shared=None),
    }
    gains = {
        what: simulate(other, num_steps=60).steps_per_second / rate - 1
        for what, other in without.items()
        if other != steady
    }
    best = max(gains, key=lambda what: gains[what], default=None)
    if best is not None and gains[best] > _GAIN:
        return best
    if len(pipeline.stages) > pipeline.cores.count:
        return Limit("cores")
    seconds = pipeline.stage_seconds
    return Limit("stage", max(range(len(seconds)), key=lambda stage: seconds[stage]))


# ---------------------------------------------------------------------------------------------------------------------
# The machine: processes are generators that ask for work, for time to pass, or for a counter to get so far


class _Counter:
    """How far something has come. Processes wait for it to get somewhere."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.waiting: list[tuple[int, _Process]] = []


@dataclass(frozen=True, slots=True)
class _Work:
    """Of a shared core, so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Delay:
    """Time passes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Until:
    """The counter has come to ``due``."""

    counter: _Counter
    due: int


_Request = _Work | _Delay | _Until
_Process = Generator[_Request, None, None]


class _Machine:
    """Runs processes in simulated time."""

    def __init__(self, cores: Cores) -> None:
        self.now = 0.0
        self._cores = cores
        self._order = count()  # of requests: what falls on one moment happens in the order it was asked for
        # Running processes all proceed at one speed, so each ends when the work done by any of them reaches a mark.
        self._done = 0.0
        self._running: list[tuple[float, int, _Process]] = []
        self._sleeping: list[tuple[float, int, _Process]] = []
        self._ready: deque[_Process] = deque()

    def start(self, process: _Process) -> None:
        self._ready.append(process)

    def raise_to(self, counter: _Counter, value: int) -> None:
        """Sets a counter, which never falls, and wakes who waited for it."""
        counter.value = value
        self._ready.extend(process for due, process in counter.waiting if due <= value)
        counter.waiting = [(due, process) for due, process in counter.waiting if due > value]

    def run(self, is_over: Callable[[], bool]) -> None:
        while True:
            while self._ready:
                self._go_on(self._ready.popleft())
            if is_over():
                return
            speed = self._cores.speed(len(self._running)) if self._running else 0.0
            finished = self.now + (self._running[0][0] - self._done) / speed if self._running else math.inf
            woken = self._sleeping[0][0] if self._sleeping else math.inf
            assert min(finished, woken) < math.inf, "everyone waits for someone"
            if finished <= woken:
                self.now = finished
                self._done, _, process = heapq.heappop(self._running)
            else:
                self._done += (woken - self.now) * speed
                self.now, _, process = heapq.heappop(self._sleeping)
            self._ready.append(process)

    def _go_on(self, process: _Process) -> None:
        """Runs a process up to its next request that takes time."""
        for request in process:
            match request:
                case _Work(seconds) if seconds > 0:
                    heapq.heappush(self._running, (self._done + seconds, next(self._order), process))
                    return
                case _Delay(seconds) if seconds > 0:
                    heapq.heappush(self._sleeping, (self.now + seconds, next(self._order), process))
                    return
                case _Until(counter, due) if counter.value < due:
                    counter.waiting.append((due, process))
                    return
                case _:
                    continue


# ---------------------------------------------------------------------------------------------------------------------
# What runs on it


class _Channel:
    """A bounded queue between two ends.

    Attributes:
        handed: messages that the sender has packed.
        left: messages that have left the sender's hand.
        arrived: messages that lie in the receiver's buffers, or did.
        freed: messages whose buffer the receiver has given back, as far as the sender has heard.
    """

    def __init__(self, machine: _Machine, depth: int, edge: Edge) -> None:
        self.edge = edge
        self._machine = machine
        self._depth = depth
        self._late = edge.spread / (depth + 1)
        self.handed, self.left, self.arrived, self.freed = _Counter(), _Counter(), _Counter(), _Counter()
        machine.start(self._carry())

    def _carry(self) -> _Process:
        for number in count():
            yield _Until(self.handed, number + 1)
            yield _Until(self.freed, number - self._depth)
            yield _Delay(self.edge.transfer)
            self._machine.raise_to(self.left, number + 1)
            self._later(self.arrived, number + 1, self.edge.delay + self._late)

    def _later(self, counter: _Counter, value: int, seconds: float) -> None:
        """Sets a counter at the other end of the way."""
        if seconds:
            self._machine.start(self._travel(counter, value, seconds))
        else:
            self._machine.raise_to(counter, value)

    def _travel(self, counter: _Counter, value: int, seconds: float) -> _Process:
        yield _Delay(seconds)
        self._machine.raise_to(counter, value)

    def hand(self, number: int) -> None:
        """Message ``number`` (0-based) is packed. The one before has left."""
        self._machine.raise_to(self.handed, number + 1)

    def free(self, number: int) -> None:
        """The receiver asks for message ``number``: the ones before are done with."""
        self._later(self.freed, number, self.edge.delay)


_ENDLESS = 1 << 60  # steps of the one epoch that is simulated


class _Sync:
    """The shared state's versions."""

    def __init__(self, machine: _Machine, shared: Shared) -> None:
        self._machine, self._seconds = machine, shared.seconds
        self._versions = replace(shared.versions, steps_per_epoch=_ENDLESS)
        self._pushed = {layer: _Counter() for layer in self._versions.contributors}
        self._version = _Counter()
        if self._pushed:
            machine.start(self._advance())

    def _advance(self) -> _Process:
        for version in count():
            for layer, step in self._versions.updates(version):
                yield _Until(self._pushed[layer], step + 1)
            yield _Delay(self._seconds)
            self._machine.raise_to(self._version, version + 1)

    def read(self, layer: int, step: int) -> _Until:
        return _Until(self._version, self._versions.read(layer, step))

    def push(self, layer: int, step: int) -> None:
        if layer in self._pushed:
            self._machine.raise_to(self._pushed[layer], step + 1)


class _Stage:
    """One stage, and its account."""

    def __init__(
        self,
        machine: _Machine,
        layers: tuple[LayerWork, ...],
        first: int,
        inboxes: list[_Channel],
        outbox: _Channel | None,
        sync: _Sync | None,
        jitter: Iterator[float],
        reads: float,
    ) -> None:
        self._machine, self._layers, self._first = machine, layers, first
        self._inboxes, self._outbox, self._sync = inboxes, outbox, sync
        self._jitter, self._reads = jitter, reads
        self._spent = dict.fromkeys(TimeCategory, 0.0)
        self._accounts: list[dict[TimeCategory, float]] = []  # at the end of each step
        self.ended: list[float] = []
        machine.start(self._run())

    def _run(self) -> _Process:
        for step in count():
            yield from self._receive(step)
            factor = next(self._jitter)
            for index, layer in enumerate(self._layers):
                yield from self._spend(TimeCategory.BUSY, _Work(layer.before * factor))
                if index == len(self._layers) - 1:
                    yield from self._send(step)
                if self._sync is not None:
                    yield from self._spend(TimeCategory.SYNC, self._sync.read(self._first + index, step))
                yield from self._spend(TimeCategory.BUSY, _Work(layer.after * factor))
                if self._sync is not None:
                    self._sync.push(self._first + index, step)
            self.ended.append(self._machine.now)
            self._accounts.append(dict(self._spent))

    def _receive(self, step: int) -> _Process:
        if not self._inboxes:
            yield from self._spend(TimeCategory.WAIT_IN, _Work(self._reads))
            return
        inbox, number = self._inboxes[step % len(self._inboxes)], step // len(self._inboxes)
        inbox.free(number)
        yield from self._spend(TimeCategory.WAIT_IN, _Until(inbox.arrived, number + 1))
        yield from self._spend(TimeCategory.COPY, _Work(inbox.edge.receive))

    def _send(self, step: int) -> _Process:
        if self._outbox is None:
            return
        yield from self._spend(TimeCategory.WAIT_OUT, _Until(self._outbox.left, step))
        yield from self._spend(TimeCategory.COPY, _Work(self._outbox.edge.send))
        self._outbox.hand(step)

    def _spend(self, kind: TimeCategory, request: _Request) -> _Process:
        begun = self._machine.now
        yield request
        self._spent[kind] += self._machine.now - begun

    def shares(self) -> dict[TimeCategory, float]:
        """Shares of the time of the later half of the steps: until then faster stages fill the queues."""
        half = len(self.ended) // 2
        wall = self.ended[-1] - self.ended[half]
        return {kind: (self._accounts[-1][kind] - self._accounts[half][kind]) / wall for kind in TimeCategory}


def _build(pipeline: Pipeline, machine: _Machine) -> list[_Stage]:
    """Starts everyone. Returns the stages."""
    feed, depth = pipeline.feed, pipeline.queue_depth
    num_stages = len(pipeline.stages)
    sync = _Sync(machine, pipeline.shared) if pipeline.shared is not None else None
    feeds = [_Channel(machine, depth, feed.edge) for _ in range(feed.feeders)]
    for number, channel in enumerate(feeds):
        machine.start(_feed(machine, feed, channel, _factors(pipeline, num_stages + number)))
    between = [_Channel(machine, depth, edge) for edge in pipeline.edges]
    stages = []
    first = 0
    for index, layers in enumerate(pipeline.stages):
        stages.append(
            _Stage(
                machine,
                layers,
                first,
                feeds if index == 0 else [between[index - 1]],
                between[index] if index < num_stages - 1 else None,
                sync,
                _factors(pipeline, index),
                feed.seconds,
            )
        )
        first += len(layers)
    return stages


def _feed(machine: _Machine, feed: Feed, channel: _Channel, jitter: Iterator[float]) -> _Process:
    spend = _Work if feed.on_cores else _Delay
    for number in count():
        yield spend(feed.seconds * next(jitter))
        yield _Until(channel.left, number)
        yield spend(feed.edge.send)
        channel.hand(number)


def _factors(pipeline: Pipeline, worker: int) -> Iterator[float]:
    """How much longer or shorter than its mean each of a worker's steps is."""
    generator = np.random.default_rng([pipeline.seed, worker])
    sigma = math.sqrt(math.log1p(pipeline.jitter**2))
    while True:
        yield math.exp(sigma * generator.standard_normal() - sigma**2 / 2) if sigma else 1.0
