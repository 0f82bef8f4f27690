"""Named stretches of a stage's time over some training steps: what a trace shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.offset import HERE, Offset

STEP = "step"
"""The slice of a whole step."""


@dataclass(frozen=True)
class TraceWish:
    """How many training steps to trace, and how many of them with PyTorch's profiler besides."""

    steps: int
    profiled: int = 0


@dataclass(frozen=True)
class TracePlan:
    """Which training steps of the run are traced, and which of them profiled: the last ones, so that what a profiler
    takes to start and to end lies behind the others."""

    steps: range
    profiled: range

    @classmethod
    def of(cls, wish: TraceWish, first: int, end: int) -> TracePlan:
        """From step ``first`` on; the run has ``end`` steps."""
        last = min(end, first + max(wish.steps, wish.profiled))
        steps = range(first, max(first, last))
        return cls(steps, steps[max(0, len(steps) - wish.profiled) :])

    def after(self, first: int) -> TracePlan:
        """What is left of it for a run that begins with step ``first``."""
        steps, profiled = (range(max(one.start, first), max(one.stop, first)) for one in (self.steps, self.profiled))
        return TracePlan(steps, profiled)


@dataclass(frozen=True)
class Slice:
    """A stretch of a stage's time.

    Attributes:
        name: "step", "forward", "wait_in" and so on.
        layer: 0-based; None where it is of no one layer.
        step: the training step of the run, 0-based, that the stage worked on or waited for.
        begin, end: seconds since 1970.
    """

    name: str
    layer: int | None
    step: int
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class StageTrace:
    """What a stage did in some training steps, by its own clock.

    Attributes:
        stage: 0-based.
        steps: of the run, 0-based; fewer than were asked for where the run was stopped.
        slices: each lies within another one or beside it.
        queue: moments, in seconds since 1970, with how many messages waited in the stage's queue.
        profile: what PyTorch's profiler saw (``pipeline.telemetry.operations``); None: nobody asked for it.
        offset: of the stage's clock from the launching process's.
    """

    stage: int
    steps: range
    slices: list[Slice]
    queue: list[tuple[float, int]]
    profile: bytes | None = None
    offset: Offset = field(default=HERE)


class Profiler(Protocol):
    """Sees what happens within slices."""

    def start(self) -> None: ...

    def stop(self) -> bytes:
        """What it saw since ``start``."""
        ...

    def close(self) -> None:
        """Ends what is under way; nobody asks for it any more."""
        ...


class Tracer:
    """Notes what a stage does in some training steps. Outside of them a mark costs a function call.

    On a GPU the moments are those at which the host launched the kernels.

    Args:
        clock: the stage's, which tells of waiting and copying.
        stage: 0-based.
        told: gets each trace at its end.
        profiler: for steps that are to be profiled; None: none ever are.
    """

    def __init__(
        self, clock: Clock, stage: int, *, told: Callable[[StageTrace], None], profiler: Profiler | None = None
    ) -> None:
        self._clock, self._stage, self._told, self._profiler = clock, stage, told, profiler
        self._due: dict[int, TracePlan] = {}
        self._plan = TracePlan(range(0), range(0))  # under way
        self._slices: list[Slice] = []
        self._queue: list[tuple[float, int]] = []
        self._profiles = False
        self._offset = 0.0  # from the performance counter to seconds since 1970
        self._step, self._begin, self._since = 0, 0.0, 0.0
        self.on = False
        """Whether a trace is under way."""

    def plan(self, plan: TracePlan) -> None:
        """Has these steps be traced, once the stage comes to them."""
        if plan.steps:
            self._due[plan.steps.start] = plan

    def start(self, plan: TracePlan) -> None:
        """Traces these steps, the first of which comes next. What is traced already ends here."""
        self.stop()
        self._plan, self._step, self.on = plan, plan.steps.start, True
        self._offset = time.time() - time.perf_counter()
        self._clock.listener = self._heard

    def stop(self) -> None:
        """Tells of what has been traced so far, if anything is."""
        if not self.on:
            return
        self.on, self._clock.listener = False, None
        profile = None
        if self._profiles and self._profiler is not None:
            profile, self._profiles = self._profiler.stop(), False
        slices, self._slices = merged(self._slices), []
        queue, self._queue = self._queue, []
        steps = range(self._plan.steps.start, self._step)
        self._told(StageTrace(stage=self._stage, steps=steps, slices=slices, queue=queue, profile=profile))

    def close(self) -> None:
        """Nothing more is traced, nor told of."""
        self.on, self._clock.listener = False, None
        if self._profiler is not None:
            self._profiler.close()

    def begin(self, step: int) -> None:
        """A step begins now."""
        if step in self._due:
            self.start(self._due.pop(step))
        if not self.on:
            return
        self._step = step
        if self._profiler is not None and self._plan.profiled and step == self._plan.profiled.start:
            begin = time.perf_counter()
            self._profiler.start()
            self._profiles = True
            self.aside("profiler", begin)
        self._begin = self._since = time.perf_counter()

    def mark(self, layer: int, name: str) -> None:
        """What a layer has done since the mark before, or since the step began, was this."""
        if self.on:
            now = time.perf_counter()
            self._note(name, layer, self._since, now)
            self._since = now

    def end(self) -> None:
        """The step is over; what follows is waiting for the next one."""
        if not self.on:
            return
        self._note(STEP, None, self._begin, time.perf_counter())
        self._step += 1
        if self._step not in self._plan.steps:
            self.stop()

    def aside(self, name: str, begin: float) -> None:
        """What is no part of a step was done since ``begin`` (``time.perf_counter``)."""
        if self.on:
            self._note(name, None, begin, time.perf_counter())

    def queued(self, messages: int) -> None:
        """So many messages wait in the stage's queue now."""
        self._queue.append((time.perf_counter() + self._offset, messages))

    def _heard(self, kind: TimeCategory, begin: float, end: float) -> None:
        if kind is not TimeCategory.BUSY:
            self._note(kind.value, None, begin, end)

    def _note(self, name: str, layer: int | None, begin: float, end: float) -> None:
        self._slices.append(Slice(name, layer, self._step, begin + self._offset, end + self._offset))


def merged(slices: list[Slice]) -> list[Slice]:
    """The slices in order, outer ones first. Pieces of one wait, cut where somebody read the clock, are one."""
    found: list[Slice] = []
    for one in sorted(slices, key=lambda one: (one.begin, -one.end)):
        last = found[-1] if found else None
        same = last is not None and (last.name, last.layer, last.step) == (one.name, one.layer, one.step)
        if last is not None and same and one.layer is None and one.begin - last.end < _TOGETHER:
            found[-1] = Slice(one.name, None, one.step, last.begin, one.end)
        else:
            found.append(one)
    return found


_TOGETHER = 1e-6  # seconds between two slices that are one
