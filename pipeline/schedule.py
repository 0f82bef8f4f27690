"""The order of everything: which layers form a stage, which passes a run makes, what a pipeline gains at best."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.messages import Kind

Pass = tuple[Kind, int]
"""A pass over a split: what stages do with its batches, and the epoch that keys its randomness."""


def partition(num_layers: int, num_stages: int) -> tuple[range, ...]:
    """Contiguous, as even as can be, larger stages last: the first one augments as well.

    Raises:
        UserError: fewer than one stage, or more stages than layers.
    """
    if not 1 <= num_stages <= num_layers:
        raise UserError(
            f"--stages {num_stages}: this net has {num_layers} layers, so 1 to {num_layers} stages. "
            f"Give at most --stages {num_layers}."
        )
    small, larger = divmod(num_layers, num_stages)
    sizes = [small + (stage >= num_stages - larger) for stage in range(num_stages)]
    starts = [sum(sizes[:stage]) for stage in range(num_stages)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def layer_passes(epochs: int) -> list[Pass]:
    """Passes that train the layers, each followed by a validation."""
    return [(kind, epoch) for epoch in range(epochs) for kind in (Kind.TRAIN, Kind.VALIDATE)]


def closing_passes(best_epoch: int, epochs: int, readout_epochs: int) -> list[Pass]:
    """What follows once the best epoch is known. Readout epochs go on counting, so that they draw new views."""
    readouts = [(Kind.READOUT, epochs + epoch) for epoch in range(readout_epochs)]
    return [(Kind.RESTORE, best_epoch), *readouts, (Kind.TEST, 0), (Kind.STOP, 0)]


def fill(num_steps: int, num_stages: int) -> float:
    """Share of ticks in which the pipeline is full: T batches take T + S − 1 ticks."""
    return num_steps / (num_steps + num_stages - 1) if num_steps else 0.0


def ideal_speedup(stage_seconds: Sequence[float], num_steps: int) -> float:
    """Σ t / max t × fill: the serial time over the time that the slowest stage alone dictates (design.md)."""
    slowest = max(stage_seconds, default=0.0)
    return sum(stage_seconds) / slowest * fill(num_steps, len(stage_seconds)) if slowest else 0.0
