"""The coordinator: the state that layers share in a Ray actor of its own.

Stages of its machine have a line to it through memory that both see, others call it (``workers.remote_state``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError
from pipeline.layers.shared_state import VersionedState
from pipeline.layers.state import State
from pipeline.runtime.checkpointing import Checkpointing, shared_state
from pipeline.runtime.state_line import Checkpoint, Offered, StateEnd
from workers.attempts import of_attempt
from workers.parts import HasParts
from workers.signals import die_of_sigterm

HOLDS = "label embeddings"
NAME = f"coordinator ({HOLDS})"

Gradient = tuple[int, int, NDArray[np.float32]]
"""Layer, step and what the layer contributes."""


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
        self._begun = _Begun(attempt, shared_state(self._spec, saver, checkpointing.resume))

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

    def offer_line(self, attempt: int, stage: str) -> Offered | None:
        """What a stage of this name opens its end of a line with; None where there can be none."""
        begun = self._of(attempt)
        end = StateEnd(begun.state, stage, NAME, self._spec.settings.pipeline.stall_timeout)
        if end.offered is not None:
            begun.lines[stage] = end
        return end.offered

    def take_line(self, attempt: int, stage: str, address: str | None, version: int) -> bool:
        """Opens the other end of a stage's line, to versions from this one on; whether that is possible.

        Args:
            address: of what the stage offers in turn; None: it cannot reach what it was offered.
        """
        begun = self._of(attempt)
        end = begun.lines[stage]
        if address is None or not end.take(address, version):
            end.break_off()
            return False
        threading.Thread(target=end.serve, args=(begun.fail,), name=f"line to {stage}", daemon=True).start()
        return True

    def lacking(self, attempt: int) -> str:
        """Whose contributions the next version waits for, in words."""
        return self._of(attempt).state.lacking()

    def push(self, attempt: int, said: list[Gradient | Checkpoint]) -> None:
        """Takes what a stage says, in the order in which it says it."""
        begun = self._of(attempt)
        try:
            for one in said:
                if isinstance(one, Checkpoint):
                    begun.state.checkpoint(one.key, one.step)
                else:
                    layer, step, gradient = one
                    begun.state.push(layer, step, torch.from_numpy(gradient.copy()))
        except RunError as error:
            begun.fail(error)
            raise

    def wait_from(self, attempt: int, version: int) -> dict[int, NDArray[np.float32]]:
        """This version, when it is there, and all that follow it."""
        return {number: values.numpy() for number, values in self._of(attempt).state.wait_from(version).items()}

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
    state: VersionedState
    lines: dict[str, StateEnd] = field(default_factory=dict)
    failure: RunError | None = None
    failed: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: RunError) -> None:
        """What waits for the state ends. The first error counts."""
        if not self.failed.is_set():
            self.failure = error
            self.failed.set()
        self.state.break_off()
