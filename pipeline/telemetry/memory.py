"""How much memory a process or its GPU needed at most, has now, or could have."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_CLEAR, _STATUS, _MACHINE = Path("/proc/self/clear_refs"), Path("/proc/self/status"), Path("/proc/meminfo")
_RESET_PEAK = "5"  # proc(5): resets the high-water mark of the resident set


def reset_peak(device: torch.device) -> None:
    """Has ``peak_bytes`` count from now on. Where the system cannot (no Linux), it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with suppress(OSError):  # a sandbox may not allow it: the same as where the system cannot
            _CLEAR.write_text(_RESET_PEAK)


def peak_bytes(device: torch.device) -> int:
    """Peak of what PyTorch's allocator held on a GPU, or on a CPU of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def bytes_now(device: torch.device) -> int:
    """What PyTorch's allocator holds on a GPU, or on a CPU the process's resident memory."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def free_bytes(device: torch.device) -> int:
    """What a GPU, or on a CPU the machine, has left to give; without Linux half of what the machine has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MACHINE.exists():
        line = next(line for line in _MACHINE.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def resident_bytes() -> int:
    """The process's resident memory now."""
    return _resident("VmRSS")


def give_back(device: torch.device) -> None:
    """Gives freed memory back, also what is kept for the next step: for a process that others take turns with."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def _resident(field: str) -> int:
    if not _STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
