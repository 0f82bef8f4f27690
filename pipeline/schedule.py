"""The order of everything: which layers form a stage, which passes a run makes, what a pipeline gains at best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from operator import add

from pipeline.errors import UserError
from pipeline.messages import Kind

Pass = tuple[Kind, int]
"""A pass over a split: what stages do with its batches, and the epoch that keys its randomness."""


def partition(num_layers: int, num_stages: int) -> tuple[range, ...]:
    """Contiguous, as even as can be, larger stages last: the first one augments as well.

    Raises:
        UserError: fewer than one stage, or more stages than layers.
    """
    if num_stages < 1:
        raise UserError(
            f"--stages {num_stages}: a pipeline has at least one, and this net has {num_layers} layers. "
            f"Give 1 to {num_layers}, or auto."
        )
    if num_stages > num_layers:
        raise UserError(
            f"--stages {num_stages}: this net has {num_layers} layers, so 1 to {num_layers} stages. "
            f"Give at most --stages {num_layers}."
        )
    small, larger = divmod(num_layers, num_stages)
    return sized([small + (stage >= num_stages - larger) for stage in range(num_stages)])


def sized(sizes: Sequence[int]) -> tuple[range, ...]:
    """Stages of so many layers each, from the first layer on."""
    ends = list(accumulate(sizes))
    return tuple(range(end - size, end) for end, size in zip(ends, sizes, strict=True))


def balanced(costs: Sequence[float], num_stages: int) -> tuple[range, ...]:
    """The contiguous stages whose slowest is as fast as can be; among those, the most even ones.

    Args:
        costs: of each layer, such as seconds, at least 0. The first layer's includes what only the first stage does.

    Exact, by dynamic programming: once for the slowest stage, and once for the least sum of squares that it allows.
    Where two are as good, larger stages come last.

    Raises:
        UserError: fewer than one stage, or more stages than layers.
    """
    partition(len(costs), num_stages)  # refuses what cannot be
    num_layers = len(costs)
    stage_costs = {(start, end): math.fsum(costs[start:end]) for end in range(num_layers + 1) for start in range(end)}

    def cut(bound: float, join: Callable[[float, float], float], weigh: Callable[[float], float]) -> list[int]:
        """Where stages end, for the least joint weight with no stage above ``bound``; the weight of nothing is 0."""
        best: list[tuple[float, list[int]] | None] = [(0.0, []), *[None] * num_layers]
        for _ in range(num_stages):
            longer: list[tuple[float, list[int]] | None] = [None] * (num_layers + 1)
            for (start, end), cost in stage_costs.items():
                before, known = best[start], longer[end]
                if before is None or cost > bound:
                    continue
                weight = join(before[0], weigh(cost))
                if known is None or weight < known[0]:
                    longer[end] = (weight, [*before[1], end])
            best = longer
        found = best[num_layers]
        assert found is not None, "a bound that some partition keeps"
        return found[1]

    ends = cut(math.inf, max, lambda cost: cost)
    slowest = max(stage_costs[pair] for pair in pairwise([0, *ends]))
    ends = cut(slowest, add, lambda cost: cost**2)
    return sized([end - start for start, end in pairwise([0, *ends])])


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
