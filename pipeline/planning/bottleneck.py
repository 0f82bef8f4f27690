"""What would hold a pipeline back that has not begun, told by simulating it without one thing after the other.

Of a running one ``pipeline.planning.limits`` tells it, from what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.planning.parts import Edge, Pipeline
from pipeline.planning.simulate import simulate

_GAIN = 0.01  # what must be gained by removing something for it to count as the limit


@dataclass(frozen=True)
class Limit:
    """What holds a pipeline back. ``stage`` is 0-based; that of a link is the one that sends."""

    kind: Literal["stage", "cores", "feeder", "link", "shared"]
    stage: int | None = None

    def __str__(self) -> str:
        match self.kind:
            case "stage":
                assert self.stage is not None
                return f"stage {self.stage + 1}"
            case "link":
                assert self.stage is not None
                return f"the link from stage {self.stage + 1}"
            case "shared":
                return "the state that the layers share"
            case _:
                return f"the {self.kind}"


def limit(pipeline: Pipeline) -> Limit:
    """What holds the pipeline back: that without which it would be fastest, else its busiest stage.

    Found by simulating the pipeline with a feeder, links, a shared state that cost nothing, one after the other.
    """
    steady = replace(pipeline, jitter=0.0)
    rate = simulate(steady, num_steps=60).steps_per_second
    seconds_of = [edge.transfer + edge.delay for edge in pipeline.edges]
    slowest = max(range(len(seconds_of)), key=lambda stage: seconds_of[stage], default=None)
    without = {
        Limit("feeder"): replace(steady, feed=replace(steady.feed, seconds=0.0, edge=Edge())),
        Limit("link", slowest): replace(
            steady, edges=tuple(replace(edge, transfer=0.0, delay=0.0) for edge in steady.edges)
        ),
        Limit("shared"): replace(steady, shared=None),
    }
    gains = {
        what: simulate(other, num_steps=60).steps_per_second / rate - 1
        for what, other in without.items()
        if other != steady
    }
    best = max(gains, key=lambda what: gains[what], default=None)
    if best is not None and gains[best] > _GAIN:
        return best
    if len(pipeline.stages) > pipeline.cores.count:
        return Limit("cores")
    seconds = pipeline.stage_seconds
    return Limit("stage", max(range(len(seconds)), key=lambda stage: seconds[stage]))
