"""The workers of a run as Ray actors: placed, joined edge to edge, watched, and gone when the run ends."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup

from pipeline import plugins
from pipeline.checkpoints.folder import SHARED, layer_file
from pipeline.checkpoints.saver import SavedFile
from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError, StageFailedError
from pipeline.layers.state import State
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing
from pipeline.runtime.controller import control
from pipeline.runtime.edges import edges_of
from pipeline.runtime.history import RunResult, Salvage
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Pass
from pipeline.runtime.state_line import state_edges
from pipeline.telemetry.offset import HERE, Offset, OffsetEstimate
from pipeline.telemetry.reports import PassReport, Status, aligned
from pipeline.telemetry.trace import StageTrace, TraceWish
from pipeline.transport.edges import EdgeGroups
from workers.arrivals import Arrivals, mark, unmark
from workers.coordinator import HOLDS
from workers.coordinator import NAME as COORDINATOR
from workers.crew import Crew, feeder_name
from workers.failures import ClusterLostError, WorkerUnreachableError, culprit, failure_of, is_explained
from workers.feeder_status import FeederStatuses
from workers.heartbeat import Door, Heartbeat
from workers.hosts import living_hosts, on_node, this_node
from workers.names import StageName
from workers.rendezvous import RunGroups
from workers.salvage import salvage
from workers.stacks import whereabouts
from workers.watch import Contact, OwnCluster

_AFTERSHOCK = 1.0  # seconds in which other workers report what happened to them at the same time
_UNEXPLAINED = 10.0  # seconds in which Ray may tell why workers have lost a neighbour
_UNREACHED = 5.0  # the same, why it does not reach one
_ANSWER = 2.0  # seconds for a look at a stage; one that is slower is looked at again next time
_ALIVE = 10.0  # seconds in which a worker that works answers a call that needs no work, on a busy machine too
_COME_OUT = 8.0  # seconds in which workers whose neighbours are gone come out of their work
_ELSEWHERE = 20.0  # seconds for another machine to say where a stage of its is
_LOOK = 0.2  # seconds between two looks at whether the person wants to stop
_FETCH = 60.0  # seconds for weights to arrive
_FETCH_INTERRUPTED = 5.0  # the same, while a person waits for the run to stop


def train_ray(
    spec: RunSpec,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> RunResult:
    """As ``pipeline.runtime.serial.train_serial``, each stage in a Ray actor. Ray must be initialised.

    Raises:
        NoRoomError: the cluster does not have the devices, also after waiting.
        StageFailedError, NonFiniteLossError: a worker failed; the message names it.
    """
    with RayWorkers(spec, observer, checkpointing) as group:
        return control(spec, group, observer, checkpointing)


class RayWorkers:
    """Implements ``pipeline.runtime.controller.WorkerGroup``. A context manager: on leaving it every actor is gone.

    Args:
        avoid: nodes by Ray's ids that no stage is to be on: they are lost, and Ray may not know.
    """

    def __init__(
        self,
        spec: RunSpec,
        observer: Observer = Observer(),  # noqa: B008 (it has no state)
        checkpointing: Checkpointing = NO_CHECKPOINTS,
        avoid: frozenset[str] = frozenset(),
    ) -> None:
        for plugin in plugins.loaded().values():
            ray.cloudpickle.register_pickle_by_value(plugin)  # no worker needs to have the file
        self._spec, self._observer, self._checkpointing = spec, observer, checkpointing
        self._crew = Crew(spec, avoid)
        self._attempt = -1
        self._running: dict[ray.ObjectRef[None], str] = {}  # unfinished work, and whose it is
        self._watch: ray.ObjectRef[None] | None = None  # of the coordinator, over its state
        self._cluster = OwnCluster()
        self._heartbeat = None if self._cluster.is_there else Heartbeat(_doors(avoid), self._tell)
        self.devices: list[str] = []
        self._places: dict[str, tuple[str, int]] = {}  # node and process of every stage
        self._clocks: dict[str, OffsetEstimate] = {}  # of stages on other machines
        self._keeps_images = False  # the first stage, on its device
        self._lost: ClusterLostError | None = None
        self._out_of_reach: set[str] = set()  # workers that the attempt before could not ask any more
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
        if self._attempt >= 0:
            self._end_what_failed()
            self._arrivals.close()
        self._attempt += 1
        self._hear_anew()
        self._crew.start_missing(self._attempt, self._observer, self._ready, self._all)
        self._begin_all()
        self._connect()

    def _hear_anew(self) -> None:
        """Nothing has been asked of the workers, and nothing heard of them."""
        self._polls: dict[StageName, Any] = {}
        self._asked_at: dict[StageName, float] = {}
        self._traces: list[StageTrace] = []
        self._shared_saved: Any = None  # an open question to the coordinator
        self._feeders = FeederStatuses(self._attempt)
        self._arrivals = Arrivals(self._checkpointing.folder, self._attempt)
        self._fetch = _FETCH
        self._contact = Contact(self._spec.settings.pipeline.stall_timeout)

    def _end_what_failed(self) -> None:
        """Of an attempt that failed, ends the workers that died, are stuck or cannot be reached. All others come out of
        their work: whose neighbour is gone breaks off its own channels."""
        workers = self._crew.by_name
        self._crew.end(self._out_of_reach)  # they may work on, and their neighbours with them
        self._out_of_reach = set()
        answers = {worker.__ray_ready__.remote(): name for name, worker in self._crew.by_name.items()}
        if answers:
            ray.wait(list(answers), num_returns=len(answers), timeout=_ALIVE)
        stuck = {name for ref, name in answers.items() if not _is_well(ref)}
        self._crew.end(stuck)  # first: they hold others up
        if self._crew.coordinator is not None:
            self._crew.coordinator.end.remote(self._attempt)
        working = self._crew.by_name
        # The coordinator's watch ends by that, or when it begins anew.
        work = {ref: name for ref, name in self._running.items() if name in working and ref != self._watch}
        if work:
            ray.wait(list(work), num_returns=len(work), timeout=_COME_OUT)
        self._crew.end({name for ref, name in work.items() if not ray.wait([ref], timeout=0)[0]})
        self._running = {}
        there = self._crew.by_name
        gone = [name for name in workers if name not in there]
        if there and gone:
            others = "worker goes on in its process" if len(there) == 1 else "workers go on in their processes"
            self._observer.notified(f"Started anew: {', '.join(gone)}. {len(there)} other {others}.")

    def _begin_all(self) -> None:
        """Has every worker take up its part of the run."""
        away, attempt = self._away(), self._attempt
        if self._crew.coordinator is not None:  # first: stages ask it for versions of this attempt
            begin = self._checkpointing_of([SHARED], away=COORDINATOR in away)
            self._all({COORDINATOR: self._crew.coordinator.begin.remote(begin, attempt)})
        begin = self._checkpointing
        asked = {feeder_name(number): one.begin.remote(begin, attempt) for number, one in self._crew.feeders.items()}
        for name, stage in self._crew.stages.items():
            described = name.described(self._spec)
            files = [layer_file(layer) for layer in self._spec.stages[name.stage]]
            begin = self._checkpointing_of(files, away=described in away)
            asked[described] = stage.begin.remote(begin, self._crew.coordinator, attempt)
        answers = dict(zip(asked, self._all(asked), strict=True))
        self._keeps_images = answers[StageName(0).described(self._spec)]

    def _away(self) -> set[str]:
        """The workers whose machines do not see the folder of the run's checkpoints."""
        begin = self._checkpointing
        folder = begin.folder if begin.resume is None else begin.resume.folder
        if folder is None:
            return set()
        word = mark(folder)
        owners = self._crew.owners
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

    def _connect(self) -> None:
        stages = {name.described(self._spec): stage for name, stage in self._crew.stages.items()}
        feeders = {feeder_name(number): feeder for number, feeder in sorted(self._crew.feeders.items())}
        workers = stages | feeders  # in the order of their ranks
        if self._crew.coordinator is not None:
            workers[COORDINATOR] = self._crew.coordinator
        first, one = next(iter(workers.items()))
        groups = self._groups(len(workers), self._all({first: one.edge_bytes.remote()})[0])
        self._observer.waits_for("joining neighbours")
        self._all({first: one.open_exchange.remote(groups.batches.secret)})
        self._all({name: worker.connect.remote(self._attempt, groups, one) for name, worker in workers.items()})
        self.devices = self._all({name: stage.describe.remote() for name, stage in stages.items()})
        self._places = dict(zip(stages, self._all({name: s.where.remote() for name, s in stages.items()}), strict=True))
        here = this_node()
        self._clocks = {name: OffsetEstimate() for name, (node, _) in self._places.items() if node != here}
        self._observer.waits_for("the first batch")
        self._running = {stage.run.remote(self._attempt): name for name, stage in stages.items()}
        if self._crew.coordinator is not None:
            self._watch = self._crew.coordinator.watch.remote(self._attempt)
            self._running[self._watch] = COORDINATOR

    def _groups(self, num_ranks: int, sizes: Sequence[int]) -> RunGroups:
        """All edges of the run. ``sizes``: what ``edge_bytes`` gives."""
        pipe = self._spec.settings.pipeline
        batches = EdgeGroups(edges_of(self._spec, sizes), num_ranks, pipe.stall_timeout, pipe.depth)
        if self._crew.coordinator is None:
            return RunGroups(batches)
        shape = self._all({COORDINATOR: self._crew.coordinator.shape.remote(self._attempt)})[0]
        lines = state_edges(self._spec, shape, owner=num_ranks - 1)
        return RunGroups(batches, replace(batches, edges=lines))

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
            self._check_hosts()
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
            self._check_hosts()
            if time.perf_counter() > end:
                return False
        return True

    def _check_hosts(self) -> None:
        """Raises HostLostError where a machine of the cluster is gone, or what Ray has there."""
        self._cluster.check()
        if self._heartbeat is not None:
            try:
                self._heartbeat.check({node for node, _ in self._places.values()} or None)
            except ClusterLostError as error:
                self._lost = error
                raise

    def _tell(self, sentence: str) -> None:
        self._observer.notified(sentence)

    def _hear_interrupt(self) -> None:
        if self._observer.interrupted():
            raise KeyboardInterrupt

    def feed(self, passes: Sequence[Pass]) -> None:
        for number, feeder in self._crew.feeders.items():
            work = feeder.feed.remote(self._attempt, passes, once=self._keeps_images)
            self._running[work] = feeder_name(number)
        if not self._crew.feeders:  # the first stage reads for itself
            work = self._crew.stages[StageName(0)].feed.remote(self._attempt, passes)
            self._running[work] = "the first stage's reader"

    def checkpoint(self) -> None:
        self._reader.checkpoint.remote(self._attempt)

    @property
    def _reader(self) -> Any:
        """Who sends control tokens: the first feeder, or where there is none the first stage."""
        return self._crew.feeders[0] if self._crew.feeders else self._crew.stages[StageName(0)]

    def trace(self, wish: TraceWish) -> None:
        self._reader.trace.remote(self._attempt, wish)

    def traces(self) -> list[StageTrace]:
        taken, self._traces = self._traces, []
        return taken

    def saved(self) -> list[SavedFile]:
        return self._arrivals.take()

    def saving(self) -> bool:
        return self._arrivals.busy

    def interrupt(self) -> None:
        self._fetch = _FETCH_INTERRUPTED
        for reader in [*self._crew.feeders.values()] or [*self._crew.stages.values()][:1]:
            reader.interrupt.remote(self._attempt)

    def poll(self) -> list[tuple[Status, list[PassReport]]]:
        # A question to a stage that is slow to answer stays open: its answer, with the reports in it, comes next time.
        for name, stage in self._crew.stages.items():
            if name not in self._polls:
                self._asked_at[name] = time.time()
                self._polls[name] = stage.poll.remote(self._attempt)
                self._contact.asked(name.described(self._spec))
        answered = _as_they_come(self._polls.values(), _ANSWER)
        polled = []
        for name in [name for name, ref in self._polls.items() if ref in answered]:
            described, ref = name.described(self._spec), self._polls.pop(name)
            try:
                # Copied: Ray's arrays are views of the whole answer, and one that is kept would keep it all.
                said = copy.deepcopy(ray.get(ref))
                offset = self._offset(described, self._asked_at[name], said.at, answered[ref])
                if name.stage == 0:
                    said.status.feeders = self._feeders.ask(self._crew.feeders)
                polled.append((said.status, [aligned(report, offset) for report in said.reports]))
                self._traces += [replace(trace, offset=offset) for trace in said.traces]
                self._arrivals.heard(described, self._crew.stages[name], said.saved, saving=said.saving)
            except RayActorError as error:
                try:
                    self._contact.missed(described, error)  # where it is dead, ``wait`` says so before
                except StageFailedError:
                    self._out_of_reach.add(described)
                    raise
                continue
            except RayError as error:
                raise failure_of(described, error) from error
            self._contact.answered(described)
        silent = self._contact.silent()
        if silent is not None:
            limit = self._spec.settings.pipeline.stall_timeout
            self._out_of_reach.add(silent)
            raise StageFailedError(f"{silent} has not answered for {limit:g} s: {self._look_for(silent)}")
        self._ask_coordinator()
        return polled

    def _offset(self, name: str, asked: float, told: float, answered: float) -> Offset:
        """Of a stage's clock, after one more answer of it."""
        if name not in self._clocks:
            return HERE
        self._clocks[name].heard(asked, told, answered)
        return self._clocks[name].best

    def _ask_coordinator(self) -> None:
        """Hears which parts of checkpoints the coordinator has written."""
        if self._crew.coordinator is None or self._checkpointing.folder is None:
            return
        if self._shared_saved is None:
            self._shared_saved = self._crew.coordinator.saved.remote(self._attempt)
        if not ray.wait([self._shared_saved], timeout=_ANSWER)[0]:
            return
        asked, self._shared_saved = self._shared_saved, None
        with suppress(RayActorError):  # it is dead: ``wait`` says so by name
            saved, saving = ray.get(asked)
            self._arrivals.heard(COORDINATOR, self._crew.coordinator, saved, saving=saving)

    def wait(self, seconds: float) -> bool:
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        self._check_hosts()
        names = {ref: self._running.pop(ref) for ref in done}
        failures = _errors(done, names)
        if failures:
            raise self._cause(failures, self._running)
        return not any(name.startswith("stage") for name in self._running.values())

    def _cause(self, failures: list[RunError], others: dict[Any, str]) -> RunError:
        """The error that explains these, which came first; it may be the one of another worker's unfinished work."""
        waiting, begun = list(others), time.perf_counter()
        while waiting and time.perf_counter() - begun < self._patience(failures):
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK)
            failures = failures + _errors(done, others)
            try:
                self._check_hosts()
            except RunError as error:
                return error
        cause = culprit(failures)
        self._out_of_reach |= {error.worker for error in failures if isinstance(error, WorkerUnreachableError)}
        stuck = [name for name in (others[ref] for ref in waiting) if name in self._places]
        if (
            isinstance(cause, PeerLostError) and stuck
        ):  # one that is silent and has not ended is what the others wait for
            found = "; ".join(f"{name}: {self._look_for(name)}" for name in stuck)
            cause = PeerLostError(f"{cause.fact} ({found})")
        return cause

    def _patience(self, failures: Sequence[RunError]) -> float:
        """Seconds in which an error may come that explains these."""
        if is_explained(failures):
            return _AFTERSHOCK
        unreached = any(isinstance(error, WorkerUnreachableError) for error in failures)
        # Of another machine Ray says after some ten seconds that it is lost.
        return _UNREACHED if unreached and self._cluster.is_there else _UNEXPLAINED

    def _look_for(self, name: str) -> str:
        """Where a stage is that makes no headway. Its stacks are noted."""
        if name not in self._places:
            return "it is stopped or stuck"
        node, pid = self._places[name]
        if node == this_node():
            found = whereabouts(pid)
        else:
            asked = ray.remote(whereabouts).options(num_cpus=0, scheduling_strategy=on_node(node)).remote(pid)
            try:
                found = ray.get(asked, timeout=_ELSEWHERE)
            except RayError:  # then the machine is what makes no headway
                return "nor does its machine"
        if found.stacks:
            self._observer.noted(f"stacks of {name}", found.stacks)
        return found.fact

    def peak_bytes(self, *, reset: bool = False) -> list[int]:
        """Each stage's peak memory in bytes since the last reset."""
        stages = self._crew.stages.items()
        return self._all({name.described(self._spec): stage.peak_bytes.remote(reset=reset) for name, stage in stages})

    def give_back(self) -> None:
        """Has idle stages give freed memory back to the system."""
        for stage in self._crew.stages.values():
            stage.give_back.remote()

    def keep_only(self, best: int, upto: int) -> None:
        for owner in self._crew.owners.values():
            owner.keep_only.remote(self._attempt, best, upto)

    def candidate(self, epoch: int) -> State:
        return self._merged(lambda owner: owner.candidate.remote(self._attempt, epoch))

    def weights(self) -> State:
        return self._merged(lambda owner: owner.weights.remote(self._attempt))

    def trained(self) -> State:
        return self._merged(lambda owner: owner.trained.remote(self._attempt))

    @property
    def has_cluster(self) -> bool:
        """Whether Ray is there, as far as this process started it or nothing goes on without it."""
        return self._cluster.lost is None and self._lost is None

    def salvage(self, epoch: int | None) -> Salvage:
        owners = {name.holds(self._spec): stage for name, stage in self._crew.stages.items()}
        if self._crew.coordinator is not None:
            owners[HOLDS] = self._crew.coordinator
        if self._cluster.workers_end or self._lost is not None:
            return Salvage(weights={}, last={}, lost=list(owners))
        return salvage(owners, self._attempt, epoch, self._fetch)

    def _merged(self, ask: Callable[[Any], Any]) -> State:
        """The states of all that hold what the run learns, as one."""
        merged: State = {}
        asked = {name: ask(owner) for name, owner in self._crew.owners.items()}
        end = time.perf_counter() + self._fetch
        for name, ref in asked.items():
            try:
                merged |= ray.get(ref, timeout=max(0.0, end - time.perf_counter()))
            except RayError as error:
                raise failure_of(name, error) from error
        return merged

    def close(self) -> None:
        """Ends every actor at once; what they had to say has been fetched."""
        if self._heartbeat is not None:
            self._heartbeat.close()
        # Without its own processes Ray would be waited for in vain; the workers end with what is left of it.
        self._crew.close(ray_is_there=self.has_cluster)
        self._running = {}
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


def _as_they_come(asked: Iterable[Any], seconds: float) -> dict[Any, float]:
    """When the answers came, in seconds since 1970, of those that did within so many seconds."""
    waiting, come, end = list(asked), dict[Any, float](), time.perf_counter() + seconds
    while waiting and (left := end - time.perf_counter()) > 0:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        come |= dict.fromkeys(done, time.time())
    return come


def _doors(avoid: frozenset[str]) -> list[Door]:
    """Where the machines of a cluster that was joined are knocked at."""
    here, hosts = this_node(), living_hosts()
    address, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    head = next((str(host) for host in hosts if host.address == address), address)
    doors = [Door(name=head, address=address, port=int(port), process="head", node=None)]
    for host in hosts:
        if host.node not in avoid:
            node = None if host.node == here else host.node
            doors.append(Door(name=str(host), address=host.address, port=host.port, process="raylet", node=node))
    return doors


def _is_well(answer: Any) -> bool:
    """Whether a worker has answered, and is not dead."""
    try:
        ray.get(answer, timeout=0)
    except RayError:  # among them that it has not answered yet
        return False
    return True
