"""The state that layers share as a stage sees it.

A stage never waits for an answer to a contribution. What it may wait for is a version that does not exist yet.
"""

from __future__ import annotations

import threading
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
from pipeline.runtime.state_line import Checkpoint, Contributions, Said, StageEnd
from pipeline.transport.edges import Ends
from workers.coordinator import NAME
from workers.failures import own_error
from workers.outgoing import Outgoing

_ANSWER = 5.0  # seconds for the coordinator to say what it waits for, and to take what is being said


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stage's part in an attempt at the run.

    Attributes:
        coordinator: the actor.
        layers, device: the stage's.
        attempt: to which all that it asks belongs.
    """

    spec: RunSpec
    coordinator: Any
    layers: range
    device: torch.device
    attempt: int = 0


class RemoteState:
    """The shared state as one stage sees it. Implements ``pipeline.layers.shared_state.SharedStateAccess``.

    What the layers of a stage contribute in a step goes as one message.
    """

    def __init__(self, part: Part) -> None:
        versions = part.spec.shared_versions
        assert versions is not None, "asked for only where layers share a state"
        self._part, self._schedule = part, versions
        self._last = max((layer for layer in versions.contributors if layer in part.layers), default=None)
        self._contributed: list[tuple[int, int, Tensor]] = []  # layer, step and values that have not been said yet
        self._versions: dict[int, Tensor] = {}  # those that have come and may still be read
        self._frozen: Tensor | None = None
        self._failure: RunError | None = None
        self._ends = Ends()
        self._line: StageEnd | None = None
        self._outgoing: Outgoing | None = None
        self._sending: threading.Thread | None = None

    def join(self, ends: Ends) -> None:
        """Takes up the line to the coordinator: the stage's ends of ``state_edges``."""
        (inbox,), (outbox,) = ends.inboxes, ends.outboxes
        self._ends, self._line = ends, StageEnd(inbox, outbox)
        if self._part.device.type == "cuda":  # whose contributions come later than they are said
            self._outgoing = Outgoing()
            self._sending = threading.Thread(
                target=self._send, args=(self._outgoing, self._line), name="shared state: send", daemon=True
            )
            self._sending.start()

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        """As ``VersionedState.read``, on the stage's device; waits for a version that is not there yet.

        Raises:
            PeerLostError: it does not come within the stall timeout, or the coordinator died or failed.
        """
        if self._frozen is not None and not where.training:
            return self._frozen
        version = self._schedule.read(layer, where.step, training=where.training)
        # The stage's first layer reads the oldest version of all; what is older was for steps that are over.
        oldest = self._schedule.read(self._part.layers[0], where.step, training=where.training)
        for number in [number for number in self._versions if number < oldest]:
            del self._versions[number]
        if version not in self._versions:
            self._say_contributed()  # the version may take it
            self._await(version)
        self._versions[version] = self._here(self._versions[version])
        return self._versions[version]

    def _await(self, version: int) -> None:
        while version not in self._versions:
            try:
                number, values = self._joined().next_version()
            except PeerLostError as error:
                raise self._lacking(version) from error
            self._versions[number] = values

    def _lacking(self, version: int) -> PeerLostError:
        """Why a version has not come: what the coordinator waits for, if it lives."""
        try:
            lacking = ray.get(self._part.coordinator.lacking.remote(self._part.attempt), timeout=_ANSWER)
        except RayError:  # whose end Ray tells the run
            return PeerLostError(f"{NAME} is gone")
        timeout = self._part.spec.settings.pipeline.stall_timeout
        return PeerLostError(f"{NAME}: version {version} did not come within {timeout:g} s; {lacking}")

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        """As ``SharedStateAccess.push``. Raises PeerLostError where the coordinator is gone."""
        if self._contributed and contribution.shape != self._contributed[0][2].shape:
            self._say_contributed()  # on its own: the coordinator says what is wrong with it
        self._contributed.append((layer, step, contribution))
        if layer == self._last:
            self._say_contributed()

    def _say_contributed(self) -> None:
        if self._contributed:
            layer, step, _ = self._contributed[0]
            values = torch.stack([values.detach() for _, _, values in self._contributed])
            self._contributed = []
            self._say(Contributions(layer, step, values))

    def checkpoint(self, key: str, step: int) -> None:
        """As ``SharedStateAccess.checkpoint``. Errors as ``push``."""
        self._say(Checkpoint(key, step))

    def _say(self, said: Said) -> None:
        line = self._joined()
        if self._outgoing is None:
            line.say(said)
        else:
            self._outgoing.put(said)

    def _joined(self) -> StageEnd:
        if self._failure is not None:
            raise self._failure
        assert self._line is not None, "join() comes first"
        return self._line

    def _send(self, outgoing: Outgoing, line: StageEnd) -> None:
        try:
            while waiting := outgoing.take():
                for said in waiting:
                    line.say(said)
        except RunError as error:
            self._failure = error  # which is told when the stage asks next

    def freeze(self, epoch: int) -> None:
        """As ``SharedStateAccess.freeze``.

        Raises:
            PeerLostError: the coordinator is gone.
        """
        try:
            frozen: NDArray[np.float32] = ray.get(self._part.coordinator.freeze.remote(self._part.attempt, epoch))
        except RayError as error:
            # For a stage the coordinator is a neighbour: where that died or failed, the run's error is the
            # coordinator's.
            raise own_error(error) or PeerLostError(f"{NAME} is gone") from error
        self._frozen = self._here(torch.from_numpy(frozen.copy()))  # what Ray hands over must not be written to

    def close(self) -> None:
        """The attempt is over: what was not sent yet is not, and the coordinator sees that the stage is gone."""
        if self._outgoing is not None and self._sending is not None:
            self._outgoing.close()
            self._sending.join(_ANSWER)
        self._ends.break_off()
        # A process group's connection lasts as long as something refers to it.
        self._ends, self._line, self._outgoing, self._sending = Ends(), None, None, None
        self._failure = self._failure or PeerLostError(f"{NAME}: the attempt is over")

    def _here(self, values: Tensor) -> Tensor:
        """On the stage's device: copied once, from memory that need not be waited for."""
        if values.device == self._part.device or self._part.device.type == "cpu":
            return values
        return values.pin_memory().to(self._part.device, non_blocking=True)
