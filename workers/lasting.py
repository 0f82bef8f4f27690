"""Workers that last as long as a run, however often that begins anew after a failure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from pipeline.config.run_spec import RunSpec
from pipeline.errors import NoRoomError
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.controller import control
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from workers.failures import ClusterLostError, HostLostError
from workers.group import RayWorkers
from workers.placement import room


class LastingWorkers:
    """The workers of a run as Ray actors. ``train`` may be called again after an error; what still works is kept.

    A context manager: on leaving it every actor is gone.

    Args:
        renew: starts Ray anew where one of its processes has died; None: nobody can, as it is another program's.
        lost: nodes by Ray's ids, which may not know it.
    """

    def __init__(
        self, spec: RunSpec, renew: Callable[[], None] | None = None, lost: frozenset[str] = frozenset()
    ) -> None:
        self._spec, self._renew = spec, renew
        self._group: RayWorkers | None = None
        self._lost = lost
        self._began = False  # whether the run has had its workers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def train(self, observer: Observer, checkpointing: Checkpointing) -> RunResult:
        """As ``workers.group.train_ray``."""
        try:
            workers = self._ready(observer, checkpointing)
            return control(self._spec, workers, observer, checkpointing)
        except ClusterLostError as error:
            error.mends = self._renew is not None
            raise
        except HostLostError as error:
            if error.nodes:  # Ray would start workers there again
                self._lost |= error.nodes
                self._end()
            raise

    def _ready(self, observer: Observer, checkpointing: Checkpointing) -> RayWorkers:
        """The workers, where the run begins this time."""
        group = self._group
        try:
            if group is not None and group.has_cluster:
                group.begin(observer, checkpointing)
                return group
            if group is not None:
                self._end()
                assert self._renew is not None, "the error said that nothing mends it"
                observer.waits_for("starting Ray anew")
                self._renew()
            return self._start(observer, checkpointing)
        except NoRoomError as error:
            if not self._began:
                raise
            return self._in_fewer_stages(error, observer, checkpointing)

    def _start(self, observer: Observer, checkpointing: Checkpointing) -> RayWorkers:
        self._group = self._stack.enter_context(RayWorkers(self._spec, observer, checkpointing, self._lost))
        self._began = True
        return self._group

    def _end(self) -> None:
        self._stack.close()
        self._group = None

    def _in_fewer_stages(self, error: NoRoomError, observer: Observer, checkpointing: Checkpointing) -> RayWorkers:
        """The workers of the same run on what is left of the cluster.

        Raises:
            NoRoomError: nothing is left, which ``error`` says.
        """
        self._end()
        before, most = self._spec.num_stages, self._spec.num_stages - 1
        while (count := room(self._spec, most, self._lost)) > 0:
            self._spec = self._spec.in_stages(count)
            one = "stage" if count == 1 else "stages"
            observer.notified(f"There is room for {count} {one} of {before}. Going on in {count} {one}.")
            observer.divided(self._spec)
            try:
                return self._start(observer, checkpointing)
            except NoRoomError:  # another program took it
                most = count - 1
        raise error
