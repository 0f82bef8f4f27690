"""What a pipeline consists of, for planning: its stages, edges, feeders and cores, as seconds instead of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipeline.versions import Versions


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
