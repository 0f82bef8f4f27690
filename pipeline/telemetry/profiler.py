"""PyTorch's profiler around some steps of a stage that has its process to itself.

PyTorch profiles one thread at a time: two of them at once end the process (PyTorch 2.13).
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path

import torch
from torch.autograd.profiler import profile

from pipeline.telemetry.operations import operations, packed


class StageProfiler:
    """Profiles the thread that calls it, with the threads that work for it. Implements
    ``pipeline.telemetry.trace.Profiler``."""

    def __init__(self, device: torch.device) -> None:
        self._device = None if device.type == "cpu" else device.type
        self._running: profile | None = None

    def start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the library behind it prints a line each time
        # Not ``torch.profiler.profile`` around it, which first imports the compiler: seconds, amid the training.
        self._running = profile(use_device=self._device)
        self._running.__enter__()

    def stop(self) -> bytes:
        """``packed`` operations. Waits for the device."""
        running, self._running = self._running, None
        assert running is not None, "start() comes first"
        running.__exit__(None, None, None)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "profile.json")
            running.export_chrome_trace(str(file))
            said = json.loads(file.read_text())
        return packed(operations(said, threading.get_native_id()))

    def close(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None
