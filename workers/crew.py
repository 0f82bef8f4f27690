"""The actors of a run: where they are placed, which of them are there, and what they are called."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config.run_spec import RunSpec
from pipeline.errors import NoRoomError
from pipeline.runtime.observer import Observer
from workers.coordinator import NAME as COORDINATOR
from workers.coordinator import CoordinatorWorker
from workers.feeder import FeederWorker, check_source
from workers.hosts import living_hosts, on_node, this_node
from workers.names import StageName
from workers.placement import bundles_of, described, look, missing, runtime_env
from workers.stage import StageWorker
from workers.topology import Place, links_in, stage_order

_BESIDE = 4  # calls that an actor answers at once, its main work among them
_GIVE_BACK = 5.0  # seconds in which Ray takes the places back
_SOON = 2.0  # seconds after which a person is told what the run waits for

Ready = Callable[[PlacementGroup, float], bool]
"""Waits for room, so many seconds; whether there is any."""

Ask = Callable[[dict[str, Any]], list[Any]]
"""The answers to what was asked of workers, by their names."""


class Crew:
    """The actors of a run. ``start_missing`` starts those that are not there, ``end`` ends some.

    Args:
        avoid: nodes by Ray's ids that no stage is to be on.
    """

    def __init__(self, spec: RunSpec, avoid: frozenset[str] = frozenset()) -> None:
        self._spec, self._avoid = spec, avoid
        self._name = uuid.uuid4().hex[:8]
        self._group: PlacementGroup | None = None
        self._bundles: list[int] = []  # of the group, in the order of the stages
        self.coordinator: Any = None
        self.stages: dict[StageName, Any] = {}
        self.feeders: dict[int, Any] = {}

    @property
    def by_name(self) -> dict[str, Any]:
        """Every actor that there is, by its name for people."""
        return self.owners | {feeder_name(number): feeder for number, feeder in self.feeders.items()}

    @property
    def owners(self) -> dict[str, Any]:
        """Those that hold what the run learns."""
        stages = {name.described(self._spec): stage for name, stage in self.stages.items()}
        return stages | ({COORDINATOR: self.coordinator} if self.coordinator is not None else {})

    def end(self, names: Collection[str]) -> None:
        """Ends these workers."""
        for name, worker in self.by_name.items():
            if name in names:
                ray.kill(worker)
        self.stages = {name: one for name, one in self.stages.items() if name.described(self._spec) not in names}
        self.feeders = {number: one for number, one in self.feeders.items() if feeder_name(number) not in names}
        self.coordinator = None if COORDINATOR in names else self.coordinator

    def _reserve(self, wanted: list[dict[str, float]], observer: Observer, ready: Ready) -> PlacementGroup:
        """Reserves the devices, neighbours close to each other. Where they are reserved, waits until all are there:
        in place of those on a machine that is lost Ray finds others."""
        pipe = self._spec.settings.pipeline
        if self._group is None:
            if min(bundle.get("GPU", 1.0) for bundle in wanted) < 1.0:
                gpus = int(ray.cluster_resources().get("GPU", 0))
                there = f"{gpus} GPU{'s' if gpus > 1 else ''}"
                observer.notified(f"{len(wanted)} stages share {there}: they take turns.")
            elsewhere = [_not_on(self._avoid)] * len(wanted) if self._avoid else None
            self._group = placement_group(wanted, strategy="PACK", bundle_label_selector=elsewhere)
        group = self._group
        soon = min(_SOON, pipe.resource_timeout)
        if not ready(group, soon):
            observer.notified(f"Waiting up to {pipe.resource_timeout:g} s for room: {described(wanted)}.")
        if not ready(group, pipe.resource_timeout - soon):
            raise NoRoomError(missing(wanted, pipe.resource_timeout))
        return group

    def start_missing(self, attempt: int, observer: Observer, ready: Ready, ask: Ask) -> None:
        """Starts the actors that are not there.

        Args:
            attempt: at the run; part of the actors' names.

        Raises:
            NoRoomError: there is no room for them, also after waiting.
            StageFailedError, KeyboardInterrupt: as ``ask`` and ``ready`` do.
        """
        pipe, run = self._spec.settings.pipeline, f"{self._name}-{attempt}"
        wanted = bundles_of(self._spec, int(ray.cluster_resources().get("GPU", 0)))
        group = self._reserve(wanted, observer, ready)
        self._bundles = self._bundles or self._in_order(group, wanted, ask)
        if not pipe.feeders and StageName(0) not in self.stages:
            self._check_data(group, ask)
        if anew := self._missing():
            observer.waits_for(f"starting {anew}")

        def start(worker: type, name: str, *arguments: Any, beside: int = _BESIDE, **options: Any) -> Any:
            actor: Any = ray.remote(worker).options(name=name, max_concurrency=beside, **options)
            return actor.remote(self._spec, *arguments)

        # Feeders work where the data was opened and checked. They and the coordinator take no core of their own.
        here = on_node(this_node())
        # They come first: they open the data, and so take longest to start.
        for number in range(pipe.feeders):
            if number not in self.feeders:
                name = f"localpipe-{run}-feeder-{number + 1}"
                self.feeders[number] = start(FeederWorker, name, number, num_cpus=0, scheduling_strategy=here)
        if self._spec.shared_versions is not None and self.coordinator is None:
            # Every stage may have a call waiting for the state of an epoch's end.
            beside, name = _BESIDE + self._spec.num_stages, f"localpipe-{run}-coordinator"
            self.coordinator = start(CoordinatorWorker, name, beside=beside, num_cpus=0, scheduling_strategy=here)
        for index, bundle in enumerate(self._bundles):
            stage = StageName(index)
            if stage not in self.stages:
                self.stages[stage] = start(
                    StageWorker,
                    stage.actor(run),
                    stage,
                    num_cpus=wanted[bundle].get("CPU", 0.0),
                    num_gpus=wanted[bundle].get("GPU", 0.0),
                    runtime_env=runtime_env(self._spec),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
                )
        self.stages = dict(sorted(self.stages.items()))

    def _check_data(self, group: PlacementGroup, ask: Ask) -> None:
        """Whether the first stage can read the data where it will be, which may be another machine."""
        node = placement_group_table(group)["bundles_to_node_id"][self._bundles[0]]
        if node != this_node():
            task: Any = ray.remote(check_source).options(num_cpus=0, scheduling_strategy=on_node(node))
            ask({"the data": task.remote(self._spec)})

    def _missing(self) -> str:
        """What is to be started: "2 stages, 1 feeder and the coordinator"."""
        spec = self._spec
        counts = {
            "stage": spec.num_stages - len(self.stages),
            "feeder": spec.settings.pipeline.feeders - len(self.feeders),
        }
        parts = [f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count]
        parts += ["the coordinator"] if spec.shared_versions is not None and self.coordinator is None else []
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

    def _in_order(self, group: PlacementGroup, wanted: list[dict[str, float]], ask: Ask) -> list[int]:
        """The group's bundles in the order of the stages, as ``workers.topology.stage_order`` has it.

        Ray promises no order of a group's bundles. It tells on which nodes they are; on which GPUs, only a task sees.
        """
        table = placement_group_table(group)["bundles_to_node_id"]
        nodes = [table[bundle] for bundle in range(len(wanted))]
        places, links = [Place(node, "0") for node in nodes], {}
        if self._spec.device == "cuda" and len(wanted) > 1:
            looks = {
                f"looking at place {bundle + 1}": ray.remote(look)
                .options(
                    num_cpus=0,
                    num_gpus=wanted[bundle]["GPU"],
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
                )
                .remote(nodes.index(node) == bundle)  # once a node
                for bundle, node in enumerate(nodes)
            }
            seen = ask(looks)
            places = [Place(node, gpu) for node, (gpu, _) in zip(nodes, seen, strict=True)]
            links = {node: links_in(told) for node, (_, told) in zip(nodes, seen, strict=True) if told}
        return stage_order(places, [host.node for host in living_hosts()], links)

    def close(self, *, ray_is_there: bool) -> None:
        """Ends every actor at once, and gives their places back."""
        if ray_is_there:
            self.end(list(self.by_name))
        self.coordinator, self.stages, self.feeders = None, {}, {}
        if self._group is not None and ray_is_there:
            # Ray may be on its way out, and then waits for itself.
            giving = threading.Thread(target=remove_placement_group, args=(self._group,), daemon=True)
            giving.start()
            giving.join(_GIVE_BACK)
        self._group = None


def _not_on(nodes: Collection[str]) -> dict[str, str]:
    """As Ray asks for any other nodes."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"}


def feeder_name(number: int) -> str:
    """A feeder's name for people."""
    return f"feeder {number + 1}"
