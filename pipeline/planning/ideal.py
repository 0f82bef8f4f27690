"""What a pipeline gains at best."""

from __future__ import annotations

from collections.abc import Sequence


def fill(num_steps: int, num_stages: int) -> float:
    """Share of ticks in which the pipeline is full: T batches take T + S − 1 ticks."""
    return num_steps / (num_steps + num_stages - 1) if num_steps else 0.0


def ideal_speedup(stage_seconds: Sequence[float], fill_seconds: float = 0.0) -> float:
    """Σ t / (max t + fill): the serial time over the time that the slowest stage alone dictates.

    Args:
        stage_seconds: t, each stage's computing time over the whole run.
        fill_seconds: how long others work before the slowest stage has its first batch and after its last one. 0 is a
            pipeline that is always full. With S equal stages it is S − 1 steps: then the result is S × ``fill``.
    """
    slowest = max(stage_seconds, default=0.0)
    return sum(stage_seconds) / (slowest + fill_seconds) if slowest else 0.0
