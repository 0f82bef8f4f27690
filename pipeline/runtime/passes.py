"""The order of a run's passes over its data."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.kind import Kind

Pass = tuple[Kind, int]
"""A pass over a split: what stages do with its batches, and the epoch that keys its randomness."""


def layer_passes(epochs: Iterable[int]) -> list[Pass]:
    """Passes that train the layers of a phase, each followed by a validation."""
    return [(kind, epoch) for epoch in epochs for kind in (Kind.TRAIN, Kind.VALIDATE)]


def next_phase(best_epoch: int, epochs: Iterable[int]) -> list[Pass]:
    """What follows a phase whose best epoch is known, where more layers learn after it."""
    return [(Kind.RESTORE, best_epoch), *layer_passes(epochs)]


def closing_passes(best_epoch: int, epochs: int, readout_epochs: int, *, judged: bool = False) -> list[Pass]:
    """What follows the last phase once its best epoch is known. Readout epochs go on counting: they draw new views.

    Args:
        judged: whether each of them is followed by a validation, so that the best can be kept.
    """
    kinds = (Kind.READOUT, Kind.JUDGE) if judged else (Kind.READOUT,)
    readouts = [(kind, epochs + epoch) for epoch in range(readout_epochs) for kind in kinds]
    return [(Kind.RESTORE, best_epoch), *readouts, (Kind.TEST, 0), (Kind.STOP, 0)]
