"""When a stage's steps begin and end, on a CPU and on a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.telemetry.clock import Clock, TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import StepTimes

_EVERY, _FIRST = 200, 20  # of these steps one is probed, from that one on: the first ones load kernels
_LONGER = 1.5  # times what the step before took to issue: for so long the GPU is held back
_CYCLES = 2e9  # a second, of a GPU at its fastest; a slower one is held back for longer
_TRIES = 3  # probes that come to nothing one after the other, after which no more are made


class BusyMeter:
    """Accounts for each step's time: the host's on a CPU, the GPU's by CUDA events, without a stall.

    From a GPU step's first kernel to its last one there are gaps where the host issues more slowly than the GPU
    computes, and events don't see them. So now and then a step is probed: a kernel that only waits holds the GPU back
    until the host has issued what comes behind it, whose kernels then follow one another without a gap. The host is
    not held up, and where it is the slower of the two, the GPU has made up for it some steps later. A GPU that is
    behind its host by itself needs no holding back; a host that waits for room among its launches then takes as long as
    the GPU.
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._device = clock, device
        self._step: _GpuStep | None = None
        self._pending: deque[_GpuStep] = deque()
        self._before: list[float] = []  # host seconds of the last step's stretches
        self._alike, self._in_vain = 0, 0  # steps that may be probed; probes since the last one that told something

    @contextmanager
    def step(self, *, alike: bool = False) -> Iterator[None]:
        """Around one step's work.

        Args:
            alike: it is one of many that are alike, such as training steps, of which some may be probed.
        """
        if self._device.type != "cuda":
            with self._clock.measure(TimeCategory.BUSY):
                yield
            return
        step = self._step = self._next(alike=alike)
        self._begin(step)
        yield
        self._end(step)
        self._step = None
        self._pending.append(step)
        if step.timed:
            self._before = step.issued
        while self._pending and self._pending[0].done:
            self._credit()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within a step, around what is no work of the device: sending, with its waiting for the neighbour."""
        if self._step is None:
            yield  # on a CPU the channel accounts for its time itself
            return
        self._end(self._step)
        yield
        self._begin(self._step)

    def _next(self, *, alike: bool) -> _GpuStep:
        """The step that begins. One is probed, and the one before it timed, to hold the GPU back for long enough."""
        self._alike += alike
        place = self._alike % _EVERY
        wanted = alike and self._in_vain < _TRIES
        probed = wanted and place == _FIRST
        behind = probed and bool(self._pending) and not self._pending[-1].events[-1][0].query()
        return _GpuStep(timed=wanted and place in (_FIRST - 1, _FIRST), probed=probed, held=probed and not behind)

    def _begin(self, step: _GpuStep) -> None:
        number = len(step.events)
        if step.held and number < len(self._before):
            torch.cuda._sleep(int(_LONGER * _CYCLES * self._before[number]))
        step.events.append((self._event(), torch.cuda.Event(enable_timing=True)))
        if step.timed:
            step.issued.append(-self._working())

    def _end(self, step: _GpuStep) -> None:
        begun, ended = step.events[-1]
        if step.timed:
            step.issued[-1] += self._working()
        if step.probed and begun.query():  # it has begun amid being issued, so there may be gaps
            step.gapless = False
        ended.record(torch.cuda.current_stream(self._device))

    def _working(self) -> float:
        """Host seconds until now that it did not wait or copy."""
        account = self._clock.read()
        return account.wall - sum(seconds for kind, seconds in account.seconds.items() if kind is not TimeCategory.BUSY)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def finish(self) -> None:
        """Waits for the last steps and accounts for them."""
        while self._pending:
            self._pending[0].events[-1][1].synchronize()
            self._credit()

    def _credit(self) -> None:
        step = self._pending.popleft()
        seconds = step.seconds
        self._clock.credit(TimeCategory.BUSY, seconds)
        if step.held:
            self._in_vain = 0 if step.gapless else self._in_vain + 1
        if step.probed and step.gapless:
            self._clock.launched(issue=sum(step.issued), kernels=seconds)


@dataclass(kw_only=True)
class _GpuStep:
    """A step on a GPU, in one stretch or, where it sends amid it, several.

    Attributes:
        timed: the host's time is measured, which takes some microseconds.
        probed: it may tell how long its kernels take without gaps.
        held: the GPU is held back for that.
        events: around each stretch.
        issued: host seconds in which each was issued, of a step that is timed.
        gapless: no stretch had begun before all of it was issued.
    """

    timed: bool
    probed: bool
    held: bool
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    issued: list[float] = field(default_factory=list)
    gapless: bool = True

    @property
    def done(self) -> bool:
        ended: bool = self.events[-1][1].query()
        return ended

    @property
    def seconds(self) -> float:
        """On the GPU, from each stretch's first kernel to its last; of a step that is done."""
        milliseconds: float = sum(begun.elapsed_time(ended) for begun, ended in self.events)
        return milliseconds / 1000


class StepLog:
    """Notes when the steps of a pass end. On a GPU that is when its kernels end, told by events and without a stall."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._device = clock, device
        self._readings: list[TimeBreakdown] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """The end of a step. Takes two microseconds."""
        self._readings.append(self._clock.read())
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)

    def take(self) -> StepTimes:
        """The steps since the last call."""
        ended = np.array([self._clock.started_at + reading.wall for reading in self._readings])
        if self._events:
            last = self._events[-1]
            last.synchronize()
            before = [event.elapsed_time(last) / 1000 for event in self._events]
            ended = self._clock.started_at + self._clock.read().wall - np.array(before)
        spent = np.array([[reading.seconds[kind] for kind in TimeCategory] for reading in self._readings])
        self._readings, self._events = [], []
        return StepTimes(ended, spent)
