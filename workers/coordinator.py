"""The coordinator: the state that layers share in a Ray actor of its own, and the stages' line to it.

Stages never wait for an answer to a gradient, and versions come before they are asked for: a thread beside the stage
sends, another one fetches. What the stage may wait for is a version that does not exist yet.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError
from pipeline.layers.layer import State
from pipeline.layers.shared_state import VersionedState
from pipeline.methods import BatchPosition
from pipeline.runtime.checkpointing import Checkpointing, shared_state
from pipeline.runtime.passes import START, Cut, trained_steps
from workers.failures import own_error
from workers.parts import HasParts
from workers.signals import die_of_sigterm

HOLDS = "label embeddings"
NAME = f"coordinator ({HOLDS})"

Gradient = tuple[int, int, NDArray[np.float32]]
"""Layer, step and what the layer contributes."""


class Checkpoint(NamedTuple):
    """A stage has come to a checkpoint, after which training step ``step`` follows."""

    key: str
    step: int


class CoordinatorWorker(HasParts):
    """Owns the shared state. Its calls are answered beside each other; ``watch`` ends when something is wrong.

    It begins anew with every attempt at the run. Stages say to which attempt they belong: what is under way from one
    that is over must not reach the state of the next.
    """

    def __init__(self, spec: RunSpec) -> None:
        die_of_sigterm()
        torch.set_num_threads(1)
        self._spec = spec
        self._begun: _Begun | None = None

    def begin(self, checkpointing: Checkpointing, attempt: int = 0) -> None:
        """Makes the state, as it was at the beginning or at a checkpoint. What waits for the one before ends.

        Raises:
            DamagedError: the checkpoint's part cannot be read.
            StageFailedError: what is being written of a checkpoint does not come to its end.
        """
        if self._begun is not None:
            self._begun.fail(PeerLostError(f"{NAME}: the run has begun anew"))
            self._begun.state.break_off()
        saver = self._save_anew(checkpointing)
        self._begun = _Begun(attempt, shared_state(self._spec, saver, checkpointing.resume))

    def watch(self) -> None:
        """Returns never; raises what made the state useless."""
        begun = self._of(None)
        begun.failed.wait()
        assert begun.failure is not None
        raise begun.failure

    def push(self, attempt: int, said: list[Gradient | Checkpoint]) -> None:
        """Takes what a stage says, in the order in which it says it."""
        begun = self._of(attempt)
        try:
            for one in said:
                if isinstance(one, Checkpoint):
                    begun.state.checkpoint(one.key, one.step)
                else:
                    layer, step, gradient = one
                    begun.state.push(layer, step, torch.from_numpy(gradient.copy()))
        except RunError as error:
            begun.fail(error)
            raise

    def wait_from(self, attempt: int, version: int) -> dict[int, NDArray[np.float32]]:
        """This version, when it is there, and all that follow it."""
        return {number: values.numpy() for number, values in self._of(attempt).state.wait_from(version).items()}

    def freeze(self, attempt: int, epoch: int) -> NDArray[np.float32]:
        """The state at the end of an epoch, which is from now on the one that the run keeps."""
        state = self._of(attempt).state
        state.freeze(epoch)
        values: NDArray[np.float32] = state.candidate(epoch).numpy()
        return values

    def keep_only(self, best: int, upto: int) -> None:
        self._of(None).state.keep_only(best, upto)

    def candidate(self, epoch: int) -> State:
        return self._of(None).state.candidate_weights(epoch)

    def weights(self) -> State:
        return self._of(None).state.weights()

    def trained(self) -> State:
        return self._of(None).state.state()

    def _of(self, attempt: int | None) -> _Begun:
        """What there is of an attempt; None: of the present one. Raises PeerLostError where that one is over."""
        begun = self._begun
        assert begun is not None, "begin() comes first"
        if attempt not in (None, begun.attempt):
            raise PeerLostError(f"{NAME}: the run has begun anew")
        return begun


@dataclass
class _Begun:
    """The state in one attempt at the run, and what made it useless."""

    attempt: int
    state: VersionedState
    failure: RunError | None = None
    failed: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: RunError) -> None:
        self.failure = error
        self.failed.set()


@dataclass(frozen=True)
class _Outgoing:
    """A gradient on its way, and when it has come from its GPU."""

    layer: int
    step: int
    gradient: Tensor
    copied: torch.cuda.Event | None

    def ready(self) -> Gradient:
        if self.copied is not None:
            self.copied.synchronize()
        return self.layer, self.step, self.gradient.numpy()


class RemoteState:
    """The shared state as one stage sees it. Implements ``pipeline.layers.shared_state.SharedStateAccess``.

    Args:
        coordinator: the actor.
        layers: the stage's layers.
        cut: where the run begins.
        attempt: to which all that it says and asks belongs.
    """

    def __init__(self, spec: RunSpec, coordinator: Any, layers: range, cut: Cut = START, attempt: int = 0) -> None:
        versions = spec.shared_versions
        assert versions is not None, "asked for only where layers share a state"
        self._schedule, self._layers = versions, layers
        self._timeout = spec.settings.pipeline.stall_timeout
        self._coordinator, self._attempt = coordinator, attempt
        self._versions: dict[int, Tensor] = {}
        self._frozen: Tensor | None = None
        self._changed = threading.Condition()
        self._failure: RunError | None = None
        self._outgoing: queue.SimpleQueue[_Outgoing | Checkpoint | None] = queue.SimpleQueue()
        num_steps = spec.settings.train.epochs * spec.steps_per_epoch
        self._last = max(self._schedule.read(layer, num_steps, training=False) for layer in layers)
        # What is read first: the oldest version of all, whether the run begins with a training step or a validation.
        begin = trained_steps(spec, cut)
        self._first = min(self._schedule.read(layers[0], begin, training=training) for training in (True, False))
        self._start("label embeddings: fetch", self._fetch)
        self._start("label embeddings: send", self._send)

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        """As ``VersionedState.read``; waits for a version that is not there yet.

        Raises:
            PeerLostError: it does not come within the stall timeout, or the coordinator died.
            RunError: the coordinator failed.
        """
        if self._frozen is not None and not where.training:
            return self._frozen
        version = self._schedule.read(layer, where.step, training=where.training)
        # The stage's first layer reads the oldest version of all; what is older was for steps that are over.
        oldest = self._schedule.read(self._layers[0], where.step, training=where.training)
        with self._changed:
            self._changed.wait_for(lambda: version in self._versions or self._failure is not None, self._timeout)
            if self._failure is not None:
                raise self._failure
            if version not in self._versions:
                raise PeerLostError(f"{NAME}: version {version} did not come within {self._timeout:g} s")
            for number in [number for number in self._versions if number < oldest]:
                del self._versions[number]
            return self._versions[version]

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        copied = None
        if gradient.is_cuda:
            host = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True)
            host.copy_(gradient, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(gradient.device))
            gradient = host
        self._outgoing.put(_Outgoing(layer, step, gradient, copied))

    def checkpoint(self, key: str, step: int) -> None:
        self._outgoing.put(Checkpoint(key, step))

    def freeze(self, epoch: int) -> None:
        try:
            self._frozen = _tensor(ray.get(self._coordinator.freeze.remote(self._attempt, epoch)))
        except RayError as error:
            raise _lost(error) from error

    def _fetch(self) -> None:
        """Fetches every version as soon as it is made, until the last one that the stage will read."""
        due = self._first
        while due <= self._last:
            fetched = ray.get(self._coordinator.wait_from.remote(self._attempt, due))
            with self._changed:
                self._versions |= {number: _tensor(values) for number, values in fetched.items()}
                self._changed.notify_all()
            due = max(fetched) + 1

    def _send(self) -> None:
        """Sends what the stage says in the order in which it said it, as much at a time as has come meanwhile."""
        while True:
            waiting = [self._outgoing.get()]
            while not self._outgoing.empty():
                waiting.append(self._outgoing.get())
            if None in waiting:
                return
            said = [one.ready() if isinstance(one, _Outgoing) else one for one in waiting]
            ray.get(self._coordinator.push.remote(self._attempt, said))

    def close(self) -> None:
        """The attempt is over: what was not sent yet is not, and nothing more is fetched."""
        self._outgoing.put(None)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except RayError as error:
                with self._changed:
                    self._failure = _lost(error)
                    self._changed.notify_all()

        threading.Thread(target=guarded, name=name, daemon=True).start()


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values.copy())  # what Ray hands over must not be written to


def _lost(error: RayError) -> RunError:
    """For a stage the coordinator is a neighbour: where that died or failed, the run's error is the coordinator's."""
    return own_error(error) or PeerLostError(f"{NAME} is gone")
