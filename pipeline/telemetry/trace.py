"""Named stretches of a stage's time over some training steps: what a trace shows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.telemetry.clock import Clock, TimeCategory


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


class Tracer:
    """Notes what a stage does in some training steps. Outside of them a mark costs a function call.

    On a GPU the moments are those at which the host launched the kernels.

    Args:
        clock: the stage's, which tells of waiting and copying.
        steps: which steps, counted over the run.
    """

    def __init__(self, clock: Clock, steps: range) -> None:
        self._clock, self._steps = clock, steps
        self._slices: list[Slice] = []
        self._offset = 0.0  # from the performance counter to seconds since 1970
        self._on, self._step, self._begin, self._since = False, 0, 0.0, 0.0

    def begin(self, step: int) -> None:
        """A step begins now."""
        if step in self._steps and not self._on:
            self._listen(step)
        if self._on:
            self._step = step
            self._begin = self._since = time.perf_counter()

    def mark(self, layer: int, name: str) -> None:
        """What a layer has done since the mark before, or since the step began, was this."""
        if self._on:
            now = time.perf_counter()
            self._note(name, layer, self._since, now)
            self._since = now

    def end(self) -> None:
        """The step is over; what follows is waiting for the next one."""
        if not self._on:
            return
        self._note("step", None, self._begin, time.perf_counter())
        self._step += 1
        if self._step not in self._steps:
            self._on = False
            self._clock.listener = None

    def aside(self, name: str, begin: float) -> None:
        """What is no part of a step was done since ``begin`` (``time.perf_counter``)."""
        if self._on:
            self._note(name, None, begin, time.perf_counter())

    def take(self) -> list[Slice]:
        """The slices since the last call, those that follow each other as one."""
        taken, self._slices = self._slices, []
        merged: list[Slice] = []
        for one in sorted(taken, key=lambda one: (one.begin, -one.end)):
            last = merged[-1] if merged else None
            same = last is not None and (last.name, last.layer, last.step) == (one.name, one.layer, one.step)
            if last is not None and same and one.layer is None and one.begin - last.end < _TOGETHER:
                merged[-1] = Slice(one.name, None, one.step, last.begin, one.end)
            else:
                merged.append(one)
        return merged

    def _listen(self, step: int) -> None:
        self._on, self._step = True, step
        self._offset = time.time() - time.perf_counter()
        self._clock.listener = self._heard

    def _heard(self, kind: TimeCategory, begin: float, end: float) -> None:
        if kind is not TimeCategory.BUSY:
            self._note(kind.value, None, begin, end)

    def _note(self, name: str, layer: int | None, begin: float, end: float) -> None:
        self._slices.append(Slice(name, layer, self._step, begin + self._offset, end + self._offset))


_TOGETHER = 1e-6  # seconds between two slices that are one, cut where somebody read the clock
