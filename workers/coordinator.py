"""The coordinator: the state that layers share in a Ray actor of its own.

Stages have lines to it (``pipeline.runtime.state_line``), joined as their neighbours' edges are: it is one more rank.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError
from pipeline.layers.shared_state import VersionedState
from pipeline.layers.state import State
from pipeline.runtime.checkpointing import Checkpointing, shared_state
from pipeline.runtime.passes import Cut
from pipeline.runtime.state_line import StateEnd, first_version
from pipeline.telemetry.clock import Clock
from pipeline.transport.edges import leave
from workers.attempts import of_attempt
from workers.parts import HasParts
from workers.rendezvous import RunGroups
from workers.signals import die_of_sigterm

HOLDS = "label embeddings"
NAME = f"coordinator ({HOLDS})"


class CoordinatorWorker(HasParts):
    """Owns the shared state. Its calls are answered beside each other; ``watch`` ends when something is wrong.

    It begins anew with every attempt at the run. ``attempt`` as in ``workers.attempts``: what is under way from one
    that is over must not reach the state of the next.
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        die_of_sigterm()
        torch.set_num_threads(1)
        self._spec = spec
        self._begun: _Begun | None = None

    def begin(self, checkpointing: Checkpointing, attempt: int = 0) -> None:
        """Makes the state, as it was at the beginning or at a checkpoint.

        Raises:
            DamagedError: the checkpoint's part cannot be read.
            StageFailedError: what is being written of a checkpoint does not come to its end.
        """
        if self._begun is not None:
            self.end(self._begun.attempt)
        saver = self._save_anew(checkpointing, attempt)
        state = shared_state(self._spec, saver, checkpointing.resume)
        self._begun = _Begun(attempt, checkpointing.cut, state)

    def end(self, attempt: int) -> None:
        """The attempt is over: what waits for its state ends, such as a stage for a version that lacks what a dead one
        would have said."""
        self._of(attempt).fail(PeerLostError(f"{NAME}: the run begins anew"))

    def watch(self, attempt: int) -> None:
        """Returns never; raises what made the state of this attempt useless."""
        begun = self._of(attempt)
        begun.failed.wait()
        assert begun.failure is not None
        raise begun.failure

    def shape(self, attempt: int) -> torch.Size:
        """The state's."""
        return self._of(attempt).state.shape

    def connect(self, attempt: int, groups: RunGroups, first: Any) -> None:
        """Joins the run's process groups and opens a line to every stage; ``first`` as ``StageWorker.connect``."""
        begun = self._of(attempt)
        _, lines = groups.join(groups.batches.num_ranks - 1, torch.device("cpu"), Clock(), first)
        for number, layers in enumerate(self._spec.stages):
            end = StateEnd(begun.state, lines.inboxes[number], lines.outboxes[number])
            begun.state.follow(first_version(self._spec, layers, begun.cut), end)
            threading.Thread(
                target=end.serve, args=(begun.fail,), name=f"line to stage {number + 1}", daemon=True
            ).start()

    def lacking(self, attempt: int) -> str:
        """Whose contributions the next version waits for, in words."""
        return self._of(attempt).state.lacking()

    def freeze(self, attempt: int, epoch: int) -> NDArray[np.float32]:
        """The state at the end of an epoch, which is from now on the one that the run keeps."""
        state = self._of(attempt).state
        state.freeze(epoch)
        values: NDArray[np.float32] = state.candidate(epoch).numpy()
        return values

    def keep_only(self, attempt: int, best: int, upto: int) -> None:
        self._of(attempt).state.keep_only(best, upto)

    def candidate(self, attempt: int, epoch: int) -> State:
        return self._of(attempt).state.candidate_weights(epoch)

    def weights(self, attempt: int) -> State:
        return self._of(attempt).state.weights()

    def trained(self, attempt: int) -> State:
        return self._of(attempt).state.state()

    def _of(self, attempt: int) -> _Begun:
        return of_attempt(self._begun, attempt, NAME)


@dataclass
class _Begun:
    """The state in one attempt at the run, and what made it useless."""

    attempt: int
    cut: Cut
    state: VersionedState
    failure: RunError | None = None
    failed: threading.Event = field(default_factory=threading.Event)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: RunError) -> None:
        """What waits for the state ends. The first error counts."""
        with self._one_at_a_time:
            if self.failed.is_set():
                return
            self.failure = error
            self.failed.set()
            self.state.break_off()
            leave()  # then stages see it. Each line's inbox is its thread's, which ends when its stage lets go of it
