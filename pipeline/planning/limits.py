"""What holds a running pipeline back, told from where its stages' time goes, and what one change would give.

Pure: shares and seconds go in, a verdict comes out. ``launch plan`` says the same of a run that has not begun, by
simulating it; here it has been measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.planning.predict import moves
from pipeline.telemetry.clock import NO_LAUNCHING, Launching

_WAITS = 0.1  # share of a stage's time from which on waiting is what limits, where it can be told for what
_WORTH = 0.02  # what a change must gain to be spoken of
_GRAVE = 0.1  # what it must gain for a warning
_LAUNCHES = 1.1  # times as long as the GPU computes, from which on the host's launches limit
_HARDLY = 1.1  # times as much as input feeds, below which it could not feed more to speak of
_FEWER_LAUNCHES = "`compile` on makes fewer kernels of it, a larger `batch_size` gives each more to do"


@dataclass(frozen=True, kw_only=True)
class StageLoad:
    """Where a stage's time went: shares of its wall time.

    Attributes:
        layers: the stage's.
        utilisation: computing.
        wait_in, sync: waiting for input; for the state that layers share.
        launching: what its host takes to issue a step and its GPU to compute it; without steps on a CPU.
    """

    layers: range
    utilisation: float
    wait_in: float
    sync: float
    launching: Launching = NO_LAUNCHING


@dataclass(frozen=True)
class Verdict:
    """What limits, and what would help, in words that name settings in backquotes.

    Attributes:
        stage: the stage that limits, 0-based; None where something else does.
        gain: by which share ``advice`` makes the pipeline faster, where that can be told.
        grave: whether a person should be told who does not look at the live table.
        headroom: how many times as much the input could feed; None where that is not known, or input limits.
    """

    limit: str
    advice: str = ""
    stage: int | None = None
    gain: float = 0.0
    grave: bool = False
    headroom: float | None = None

    def __str__(self) -> str:
        return "; ".join(part for part in (self.limit, self.advice, self._input) if part)

    @property
    def _input(self) -> str:
        if self.headroom is None:
            return ""
        if self.headroom < _HARDLY:
            return "input could hardly feed more"
        return f"input could feed {self.headroom:.{0 if self.headroom >= 10 else 1}f} times as much"


def verdict(
    loads: Sequence[StageLoad],
    seconds: Mapping[int, float] | None = None,
    *,
    cores: int | None = None,
    feeders: int = 1,
    reading: float | None = None,
    graphs: bool = False,
) -> Verdict:
    """What limits a pipeline.

    Args:
        loads: of every stage, first to last.
        seconds: computing time of every layer over the same steps; None where it is not known.
        cores: that the stages share, where those are fewer than the stages.
        feeders: workers that read; 0: the first stage does it, and waits meanwhile.
        reading: the share of time in which the busiest feeder reads and batches; None where it is not known.
        graphs: whether the layers' steps are CUDA graphs, as far as they can be.
    """
    busiest = max(range(len(loads)), key=lambda stage: loads[stage].utilisation)
    first, most = loads[0], loads[busiest]
    if cores is not None:
        return Verdict(f"the cores limit: {len(loads)} stages take turns on {cores}", f"give at most {cores} stages")
    slowest_sync = max(range(len(loads)), key=lambda stage: loads[stage].sync)
    if loads[slowest_sync].sync > _WAITS and loads[slowest_sync].sync > first.wait_in:
        waits = loads[slowest_sync].sync
        return Verdict(
            f"the state that layers share limits: stage {slowest_sync + 1} waits for it {waits:.0%} of its time",
            "a larger `embedding_lag` lets it come later",
            grave=True,
        )
    if first.wait_in > _WAITS:
        return Verdict(
            f"input limits: stage 1 waits for images {first.wait_in:.0%} of its time",
            f"try `feeders` {feeders + 1}",
            grave=True,
        )
    if most.launching.issue > _LAUNCHES * most.launching.kernels:
        return Verdict(
            f"stage {busiest + 1} is bound by launches: the host takes {most.launching.issue_ms:.2f} ms to issue what "
            f"the GPU computes in {most.launching.kernel_ms:.2f} ms",
            _FEWER_LAUNCHES if graphs else "try `graphs` on",
            stage=busiest,
            grave=True,
        )
    reads = reading if feeders else first.wait_in
    headroom = 1 / reads if reads else None
    said = Verdict(f"stage {busiest + 1} limits (busy {most.utilisation:.0%})", stage=busiest, headroom=headroom)
    if len(loads) == 1 or seconds is None:
        return said
    what, gain = _best_move([load.layers for load in loads], seconds)
    if gain < _WORTH:
        return replace(said, advice="no layer on another stage would make it faster")
    return replace(said, advice=f"moving {what}: +{gain:.0%}", gain=gain, grave=gain >= _GRAVE)


def _best_move(stages: Sequence[range], seconds: Mapping[int, float]) -> tuple[str, float]:
    """The layer to be moved to a neighbour, and by which share the slowest stage is faster then."""

    def slowest(divided: Sequence[range]) -> float:
        return max(sum(seconds[layer] for layer in layers) for layers in divided)

    found = [(what, slowest(stages) / slowest(moved) - 1) for what, moved in moves(tuple(stages))]
    return max(found, key=lambda one: one[1], default=("", 0.0))
