"""What a pipeline gains at best."""

from __future__ import annotations

from collections.abc import Sequence


def fill(num_steps: int, num_stages: int) -> float:
    """Share of ticks in which the pipeline is full: T batches take T + S − 1 ticks."""
    return num_steps / (num_steps + num_stages - 1) if num_steps else 0.0


def ideal_speedup(phases: Sequence[Sequence[float]], fill_seconds: float = 0.0) -> float:
    """Σ t / (Σ max t + fill): the serial time over the time that the slowest stage of each phase alone dictates.

    Args:
        phases: t, each stage's computing time in every phase of the run; a phase begins when the one before is over.
        fill_seconds: how long others work before the slowest stage has its first batch and after its last one. 0 is a
            pipeline that is always full. With S equal stages it is S − 1 steps: then the result is S × ``fill``.
    """
    slowest = sum(max(stage_seconds, default=0.0) for stage_seconds in phases)
    return sum(map(sum, phases)) / (slowest + fill_seconds) if slowest else 0.0
