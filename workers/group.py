"""The workers of a run as Ray actors: placed, joined edge to edge, watched, and gone when the run ends."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from pipeline import plugins
from pipeline.checkpoints.folder import SHARED, layer_file
from pipeline.checkpoints.saver import SavedFile
from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, ResourcesError, RunError, StageFailedError
from pipeline.layers.layer import State
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing
from pipeline.runtime.controller import control
from pipeline.runtime.edges import edges_of
from pipeline.runtime.history import RunResult, Salvage
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Pass
from pipeline.telemetry.reports import PassReport, Status
from pipeline.transport.edges import EdgeGroups
from workers.arrivals import Arrivals, mark, unmark
from workers.coordinator import HOLDS, CoordinatorWorker
from workers.coordinator import NAME as COORDINATOR
from workers.failures import culprit, failure_of, is_explained
from workers.feeder import FeederWorker
from workers.names import StageName
from workers.placement import bundles_of, described, look, missing, runtime_env
from workers.salvage import salvage
from workers.stacks import whereabouts
from workers.stage import StageWorker
from workers.topology import Place, links_in, stage_order
from workers.watch import Contact, OwnCluster

_BESIDE = 4  # calls that an actor answers at once, its main work among them
_AFTERSHOCK = 1.0  # seconds in which other workers report what happened to them at the same time
_UNEXPLAINED = 10.0  # seconds in which Ray may tell why workers have lost a neighbour
_ANSWER = 2.0  # seconds for a look at a stage; one that is slower is looked at again next time
_ALIVE = 3.0  # seconds in which a worker that works answers a call that needs no work
_COME_OUT = 8.0  # seconds in which workers whose neighbours are gone come out of their work
_SOON = 2.0  # seconds after which a person is told what the run waits for
_ELSEWHERE = 20.0  # seconds for another machine to say where a stage of its is
_LOOK = 0.2  # seconds between two looks at whether the person wants to stop
_FETCH = 60.0  # seconds for weights to arrive
_FETCH_INTERRUPTED = 1.5  # the same, while a person waits for the run to stop


def train_ray(
    spec: RunSpec,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> RunResult:
    """As ``pipeline.runtime.serial.train_serial``, each stage in a Ray actor. Ray must be initialised.

    Raises:
        ResourcesError: the cluster does not have the devices, also after waiting.
        StageFailedError, NonFiniteLossError: a worker failed; the message names it.
    """
    with RayWorkers(spec, observer, checkpointing) as group:
        return control(spec, group, observer, checkpointing)


class RayWorkers:
    """Implements ``pipeline.runtime.controller.WorkerGroup``. A context manager: on leaving it every actor is gone."""

    def __init__(
        self,
        spec: RunSpec,
        observer: Observer = Observer(),  # noqa: B008 (it has no state)
        checkpointing: Checkpointing = NO_CHECKPOINTS,
    ) -> None:
        for plugin in plugins.loaded().values():
            ray.cloudpickle.register_pickle_by_value(plugin)  # no worker needs to have the file
        self._spec, self._observer, self._checkpointing = spec, observer, checkpointing
        self._group: PlacementGroup | None = None
        self._bundles: list[int] = []  # of the group, in the order of the stages
        self._name = uuid.uuid4().hex[:8]
        self._attempt = -1
        self._coordinator: Any = None
        self._stages: dict[StageName, Any] = {}
        self._feeders: dict[int, Any] = {}
        self._running: dict[ray.ObjectRef[None], str] = {}  # unfinished work of stages and feeders, and whose it is
        self._cluster = OwnCluster()
        self.devices: list[str] = []
        self._places: dict[str, tuple[str, int]] = {}  # node and process of every stage
        self._hear_anew()

    def __enter__(self) -> Self:
        try:
            self.begin(self._observer, self._checkpointing)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, observer: Observer, checkpointing: Checkpointing) -> None:
        """Has the workers take up the run, at its beginning or at a checkpoint, and joins them.

        Workers of an attempt before that still work go on in their processes, with what they opened and compiled;
        those that died, or do not come out of what they were doing, are started anew.

        Errors as of ``train_ray``.
        """
        self._observer, self._checkpointing = observer, checkpointing
        self._attempt += 1
        if self._attempt:
            self._end_what_failed()
            self._arrivals.close()
        self._hear_anew()
        self._start_missing()
        self._begin_all()
        self._connect()

    def _hear_anew(self) -> None:
        """Nothing has been asked of the workers, and nothing heard of them."""
        self._polls: dict[StageName, Any] = {}
        self._shared_saved: Any = None  # an open question to the coordinator
        self._arrivals = Arrivals(self._checkpointing.folder)
        self._fetch = _FETCH
        self._contact = Contact(self._spec.settings.pipeline.stall_timeout)

    def _end_what_failed(self) -> None:
        """Of an attempt that failed, ends the workers that died or are stuck. All others have come out of their work:
        whose neighbour is gone breaks off its own channels."""
        workers = self._workers()
        answers = {worker.__ray_ready__.remote(): name for name, worker in workers.items()}
        ray.wait(list(answers), num_returns=len(answers), timeout=_ALIVE)
        self._kill({name for ref, name in answers.items() if not _is_well(ref)})  # one that is stuck holds others up
        working = self._workers().keys() - {COORDINATOR}  # whose watch ends when it begins anew
        work = {ref: name for ref, name in self._running.items() if name in working}
        if work:
            ray.wait(list(work), num_returns=len(work), timeout=_COME_OUT)
        self._kill({name for ref, name in work.items() if not ray.wait([ref], timeout=0)[0]})
        self._running = {}
        there = self._workers()
        gone = [name for name in workers if name not in there]
        if there and gone:
            others = "worker goes on in its process" if len(there) == 1 else "workers go on in their processes"
            self._observer.notified(f"Started anew: {', '.join(gone)}. {len(there)} other {others}.")

    def _workers(self) -> dict[str, Any]:
        """Every actor that there is, by its name for people."""
        workers = {name.described(self._spec): stage for name, stage in self._stages.items()}
        workers |= {_feeder(number): feeder for number, feeder in self._feeders.items()}
        return workers | ({COORDINATOR: self._coordinator} if self._coordinator is not None else {})

    def _kill(self, names: Collection[str]) -> None:
        """Ends these workers."""
        for name, worker in self._workers().items():
            if name in names:
                ray.kill(worker)
        self._stages = {name: one for name, one in self._stages.items() if name.described(self._spec) not in names}
        self._feeders = {number: one for number, one in self._feeders.items() if _feeder(number) not in names}
        self._coordinator = None if COORDINATOR in names else self._coordinator

    def _reserve(self, wanted: list[dict[str, float]]) -> PlacementGroup:
        """Reserves the devices, neighbours close to each other. Where they are reserved, waits until all are there:
        in place of those on a machine that is lost Ray finds others."""
        pipe = self._spec.settings.pipeline
        if self._group is None:
            if min(bundle.get("GPU", 1.0) for bundle in wanted) < 1.0:
                gpus = int(ray.cluster_resources().get("GPU", 0))
                there = f"{gpus} GPU{'s' if gpus > 1 else ''}"
                self._observer.notified(f"{len(wanted)} stages share {there}: they take turns.")
            self._group = placement_group(wanted, strategy="PACK")
        group = self._group
        soon = min(_SOON, pipe.resource_timeout)
        if not self._ready(group, soon):
            self._observer.notified(f"Waiting up to {pipe.resource_timeout:g} s for room: {described(wanted)}.")
        if not self._ready(group, pipe.resource_timeout - soon):
            raise ResourcesError(missing(wanted, pipe.resource_timeout))
        return group

    def _start_missing(self) -> None:
        """Starts the actors that are not there."""
        pipe, run = self._spec.settings.pipeline, f"{self._name}-{self._attempt}"
        wanted = bundles_of(self._spec, int(ray.cluster_resources().get("GPU", 0)))
        group = self._reserve(wanted)
        self._bundles = self._bundles or self._bundles_in_order(group, wanted)
        self._observer.waits_for(f"starting {self._missing()}")

        def start(worker: type, name: str, *arguments: Any, beside: int = _BESIDE, **options: Any) -> Any:
            actor: Any = ray.remote(worker).options(name=name, max_concurrency=beside, **options)
            return actor.remote(self._spec, *arguments)

        # Feeders work where the data was opened and checked. They and the coordinator take no core of their own.
        here = NodeAffinitySchedulingStrategy(_this_node(), soft=False)
        # They come first: they open the data, and so take longest to start.
        for number in range(pipe.feeders):
            if number not in self._feeders:
                name = f"localpipe-{run}-feeder-{number + 1}"
                self._feeders[number] = start(FeederWorker, name, number, num_cpus=0, scheduling_strategy=here)
        if self._spec.shared_versions is not None and self._coordinator is None:
            # Every stage has a call waiting for the next version and another one with gradients.
            beside, name = _BESIDE + 2 * self._spec.num_stages, f"localpipe-{run}-coordinator"
            self._coordinator = start(CoordinatorWorker, name, beside=beside, num_cpus=0, scheduling_strategy=here)
        for index, bundle in enumerate(self._bundles):
            stage = StageName(index)
            if stage not in self._stages:
                self._stages[stage] = start(
                    StageWorker,
                    stage.actor(run),
                    stage,
                    num_cpus=wanted[bundle].get("CPU", 0.0),
                    num_gpus=wanted[bundle].get("GPU", 0.0),
                    runtime_env=runtime_env(self._spec),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
                )
        self._stages = dict(sorted(self._stages.items()))

    def _missing(self) -> str:
        """What is to be started: "2 stages, 1 feeder and the coordinator"."""
        spec = self._spec
        counts = {
            "stage": spec.num_stages - len(self._stages),
            "feeder": spec.settings.pipeline.feeders - len(self._feeders),
        }
        parts = [f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count]
        parts += ["the coordinator"] if spec.shared_versions is not None and self._coordinator is None else []
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

    def _begin_all(self) -> None:
        """Has every worker take up its part of the run."""
        asked = {_feeder(number): one.begin.remote(self._checkpointing) for number, one in self._feeders.items()}
        away = self._away()
        if self._coordinator is not None:  # first: stages ask it for versions of this attempt
            begin = self._checkpointing_of([SHARED], away=COORDINATOR in away)
            self._all({COORDINATOR: self._coordinator.begin.remote(begin, self._attempt)})
        for name, stage in self._stages.items():
            described = name.described(self._spec)
            files = [layer_file(layer) for layer in self._spec.stages[name.stage]]
            begin = self._checkpointing_of(files, away=described in away)
            asked[described] = stage.begin.remote(begin, self._coordinator, self._attempt)
        self._all(asked)

    def _away(self) -> set[str]:
        """The workers whose machines do not see the folder of the run's checkpoints."""
        begin = self._checkpointing
        folder = begin.folder if begin.resume is None else begin.resume.folder
        if folder is None:
            return set()
        word = mark(folder)
        owners = {name: one for name, one in self._workers().items() if name not in map(_feeder, self._feeders)}
        try:
            seen = self._all({name: owner.sees.remote(folder, word) for name, owner in owners.items()})
        finally:
            unmark(folder)
        return {name for name, sees in zip(owners, seen, strict=True) if not sees}

    def _checkpointing_of(self, files: Sequence[str], *, away: bool) -> Checkpointing:
        """What a worker is told, with what it needs of these files where it does not see them."""
        begin = self._checkpointing
        if not away:
            return begin
        resume = begin.resume
        if resume is not None:
            resume = replace(resume, parts={name: resume.read(name) for name in files})
        return replace(begin, resume=resume, away=True)

    def _bundles_in_order(self, group: PlacementGroup, wanted: list[dict[str, float]]) -> list[int]:
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
            seen = self._all(looks)
            places = [Place(node, gpu) for node, (gpu, _) in zip(nodes, seen, strict=True)]
            links = {node: links_in(told) for node, (_, told) in zip(nodes, seen, strict=True) if told}
        return stage_order(places, _this_node(), links)

    def _connect(self) -> None:
        stages = {name.described(self._spec): stage for name, stage in self._stages.items()}
        feeders = {_feeder(number): feeder for number, feeder in sorted(self._feeders.items())}
        names, workers = [*stages, *feeders], [*stages.values(), *feeders.values()]
        first, one = names[0], workers[0]
        host, port = self._all({first: one.open_store.remote()})[0]
        edges = edges_of(self._spec, self._all({first: one.edge_bytes.remote()})[0])
        pipe = self._spec.settings.pipeline
        self._observer.waits_for("joining neighbours")
        groups = EdgeGroups(edges, len(workers), host, port, pipe.stall_timeout, pipe.queue_depth)
        self._all({name: worker.connect.remote(groups) for name, worker in zip(names, workers, strict=True)})
        self.devices = self._all({name: stage.describe.remote() for name, stage in stages.items()})
        self._places = dict(zip(stages, self._all({name: s.where.remote() for name, s in stages.items()}), strict=True))
        self._observer.waits_for("the first batch")
        self._running = {stage.run.remote(): name for name, stage in stages.items()}
        if self._coordinator is not None:
            self._running[self._coordinator.watch.remote()] = COORDINATOR

    def _all(self, asked: dict[str, Any]) -> list[Any]:
        """The answers of workers by name, while the run is set up.

        Raises:
            StageFailedError: a worker died or failed, as soon as it does.
            KeyboardInterrupt: the person wants to stop; nothing is learned yet.
        """
        names = {ref: name for name, ref in asked.items()}
        waiting = list(names)
        failures: list[RunError] = []
        while waiting and not failures:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK)
            self._hear_interrupt()
            self._cluster.check()
            failures = _errors(done, names)
        if failures:
            self._running |= {ref: names[ref] for ref in waiting}
            raise self._cause(failures, {ref: names[ref] for ref in waiting})
        return list(ray.get(list(names)))

    def _ready(self, group: PlacementGroup, seconds: float) -> bool:
        """Waits for room, so many seconds. Raises KeyboardInterrupt when the person wants to stop."""
        ready, end = group.ready(), time.perf_counter() + seconds
        while not ray.wait([ready], timeout=_LOOK)[0]:
            self._hear_interrupt()
            self._cluster.check()
            if time.perf_counter() > end:
                return False
        return True

    def _hear_interrupt(self) -> None:
        if self._observer.interrupted():
            raise KeyboardInterrupt

    def feed(self, passes: Sequence[Pass]) -> None:
        for number, feeder in self._feeders.items():
            self._running[feeder.feed.remote(passes)] = _feeder(number)
        if not self._feeders:  # the first stage reads for itself
            self._running[self._stages[StageName(0)].feed.remote(passes)] = "the first stage's reader"

    def checkpoint(self) -> None:
        reader = self._feeders[0] if self._feeders else self._stages[StageName(0)]
        reader.checkpoint.remote()

    def saved(self) -> list[SavedFile]:
        return self._arrivals.take()

    def saving(self) -> bool:
        return self._arrivals.busy

    def interrupt(self) -> None:
        self._fetch = _FETCH_INTERRUPTED
        for reader in [*self._feeders.values()] or [*self._stages.values()][:1]:
            reader.interrupt.remote()

    def poll(self) -> list[tuple[Status, list[PassReport]]]:
        # A question to a stage that is slow to answer stays open: its answer, with the reports in it, comes next time.
        for name, stage in self._stages.items():
            if name not in self._polls:
                self._polls[name] = stage.poll.remote()
                self._contact.asked(name.described(self._spec))
        answered, _ = ray.wait(list(self._polls.values()), num_returns=len(self._polls), timeout=_ANSWER)
        polled = []
        for name in [name for name, ref in self._polls.items() if ref in answered]:
            described = name.described(self._spec)
            try:
                # Copied: Ray's arrays are views of the whole answer, and one that is kept would keep it all.
                said = copy.deepcopy(ray.get(self._polls.pop(name)))
                polled.append((said.status, said.reports))
                self._arrivals.heard(described, self._stages[name], said.saved, saving=said.saving)
            except RayActorError as error:
                self._contact.missed(described, error)  # where it is dead, ``wait`` says so before
                continue
            except RayError as error:
                raise failure_of(described, error) from error
            self._contact.answered(described)
        silent = self._contact.silent()
        if silent is not None:
            limit = self._spec.settings.pipeline.stall_timeout
            raise StageFailedError(f"{silent} has not answered for {limit:g} s: {self._look_for(silent)}")
        self._ask_coordinator()
        return polled

    def _ask_coordinator(self) -> None:
        """Hears which parts of checkpoints the coordinator has written."""
        if self._coordinator is None or self._checkpointing.folder is None:
            return
        if self._shared_saved is None:
            self._shared_saved = self._coordinator.saved.remote()
        if not ray.wait([self._shared_saved], timeout=_ANSWER)[0]:
            return
        asked, self._shared_saved = self._shared_saved, None
        with suppress(RayActorError):  # it is dead: ``wait`` says so by name
            saved, saving = ray.get(asked)
            self._arrivals.heard(COORDINATOR, self._coordinator, saved, saving=saving)

    def wait(self, seconds: float) -> bool:
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        self._cluster.check()
        names = {ref: self._running.pop(ref) for ref in done}
        failures = _errors(done, names)
        if failures:
            raise self._cause(failures, self._running)
        return not any(name.startswith("stage") for name in self._running.values())

    def _cause(self, failures: list[RunError], others: dict[Any, str]) -> RunError:
        """The error that explains these, which came first; it may be the one of another worker's unfinished work."""
        waiting, begun = list(others), time.perf_counter()
        while waiting and time.perf_counter() - begun < (_AFTERSHOCK if is_explained(failures) else _UNEXPLAINED):
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK)
            failures = failures + _errors(done, others)
            try:
                self._cluster.check()
            except RunError as error:
                return error
        cause = culprit(failures)
        stuck = [name for name in (others[ref] for ref in waiting) if name in self._places]
        if (
            isinstance(cause, PeerLostError) and stuck
        ):  # one that is silent and has not ended is what the others wait for
            found = "; ".join(f"{name}: {self._look_for(name)}" for name in stuck)
            cause = PeerLostError(f"{cause.fact} ({found})")
        return cause

    def _look_for(self, name: str) -> str:
        """Where a stage is that makes no headway. Its stacks are noted."""
        if name not in self._places:
            return "it is stopped or stuck"
        node, pid = self._places[name]
        if node == _this_node():
            found = whereabouts(pid)
        else:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            asked = ray.remote(whereabouts).options(num_cpus=0, scheduling_strategy=there).remote(pid)
            try:
                found = ray.get(asked, timeout=_ELSEWHERE)
            except RayError:  # then the machine is what makes no headway
                return "nor does its machine"
        if found.stacks:
            self._observer.noted(f"stacks of {name}", found.stacks)
        return found.fact

    def peak_bytes(self, *, reset: bool = False) -> list[int]:
        """Each stage's peak memory in bytes since the last reset."""
        stages = self._stages.items()
        return self._all({name.described(self._spec): stage.peak_bytes.remote(reset=reset) for name, stage in stages})

    def give_back(self) -> None:
        """Has idle stages give freed memory back to the system."""
        for stage in self._stages.values():
            stage.give_back.remote()

    def keep_only(self, best: int, upto: int) -> None:
        for owner in self._owners:
            owner.keep_only.remote(best, upto)

    def candidate(self, epoch: int) -> State:
        return self._merged([owner.candidate.remote(epoch) for owner in self._owners])

    def weights(self) -> State:
        return self._merged([owner.weights.remote() for owner in self._owners])

    def trained(self) -> State:
        return self._merged([owner.trained.remote() for owner in self._owners])

    @property
    def has_cluster(self) -> bool:
        """Whether Ray is there, as far as this process started it."""
        return self._cluster.lost is None

    def salvage(self, epoch: int | None) -> Salvage:
        owners = {name.holds(self._spec): stage for name, stage in self._stages.items()}
        if self._coordinator is not None:
            owners[HOLDS] = self._coordinator
        if self._cluster.workers_end:
            return Salvage(weights={}, last={}, lost=list(owners))
        return salvage(owners, epoch, self._fetch)

    @property
    def _owners(self) -> list[Any]:
        """The workers that hold what the run learns."""
        return [*self._stages.values(), *([self._coordinator] if self._coordinator is not None else [])]

    def _merged(self, refs: list[Any]) -> State:
        try:
            states = ray.get(refs, timeout=self._fetch)
        except RayError as error:
            raise failure_of("a stage", error) from error
        return {name: value for state in states for name, value in state.items()}

    def close(self) -> None:
        """Ends every actor at once; what they had to say has been fetched."""
        # Without its own processes Ray would be waited for in vain; the workers end with what is left of it.
        there = self._cluster.lost is None
        for worker in self._workers().values() if there else ():
            ray.kill(worker)
        self._coordinator, self._stages, self._feeders, self._running = None, {}, {}, {}
        if self._group is not None and there:
            remove_placement_group(self._group)
        self._group = None
        self._arrivals.close()


def _errors(done: Iterable[Any], names: dict[Any, str]) -> list[RunError]:
    """Of finished work, the errors of what failed, by its worker's name."""
    failures = []
    for ref in done:
        try:
            ray.get(ref)
        except RayError as error:
            failures.append(failure_of(names[ref], error))
    return failures


def _this_node() -> str:
    """The launching process's node, by Ray's id."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _feeder(number: int) -> str:
    """A feeder's name for people."""
    return f"feeder {number + 1}"


def _is_well(answer: Any) -> bool:
    """Whether a worker has answered, and is not dead."""
    try:
        ray.get(answer, timeout=0)
    except RayError:  # among them that it has not answered yet
        return False
    return True
