"""When a stage's steps begin and end, on a CPU and on a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pipeline.telemetry.clock import Clock, TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import StepTimes


class BusyMeter:
    """Accounts for each step's time: the host's on a CPU, the kernels' by CUDA events on a GPU, without a stall."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._device = clock, device
        self._begin: torch.cuda.Event | None = None
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step's work."""
        if self._device.type != "cuda":
            with self._clock.measure(TimeCategory.BUSY):
                yield
            return
        self._begin = self._event()
        yield
        self._end()
        while self._pending and self._pending[0][1].query():
            self._credit()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within a step, around what is no work of the device: sending, with its waiting for the neighbour."""
        if self._device.type != "cuda":
            yield  # the channel accounts for its time itself
            return
        self._end()
        yield
        self._begin = self._event()

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _end(self) -> None:
        assert self._begin is not None, "a step has begun"
        self._pending.append((self._begin, self._event()))
        self._begin = None

    def finish(self) -> None:
        """Waits for the last steps and accounts for them."""
        while self._pending:
            self._pending[0][1].synchronize()
            self._credit()

    def _credit(self) -> None:
        begin, end = self._pending.popleft()
        self._clock.credit(TimeCategory.BUSY, begin.elapsed_time(end) / 1000)


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
