"""A GPU's time without a GPU: a host that launches, a stream that computes what was launched in turn, CUDA's events."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest
import torch

from pipeline.telemetry import clock

HERTZ = 1.5e9


class GpuTime:
    """The host's time, and until when the GPU has work. Seconds.

    Args:
        room: launches that may wait for the GPU; the host waits for one that has no room.
    """

    def __init__(self, *, room: int = 1024) -> None:
        self.now = 100.0
        self.held = 0.0  # in which the GPU was kept from working
        self._free = 0.0
        self._room = room
        self._waiting: deque[float] = deque()

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def launch(self, *, host: float, kernel: float) -> None:
        """The host takes ``host`` to launch what the GPU takes ``kernel`` for."""
        self.now += host
        while self._waiting and self._waiting[0] <= self.now:
            self._waiting.popleft()
        if len(self._waiting) == self._room:
            self.now = self._waiting.popleft()
        self._free = max(self.now, self._free) + kernel
        self._waiting.append(self._free)

    def synchronize(self) -> None:
        """The host waits for all that the GPU has to do."""
        self.now = max(self.now, self._free)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Puts it in place of the clock and of CUDA's events."""
        gpu = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                self.at = max(gpu.now, gpu._free)

            def query(self) -> bool:
                return self.at <= gpu.now

            def synchronize(self) -> None:
                gpu.now = max(gpu.now, self.at)

            def elapsed_time(self, later: Event) -> float:
                assert later.query(), "CUDA refuses to tell before the later one is over"
                return (later.at - self.at) * 1000

        def sleep(cycles: int) -> None:
            gpu.held += cycles / HERTZ
            gpu.launch(host=5e-6, kernel=cycles / HERTZ)

        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda device: None)
        patch.setattr(torch.cuda, "_sleep", sleep)
        patch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: gpu.now, time=lambda: gpu.now))
