"""From what layers cost to what a pipeline of them would do: how to divide it, how fast, what limits, what would help.

Pure: a profile and settings go in, predictions come out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.config.partition import balanced, partition
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import NEAR_DEPTH
from pipeline.planning.bottleneck import Limit, limit
from pipeline.planning.costs import Profile
from pipeline.planning.ideal import ideal_speedup
from pipeline.planning.parts import Cores, Edge, Feed, LayerWork, Pipeline, Shared
from pipeline.planning.simulate import simulate
from pipeline.transport import CARRIERS

Stages = tuple[range, ...]

CLOSE = 0.02
"""Of partitions this close to the fastest, the one with the fewest stages is taken."""

_LATENCY = 2e-4  # seconds from the end of a send to the neighbour's waking up
_LATENCY_OF_VERSIONS = 1e-3  # seconds: contributions to the coordinator, its update, the version back
_LATENCY_OF_CALLS = 5e-3  # the same where the coordinator is on another machine
ASSUMED_LINK = 25e9
"""Bytes per second between GPUs where no link is given or measured: PCIe 4, 16 lanes."""
_BBR_GAIN = 2.885
"""By so much faster than what arrives in a round trip does BBR send: 2 / ln 2, until it has found the way's bandwidth
(Cardwell et al. 2016). A stage that sends less than that never has it look further."""
_SOCKET_COPIES = 1  # that a socket makes at either end, beside the copy into the message
_DEPTHS = (NEAR_DEPTH, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Queue depths that are tried."""
_MOST_BUFFERED = 2**30  # bytes of an edge's buffers
_WORTH = 0.01  # what a change must gain to be spoken of


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a plan is made for.

    Attributes:
        devices: that stages can be placed on; more stages than that share them.
        link: bytes per second between two of them; None: as this machine's.
        delay: seconds that a message is under way between two of them, beside what its bytes take.
        paced: whether TCP is BBR on their machines.
    """

    devices: int
    link: float | None = None
    delay: float = 0.0
    paced: bool = False

    @property
    def spread(self) -> float:
        """Seconds over which TCP spreads what leaves in a round trip."""
        return 2 * self.delay / _BBR_GAIN if self.paced else 0.0


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run on a site.

    Attributes:
        stages: layers of each stage.
        images_per_second: of the full pipeline.
        speedup: over one device with all layers.
        ideal: Σ t / max t, of the full pipeline as the speed-up is.
        fill: share of the run in which the pipeline is full.
        utilisation: of each stage.
        memory: bytes of each stage beside those of an idle process.
        limit: what holds it back.
    """

    devices: int
    stages: Stages
    images_per_second: float
    speedup: float
    ideal: float
    fill: float
    utilisation: tuple[float, ...]
    memory: tuple[int, ...]
    limit: Limit


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, and by which share it makes the pipeline faster."""

    what: str
    gain: float


class Planner:
    """Predicts a run by its layers' profile."""

    def __init__(self, spec: RunSpec, profile: Profile) -> None:
        self._spec, self._profile = spec, profile

    def balanced(self, num_stages: int) -> Stages:
        """The partition with the fastest slowest stage."""
        return balanced([cost.seconds for cost in self._profile.busy], num_stages)

    def pipeline(self, stages: Stages, site: Site) -> Pipeline:
        """What there is to simulate."""
        settings, profile = self._spec.settings, self._profile
        cpu = self._spec.device == "cpu"
        versions = self._spec.shared_versions
        cores = Cores(count=site.devices)
        if cpu:
            cores = replace(
                cores,
                profiled=profile.num_busy,
                alone=profile.speed_alone,
                others=profile.others,
                crowded=profile.crowded,
            )
        return Pipeline(
            stages=tuple(
                tuple(LayerWork(before=profile.busy[i].before, after=profile.busy[i].after) for i in layers)
                for layers in stages
            ),
            edges=tuple(self._edge(profile.busy[layers[-1]].bytes_out, site) for layers in stages[:-1]),
            queue_depth=settings.pipeline.depth,
            feed=Feed(
                seconds=profile.feed_seconds,
                feeders=settings.pipeline.feeders,
                edge=Edge(send=profile.feed_bytes / profile.copy_bandwidth, transfer=_LATENCY),
                on_cores=cpu,
            ),
            cores=cores,
            shared=Shared(versions=versions, seconds=_LATENCY_OF_CALLS if site.delay else _LATENCY_OF_VERSIONS)
            if versions is not None and versions.contributors
            else None,
            jitter=profile.jitter,
            seed=settings.train.seed,
        )

    def _edge(self, size: int, site: Site) -> Edge:
        copy = size / self._profile.copy_bandwidth
        link = site.link
        if self._spec.device == "cuda":
            transfer = _LATENCY + size / (link or self._profile.link_bandwidth or ASSUMED_LINK)
            return Edge(send=copy, transfer=transfer, delay=site.delay, spread=site.spread)
        transport = self._spec.settings.pipeline.transport
        near = link is None and not site.delay
        if near and (transport == "auto" or CARRIERS[transport].one_machine):
            return Edge(send=copy, transfer=_LATENCY)
        copies = _SOCKET_COPIES * copy
        transfer = _LATENCY + (size / link if link else 0.0)
        return Edge(send=copy + copies, transfer=transfer, receive=copies, delay=site.delay, spread=site.spread)

    def rate(self, stages: Stages, site: Site, *, depth: int | None = None) -> float:
        """Images per second of the full pipeline. ``depth``: of the queues, in place of the settings'."""
        if depth is not None:
            return self._with(stages, site, queue_depth=depth)
        return simulate(self.pipeline(stages, site)).steps_per_second * self._spec.settings.train.batch_size

    def predict(self, stages: Stages, site: Site) -> Prediction:
        """All there is to say of a partition on a site."""
        pipeline = self.pipeline(stages, site)
        outcome = simulate(pipeline)
        num_steps = self._spec.settings.train.epochs * self._spec.steps_per_epoch
        rate = outcome.steps_per_second * self._spec.settings.train.batch_size
        alone = self.rate(partition(self._spec.num_layers, 1), replace(site, devices=1))
        seconds = [sum(self._profile.busy[layer].seconds for layer in layers) for layers in stages]
        return Prediction(
            devices=site.devices,
            stages=stages,
            images_per_second=rate,
            speedup=rate / alone,
            ideal=ideal_speedup([seconds]),
            fill=outcome.fill(num_steps),
            utilisation=outcome.utilisation,
            memory=tuple(self._memory(index, stages) for index in range(len(stages))),
            limit=limit(pipeline),
        )

    def _memory(self, index: int, stages: Stages) -> int:
        """Weights, gradients, optimizers, one batch's activations of one layer at a time, and the queues' buffers.

        Where steps are CUDA graphs, also what each layer takes and passes on, which stays where it is. Images become
        float32; a second view of them is left out. The first stage may keep all decoded images.
        """
        costs = [self._profile.busy[layer] for layer in stages[index]]
        incoming = self._profile.feed_bytes if index == 0 else self._profile.busy[stages[index][0] - 1].bytes_out
        outgoing = costs[-1].bytes_out if index < len(stages) - 1 else 0
        held = sum(2 * cost.weight_bytes + cost.optimizer_bytes for cost in costs)
        if self._spec.graphs:
            before = (self._profile.busy[layer - 1].bytes_out if layer else None for layer in stages[index])
            held += sum(4 * self._profile.feed_bytes if entering is None else entering for entering in before)
            held += sum(cost.bytes_out for cost in costs)
        if index == 0 and self._spec.wants_images_on_device:
            held += self._spec.image_bytes
        depth = self._spec.settings.pipeline.depth
        return held + max(cost.activation_bytes for cost in costs) + (depth + 1) * incoming + outgoing

    def choose(self, site: Site) -> Stages:
        """The fewest balanced stages, at most one a device, that are within 2 % of the fastest."""
        most = max(1, min(self._spec.num_layers, site.devices))
        choices = [self.balanced(num_stages) for num_stages in range(1, most + 1)]
        rates = [self.rate(stages, site) for stages in choices]
        return next(stages for stages, rate in zip(choices, rates, strict=True) if rate >= (1 - CLOSE) * max(rates))

    def choose_depth(self, stages: Stages, site: Site) -> int:
        """The least queue depth that is within 2 % of the fastest one; its buffers take at most a GiB for an edge."""
        largest = max((self._profile.busy[layers[-1]].bytes_out for layers in stages[:-1]), default=0)
        depths = [depth for depth in _DEPTHS if depth == _DEPTHS[0] or (depth + 1) * largest <= _MOST_BUFFERED]
        rates = [self.rate(stages, site, depth=depth) for depth in depths]
        return next(depth for depth, rate in zip(depths, rates, strict=True) if rate >= (1 - CLOSE) * max(rates))

    def changes(self, stages: Stages, site: Site) -> list[Change]:
        """Single changes that would make the pipeline faster, the best first, each found by simulating it."""
        base = self.rate(stages, site)
        found = [Change(what=what, gain=rate / base - 1) for what, rate in self._candidates(stages, site)]
        return sorted((change for change in found if change.gain > _WORTH), key=lambda change: -change.gain)

    def _candidates(self, stages: Stages, site: Site) -> list[tuple[str, float]]:
        """Every change that is thought of, and the rate that it gives."""
        pipe, count = self._spec.settings.pipeline, len(stages)
        candidates = [(what, self.rate(moved, site)) for what, moved in moves(stages)]
        if count < min(site.devices, self._spec.num_layers):
            more = self.balanced(count + 1)
            candidates.append((f"`stages` {count + 1} `partition` {listed(more)}", self.rate(more, site)))
        more_feeders = pipe.feeders + 1
        candidates.append((f"`feeders` {more_feeders}", self._with(stages, site, feeders=more_feeders)))
        deeper = max(2 * pipe.depth, self.choose_depth(stages, site))
        candidates.append((f"`queue_depth` {deeper}", self.rate(stages, site, depth=deeper)))
        if pipe.transfer_dtype == "fp32" and count > 1:
            thin = [replace(cost, bytes_out=cost.bytes_out // 2) for cost in self._profile.busy]
            thinner = Planner(self._spec, replace(self._profile, busy=tuple(thin)))
            candidates.append(("`transfer_dtype` bf16", thinner.rate(stages, site)))
        pipeline = self.pipeline(stages, site)
        if pipeline.shared is not None:
            versions = pipeline.shared.versions
            lag = versions.lag + (0 if versions.exact else 1)
            looser = replace(pipeline.shared, versions=replace(versions, exact=False, lag=lag))
            name = f"a lag of {lag} for the state that the layers share"
            if self._spec.settings.method.label_embeddings() is not None:
                name = f"`embedding_sync` lagged `embedding_lag` {lag}"
            rate = simulate(replace(pipeline, shared=looser)).steps_per_second
            candidates.append((name, rate * self._spec.settings.train.batch_size))
        return candidates

    def _with(self, stages: Stages, site: Site, **values: int) -> float:
        """The rate with other settings of the pipeline."""
        settings = self._spec.settings
        changed = replace(settings, pipeline=replace(settings.pipeline, **values))  # type: ignore[arg-type]
        return Planner(replace(self._spec, settings=changed), self._profile).rate(stages, site)


def moves(stages: Stages) -> list[tuple[str, Stages]]:
    """Every partition with one layer on the other side of a boundary, and how to say it."""
    found = []
    for left in range(len(stages) - 1):
        a, b = stages[left], stages[left + 1]
        if len(b) > 1:
            moved = (*stages[:left], range(a.start, a.stop + 1), range(b.start + 1, b.stop), *stages[left + 2 :])
            found.append((f"layer {b.start + 1} to stage {left + 1} (`partition` {listed(moved)})", moved))
        if len(a) > 1:
            moved = (*stages[:left], range(a.start, a.stop - 1), range(b.start - 1, b.stop), *stages[left + 2 :])
            found.append((f"layer {a.stop} to stage {left + 2} (`partition` {listed(moved)})", moved))
    return found


def listed(stages: Stages) -> str:
    """Sizes as ``partition`` takes them: 3 2."""
    return " ".join(str(len(layers)) for layers in stages)


def shown(stages: Stages) -> str:
    """Layers, counted from 1, as people read them: 1-3 | 4-5."""
    return " | ".join(
        str(layers[0] + 1) if len(layers) == 1 else f"{layers[0] + 1}-{layers[-1] + 1}" for layers in stages
    )
