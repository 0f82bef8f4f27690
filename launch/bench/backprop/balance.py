"""Cuts the net where a pipeline of backpropagation is fastest, as ``partition`` balanced does for local learning.

Its layers cost other shares than those of local learning: they come back with a gradient for the layer before, have no
loss of their own, and work on microbatches. So they are timed by themselves.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import median

from launch.bench.backprop.group import WorkerGroup
from launch.bench.backprop.job import Job
from pipeline.config.partition import balanced
from pipeline.data.loader import Dataset
from pipeline.planning.profile import SECONDS

_LEAST_STEPS, _MOST_STEPS = 4, 20  # that are timed


def balanced_stages(job: Job, dataset: Dataset | None) -> tuple[range, ...]:
    """As many stages as a pipeline has, whose slowest is as fast as can be by the measured times of its layers.

    Args:
        dataset: as ``WorkerGroup`` takes it.

    Raises:
        CannotRunError: there is no memory for this batch.
        StageFailedError: a process failed or died.
    """
    num_layers = job.stages[-1].stop
    if len(job.stages) == num_layers:  # there is but one way
        return job.stages
    # CPU stages share memory and clock, so all work at once; GPUs do not slow each other down.
    ranks = job.num_devices if job.spec.device == "cpu" else 1
    timed = replace(job, way="layers", num_ranks=ranks, stages=(range(num_layers),))
    return balanced(_seconds_of_layers(timed, dataset), len(job.stages))


@cache  # GPipe and 1F1B with as many microbatches
def _seconds_of_layers(job: Job, dataset: Dataset | None) -> tuple[float, ...]:
    """Each layer's seconds of a step: medians over steps and devices."""
    group = WorkerGroup("timing the layers of backprop", "timing", job, dataset)
    try:
        first, *_ = group.ask("round", 1, 1)
        group.ask("layers")  # what has been timed by now is not told again
        group.ask("round", 0, min(max(_LEAST_STEPS, int(SECONDS / first.seconds)), _MOST_STEPS))
        told = group.ask("layers")
    finally:
        group.close()
    return tuple(median(seconds) for seconds in zip(*told, strict=True))
