"""The state that layers share, through memory that a stage and the coordinator both see: they are on one machine."""

from __future__ import annotations

import threading

import ray
from ray.exceptions import RayError
from torch import Tensor

from pipeline.errors import PeerLostError
from pipeline.runtime.state_line import Said, StageEnd
from workers.coordinator import NAME
from workers.remote_base import Outgoing, Part, RemoteState

_ANSWER = 5.0  # seconds for the coordinator to say what it waits for, and to take what is being said


def open_line(part: Part) -> StageEnd | None:
    """A line to the coordinator; None where there can be none. Raises RayError where it is gone."""
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


class NearState(RemoteState):
    """Through a line to a coordinator on this machine."""

    def __init__(self, part: Part, line: StageEnd) -> None:
        super().__init__(part)
        self._line = line
        self._outgoing: Outgoing | None = None
        self._sending: threading.Thread | None = None
        if part.device.type == "cuda":  # whose gradients come later than they are said
            self._outgoing = Outgoing()
            self._sending = self._beside("send", self._send)

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
        if self._outgoing is not None and self._sending is not None:
            self._outgoing.close()
            self._sending.join(_ANSWER)
        self._line.close()
