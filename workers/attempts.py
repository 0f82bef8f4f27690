"""What a worker has in one attempt at the run.

Calls of an actor that answers several at once begin in any order. So each says to which attempt it belongs: one that
comes late, from an attempt that is over, must not take what the next one has to say, nor change what that does.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from pipeline.errors import PeerLostError


class Begun(Protocol):
    """What there is from a worker's ``begin`` on."""

    attempt: int


_Begun = TypeVar("_Begun", bound=Begun)


def of_attempt(begun: _Begun | None, attempt: int, worker: str) -> _Begun:
    """What a worker has, if it is of this attempt.

    Args:
        begun: None: it is between two attempts.
        worker: its name.

    Raises:
        PeerLostError: the attempt is over.
    """
    if begun is None or begun.attempt != attempt:
        raise PeerLostError(f"{worker}: the run has begun anew")
    return begun
