"""Which layers form a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from operator import add

from pipeline.errors import UserError
from pipeline.nets.chain import even_sizes


def partition(num_layers: int, num_stages: int) -> tuple[range, ...]:
    """Contiguous, as even as can be, larger stages last: the first one augments as well.

    Raises:
        UserError: fewer than one stage, or more stages than layers.
    """
    if num_stages < 1:
        raise UserError(
            f"`stages` {num_stages}: a pipeline has at least one, and this net has {num_layers} layers. "
            f"Give 1 to {num_layers}, or auto."
        )
    if num_stages > num_layers:
        raise UserError(
            f"`stages` {num_stages}: this net has {num_layers} layers, so 1 to {num_layers} stages. "
            f"Give at most `stages` {num_layers}."
        )
    return sized(even_sizes(num_layers, num_stages))


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
