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

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from pipeline.planning.events import Counter, Delay, Machine, Process, Request, Until, Work
from pipeline.planning.parts import Edge, Feed, LayerWork, Pipeline, Shared
from pipeline.telemetry.clock import TimeCategory


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
    machine = Machine(pipeline.cores)
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


class _Channel:
    """A bounded queue between two ends.

    Attributes:
        handed: messages that the sender has packed.
        left: messages that have left the sender's hand.
        arrived: messages that lie in the receiver's buffers, or did.
        freed: messages whose buffer the receiver has given back, as far as the sender has heard.
    """

    def __init__(self, machine: Machine, depth: int, edge: Edge) -> None:
        self.edge = edge
        self._machine = machine
        self._depth = depth
        self._late = edge.spread / (depth + 1)
        self.handed, self.left, self.arrived, self.freed = Counter(), Counter(), Counter(), Counter()
        machine.start(self._carry())

    def _carry(self) -> Process:
        for number in count():
            yield Until(self.handed, number + 1)
            yield Until(self.freed, number - self._depth)
            yield Delay(self.edge.transfer)
            self._machine.raise_to(self.left, number + 1)
            self._later(self.arrived, number + 1, self.edge.delay + self._late)

    def _later(self, counter: Counter, value: int, seconds: float) -> None:
        """Sets a counter at the other end of the way."""
        if seconds:
            self._machine.start(self._travel(counter, value, seconds))
        else:
            self._machine.raise_to(counter, value)

    def _travel(self, counter: Counter, value: int, seconds: float) -> Process:
        yield Delay(seconds)
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

    def __init__(self, machine: Machine, shared: Shared) -> None:
        self._machine, self._seconds = machine, shared.seconds
        self._versions = replace(shared.versions, steps_per_epoch=_ENDLESS)
        self._pushed = {layer: Counter() for layer in self._versions.contributors}
        self._version = Counter()
        if self._pushed:
            machine.start(self._advance())

    def _advance(self) -> Process:
        for version in count():
            for layer, step in self._versions.updates(version):
                yield Until(self._pushed[layer], step + 1)
            yield Delay(self._seconds)
            self._machine.raise_to(self._version, version + 1)

    def read(self, layer: int, step: int) -> Until:
        return Until(self._version, self._versions.read(layer, step))

    def push(self, layer: int, step: int) -> None:
        if layer in self._pushed:
            self._machine.raise_to(self._pushed[layer], step + 1)


class _Stage:
    """One stage, and its account."""

    def __init__(
        self,
        machine: Machine,
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

    def _run(self) -> Process:
        for step in count():
            yield from self._receive(step)
            factor = next(self._jitter)
            for index, layer in enumerate(self._layers):
                yield from self._spend(TimeCategory.BUSY, Work(layer.before * factor))
                if index == len(self._layers) - 1:
                    yield from self._send(step)
                if self._sync is not None:
                    yield from self._spend(TimeCategory.SYNC, self._sync.read(self._first + index, step))
                yield from self._spend(TimeCategory.BUSY, Work(layer.after * factor))
                if self._sync is not None:
                    self._sync.push(self._first + index, step)
            self.ended.append(self._machine.now)
            self._accounts.append(dict(self._spent))

    def _receive(self, step: int) -> Process:
        if not self._inboxes:
            yield from self._spend(TimeCategory.WAIT_IN, Work(self._reads))
            return
        inbox, number = self._inboxes[step % len(self._inboxes)], step // len(self._inboxes)
        inbox.free(number)
        yield from self._spend(TimeCategory.WAIT_IN, Until(inbox.arrived, number + 1))
        yield from self._spend(TimeCategory.COPY, Work(inbox.edge.receive))

    def _send(self, step: int) -> Process:
        if self._outbox is None:
            return
        yield from self._spend(TimeCategory.WAIT_OUT, Until(self._outbox.left, step))
        yield from self._spend(TimeCategory.COPY, Work(self._outbox.edge.send))
        self._outbox.hand(step)

    def _spend(self, kind: TimeCategory, request: Request) -> Process:
        begun = self._machine.now
        yield request
        self._spent[kind] += self._machine.now - begun

    def shares(self) -> dict[TimeCategory, float]:
        """Shares of the time of the later half of the steps: until then faster stages fill the queues."""
        half = len(self.ended) // 2
        wall = self.ended[-1] - self.ended[half]
        return {kind: (self._accounts[-1][kind] - self._accounts[half][kind]) / wall for kind in TimeCategory}


def _build(pipeline: Pipeline, machine: Machine) -> list[_Stage]:
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


def _feed(machine: Machine, feed: Feed, channel: _Channel, jitter: Iterator[float]) -> Process:
    spend = Work if feed.on_cores else Delay
    for number in count():
        yield spend(feed.seconds * next(jitter))
        yield Until(channel.left, number)
        yield spend(feed.edge.send)
        channel.hand(number)


def _factors(pipeline: Pipeline, worker: int) -> Iterator[float]:
    """How much longer or shorter than its mean each of a worker's steps is."""
    generator = np.random.default_rng([pipeline.seed, worker])
    sigma = math.sqrt(math.log1p(pipeline.jitter**2))
    while True:
        yield math.exp(sigma * generator.standard_normal() - sigma**2 / 2) if sigma else 1.0
