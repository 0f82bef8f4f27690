"""What a stage has of the state that layers share, whichever way it takes to the coordinator."""

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
from pipeline.runtime.state_line import Checkpoint, Contribution, Said
from workers.coordinator import NAME
from workers.failures import own_error


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
            raise lost(error) from error
        self._frozen = self._here(tensor_of(frozen))

    @abstractmethod
    def close(self) -> None:
        """The attempt is over: what was not sent yet is not, and nothing more is fetched."""

    def _here(self, values: Tensor) -> Tensor:
        """On the stage's device: copied once, from memory that need not be waited for."""
        if values.device == self._part.device or self._part.device.type == "cpu":
            return values
        return values.pin_memory().to(self._part.device, non_blocking=True)

    def _beside(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Works in a thread of its own."""

        def guarded() -> None:
            try:
                work()
            except (RayError, RunError) as error:
                self._fail(lost(error) if isinstance(error, RayError) else error)

        thread = threading.Thread(target=guarded, name=f"label embeddings: {name}", daemon=True)
        thread.start()
        return thread

    def _fail(self, error: RunError) -> None:
        """A thread has ended by this error, which is told when the stage asks next."""
        self._failure = error


class Outgoing:
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


def tensor_of(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values.copy())  # what Ray hands over must not be written to


def lost(error: RayError) -> RunError:
    """For a stage the coordinator is a neighbour: where that died or failed, the run's error is the coordinator's."""
    return own_error(error) or PeerLostError(f"{NAME} is gone")
