"""The line between the state that layers share and a stage: an edge takes what the stage says, another brings versions.

Nobody hands anything over on the way: the stage writes and reads in the thread that trains, and a version is written
for every stage by the thread that makes it, which is the one that has just heard the last contribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError
from pipeline.kind import Kind
from pipeline.layers.shared_state import VersionedState
from pipeline.runtime.passes import Cut, trained_steps
from pipeline.transport import Transport
from pipeline.transport.base import Edge
from pipeline.transport.channel import ReceivingEnd, Sender
from pipeline.transport.message import Message, message_bytes

_SAID = 8  # what a stage has said and nobody heard yet, at most: it is heard at once
_LONGEST_KEY = 256  # bytes of a checkpoint's name
_CONTRIBUTIONS, _KEY, _VALUES = "contributions", "key", "values"


class Contributions(NamedTuple):
    """What neighbouring layers contribute in a training step: ``values`` (layers, *state), from ``layer`` on."""

    layer: int
    step: int
    values: Tensor


class Checkpoint(NamedTuple):
    """A stage has come to a checkpoint, after which training step ``step`` follows."""

    key: str
    step: int


Said = Contributions | Checkpoint
"""What a stage says to the state."""


def state_edges(spec: RunSpec, shape: torch.Size, owner: int) -> tuple[Edge, ...]:
    """Two edges for each stage: to the owner of the state, and back from it.

    Args:
        shape: the state's.
        owner: the rank that has it.
    """
    versions = spec.shared_versions
    assert versions is not None, "layers share a state"
    # Both are in host memory whatever the layers are on: what is said of edges between GPUs is not of these.
    over_gloo = spec.device == "cpu" and spec.settings.pipeline.transport == "gloo"
    transport: Transport = "gloo" if over_gloo else "auto"

    def size(*of: int) -> int:
        return message_bytes(Message(Kind.TRAIN, tensors={_VALUES: torch.empty(*of, *shape, device="meta")}))

    says, hears = [], []
    for stage, layers in enumerate(spec.stages):
        said = max(_LONGEST_KEY, size(len(set(layers) & set(versions.contributors))))
        says.append(Edge(f"stage {stage + 1} → shared state", stage, owner, said, transport, _SAID, patient=True))
        hears.append(Edge(f"shared state → stage {stage + 1}", owner, stage, size(), transport, versions.most_ahead))
    return (*says, *hears)


def first_version(spec: RunSpec, layers: range, cut: Cut) -> int:
    """The oldest that a stage of these layers reads, whether the run goes on with a training step or a validation."""
    versions, begin = spec.shared_versions, trained_steps(spec, cut)
    assert versions is not None, "layers share a state"
    return min(versions.read(layers[0], begin, training=training) for training in (True, False))


class StateEnd:
    """The state's end of the line to one stage. Implements ``pipeline.layers.shared_state.Follower``."""

    def __init__(self, state: VersionedState, inbox: ReceivingEnd, outbox: Sender) -> None:
        self._state, self._inbox = state, inbox
        self._outbox: Sender | None = outbox

    def serve(self, failed: Callable[[RunError], None]) -> None:
        """Hears what the stage says until it is gone, or the state of no use: then ``failed`` gets why."""
        try:
            while True:
                try:
                    message = self._inbox.receive()
                except PeerLostError:  # it has ended, and who watches it knows how
                    return
                self._hear(message)
        except RunError as error:
            failed(error)
        finally:
            self._inbox.break_off()

    def _hear(self, message: Message) -> None:
        if message.kind is Kind.CHECKPOINT:
            self._state.checkpoint(bytes(message.tensors[_KEY].numpy()).decode(), message.step)
            return
        for number, values in enumerate(message.tensors[_CONTRIBUTIONS]):
            self._state.push(message.position + number, message.step, values)

    def tell(self, number: int, values: Tensor) -> None:
        """A version for the stage. There is room: no stage is as many versions behind as may wait."""
        if self._outbox is not None:
            try:
                self._outbox.send(Message(Kind.TRAIN, step=number, tensors={_VALUES: values}))
            except PeerLostError:  # a stage that is gone needs none, and the others do
                self.break_off()

    def break_off(self) -> None:
        """The stage is gone, or sees by this that no more versions come."""
        if self._outbox is not None:
            self._outbox.break_off()
            self._outbox = None


class StageEnd:
    """A stage's end of the line."""

    def __init__(self, inbox: ReceivingEnd, outbox: Sender) -> None:
        self._inbox, self._outbox = inbox, outbox

    def say(self, said: Said) -> None:
        """Tells the state. Raises PeerLostError where it is gone."""
        if isinstance(said, Checkpoint):
            key = torch.frombuffer(bytearray(said.key.encode()), dtype=torch.uint8)
            self._outbox.send(Message(Kind.CHECKPOINT, step=said.step, tensors={_KEY: key}))
        else:
            tensors = {_CONTRIBUTIONS: said.values}
            self._outbox.send(Message(Kind.TRAIN, step=said.step, position=said.layer, tensors=tensors))

    def next_version(self) -> tuple[int, Tensor]:
        """The number and the values of the next version.

        Raises:
            PeerLostError: it does not come within the stall timeout, or the state is gone.
        """
        message = self._inbox.receive()
        return message.step, message.tensors[_VALUES].clone()  # its buffer is used again
