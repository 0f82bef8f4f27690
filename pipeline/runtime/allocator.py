"""glibc keeps freed memory instead of giving it back to the system page by page.

Activations are large, and by default each is mapped anew and zeroed by the kernel in every step. On a CPU that cost
conv256 more than half its speed (batch 512, one thread). The bits stay the same.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_LARGEST = 2**31 - 1  # bytes; mallopt takes an int
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(_LARGEST),
    "MALLOC_TRIM_THRESHOLD_": str(_LARGEST),
    "MALLOC_ARENA_MAX": "1",
}
"""The same for processes that are yet to start."""


@cache
def keep_freed_memory() -> None:
    """Sets it for this process, once. Does nothing on another C library, or where a MALLOC_ variable says otherwise."""
    if any(name in os.environ for name in ENVIRONMENT):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
    # A second thread would get an arena of its own, whose blocks are too small for activations.
    mallopt(_ARENA_MAX, 1)
