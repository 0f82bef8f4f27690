"""The workers of a run as Ray actors: placed, joined edge to edge, watched, and gone when the run ends."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.conduct import conduct
from pipeline.errors import ResourcesError, RunError, StageFailedError
from pipeline.history import RunResult
from pipeline.layer import State
from pipeline.local import root_cause
from pipeline.metrics import PassReport, Status
from pipeline.schedule import Pass
from pipeline.spec import RunSpec
from workers.edges import EdgeGroups, edges_of
from workers.feeder import FeederWorker
from workers.stage import StageWorker

_BESIDE = 4  # calls that an actor answers at once, its main work among them
_AFTERSHOCK = 1.0  # seconds in which the neighbours of a dead worker report their loss
_ANSWER = 2.0  # seconds for a look at a stage; one that is slower is looked at again next time
_SOON = 2.0  # seconds after which a person is told what the run waits for
_LOOK = 0.2  # seconds between two looks at whether the person wants to stop
_FETCH = 60.0  # seconds for weights to arrive


def train(
    spec: RunSpec,
    *,
    observe: Callable[[PassReport], None] = lambda report: None,
    follow: Callable[[list[Status]], None] = lambda statuses: None,
    interrupted: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda sentence: None,
) -> RunResult:
    """As ``pipeline.reference.train``, each stage in a Ray actor. Ray must be initialised.

    Args:
        notify: gets a sentence where a person should know why nothing happens.

    Raises:
        ResourcesError: the cluster does not have the devices, also after waiting.
        StageFailedError, NonFiniteLossError: a worker failed; the message names it.
    """
    with RayCrew(spec, interrupted, notify) as crew:
        return conduct(spec, crew, observe=observe, follow=follow, interrupted=interrupted)


class RayCrew:
    """Implements ``pipeline.conduct.Crew``. A context manager: on leaving it every actor is gone."""

    def __init__(
        self,
        spec: RunSpec,
        interrupted: Callable[[], bool] = lambda: False,
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._spec, self._interrupted, self._notify = spec, interrupted, notify
        self._group: PlacementGroup | None = None
        self._stages: list[Any] = []
        self._feeders: list[Any] = []
        self._running: dict[ray.ObjectRef[None], str] = {}  # unfinished work of stages and feeders, and whose it is
        self.devices: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._place()
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _place(self) -> None:
        """Reserves the devices, neighbours close to each other, and starts the actors on them."""
        pipe = self._spec.settings.pipeline
        gpus = 1 if self._spec.device == "cuda" else 0
        # On a GPU machine a stage's core only launches kernels: it must not be what a small machine lacks.
        bundle = {"CPU": float(pipe.threads)} | ({"GPU": float(gpus)} if gpus else {})
        group = self._group = placement_group([bundle] * self._spec.num_stages, strategy="PACK")
        ready = group.ready()
        soon = min(_SOON, pipe.resource_timeout)
        if not self._done([ready], soon):
            wanted = _wanted(bundle, self._spec.num_stages)
            self._notify(f"Waiting up to {pipe.resource_timeout:g} s for room: {wanted}.")
        if not self._done([ready], pipe.resource_timeout - soon):
            raise ResourcesError(_missing(bundle, self._spec.num_stages, pipe.resource_timeout))
        # Ray's masking of CUDA_VISIBLE_DEVICES slows NCCL on NVSwitch hosts; stages choose their device themselves.
        environment = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}} if gpus else None
        run = uuid.uuid4().hex[:8]

        def start(worker: type, role: str, number: int, bundle_index: int, **resources: float) -> Any:
            options = {
                "name": f"localpipe-{run}-{role}-{number + 1}",
                "max_concurrency": _BESIDE,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=bundle_index
                ),
                **resources,
                **({"runtime_env": environment} if environment else {}),
            }
            return ray.remote(worker).options(**options).remote(self._spec, number)

        self._stages = [
            start(StageWorker, "stage", index, index, num_cpus=pipe.threads, num_gpus=gpus)
            for index in range(self._spec.num_stages)
        ]
        # Feeders stand beside the first stage and take no core of their own: they work while it computes.
        self._feeders = [start(FeederWorker, "feeder", number, 0, num_cpus=0) for number in range(pipe.feeders)]

    def _connect(self) -> None:
        host, port = self._all([self._stages[0].open_store.remote()])[0]
        edges = edges_of(self._spec)
        ranks = self._spec.num_stages + len(self._feeders)
        groups = EdgeGroups(edges, ranks, host, port, self._spec.settings.pipeline.stall_timeout)
        self._all([worker.connect.remote(groups) for worker in (*self._stages, *self._feeders)])
        self.devices = self._all([stage.describe.remote() for stage in self._stages])
        self._running = {stage.run.remote(): _name(self._spec, index) for index, stage in enumerate(self._stages)}

    def _all(self, refs: list[Any]) -> list[Any]:
        """The answers of every worker while the run is set up. Raises StageFailedError where one died or failed."""
        try:
            self._done(refs, math.inf)
            return list(ray.get(refs))
        except RayError as error:
            raise _failure("a worker", error) from error

    def _done(self, refs: list[Any], seconds: float) -> bool:
        """Waits for answers while the run is set up. Asked to stop, raises KeyboardInterrupt."""
        end = time.perf_counter() + seconds
        while True:
            _, open_ = ray.wait(refs, num_returns=len(refs), timeout=_LOOK)
            if self._interrupted():
                raise KeyboardInterrupt
            if not open_ or time.perf_counter() > end:
                return not open_

    def feed(self, passes: Sequence[Pass]) -> None:
        for number, feeder in enumerate(self._feeders):
            self._running[feeder.feed.remote(passes)] = f"feeder {number + 1}"

    def interrupt(self) -> None:
        for feeder in self._feeders:
            feeder.interrupt.remote()

    def poll(self) -> list[tuple[Status, list[PassReport]]]:
        try:
            return list(ray.get([stage.poll.remote() for stage in self._stages], timeout=_ANSWER))
        except (GetTimeoutError, RayActorError):
            return []  # too busy to answer now, or dead: ``wait`` says so by name

    def wait(self, seconds: float) -> bool:
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        failures = self._settle(done)
        if failures:
            more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=_AFTERSHOCK)
            raise root_cause(failures + self._settle(more))
        return not any(name.startswith("stage") for name in self._running.values())

    def _settle(self, done: Iterable[Any]) -> list[RunError]:
        """Takes finished work off the list; returns the errors of what failed."""
        failures = []
        for ref in done:
            name = self._running.pop(ref)
            try:
                ray.get(ref)
            except RayError as error:
                failures.append(_failure(name, error))
        return failures

    def keep_only(self, best: int, upto: int) -> None:
        for stage in self._stages:
            stage.keep_only.remote(best, upto)

    def candidate(self, epoch: int) -> State:
        return self._merged([stage.candidate.remote(epoch) for stage in self._stages])

    def weights(self) -> State:
        return self._merged([stage.weights.remote() for stage in self._stages])

    def trained(self) -> State:
        return self._merged([stage.trained.remote() for stage in self._stages])

    def _merged(self, refs: list[Any]) -> State:
        try:
            states = ray.get(refs, timeout=_FETCH)
        except RayError as error:
            raise _failure("a stage", error) from error
        return {name: value for state in states for name, value in state.items()}

    def close(self) -> None:
        """Ends every actor at once; what they had to say has been fetched."""
        for worker in (*self._stages, *self._feeders):
            ray.kill(worker)
        self._stages, self._feeders, self._running = [], [], {}
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def _name(spec: RunSpec, index: int) -> str:
    layers = spec.stages[index]
    numbers = str(layers[0] + 1) if len(layers) == 1 else f"{layers[0] + 1}-{layers[-1] + 1}"
    return f"stage {index + 1} (layer{'s' if len(layers) > 1 else ''} {numbers})"


def _failure(name: str, error: RayError) -> RunError:
    """A worker's error by its name: its own message where it has one, else what Ray says of its death."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RunError):
            return cause
        return StageFailedError(f"{name} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, GetTimeoutError):
        return StageFailedError(f"{name} did not answer in time")
    return StageFailedError(f"{name} died: {str(error).splitlines()[0]}")


def _wanted(bundle: dict[str, float], num_stages: int) -> str:
    wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
    return f"{num_stages} stages need {wanted} each"


def _missing(bundle: dict[str, float], num_stages: int, waited: float) -> str:
    there, free = ray.cluster_resources(), ray.available_resources()
    have = ", ".join(f"{there.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)" for kind in bundle)
    return (
        f"{_wanted(bundle, num_stages)}; after {waited:g} s the cluster has {have}. "
        "Give fewer --stages, free some, add nodes, or wait longer with --resource-timeout."
    )
