"""The state that layers share, by calls of the coordinator's actor, from wherever a stage is."""

from __future__ import annotations

import threading

import ray
from torch import Tensor

from pipeline.errors import PeerLostError, RunError
from pipeline.runtime.state_line import Checkpoint, Said
from workers.coordinator import NAME, Gradient
from workers.remote_base import Outgoing, Part, RemoteState, tensor_of


class CalledState(RemoteState):
    """By calls of the actor: a thread sends, another one fetches every version as soon as it is made."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._changed = threading.Condition()
        self._fetched: dict[int, Tensor] = {}
        self._outgoing = Outgoing()
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
                self._fetched |= {number: tensor_of(values) for number, values in fetched.items()}
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
