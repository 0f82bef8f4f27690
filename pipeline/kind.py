"""What is done with a message, and so with a pass: a name that every room uses."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a stage does with a message. Batches first, then control tokens, which carry no tensors."""

    TRAIN = 1
    """Update the layers."""
    VALIDATE = 2
    """Evaluate on validation images; weights at the first such batch of an epoch are that epoch's candidate."""
    READOUT = 3
    """Train the readouts on the frozen layers."""
    TEST = 4
    """Evaluate on test images and keep the predictions."""
    RESTORE = 5
    """Take the candidate weights of the message's epoch."""
    STOP = 6
    """Nothing follows."""
    JUDGE = 7
    """Evaluate the readouts on validation images; of each, the best so far is kept."""
    CHECKPOINT = 8
    """Save what the next update depends on, between the same two batches in every stage."""
    TRACE = 9
    """Trace the training steps that follow: ``step`` of them, with ``position`` of them profiled."""

    @property
    def is_control(self) -> bool:
        """Whether it is a control token: it carries no batch and may stand anywhere, also inside a pass."""
        return self in (Kind.RESTORE, Kind.STOP, Kind.CHECKPOINT, Kind.TRACE)

    @property
    def is_evaluation(self) -> bool:
        """Whether layers and readouts are only looked at."""
        return self in (Kind.VALIDATE, Kind.TEST, Kind.JUDGE)
