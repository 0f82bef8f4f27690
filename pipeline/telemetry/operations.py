"""What PyTorch's profiler saw of a stage: operators, kernels and the calls that launched them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

MOST_OPERATIONS = 100_000
"""Kept of a stage's profile, first ones first: some 10 MB of a trace."""

_HOST = frozenset({"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"})
_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True)
class Operation:
    """An operator that a thread ran, a call that launched a kernel, or a kernel.

    Attributes:
        name, kind: as PyTorch has them: kind "cpu_op", "cuda_runtime", "kernel" and so on.
        thread: "" is the stage's own; else of another thread, or a GPU's stream.
        begin, end: nanoseconds since 1970: as seconds, a float would tell 240 of them apart.
        launch: the same number for a kernel and the call that launched it; None where it is neither.
    """

    name: str
    kind: str
    thread: str
    begin: int
    end: int
    launch: int | None = None

    @property
    def on_gpu(self) -> bool:
        return self.kind in _DEVICE


def operations(said: Mapping[str, Any], thread: int) -> list[Operation]:
    """The operations in a Chrome trace of PyTorch's, in order.

    Args:
        thread: the stage's, by the system's number.
    """
    base = int(said.get("baseTimeNanoseconds", 0))
    found = []
    for event in said["traceEvents"]:
        kind = event.get("cat")
        if event.get("ph") != "X" or kind not in _HOST | _DEVICE:
            continue
        whose = event["tid"]
        name = f"stream {whose}" if kind in _DEVICE else "" if whose == thread else f"thread {whose}"
        begin = base + round(event["ts"] * 1000)  # from microseconds
        launch = event.get("args", {}).get("correlation") if kind != "cpu_op" else None
        found.append(Operation(event["name"], kind, name, begin, begin + round(event["dur"] * 1000), launch))
    return sorted(found, key=lambda one: (one.begin, -one.end))


def packed(found: Iterable[Operation]) -> bytes:
    """Operations as bytes that travel lightly."""
    return zlib.compress(json.dumps([astuple(one) for one in found]).encode())


def unpacked(profile: bytes) -> tuple[list[Operation], int]:
    """The operations of ``packed``, at most ``MOST_OPERATIONS`` of them, and how many are left out."""
    found = [Operation(*one) for one in json.loads(zlib.decompress(profile))]
    return found[:MOST_OPERATIONS], max(0, len(found) - MOST_OPERATIONS)
