"""The state that layers share as a stage sees it.

A stage never waits for an answer to a gradient. What it may wait for is a version that does not exist yet.
"""

from __future__ import annotations

from ray.exceptions import RayError

from workers.called_state import CalledState
from workers.near_state import NearState, open_line
from workers.remote_base import Part, RemoteState, lost


def remote_state(part: Part) -> RemoteState:
    """Through memory where the coordinator is on the stage's machine, else by calls.

    Raises:
        PeerLostError: the coordinator is gone.
    """
    try:
        line = open_line(part)
    except RayError as error:
        raise lost(error) from error
    return CalledState(part) if line is None else NearState(part, line)
