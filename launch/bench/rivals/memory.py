"""The most memory that a process holds, and giving back what it holds for no use."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the high-water mark of the resident set becomes its present size


def reset_peak(device: torch.device) -> None:
    """From now on the peak counts anew: the resident set's on a CPU, the allocator's on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # where the kernel does not allow it, the peak is that since the process began
            _CLEAR_REFS.write_text(_RESET_PEAK)


def peak_bytes(device: torch.device) -> int:
    """The peak since it was reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def give_back(device: torch.device) -> None:
    """Returns freed memory to the system, which ``pipeline.allocator`` keeps otherwise."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
