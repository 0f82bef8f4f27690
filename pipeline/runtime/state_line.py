"""The line between the state that layers share and a stage of the same machine: memory that both see.

One channel takes what the stage says, another one brings it versions. Nobody hands anything over on the way: the stage
writes and reads in the thread that trains, and a version is written for every stage by the thread that makes it, which
is the one that has just heard the last contribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import PeerLostError, RunError
from pipeline.kind import Kind
from pipeline.layers.shared_state import VersionedState
from pipeline.telemetry.clock import Clock
from pipeline.transport.message import Message, message_bytes
from pipeline.transport.shared_memory import Address, Offer, SharedReceiver, SharedSender, attach, create_offer

_SAID = 8  # what a stage has said and nobody heard yet, at most: it is heard at once
_CONTRIBUTION, _KEY, _VALUES = "contribution", "key", "values"


class Contribution(NamedTuple):
    """What a layer contributes in a training step."""

    layer: int
    step: int
    values: Tensor


class Checkpoint(NamedTuple):
    """A stage has come to a checkpoint, after which training step ``step`` follows."""

    key: str
    step: int


Said = Contribution | Checkpoint
"""What a stage says to the state."""


class Offered(NamedTuple):
    """What a stage is told of a line that it may take.

    Attributes:
        address: of the channel that brings versions, as ``Address.pack`` gives it.
        payload: bytes of the largest message, either way.
        depth: versions that may wait.
    """

    address: str
    payload: int
    depth: int


class StateEnd:
    """The state's end of the line to one stage. ``offered`` goes to the stage, what comes back to ``take``.

    Implements ``pipeline.layers.shared_state.Follower``.

    Args:
        state: whose versions the stage gets.
        stage: its name for people.
        timeout: seconds after which a stage that takes no version counts as gone.
    """

    def __init__(self, state: VersionedState, stage: str, name: str, timeout: float) -> None:
        self._state, self._stage, self._name, self._timeout = state, stage, name, timeout
        payload = message_bytes(Message(Kind.TRAIN, tensors={_VALUES: torch.empty(state.shape, device="meta")}))
        depth = state.most_ahead
        self._offer: Offer | None = create_offer(payload, depth)
        if self._offer is not None and not self._offer.make_room(depth):
            self._close_offer()  # a version that has no room would hold all stages up
        self.offered = Offered(self._offer.address.pack(), payload, depth) if self._offer is not None else None
        self._inbox: SharedReceiver | None = None
        self._outbox: SharedSender | None = None

    def take(self, address: str, version: int) -> bool:
        """Opens the line; whether that is possible. ``serve`` comes next.

        Args:
            address: of the channel that the stage offers.
            version: the first that it reads.
        """
        assert self._offer is not None and self.offered is not None, "a line was offered"
        inbox = attach(
            Address.unpack(address),
            f"{self._stage} → {self._name}",
            self.offered.payload,
            _SAID,
            stall_timeout=math.inf,  # a stage whose layers contribute nothing has nothing to say
            clock=Clock(),
        )
        if inbox is None:
            self._close_offer()
            return False
        self._inbox = inbox
        outbox = f"{self._name} → {self._stage}"
        self._outbox = self._offer.accept(outbox, stall_timeout=self._timeout, clock=Clock())
        self._offer = None
        self._state.follow(version, self)
        return True

    def serve(self, failed: Callable[[RunError], None]) -> None:
        """Hears what the stage says until it is gone, or the state of no use: then ``failed`` gets why."""
        assert self._inbox is not None, "take() comes first"
        try:
            while True:
                try:
                    message = self._inbox.receive()
                except PeerLostError:  # it has ended, and who watches it knows how
                    return
                said = _said(message)
                if isinstance(said, Checkpoint):
                    self._state.checkpoint(*said)
                else:
                    self._state.push(*said)
        except RunError as error:
            failed(error)
        finally:
            self._inbox.break_off()

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
        self._close_offer()

    def _close_offer(self) -> None:
        if self._offer is not None:
            self._offer.withdraw()
            self._offer = None


class StageEnd:
    """A stage's end of the line, in the thread that trains.

    Args:
        offered: what the state's end has.
        stage, name: the stage and who has the state, for people.
        timeout: seconds without a version after which that counts as lost.
    """

    def __init__(self, offered: Offered, stage: str, name: str, timeout: float) -> None:
        self._names, self._timeout = (f"{stage} → {name}", f"{name} → {stage}"), timeout
        self._inbox = attach(
            Address.unpack(offered.address),
            self._names[1],
            offered.payload,
            offered.depth,
            stall_timeout=timeout,
            clock=Clock(),
        )
        self._offer = create_offer(offered.payload, _SAID) if self._inbox is not None else None
        self._outbox: SharedSender | None = None

    @property
    def address(self) -> str | None:
        """Of the channel that the stage offers in turn; None where the two share no memory, as on two machines."""
        return self._offer.address.pack() if self._offer is not None else None

    def taken(self) -> None:
        """The state's end has taken what is offered."""
        assert self._offer is not None, "it was taken"
        self._outbox = self._offer.accept(self._names[0], stall_timeout=self._timeout, clock=Clock())
        self._offer = None

    def say(self, said: Said) -> None:
        """Tells the state. Raises PeerLostError where it is gone."""
        assert self._outbox is not None, "taken() comes first"
        if isinstance(said, Checkpoint):
            key = torch.frombuffer(bytearray(said.key.encode()), dtype=torch.uint8)
            self._outbox.send(Message(Kind.CHECKPOINT, step=said.step, tensors={_KEY: key}))
        else:
            tensors = {_CONTRIBUTION: said.values}
            self._outbox.send(Message(Kind.TRAIN, step=said.step, position=said.layer, tensors=tensors))

    def next_version(self) -> tuple[int, Tensor]:
        """The number and the values of the next version: a view that holds until the next call.

        Raises:
            PeerLostError: it does not come within the stall timeout, or the state is gone.
        """
        assert self._inbox is not None, "the two share memory"
        message = self._inbox.receive()
        return message.step, message.tensors[_VALUES]

    def close(self) -> None:
        """Lets go of the line, which shows at its other end."""
        if self._offer is not None:
            self._offer.withdraw()
        for end in (self._inbox, self._outbox):
            if end is not None:
                end.break_off()


def _said(message: Message) -> Said:
    if message.kind is Kind.CHECKPOINT:
        return Checkpoint(bytes(message.tensors[_KEY].numpy()).decode(), message.step)
    return Contribution(message.position, message.step, message.tensors[_CONTRIBUTION])
