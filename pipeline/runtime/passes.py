"""The order of everything: which layers form a stage, which passes a run makes, what a pipeline gains at best."""

from __future__ import annotations

from pipeline.kind import Kind

Pass = tuple[Kind, int]
"""A pass over a split: what stages do with its batches, and the epoch that keys its randomness."""


def layer_passes(epochs: int) -> list[Pass]:
    """Passes that train the layers, each followed by a validation."""
    return [(kind, epoch) for epoch in range(epochs) for kind in (Kind.TRAIN, Kind.VALIDATE)]


def closing_passes(best_epoch: int, epochs: int, readout_epochs: int, *, judged: bool = False) -> list[Pass]:
    """What follows once the best epoch is known. Readout epochs go on counting, so that they draw new views.

    Args:
        judged: whether each of them is followed by a validation, so that the best can be kept.
    """
    kinds = (Kind.READOUT, Kind.JUDGE) if judged else (Kind.READOUT,)
    readouts = [(kind, epochs + epoch) for epoch in range(readout_epochs) for kind in kinds]
    return [(Kind.RESTORE, best_epoch), *readouts, (Kind.TEST, 0), (Kind.STOP, 0)]
