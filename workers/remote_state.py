"""The state that layers share as a stage sees it: through memory where the coordinator is on the same machine, else by
calls.

A stage never waits for an answer to a gradient. What it may wait for is a version that does not exist yet.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError
from pipeline.methods import BatchPosition
from pipeline.runtime.passes import START, Cut, trained_steps
from pipeline.runtime.state_line import Checkpoint, Contribution, Said, StageEnd
from workers.coordinator import NAME, Gradient
from workers.failures import own_error

_ANSWER = 5.0  # seconds for the coordinator to say what it waits for


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stage's part in an attempt at the run.

    Attributes:
        coordinator: the actor.
        name: the stage's, for people.
        layers, device: the stage's.
        attempt: to which all that it says and asks belongs.
        cut: where the run begins.
    """

    spec: RunSpec
    coordinator: Any
    name: str
    layers: range
    device: torch.device
    cut: Cut = START
    attempt: int = 0

    def first_version(self) -> int:
        """The oldest that the stage reads, whether the run begins with a training step or a validation."""
        versions, begin = self.spec.shared_versions, trained_steps(self.spec, self.cut)
        assert versions is not None, "asked for only where layers share a state"
        return min(versions.read(self.layers[0], begin, training=training) for training in (True, False))

    def last_version(self) -> int:
        """The newest that the stage reads."""
        versions, num_steps = self.spec.shared_versions, self.spec.settings.train.epochs * self.spec.steps_per_epoch
        assert versions is not None, "asked for only where layers share a state"
        return max(versions.read(layer, num_steps, training=False) for layer in self.layers)


def remote_state(part: Part) -> RemoteState:
    """The shared state as a stage gets at it best. Errors as of ``RemoteState.freeze``."""
    try:
        line = _line(part)
    except RayError as error:
        raise _lost(error) from error
    return CalledState(part) if line is None else NearState(part, line)


def _line(part: Part) -> StageEnd | None:
    """A line through memory, where the coordinator can be reached by one."""
    coordinator, attempt = part.coordinator, part.attempt
    offered = ray.get(coordinator.offer_line.remote(attempt, part.name))
    if offered is None:
        return None
    line = StageEnd(offered, part.name, NAME, part.spec.settings.pipeline.stall_timeout)
    if ray.get(coordinator.take_line.remote(attempt, part.name, line.address, part.first_version())):
        line.taken()
        return line
    line.close()
    return None


class RemoteState(ABC):
    """The shared state as one stage sees it. Implements ``pipeline.layers.shared_state.SharedStateAccess``."""

    def __init__(self, part: Part) -> None:
        versions = part.spec.shared_versions
        assert versions is not None, "asked for only where layers share a state"
        self._part, self._schedule = part, versions
        self._timeout = part.spec.settings.pipeline.stall_timeout
        self._versions: dict[int, Tensor] = {}  # those that have come and may still be read
        self._frozen: Tensor | None = None
        self._failure: RunError | None = None

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        """As ``VersionedState.read``, on the stage's device; waits for a version that is not there yet.

        Raises:
            PeerLostError: it does not come within the stall timeout, or the coordinator died.
            RunError: the coordinator failed.
        """
        if self._frozen is not None and not where.training:
            return self._frozen
        version = self._schedule.read(layer, where.step, training=where.training)
        # The stage's first layer reads the oldest version of all; what is older was for steps that are over.
        oldest = self._schedule.read(self._part.layers[0], where.step, training=where.training)
        for number in [number for number in self._versions if number < oldest]:
            del self._versions[number]
        if version not in self._versions:
            self._versions |= self._await(version)
        self._versions[version] = self._here(self._versions[version])
        return self._versions[version]

    @abstractmethod
    def _await(self, version: int) -> dict[int, Tensor]:
        """All that has come since the last call, which has this version in it; waits for that. Errors as ``read``."""

    @abstractmethod
    def _say(self, said: Said) -> None:
        """Tells the coordinator, in this order."""

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        self._say(Contribution(layer, step, gradient))

    def checkpoint(self, key: str, step: int) -> None:
        self._say(Checkpoint(key, step))

    def freeze(self, epoch: int) -> None:
        """As ``SharedStateAccess.freeze``.

        Raises:
            PeerLostError: the coordinator is gone.
        """
        try:
            frozen = ray.get(self._part.coordinator.freeze.remote(self._part.attempt, epoch))
        except RayError as error:
            raise _lost(error) from error
        self._frozen = self._here(_tensor(frozen))

    @abstractmethod
    def close(self) -> None:
        """The attempt is over: what was not sent yet is not, and nothing more is fetched."""

    def _here(self, values: Tensor) -> Tensor:
        """On the stage's device: copied once, from memory that need not be waited for."""
        if values.device == self._part.device or self._part.device.type == "cpu":
            return values
        return values.pin_memory().to(self._part.device, non_blocking=True)

    def _beside(self, name: str, work: Callable[[], None]) -> None:
        """Works in a thread of its own."""

        def guarded() -> None:
            try:
                work()
            except (RayError, RunError) as error:
                self._fail(_lost(error) if isinstance(error, RayError) else error)

        threading.Thread(target=guarded, name=f"label embeddings: {name}", daemon=True).start()

    def _fail(self, error: RunError) -> None:
        """A thread has ended by this error, which is told when the stage asks next."""
        self._failure = error


class NearState(RemoteState):
    """Through a line to a coordinator on this machine."""

    def __init__(self, part: Part, line: StageEnd) -> None:
        super().__init__(part)
        self._line = line
        self._outgoing: _Outgoing | None = None
        if part.device.type == "cuda":  # whose gradients come later than they are said
            self._outgoing = _Outgoing()
            self._beside("send", self._send)

    def _await(self, version: int) -> dict[int, Tensor]:
        come: dict[int, Tensor] = {}
        while version not in come:
            self._check()
            try:
                number, values = self._line.next_version()
            except PeerLostError as error:
                raise self._lacking(version) from error
            come[number] = values.clone()
        return come

    def _lacking(self, version: int) -> PeerLostError:
        """Why a version has not come: what the coordinator waits for, if it lives."""
        try:
            asked = self._part.coordinator.lacking.remote(self._part.attempt)
            lacking = ray.get(asked, timeout=_ANSWER)
        except RayError:  # whose end Ray tells the run
            return PeerLostError(f"{NAME} is gone")
        return PeerLostError(f"{NAME}: version {version} did not come within {self._timeout:g} s; {lacking}")

    def _say(self, said: Said) -> None:
        self._check()
        if self._outgoing is None:
            self._line.say(said)
        else:
            self._outgoing.put(said)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _send(self) -> None:
        assert self._outgoing is not None, "there is a device to wait for"
        while waiting := self._outgoing.take():
            for said in waiting:
                self._line.say(said)

    def close(self) -> None:
        if self._outgoing is not None:
            self._outgoing.close()
        self._line.close()


class CalledState(RemoteState):
    """By calls of the actor: a thread sends, another one fetches every version as soon as it is made."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._changed = threading.Condition()
        self._fetched: dict[int, Tensor] = {}
        self._outgoing = _Outgoing()
        self._beside("fetch", self._fetch)
        self._beside("send", self._send)

    def _await(self, version: int) -> dict[int, Tensor]:
        with self._changed:
            self._changed.wait_for(lambda: version in self._fetched or self._failure is not None, self._timeout)
            if self._failure is not None:
                raise self._failure
            if version not in self._fetched:
                raise PeerLostError(f"{NAME}: version {version} did not come within {self._timeout:g} s")
            come, self._fetched = self._fetched, {}
            return come

    def _say(self, said: Said) -> None:
        self._outgoing.put(said)

    def _fetch(self) -> None:
        """Fetches every version, until the last one that the stage will read."""
        due, last, asked = self._part.first_version(), self._part.last_version(), self._part.coordinator
        while due <= last:
            fetched = ray.get(asked.wait_from.remote(self._part.attempt, due))
            with self._changed:
                self._fetched |= {number: _tensor(values) for number, values in fetched.items()}
                self._changed.notify_all()
            due = max(fetched) + 1

    def _send(self) -> None:
        """Sends what the stage says, as much at a time as has come meanwhile."""
        while waiting := self._outgoing.take():
            said: list[Gradient | Checkpoint] = [
                one if isinstance(one, Checkpoint) else (one.layer, one.step, one.values.numpy()) for one in waiting
            ]
            ray.get(self._part.coordinator.push.remote(self._part.attempt, said))

    def _fail(self, error: RunError) -> None:
        with self._changed:
            super()._fail(error)
            self._changed.notify_all()

    def close(self) -> None:
        self._outgoing.close()


class _Outgoing:
    """What a stage says, in the order in which it said it, until it has come from its device."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Said, torch.cuda.Event | None] | None] = queue.SimpleQueue()

    def put(self, said: Said) -> None:
        copied = None
        if isinstance(said, Contribution) and said.values.is_cuda:
            host = torch.empty(said.values.shape, dtype=said.values.dtype, pin_memory=True)
            host.copy_(said.values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(said.values.device))
            said = said._replace(values=host)
        self._queue.put((said, copied))

    def take(self) -> list[Said]:
        """All that has come meanwhile, once there is something; nothing once it is closed."""
        waiting = [self._queue.get()]
        while not self._queue.empty():
            waiting.append(self._queue.get())
        said: list[Said] = []
        for one in waiting:
            if one is None:
                return []
            if one[1] is not None:
                one[1].synchronize()
            said.append(one[0])
        return said

    def close(self) -> None:
        """What was not taken yet is forgotten."""
        self._queue.put(None)


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values.copy())  # what Ray hands over must not be written to


def _lost(error: RayError) -> RunError:
    """For a stage the coordinator is a neighbour: where that died or failed, the run's error is the coordinator's."""
    return own_error(error) or PeerLostError(f"{NAME} is gone")
