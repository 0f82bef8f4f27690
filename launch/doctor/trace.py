"""What a trace of torch.profiler says of a training step: how many kernels or operators, and for how long."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import profile

_KERNELS, _COPIES = "kernel", ("gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
_OPERATORS = "cpu_op"


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """Of one step, in the mean over those traced.

    Attributes:
        kernels: that ran on the GPU; None on a CPU.
        launches: calls that started them: a CUDA graph starts many by one. None on a CPU.
        operators: of PyTorch that nothing but Python called. Compiled code has few.
        busy_seconds: in which a kernel or copy ran on the GPU, or on a CPU such an operator: overlaps count once.
    """

    kernels: float | None
    launches: float | None
    operators: float
    busy_seconds: float


def traced(work: profile, device: str, num_steps: int) -> StepTrace:
    """From a profile that is finished, by way of the trace that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        work.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return summed(events, device, num_steps)


def summed(events: Iterable[Mapping[str, Any]], device: str, num_steps: int) -> StepTrace:
    """From the events of a Chrome trace, which have ``cat``, ``name``, ``tid``, ``ts`` and ``dur`` in microseconds."""
    whole = [event for event in events if event.get("ph") == "X"]
    outermost = _outermost([event for event in whole if event.get("cat") == _OPERATORS])
    if device == "cpu":
        return StepTrace(
            kernels=None,
            launches=None,
            operators=len(outermost) / num_steps,
            busy_seconds=_covered(outermost) / num_steps,
        )
    kernels = [event for event in whole if str(event.get("cat")).lower() == _KERNELS]
    copies = [event for event in whole if event.get("cat") in _COPIES]
    launches = sum(event.get("name") in _LAUNCHES for event in whole)
    return StepTrace(
        kernels=len(kernels) / num_steps,
        launches=launches / num_steps,
        operators=len(outermost) / num_steps,
        busy_seconds=_covered([*kernels, *copies]) / num_steps,
    )


def _outermost(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that lie within no other of their thread."""
    found: list[Mapping[str, Any]] = []
    ends: dict[Any, float] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= ends.get(event["tid"], 0.0):
            found.append(event)
            ends[event["tid"]] = event["ts"] + event["dur"]
    return found


def _covered(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which at least one of them was under way."""
    total = end = 0.0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        begin, over = event["ts"], event["ts"] + event["dur"]
        if over > end:
            total += over - max(begin, end)
            end = over
    return total / 1e6
